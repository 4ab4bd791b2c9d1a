"""One class out of C: cross-entropy, accuracy.

The same for images, tables and texts: the modality lies in the processor, the loss here.
Shapes: B rows, C classes.
"""

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.data.examples import Batch, Examples
from layerwise.errors import DataError
from layerwise.tasks.labels import Labels
from layerwise.tasks.scores import metrics


class Classify(Labels):
    """Learn to name one of `labels`; `label_smoothing` moves that share of the target to all."""

    name = "classify"
    score = "accuracy"
    metric = staticmethod(metrics.accuracy)
    target_kind = "class"
    head_kind = "class"

    def __init__(self, labels: tuple[str, ...] | list[str], label_smoothing: float = 0.0):
        super().__init__(labels)
        self.label_smoothing = label_smoothing

    @classmethod
    def of(cls, examples: Examples, label_smoothing: float = 0.0) -> "Classify":
        return cls(examples.labels, label_smoothing)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "label_smoothing": self.label_smoothing}

    def count(self, batch: Batch) -> int:
        if not len(batch):
            raise DataError("a batch without rows carries no loss; is the data set empty?")
        return len(batch)

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed cross-entropy over the rows; targets (B,) classes or (B, C) shares."""
        logits = network(batch["inputs"], **batch.context).float()  # (B, C)
        total = F.cross_entropy(
            logits, batch["targets"], reduction="sum", label_smoothing=self.label_smoothing
        )
        return total, {"cross_entropy": total.detach()}

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """outputs: logits (n, C); targets: (n,)."""
        probabilities = metrics.softmax(outputs)
        two = len(self.labels) == 2
        return {
            "accuracy": metrics.accuracy(outputs, targets),
            "balanced_accuracy": metrics.balanced_accuracy(outputs, targets),
            "macro_f1": metrics.macro_f1(outputs, targets),
            "log_loss": metrics.log_loss(probabilities, targets),
            **({"auc": metrics.auc(outputs, targets)} if two else {}),
        }

    def lens(self, batch: Batch) -> list[str]:
        targets = batch["targets"]
        classes = targets.argmax(1) if targets.ndim == 2 else targets
        return [self.labels[int(i)] for i in classes]
