"""Any number of labels per row: binary cross-entropy, mean average precision.

Shapes: B rows, n rows, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from layerwise.data.examples import Batch, Examples
from layerwise.data.sources import Tensors
from layerwise.models.network import Network
from layerwise.tasks import probes
from layerwise.tasks.labels import Labels, in_order, outputs_of
from layerwise.tasks.scores import metrics
from layerwise.tasks.task import Arrays, Baseline, Plain, Prediction


@dataclass(frozen=True)
class TagsPrediction(Prediction):
    """Scores of the labels, each for itself; those above one half are the answer."""

    logits: np.ndarray  # (C,)
    of: tuple[str, ...]  # what the scores are of
    name: str = ""
    n_top: int = 3

    def of_row(self, name: str, row: dict[str, Any], top: int, level: float | None) -> Self:
        return replace(self, name=name, n_top=top)

    @property
    def labels(self) -> list[str]:
        return [self.of[i] for i in np.flatnonzero(metrics.sigmoid(self.logits) > 0.5)]

    @property
    def top(self) -> list[tuple[str, float]]:
        shares = metrics.sigmoid(self.logits)
        order = np.argsort(-shares, kind="stable")[: self.n_top]
        return [(self.of[i], float(shares[i])) for i in order]

    def row(self) -> dict[str, Any]:
        found = {"name": self.name, "top": self.top, "labels": self.labels}
        return {k: v for k, v in found.items() if v != []}

    def show(self) -> str:
        return f"{self.name}  {', '.join(self.labels) or '(none)'}"


Predictions = Sequence[TagsPrediction]


class Tag(Labels):
    """Learn which of `labels` apply, each for itself."""

    name = "tag"
    score = "mean_average_precision"
    metric = staticmethod(metrics.mean_average_precision)
    target_kind = "classes"
    head_kind = "class"
    probe = staticmethod(probes.of_labels)

    def count(self, batch: Batch) -> int:
        return super().count(batch) * self.n_outputs

    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = outputs_of(network, batch)  # (B, C)
        total = F.binary_cross_entropy_with_logits(logits, batch["targets"], reduction="sum")
        return total, {"binary_cross_entropy": total.detach()}

    def example_targets(self, rows: int, main: Tensor) -> Tensors:
        return {"targets": torch.zeros(rows, self.n_outputs)}

    def lens(self, batch: Batch) -> list[str]:
        rows = batch["targets"] > 0.5
        return [", ".join(self.labels[int(i)] for i in row.nonzero()[:, 0]) for row in rows]

    def moved(self, examples: Examples, place: np.ndarray) -> np.ndarray:
        targets = np.asarray(examples.targets)
        full = np.zeros((len(targets), len(self.labels)), targets.dtype)
        full[:, place] = targets
        return full

    # ---- predictions and their scores ----------------------------------------------------------
    def of_outputs(self, outputs: np.ndarray) -> list[TagsPrediction]:
        return [TagsPrediction(row, self.labels) for row in outputs]

    def scored(self, predictions: Predictions, examples: Examples) -> Arrays:
        logits = np.stack([in_order(p.logits, p.of, self.labels) for p in predictions])
        return logits, np.asarray(examples.targets)

    def metrics(self, predictions: Predictions, examples: Examples) -> dict[str, float]:
        outputs, targets = self.scored(predictions, examples)  # (n, C) each
        chosen = outputs > 0
        hits = (chosen & (targets > 0)).sum()
        return {
            "mean_average_precision": metrics.mean_average_precision(outputs, targets),
            "micro_f1": float(2 * hits / max(1, chosen.sum() + (targets > 0).sum())),
            "exact_match": float((chosen == (targets > 0)).all(1).mean()),
        }

    def baseline(self, train: Examples, test: Examples, plain: Plain) -> Baseline:
        """Linear models on plain features of the rows, or the share of each label."""
        if found := plain():
            from sklearn.multiclass import OneVsRestClassifier

            outputs = probes.decided(OneVsRestClassifier(probes.logistic()), found, train, test)
            return Baseline(found.what, predictions=self.of_outputs(outputs))
        return Baseline("the labels' shares", float(np.asarray(test.targets).mean()))
