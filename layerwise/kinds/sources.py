"""Rows of one modality as batches of tensors: what a loader asks of images, tables and texts.

A source gives
    n                                   how many rows
    order(seed, epoch, batch_size)      the rows of one epoch, in a random order
    parts(batch_size, times)            every row once, as evaluation goes through them
    learn(rows, draw)                   tensors of a training batch, augmented
    look(rows)                          tensors as evaluation sees them
`rows` are indices; tensors are named as in `Batch`, targets among them where there are any.

Shapes: n rows, B rows of a batch, T tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from layerwise import runtime
from layerwise.data.examples import Batch, Examples
from layerwise.data.threads import parallel
from layerwise.kinds.image.augment import Augment
from layerwise.kinds.image.cache import PixelCache, make_decoder
from layerwise.kinds.text.corpus import Windows
from layerwise.kinds.text.processor import like_lengths

# of an evaluation's batch: its forward pass takes less memory than a step of training usually does
ROWS, PIXELS, TOKENS = 256, 1 << 20, 1024
MARGIN = 1.15  # photographs are stored with this many times the short side that a crop needs
Tensors = dict[str, Tensor]
Progress = Callable[[int, int], None] | None


class Draw(NamedTuple):
    """What everything random in one training batch follows from."""

    seed: int
    step: int
    epoch: int


class Source(ABC):
    """Rows that are dealt out in a plain permutation, with their targets."""

    def __init__(self, examples: Examples):
        self.n = len(examples)
        self.targets = target_tensor(examples)

    def order(self, seed: int, epoch: int, batch_size: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(self.n)

    def parts(self, batch_size: int = 0, times: int = 1) -> list[np.ndarray]:
        """Every row once, batch by batch, the last as it comes.

        batch_size: rows; 0: as many as surely take less memory than a step of training, or `times`
        as many.
        """
        return in_parts(np.arange(self.n), batch_size or self.at_once(times))

    def at_once(self, times: int) -> int:
        return times * ROWS

    def learn(self, rows: np.ndarray, draw: Draw) -> Tensors:
        return self.look(rows)

    @abstractmethod
    def look(self, rows: np.ndarray) -> Tensors: ...

    def labelled(self, tensors: Tensors, rows: np.ndarray) -> Tensors:
        """The tensors, with the targets of their rows unless they bring their own."""
        targets = self.targets_of(rows)
        return tensors if targets is None else {"targets": targets} | tensors

    def targets_of(self, rows: np.ndarray) -> Tensor | None:
        return None if self.targets is None else self.targets[torch.from_numpy(rows)]


class TableRows(Source):
    """A table, made into numbers once."""

    def __init__(self, examples: Examples, processor: Any, dtype: torch.dtype):
        super().__init__(examples)
        self.table: Tensor = processor(examples.inputs).to(dtype)  # (n, n_in)

    def look(self, rows: np.ndarray) -> Tensors:
        return self.labelled({"inputs": self.table[torch.from_numpy(rows)]}, rows)


class Images(Source):
    """Images from a cache of decoded pixels, or decoded each time (cached=False).

    augment: for training; None for evaluation alone, at exactly the processor's size.
    threads: that decode on the first pass, and resize crops within a batch.
    """

    def __init__(
        self,
        examples: Examples,
        processor: Any,
        augment: Augment | None,
        dtype: torch.dtype,
        cache_dir: str | Path | None = None,
        threads: int = 1,
        cached: bool = True,
        progress: Progress = None,
    ):
        super().__init__(examples)
        self.processor, self.augment, self.dtype = processor, augment, dtype
        self.n_classes, self.each = len(examples.labels), parallel(threads)
        resizes = augment is not None and augment.resizes(processor.size)
        short = resizes * round(MARGIN * min(processor.size))
        self.cache: PixelCache | None = None
        if cached and self.n:
            self.cache = PixelCache(
                examples, processor, cache_dir, short_side=short, threads=threads, progress=progress
            )
        self.decode = make_decoder(examples, processor, short_side=0)

    def at_once(self, times: int) -> int:
        return images_at_once(self.processor.size, times)

    def pixels(self, rows: np.ndarray) -> Tensor | list[Tensor]:
        if self.cache is not None:
            return self.cache.gather(rows)
        return torch.from_numpy(np.stack(list(self.each(self.decode, rows.tolist()))))

    def look(self, rows: np.ndarray) -> Tensors:
        inputs = self.processor.normalise(self.pixels(rows), self.dtype)
        return self.labelled({"inputs": inputs}, rows)

    def learn(self, rows: np.ndarray, draw: Draw) -> Tensors:
        assert self.augment is not None
        pixels, targets = self.augment(
            self.pixels(rows),
            self.targets_of(rows),
            runtime.generator(draw.seed, draw.step),
            size=self.processor.size,
            rows=rows,
            epoch=draw.epoch,
            n_classes=self.n_classes,
            each=self.each,
        )
        inputs = self.processor.normalise(pixels, self.dtype)
        return {"inputs": inputs} | ({} if targets is None else {"targets": targets})


class CorpusWindows(Source):
    """Stretches of a tokenised corpus; every epoch cuts it at other places."""

    def __init__(self, examples: Examples):
        super().__init__(examples)
        assert isinstance(examples.inputs, Windows)
        self.windows = examples.inputs

    def at_once(self, times: int) -> int:
        return max(1, times * TOKENS // self.windows.length)

    def learn(self, rows: np.ndarray, draw: Draw) -> Tensors:
        whole = len(self.windows) == self.windows.n_windows
        rng = np.random.default_rng([draw.seed, draw.epoch, 1])
        shift = int(rng.integers(self.windows.length)) if whole and draw.epoch else 0
        return self.windows.tensors(rows, shift, (draw.seed, draw.step))

    def look(self, rows: np.ndarray) -> Tensors:
        return self.windows.tensors(rows)


class Texts(Source):
    """Rows of texts, tokenised once; batches of like length, so that little is padding.

    processor: any of those in `text_processor`, `..._processor`: encode, length, collate.
    """

    def __init__(self, examples: Examples, processor: Any):
        super().__init__(examples)
        self.processor = processor
        self.rows = processor.encode(list(examples.inputs))
        self.lengths = np.array([processor.length(row) for row in self.rows])

    def order(self, seed: int, epoch: int, batch_size: int) -> np.ndarray:
        return like_lengths(self.lengths, batch_size, [seed, epoch])

    def parts(self, batch_size: int = 0, times: int = 1) -> list[np.ndarray]:
        """By their length, so that little is padding."""
        order = np.argsort(self.lengths, kind="stable")
        if batch_size:
            return in_parts(order, batch_size)
        starts, longest = [0], self.lengths[order]
        for i, length in enumerate(longest):  # is the longest up to here
            if i > starts[-1] and (i + 1 - starts[-1]) * length > times * TOKENS:
                starts.append(i)
        return np.split(order, starts[1:]) if self.n else []

    def look(self, rows: np.ndarray) -> Tensors:
        return self.labelled(self.processor.collate([self.rows[i] for i in rows.tolist()]), rows)


def source_of(
    examples: Examples,
    processor: Any,
    augment: Augment | None = None,
    dtype: torch.dtype = torch.float32,
    **of_images: Any,
) -> Source:
    """The source for this kind of examples. of_images: cache_dir, threads, cached, progress."""
    if examples.kind == "table":
        return TableRows(examples, processor, dtype)
    if examples.kind == "tokens":
        return CorpusWindows(examples)
    if examples.kind == "text":
        return Texts(examples, processor)
    return Images(examples, processor, augment, dtype, **of_images)


def in_parts(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def images_at_once(size: tuple[int, int], times: int = 1) -> int:
    """How many images (h, w) an evaluation looks at together."""
    return max(1, times * min(ROWS, PIXELS // (size[0] * size[1])))


def batch_of(examples: Examples, processor: Any) -> Batch:
    """All rows as one batch, as evaluation sees them."""
    rows = np.arange(len(examples))
    return Batch(source_of(examples, processor, cached=False).look(rows), rows)


def target_tensor(examples: Examples) -> Tensor | None:
    """(n,) int64 classes, (n, C) float32 for several labels, (n,) float32 numbers, (n, W) int64
    tags, or None."""
    if examples.targets is None or examples.target_kind in ("none", "answers"):
        return None
    kind = np.int64 if examples.target_kind in ("class", "tags") else np.float32
    return torch.from_numpy(np.array(examples.targets, dtype=kind))
