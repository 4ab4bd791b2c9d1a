"""Any number of labels per row: binary cross-entropy, mean average precision.

Shapes: B rows, C labels.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.data.examples import Batch
from layerwise.errors import DataError
from layerwise.tasks.labels import Labels
from layerwise.tasks.scores import metrics


class Tag(Labels):
    """Learn which of `labels` apply, each for itself."""

    name = "tag"
    score = "mean_average_precision"
    metric = staticmethod(metrics.mean_average_precision)
    target_kind = "classes"
    head_kind = "class"

    def count(self, batch: Batch) -> int:
        if not len(batch):
            raise DataError("a batch without rows carries no loss; is the data set empty?")
        return len(batch) * self.n_outputs

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = network(batch["inputs"], **batch.context).float()  # (B, C)
        total = F.binary_cross_entropy_with_logits(logits, batch["targets"], reduction="sum")
        return total, {"binary_cross_entropy": total.detach()}

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """outputs: logits (n, C); targets: (n, C) of 0 and 1."""
        chosen = outputs > 0
        hits = (chosen & (targets > 0)).sum()
        return {
            "mean_average_precision": metrics.mean_average_precision(outputs, targets),
            "micro_f1": float(2 * hits / max(1, chosen.sum() + (targets > 0).sum())),
            "exact_match": float((chosen == (targets > 0)).all(1).mean()),
        }

    def lens(self, batch: Batch) -> list[str]:
        rows = batch["targets"] > 0.5
        return [", ".join(self.labels[int(i)] for i in row.nonzero()[:, 0]) for row in rows]
