"""Texts as tensors: rows tokenised once, or windows of a tokenised corpus.

Shapes: n rows, B rows of a batch, T tokens.
"""

import numpy as np

from layerwise.data.examples import Examples
from layerwise.data.sources import Draw, Source, Tensors, in_parts
from layerwise.kinds.text.corpus import Windows
from layerwise.kinds.text.processor import TextProcessor, like_lengths

TOKENS = 1024  # of an evaluation's batch, at most


def windows_in(examples: Examples) -> Windows:
    """The windows of a tokenised corpus that these rows are."""
    windows = examples["windows"]
    assert isinstance(windows, Windows)
    return windows


class CorpusWindows(Source):
    """Stretches of a tokenised corpus; every epoch cuts it at other places."""

    def __init__(self, examples: Examples):
        self.n, self.windows = len(examples), windows_in(examples)

    def at_once(self, times: int) -> int:
        return max(1, times * TOKENS // self.windows.length)

    def learn(self, rows: np.ndarray, draw: Draw, learned: Tensors) -> Tensors:
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

    def __init__(self, examples: Examples, processor: TextProcessor):
        self.n, self.processor = len(examples), processor
        self.rows = processor.encode(examples.rows())
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
        return self.processor.collate([self.rows[i] for i in rows.tolist()])
