"""Batches as a pure function of (seed, step): resuming a run needs one integer, and no state.

The rows of step s are a stretch of a permutation that follows from (seed, epoch); the augmentation
follows from (seed, s). Threads and prefetching change when a batch is made, never what is in it.

In training the last partial batch of an epoch is left out (other rows each time); in evaluation
every row comes once, in order.

Shapes: n rows, B rows of a batch, C classes, h x w pixels.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from layerwise.data.examples import Batch, Examples
from layerwise.data.threads import single_threaded_pool
from layerwise.errors import DataError, OptionError
from layerwise.kinds.image.augment import Augment, augment_named
from layerwise.kinds.sources import Draw, Source, source_of


class Indexed(Protocol):
    """What can be worked ahead on: `batches[step]`, the same whoever asks and when."""

    def __getitem__(self, step: int) -> Batch: ...


class Batches:
    """Training batches of any kind of rows: `batches[step]` for any step from 0 up.

    augment: an `Augment`, a preset's name, or None; images only.
    batch_size: B, no more than there are rows.
    cache_dir: where decoded images are kept; see `storage.cache_folder`.
    threads: that decode images on the first pass, and resize crops within a batch.
    dtype: of the inputs. progress: called with (rows decoded, rows) on the first pass.
    Errors: DataError for no rows or an unreadable one; StorageError for a disk that is full.
    """

    def __init__(
        self,
        examples: Examples,
        processor: Any,
        augment: Augment | str | None = None,
        batch_size: int = 32,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        threads: int = 1,
        dtype: torch.dtype = torch.float32,
        progress: Callable[[int, int], None] | None = None,
    ):
        if not len(examples):
            raise DataError(f"no rows to train on in {examples.source or 'the data'}")
        check_batch_size(batch_size)
        self.seed, self.batch_size = seed, min(batch_size, len(examples))
        augment = augment_named(augment) if isinstance(augment, str) else augment or Augment()
        self.source = source_of(
            examples,
            processor,
            augment,
            dtype,
            cache_dir=cache_dir,
            threads=threads,
            progress=progress,
        )
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def steps_per_epoch(self) -> int:
        return self.source.n // self.batch_size

    def rows(self, step: int) -> np.ndarray:
        """The rows of this step's batch: (B,) indices into the examples."""
        epoch, place = divmod(step, self.steps_per_epoch)
        known, order = self._order
        if known != epoch:
            order = self.source.order(self.seed, epoch, self.batch_size)
            self._order = (epoch, order)  # one assignment: threads see the old pair or the new
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def __getitem__(self, step: int) -> Batch:
        rows = self.rows(step)
        draw = Draw(self.seed, step, step // self.steps_per_epoch)
        return Batch(self.source.learn(rows, draw), rows)


@dataclass
class InOrder:
    """Every row once, as evaluation sees it: `batches[i]` for i below `len(batches)`."""

    source: Source
    parts: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, step: int) -> Batch:
        return Batch(self.source.look(self.parts[step]), self.parts[step])


def in_order(
    examples: Examples,
    processor: Any,
    batch_size: int = 0,
    cache_dir: str | Path | None = None,
    threads: int = 1,
    dtype: torch.dtype = torch.float32,
    cached: bool = True,
    times: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Batch]:
    """Every row once, the last batch as large as it comes; no augmentation.

    In order, but texts by their length, so that little is padding: `batch.rows` says which.

    batch_size: 0 for as many rows as surely take less memory than a step of training; `times`: how
    many times as many.
    cached: keep decoded images for the next evaluation; False to look at images once (prediction).
    Errors: DataError naming an unreadable row; StorageError for a disk that is full.
    """
    if batch_size:
        check_batch_size(batch_size)
    images = {"cache_dir": cache_dir, "threads": threads, "cached": cached, "progress": progress}
    source = source_of(examples, processor, None, dtype, **images)
    batches = InOrder(source, source.parts(batch_size, times))
    with Prefetch(batches, stop=len(batches)) as ahead:
        for i in range(len(batches)):
            yield ahead[i]


def check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise OptionError(f"a batch of at least 1 row was expected, batch_size is {batch_size}")


class Prefetch:
    """A thread that makes the next `depth` batches while the current one is learned from.

    `prefetch[step]` is `batches[step]`; steps may jump (a run that goes back to a checkpoint), at
    the cost of the batches made in vain. An error in a batch is raised when it is asked for.
    `stop`: the first step that is not worked ahead on.
    `stall_seconds`: how long the caller has waited for batches in all.
    """

    def __init__(self, batches: Indexed, start: int = 0, depth: int = 2, stop: int | None = None):
        self.batches, self.depth = batches, depth
        self.stop = sys.maxsize if stop is None else stop
        self.stall_seconds = 0.0
        self.pool = single_threaded_pool(1)
        self.waiting: dict[int, Future[Batch]] = {}
        self.ask(range(start, min(start + depth, self.stop)))

    def __getitem__(self, step: int) -> Batch:
        for other in [s for s in self.waiting if not step <= s <= step + self.depth]:
            self.waiting.pop(other).cancel()
        self.ask([step])
        batch = self.waiting.pop(step)
        self.ask(range(step + 1, min(step + 1 + self.depth, self.stop)))
        started = time.perf_counter()
        try:
            return batch.result()
        finally:
            self.stall_seconds += time.perf_counter() - started

    def ask(self, steps: Iterable[int]) -> None:
        """Have these steps' batches made, in this order, where they are not yet on their way."""
        for step in steps:
            if step not in self.waiting:
                self.waiting[step] = self.pool.submit(self.batches.__getitem__, step)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
