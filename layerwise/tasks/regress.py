"""A number per row: squared error on the standardised target, RMSE in the target's own unit.

Shapes: B rows, one output each.
"""

from typing import Any

import numpy as np
from torch import Tensor, nn

from layerwise.data.examples import Batch, Examples
from layerwise.errors import DataError
from layerwise.kinds.sources import batch_of
from layerwise.tasks.scores import metrics


class Regress:
    """Learn a number; `mean` and `std` are the training targets', undone in every prediction."""

    name = "regress"
    score = "rmse"
    metric = staticmethod(metrics.rmse)
    higher_is_better = False
    labels: tuple[str, ...] = ()
    n_outputs = 1
    target_kind = "number"
    head_kind = "class"
    batch = staticmethod(batch_of)

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        self.mean, self.std = mean, std

    @classmethod
    def of(cls, examples: Examples, **options: Any) -> "Regress":
        """Errors: DataError where the target is the same in every row."""
        targets = np.asarray(examples.targets)
        std = float(np.std(targets))
        if not std > 0:
            raise DataError(
                f"the target has the one value {float(targets[0]):g} in every row, so there is "
                "nothing to learn; name another column with --target"
            )
        return cls(float(np.mean(targets)), std)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "mean": self.mean, "std": self.std}

    def count(self, batch: Batch) -> int:
        if not len(batch):
            raise DataError("a batch without rows carries no loss; is the data set empty?")
        return len(batch)

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        z = (batch["targets"].float() - self.mean) / self.std  # (B,)
        total = (network(batch["inputs"], **batch.context).float()[:, 0] - z).square().sum()
        return total, {"squared_error": total.detach()}

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        return network(batch["inputs"], **batch.context).float() * self.std + self.mean  # (B, 1)

    def scored(self, outputs: np.ndarray) -> np.ndarray:
        """What `metric` takes of the raw outputs (B, 1): the numbers (B,)."""
        return outputs[:, 0]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        return {
            "rmse": metrics.rmse(outputs[:, 0], targets),
            "mae": metrics.mae(outputs[:, 0], targets),
            "r2": metrics.r2(outputs[:, 0], targets),
        }

    def lens(self, batch: Batch) -> list[str]:
        return [f"{float(t):g}" for t in batch["targets"]]
