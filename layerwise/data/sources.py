"""The values of a field, or of several, as tensors; what a kind gives for its rows.

Shapes: n rows, B rows of a batch.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from torch import Tensor

ROWS = 256  # of an evaluation's batch, at most
Tensors = dict[str, Tensor]


class Draw(NamedTuple):
    """What everything random in one training batch follows from."""

    seed: int
    step: int
    epoch: int


class Source(ABC):
    """n rows that are dealt out in a plain permutation. Rows are indices; tensors have names."""

    n: int

    def order(self, seed: int, epoch: int, batch_size: int) -> np.ndarray:
        """The rows of one epoch, in a random order."""
        return np.random.default_rng([seed, epoch]).permutation(self.n)

    def parts(self, batch_size: int = 0, times: int = 1) -> list[np.ndarray]:
        """Every row once, batch by batch, the last as it comes.

        batch_size: rows; 0: as many as surely take less memory than a step of training, or `times`
        as many.
        """
        return in_parts(np.arange(self.n), batch_size or self.at_once(times))

    def at_once(self, times: int) -> int:
        return times * ROWS

    def learn(self, rows: np.ndarray, draw: Draw, learned: Tensors) -> Tensors:
        """Tensors of a training batch, augmented. learned: what is learned of these rows, which an
        augmentation may change by giving it back."""
        return self.look(rows)

    @abstractmethod
    def look(self, rows: np.ndarray) -> Tensors:
        """Tensors as evaluation sees them."""


def in_parts(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[i : i + size] for i in range(0, len(order), size)]
