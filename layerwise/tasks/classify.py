"""One class out of C: cross-entropy, accuracy.

The same for every kind of rows: what is special about these lies in their processors.
Shapes: B rows, n rows, C classes.
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
from layerwise.tasks.scores import calibration as calibrating
from layerwise.tasks.scores import metrics
from layerwise.tasks.task import Arrays, Baseline, Calibration, Mistake, Options, Plain, Prediction

ALPHA = 0.1  # of the conformal sets that a report measures


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """Scores of the classes; the label, its probability and the likeliest others follow."""

    logits: np.ndarray  # (C,)
    labels: tuple[str, ...]
    name: str = ""
    n_top: int = 3
    level: float | None = None  # a class is in the set where 1 - its probability is at most this

    def of_row(self, name: str, row: dict[str, Any], top: int, level: float | None) -> Self:
        return replace(self, name=name, n_top=top, level=level)

    @property
    def probabilities(self) -> np.ndarray:
        return metrics.softmax(self.logits[None])[0]

    @property
    def order(self) -> np.ndarray:
        """The classes, the likeliest first."""
        return np.argsort(-self.probabilities, kind="stable")

    @property
    def label(self) -> str:
        return self.labels[self.order[0]]

    @property
    def probability(self) -> float:
        return float(self.probabilities[self.order[0]])

    @property
    def top(self) -> list[tuple[str, float]]:
        shares = self.probabilities
        return [(self.labels[i], float(shares[i])) for i in self.order[: self.n_top]]

    @property
    def set(self) -> list[str] | None:
        """The labels that contain the truth at the confidence asked for."""
        if self.level is None:
            return None
        shares = self.probabilities
        return [self.labels[i] for i in self.order if 1 - shares[i] <= self.level]

    @property
    def unsure(self) -> bool | None:
        """Whether the set is not one label."""
        return None if self.set is None else len(self.set) != 1

    def row(self) -> dict[str, Any]:
        out = {"name": self.name, "label": self.label, "probability": self.probability}
        out |= {"top": self.top} if self.n_top else {}
        said = {"set": self.set, "unsure": self.unsure}
        return out | {k: v for k, v in said.items() if v not in (None, [])}

    def show(self) -> str:
        others = ", ".join(f"{name} {share:.3f}" for name, share in self.top[1:])
        said = "unsure" if self.unsure else self.label
        kept = f"  set: {', '.join(self.set) or '(none)'}" if self.set is not None else ""
        others = f"  ({others})" if others else ""
        return f"{self.name}  {said} {self.probability:.3f}{others}{kept}"


Predictions = Sequence[ClassPrediction]


class Classify(Labels):
    """Learn to name one of `labels`; `label_smoothing` moves that share of the target to all."""

    name = "classify"
    score = "accuracy"
    metric = staticmethod(metrics.accuracy)
    target_kind = "class"
    head_kind = "class"
    named_by_classes = True
    probe = staticmethod(probes.of_classes)

    def __init__(self, labels: Sequence[str], label_smoothing: float = 0.0):
        super().__init__(labels)
        self.label_smoothing = label_smoothing

    @classmethod
    def of(cls, examples: Examples, options: Options) -> Self:
        return cls(examples.labels, options.label_smoothing)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "label_smoothing": self.label_smoothing}

    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed cross-entropy over the rows; targets (B,) classes or (B, C) shares."""
        outputs, share = outputs_of(network, batch), self.label_smoothing
        total = F.cross_entropy(outputs, batch["targets"], reduction="sum", label_smoothing=share)
        return total, {"cross_entropy": total.detach()}

    def example_targets(self, rows: int, main: Tensor) -> Tensors:
        return {"targets": torch.zeros(rows, dtype=torch.int64)}

    def lens(self, batch: Batch) -> list[str]:
        targets = batch["targets"]
        classes = targets.argmax(1) if targets.ndim == 2 else targets
        return [self.labels[int(i)] for i in classes]

    # ---- predictions and their scores ----------------------------------------------------------
    def of_outputs(self, outputs: np.ndarray) -> list[ClassPrediction]:
        return [ClassPrediction(row, self.labels) for row in outputs]

    def logits(self, predictions: Predictions) -> np.ndarray:
        """(n, C), in the order of this task's labels."""
        return np.stack([in_order(p.logits, p.labels, self.labels) for p in predictions])

    def scored(self, predictions: Predictions, examples: Examples) -> Arrays:
        return self.logits(predictions), np.asarray(examples.targets)

    def metrics(self, predictions: Predictions, examples: Examples) -> dict[str, float]:
        outputs, targets = self.scored(predictions, examples)
        several = metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1
        found = {metric.__name__: metric(outputs, targets) for metric in several}
        found["log_loss"] = metrics.log_loss(metrics.softmax(outputs), targets)
        return found | ({"auc": metrics.auc(outputs, targets)} if len(self.labels) == 2 else {})

    def calibrate(self, predictions: Predictions, examples: Examples) -> Calibration:
        outputs, targets = self.scored(predictions, examples)
        temperature = calibrating.fit_temperature(outputs, targets)
        shares = metrics.softmax(outputs / temperature)
        own = 1 - shares[np.arange(len(shares)), targets]
        return Calibration(temperature, tuple(np.sort(own).round(6).tolist()))

    def calibrated(self, predictions: Predictions, temperature: float) -> list[ClassPrediction]:
        return [replace(p, logits=p.logits / temperature) for p in predictions]

    def calibration_error(self, predictions: Predictions, examples: Examples) -> float:
        outputs, targets = self.scored(predictions, examples)
        return calibrating.ece(metrics.softmax(outputs), targets)

    def mistakes(self, predictions: Predictions, examples: Examples) -> list[Mistake]:
        """The rows that the network is most sure of and wrong about."""
        outputs, targets = self.scored(predictions, examples)
        shares = metrics.softmax(outputs)
        said = shares.argmax(1)
        wrong = np.flatnonzero(said != targets)
        order = wrong[np.argsort(-shares[wrong, said[wrong]], kind="stable")].tolist()
        name, sure = self.labels, shares.max(1)
        return [Mistake(i, name[targets[i]], name[said[i]], float(sure[i])) for i in order]

    def figures(
        self, predictions: Predictions, examples: Examples, calibration: Calibration
    ) -> dict[str, Any]:
        """Confusion; calibration with and without the temperature; conformal sets as they came."""
        outputs, targets = self.scored(predictions, examples)
        before, after = (metrics.softmax(x) for x in (outputs * calibration.temperature, outputs))
        level = calibrating.conformal_quantile(np.asarray(calibration.conformal), ALPHA)
        sets, matrix = 1 - after <= level, metrics.confusion(outputs, targets)
        sizes = sets.sum(1)
        return {
            "calibration": {
                "temperature": calibration.temperature,
                "ece_before": calibrating.ece(before, targets),
                "ece_after": calibrating.ece(after, targets),
                "bins": calibrating.reliability(after, targets),
            },
            "conformal": {
                "confidence": 1 - ALPHA,
                "coverage": float(sets[np.arange(len(targets)), targets].mean()),
                "mean_size": float(sizes.mean()),
                "unsure": float((sizes != 1).mean()),
            },
            "confusion": {"labels": list(self.labels), "matrix": matrix.tolist()},
        }

    def baseline(self, train: Examples, test: Examples, plain: Plain) -> Baseline:
        """A linear model on plain features of the rows, or always the commonest class."""
        if found := plain():
            outputs = probes.decided(probes.logistic(), found, train, test)
            return Baseline(found.what, predictions=self.of_outputs(outputs))
        common = np.bincount(np.asarray(train.targets)).argmax()
        share = float((np.asarray(test.targets) == common).mean())
        return Baseline(f"always '{self.labels[common]}'", share)

    def votes(self, known: np.ndarray, targets: np.ndarray, asked: np.ndarray) -> Predictions:
        return self.of_outputs(probes.neighbours(known, targets, asked, self.n_outputs))
