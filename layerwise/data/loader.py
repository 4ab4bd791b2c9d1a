"""Batches as a pure function of (seed, step): resuming a run needs one integer, and no state.

The rows of step s are a stretch of a permutation that follows from (seed, epoch); the augmentation
follows from (seed, s). Threads and prefetching change when a batch is made, never what is in it.

In training the last partial batch of an epoch is left out (other rows each time); in evaluation
every row comes once, in order.

Shapes: n rows, B rows of a batch.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from layerwise.data.examples import Batch
from layerwise.data.sources import Draw
from layerwise.data.threads import single_threaded_pool
from layerwise.errors import DataError, OptionError


class Indexed(Protocol):
    """What can be worked ahead on: `batches[step]`, the same whoever asks and when."""

    def __getitem__(self, step: int) -> Batch: ...
    def draw(self, step: int) -> Draw: ...


class Rows(Protocol):
    """What batches are made of: `tasks.feed.Feed`."""

    n: int

    def order(self, seed: int, epoch: int, batch_size: int) -> np.ndarray: ...
    def parts(self, batch_size: int = 0, times: int = 1) -> list[np.ndarray]: ...
    def learn(self, rows: np.ndarray, draw: Draw) -> Batch: ...
    def look(self, rows: np.ndarray) -> Batch: ...


class Batches:
    """Training batches: `batches[step]` for any step from 0 up.

    batch_size: B, no more than there are rows. Errors: DataError for no rows.
    """

    def __init__(self, rows: Rows, batch_size: int = 32, seed: int = 0):
        if not rows.n:
            raise DataError("no rows to train on")
        check_batch_size(batch_size)
        self.feed, self.seed, self.batch_size = rows, seed, min(batch_size, rows.n)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def steps_per_epoch(self) -> int:
        return self.feed.n // self.batch_size

    def rows(self, step: int) -> np.ndarray:
        """The rows of this step's batch: (B,) indices into the examples."""
        epoch, place = divmod(step, self.steps_per_epoch)
        known, order = self._order
        if known != epoch:
            order = self.feed.order(self.seed, epoch, self.batch_size)
            self._order = (epoch, order)  # one assignment: threads see the old pair or the new
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def draw(self, step: int) -> Draw:
        return Draw(self.seed, step, step // self.steps_per_epoch)

    def __getitem__(self, step: int) -> Batch:
        return self.feed.learn(self.rows(step), self.draw(step))


@dataclass
class InOrder:
    """Every row once, as evaluation sees it: `batches[i]` for i below `len(batches)`."""

    rows: Rows
    parts: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.parts)

    def draw(self, step: int) -> Draw:
        return Draw(0, step, 0)

    def __getitem__(self, step: int) -> Batch:
        return self.rows.look(self.parts[step])


def in_order(rows: Rows, batch_size: int = 0, times: int = 1) -> Iterator[Batch]:
    """Every row once, the last batch as large as it comes; no augmentation.

    In order, but texts by their length, so that little is padding: `batch.rows` says which.

    batch_size: 0 for as many rows as surely take less memory than a step of training; `times`: how
    many times as many.
    """
    if batch_size:
        check_batch_size(batch_size)
    batches = InOrder(rows, rows.parts(batch_size, times))
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
        self.stall_seconds, self.pool = 0.0, single_threaded_pool(1)
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

    def draw(self, step: int) -> Draw:
        return self.batches.draw(step)

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
