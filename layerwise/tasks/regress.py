"""A number per row: squared error on the standardised target, RMSE in the target's own unit.

Shapes: B rows, n rows, one output each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from layerwise.data.examples import Batch, Examples
from layerwise.data.sources import Tensors
from layerwise.errors import DataError
from layerwise.models.network import Network
from layerwise.tasks import probes
from layerwise.tasks.labels import has_target, outputs_of, same_question
from layerwise.tasks.scores import metrics
from layerwise.tasks.scores.metrics import Arrays
from layerwise.tasks.task import Baseline, Calibration, Mistake, Options, Plain, Prediction, Task

WORST, DRAWN = 12, 1500  # rows that are shown; points of the scatter


@dataclass(frozen=True)
class NumberPrediction(Prediction):
    """A number, with an interval where a confidence was asked for."""

    value: float
    name: str = ""
    level: float | None = None  # half the width of the interval

    def of_row(self, name: str, row: dict[str, Any], top: int, level: float | None) -> Self:
        return replace(self, name=name, level=level)

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.level is None else (self.value - self.level, self.value + self.level)

    def row(self) -> dict[str, Any]:
        found = {"name": self.name, "value": self.value, "interval": self.interval}
        return {k: v for k, v in found.items() if v is not None}

    def show(self) -> str:
        ends = f"  ({self.interval[0]:.6g} to {self.interval[1]:.6g})" if self.interval else ""
        return f"{self.name}  {self.value:.6g}{ends}"


Predictions = Sequence[NumberPrediction]


class Regress(Task):
    """Learn a number; `mean` and `std` are the training targets', undone in every prediction."""

    name = "regress"
    score = "rmse"
    metric = staticmethod(metrics.rmse)
    higher_is_better = False
    n_outputs = 1
    head_kind = "class"
    target_kind = "number"
    probe = staticmethod(probes.of_numbers)

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        self.mean, self.std = mean, std

    @classmethod
    def fits(cls, examples: Examples) -> int:
        """Scores of pairs are learned as vectors unless this is asked for."""
        return min(has_target(examples, "number"), 1 if examples.has("score") else 2)

    @classmethod
    def of(cls, examples: Examples, options: Options) -> Self:
        """Errors: DataError where the target is the same in every row."""
        targets = np.asarray(examples.targets)
        std = float(np.std(targets))
        if not std > 0:
            what = f"the target has the one value {float(targets[0]):g} in every row"
            raise DataError(f"{what}, so there is nothing to learn; name another with --target")
        return cls(float(np.mean(targets)), std)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "mean": self.mean, "std": self.std}

    def aligned(self, examples: Examples) -> Examples:
        same_question(examples, "number")
        return examples

    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        z = (batch["targets"].float() - self.mean) / self.std  # (B,)
        total = (outputs_of(network, batch)[:, 0] - z).square().sum()
        return total, {"squared_error": total.detach()}

    def example_targets(self, rows: int, main: Tensor) -> Tensors:
        return {"targets": torch.zeros(rows)}

    def lens(self, batch: Batch) -> list[str]:
        return [f"{float(t):g}" for t in batch["targets"]]

    # ---- predictions and their scores ----------------------------------------------------------
    def predict(self, network: Network, batch: Batch) -> list[NumberPrediction]:
        found = outputs_of(network, batch) * self.std + self.mean  # (B, 1)
        return self.of_outputs(found.cpu().numpy())

    def of_outputs(self, outputs: np.ndarray) -> list[NumberPrediction]:
        return [NumberPrediction(float(value)) for value in outputs[:, 0]]

    def before_units(self, weight: np.ndarray, bias: np.ndarray) -> Arrays:
        """`predict` multiplies by the spread and adds the mean."""
        return weight / self.std, (bias - self.mean) / self.std

    def scored(self, predictions: Predictions, examples: Examples) -> Arrays:
        return np.array([p.value for p in predictions]), np.asarray(examples.targets)

    def metrics(self, predictions: Predictions, examples: Examples) -> dict[str, float]:
        values, targets = self.scored(predictions, examples)
        found = {"rmse": metrics.rmse, "mae": metrics.mae, "r2": metrics.r2}
        return {name: metric(values, targets) for name, metric in found.items()}

    def calibrate(self, predictions: Predictions, examples: Examples) -> Calibration:
        values, targets = self.scored(predictions, examples)
        return Calibration(conformal=tuple(np.sort(np.abs(values - targets)).tolist()))

    def mistakes(self, predictions: Predictions, examples: Examples) -> list[Mistake]:
        """The rows whose number is farthest off."""
        values, targets = self.scored(predictions, examples)
        order = np.argsort(-np.abs(values - targets), kind="stable")[:WORST].tolist()
        return [Mistake(i, f"{targets[i]:g}", f"{values[i]:.4g}") for i in order]

    def figures(
        self, predictions: Predictions, examples: Examples, calibration: Calibration
    ) -> dict[str, Any]:
        values, targets = self.scored(predictions, examples)
        return {"scatter": np.stack([targets, values], 1)[:DRAWN].astype(float).tolist()}

    def baseline(self, train: Examples, test: Examples, plain: Plain) -> Baseline:
        """A linear model on plain features of the rows, or always the mean."""
        if found := plain():
            from sklearn.linear_model import Ridge

            values = Ridge().fit(found.of(train), train.targets).predict(found.of(test))
            return Baseline(found.what, predictions=self.of_outputs(values[:, None]))
        known, asked = (np.asarray(part.targets) for part in (train, test))
        rmse = float(np.sqrt(((asked - known.mean()) ** 2).mean()))
        return Baseline("always the mean", rmse)
