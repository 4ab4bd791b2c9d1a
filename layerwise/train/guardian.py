"""Stops a run at the first number that is not finite, and names the rows it came from."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from layerwise.data.examples import Batch
from layerwise.models.network import Network
from layerwise.runtime import evaluating
from layerwise.tasks.task import Task

Find = Callable[[], np.ndarray]


class NotFinite(ArithmeticError):
    """A loss or gradient that is infinite or no number; the loop decides what comes next."""

    def __init__(self, what: str, step: int, rows: np.ndarray, names: Sequence[str]):
        self.what, self.step, self.rows = what, step, rows
        shown = ", ".join(str(names[int(r)]) for r in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        super().__init__(f"{what} is not finite at step {step}; rows: {shown}{more}")


def check(loss: float, grad_norm: float, step: int, find: Find, names: Sequence[str]) -> None:
    """Raise `NotFinite` unless both numbers are finite; `find()` names the rows, only then."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    what = "the gradient" if math.isfinite(loss) else "the loss"
    raise NotFinite(what, step, find(), names)


def culprits(network: Network, task: Task, micros: Sequence[Batch]) -> np.ndarray:
    """The rows whose own inputs or loss are not finite; all rows of the step when none is alone."""
    bad: list[int] = []
    with evaluating(network):
        for batch in micros:
            for one in batch.split(len(batch)):
                finite = all(bool(torch.isfinite(v.float()).all()) for v in one.tensors.values())
                if not finite or not bool(torch.isfinite(task.loss(network, one)[0])):
                    bad.append(int(one.rows[0]))
    return np.array(bad) if bad else np.concatenate([b.rows for b in micros])
