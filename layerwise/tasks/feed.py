"""The rows of a task as batches: the fields by their kinds, and what is learned of each row.

Shapes: n rows, B rows of a batch.
"""

import numpy as np
import torch

from layerwise import kinds
from layerwise.data.examples import Batch, Examples
from layerwise.data.sources import Draw, Source, Tensors
from layerwise.tasks.task import Processors, Task


class Feed:
    """Rows as a loader takes them. What does not change from evaluation to evaluation (tokens of
    texts, decoded pixels) is made once, so keep it for as long as its rows are looked at.

    augment: of the rows' first kind, in training. options: of the kinds' sources (cache_dir,
    threads, cached, progress).
    """

    def __init__(
        self,
        task: Task,
        examples: Examples,
        processors: Processors,
        augment: object = None,
        dtype: torch.dtype = torch.float32,
        **options: object,
    ):
        self.task, self.examples, self.n = task, examples, len(examples)
        self.sources: list[Source] = [
            kind.source(examples, processors[kind.name], None if i else augment, dtype, **options)
            for i, kind in enumerate(kinds.several(examples))
        ]
        self.learned = task.learned(examples)

    def order(self, seed: int, epoch: int, batch_size: int) -> np.ndarray:
        """The rows of one epoch, in a random order that suits them."""
        return self.sources[0].order(seed, epoch, batch_size)

    def parts(self, batch_size: int = 0, times: int = 1) -> list[np.ndarray]:
        """Every row once, in batches that suit the kind that takes fewest rows at once."""
        found = [source.parts(batch_size, times) for source in self.sources]
        return max(found, key=len)

    def learn(self, rows: np.ndarray, draw: Draw) -> Batch:
        """A training batch: (B,) rows, augmented, and everything random drawn."""
        tensors = self.learned(rows)
        for source in self.sources:
            tensors |= source.learn(rows, draw, tensors)
        return self.task.draw(Batch(tensors, rows), draw)

    def look(self, rows: np.ndarray) -> Batch:
        """The rows as evaluation sees them."""
        tensors: Tensors = self.learned(rows)
        for source in self.sources:
            tensors |= source.look(rows)
        return self.task.draw(Batch(tensors, rows), None)


def batch_of(task: Task, examples: Examples, processors: Processors) -> Batch:
    """All rows as one batch, as evaluation sees them."""
    return Feed(task, examples, processors, cached=False).look(np.arange(len(examples)))
