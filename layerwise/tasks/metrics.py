"""Metrics, each a function of weighted rows, so that one definition serves score and bootstrap.

Every metric takes `weights`: None (each row counts once), (n,), or (R, n) for R weightings at
once, and gives a float or (R,) accordingly. A bootstrap resample is then a row of counts, and a
thousand resamples are one matrix product (see `intervals.py`).

Shapes: n rows, C classes or labels, R weightings. Ties in scores count as one threshold (half a
win in the area under the curve), so results do not depend on the order of the rows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import ndarray

from layerwise.errors import DataError

Metric = Callable[..., Any]

# ---- probabilities ---------------------------------------------------------------------------


def log_softmax(logits: ndarray) -> ndarray:
    """Log probabilities of logits (..., C), stable for logits of any size."""
    z = np.asarray(logits, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(logits: ndarray) -> ndarray:
    """Probabilities of logits (..., C), float64."""
    return np.exp(log_softmax(logits))


def sigmoid(logits: ndarray) -> ndarray:
    """Probability of each label for itself, of logits of any shape, float64."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))


# ---- classes ---------------------------------------------------------------------------------


def accuracy(outputs: ndarray, targets: ndarray, weights: ndarray | None = None) -> Any:
    """Share of rows whose largest output (n, C) is the right class (n,)."""
    check_rows(outputs, targets)
    return average(outputs.argmax(1) == targets, weights)


def top_k(outputs: ndarray, targets: ndarray, weights: ndarray | None = None, k: int = 5) -> Any:
    """Share of rows whose class is among the `k` largest outputs; ties count against it."""
    check_rows(outputs, targets)
    own = outputs[np.arange(len(targets)), targets][:, None]  # (n, 1)
    rank = (outputs >= own).sum(1)  # 1 = the single largest
    return average(rank <= k, weights)


def balanced_accuracy(outputs: ndarray, targets: ndarray, weights: ndarray | None = None) -> Any:
    """Mean over the classes that occur of the share of their rows that is right (recall)."""
    hits, occurs, _ = class_counts(outputs, targets, weights)
    return scalar(mean_where(divide(hits, occurs), occurs > 0))


def macro_f1(outputs: ndarray, targets: ndarray, weights: ndarray | None = None) -> Any:
    """Mean F1 over the classes that occur or are predicted, each counting the same."""
    hits, occurs, predicted = class_counts(outputs, targets, weights)
    both = occurs + predicted
    return scalar(mean_where(divide(2 * hits, both), both > 0))


def confusion(outputs: ndarray, targets: ndarray) -> ndarray:
    """Counts (C, C): row = true class, column = predicted class."""
    check_rows(outputs, targets)
    c = outputs.shape[1]
    return np.bincount(targets * c + outputs.argmax(1), minlength=c * c).reshape(c, c)


def log_loss(probabilities: ndarray, targets: ndarray, weights: ndarray | None = None) -> Any:
    """Mean negative log probability (nats) of the right class; zeros count as 1e-15."""
    check_rows(probabilities, targets)
    own = np.asarray(probabilities, np.float64)[np.arange(len(targets)), targets]
    return average(-np.log(np.maximum(own, 1e-15)), weights)


def auc(outputs: ndarray, targets: ndarray, weights: ndarray | None = None) -> Any:
    """Area under the ROC curve; more than two classes: mean of each class against the rest.

    outputs: scores (n,) of the positive class, or (n, C); with more than two classes give
    probabilities, since the rows must be comparable. targets: (n,) classes or 0/1.
    Classes that do not occur, or are all there is, are left out; nan when nothing remains.
    """
    check_rows(outputs, targets)
    if outputs.ndim == 1:
        return scalar(rank_area(outputs, targets > 0, weights))
    if outputs.shape[1] == 2:
        return scalar(rank_area(outputs[:, 1] - outputs[:, 0], targets == 1, weights))
    areas = [rank_area(outputs[:, c], targets == c, weights) for c in range(outputs.shape[1])]
    areas = np.stack(areas, -1)  # (..., C)
    return scalar(mean_where(areas, ~np.isnan(areas)))


def mean_average_precision(
    outputs: ndarray, targets: ndarray, weights: ndarray | None = None
) -> Any:
    """Average precision of each label, averaged over the labels that occur.

    outputs, targets: (n, C) scores and 0/1. Average precision is the step-wise area under the
    precision-recall curve, as in scikit-learn (no interpolation).
    """
    check_rows(outputs, targets)
    each = [average_precision(o, t > 0, weights) for o, t in zip(outputs.T, targets.T, strict=True)]
    each = np.stack(each, -1)  # (..., C)
    return scalar(mean_where(each, ~np.isnan(each)))


# ---- numbers: outputs (n,) or (n, 1), targets (n,) -------------------------------------------


def rmse(outputs: ndarray, targets: ndarray, weights: ndarray | None = None) -> Any:
    """Root of the mean squared error, in the target's unit."""
    return scalar(np.sqrt(average(errors(outputs, targets) ** 2, weights)))


def mae(outputs: ndarray, targets: ndarray, weights: ndarray | None = None) -> Any:
    """Mean absolute error, in the target's unit."""
    return average(np.abs(errors(outputs, targets)), weights)


def r2(outputs: ndarray, targets: ndarray, weights: ndarray | None = None) -> Any:
    """Share of the target's variance that is explained; nan when the target does not vary."""
    error = average(errors(outputs, targets) ** 2, weights)
    y = np.asarray(targets, np.float64)
    y = y - y.mean()  # the variance below is a difference of squares: keep them small
    variance = average(y**2, weights) - np.square(average(y, weights))
    return scalar(1 - divide(error, np.where(variance > 1e-12 * np.mean(y**2), variance, np.nan)))


def errors(outputs: ndarray, targets: ndarray) -> ndarray:
    """outputs - targets, (n,) float64."""
    check_rows(outputs, targets)
    return np.subtract(np.reshape(outputs, np.shape(targets)), targets, dtype=np.float64)


# ---- weighted counts -------------------------------------------------------------------------


def check_rows(outputs: ndarray, targets: ndarray) -> None:
    """Errors: DataError when the lengths differ, there is no row, or an output is not finite."""
    if len(outputs) != len(targets):
        raise DataError(
            f"{len(outputs)} outputs for {len(targets)} targets: they must be the same rows"
        )
    if not len(targets):
        raise DataError("there is no row to score; give a test set with at least one row")
    if not np.isfinite(outputs).all():
        bad = np.flatnonzero(~np.isfinite(np.reshape(outputs, (len(outputs), -1))).all(1))
        raise DataError(
            f"{len(bad)} of {len(outputs)} rows of outputs are not finite, row {bad[0]} the first; "
            "no score can be given: did the training diverge?"
        )


def average(values: ndarray, weights: ndarray | None) -> Any:
    """Weighted mean over rows of values (n,): a float, or (R,) for weights (R, n)."""
    values = np.asarray(values, np.float64)
    if weights is None:
        return float(values.mean())
    return scalar(weights @ values / weights.sum(-1))


def class_counts(
    outputs: ndarray, targets: ndarray, weights: ndarray | None
) -> tuple[ndarray, ndarray, ndarray]:
    """Weighted (..., C) counts: right, occurring, predicted."""
    check_rows(outputs, targets)
    predicted = outputs.argmax(1)
    right = predicted == targets
    c = outputs.shape[1]
    if weights is None:
        weights = np.ones(len(targets))
    rows = [
        (
            np.bincount(targets[right], w[right], c),
            np.bincount(targets, w, c),
            np.bincount(predicted, w, c),
        )
        for w in np.atleast_2d(weights)
    ]
    counts = np.moveaxis(np.array(rows), 1, 0)  # (3, R, C)
    hits, occurs, chosen = counts if weights.ndim == 2 else counts[:, 0]
    return hits, occurs, chosen


def tie_groups(
    scores: ndarray, positive: ndarray, weights: ndarray | None
) -> tuple[ndarray, ndarray]:
    """Weights of positives and negatives per distinct score, rising: two (..., G)."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    w = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    w, yes = w[..., order], positive[order]
    grouped = [np.add.reduceat(w * side, starts, axis=-1) for side in (yes, ~yes)]
    return grouped[0], grouped[1]


def rank_area(scores: ndarray, positive: ndarray, weights: ndarray | None) -> ndarray:
    """Chance that a positive row scores above a negative one; nan where one side is empty."""
    yes, no = tie_groups(scores, positive, weights)  # (..., G)
    below = np.cumsum(no, -1) - no / 2
    return divide((yes * below).sum(-1), yes.sum(-1) * no.sum(-1), empty=np.nan)


def average_precision(scores: ndarray, positive: ndarray, weights: ndarray | None) -> ndarray:
    """Sum over thresholds of (rise in recall) x precision; nan where nothing is positive."""
    yes, no = (side[..., ::-1] for side in tie_groups(scores, positive, weights))  # falling scores
    found = np.cumsum(yes, -1)
    precision = divide(found, found + np.cumsum(no, -1))
    return divide((yes * precision).sum(-1), yes.sum(-1), empty=np.nan)


def divide(a: Any, b: Any, empty: float = 0.0) -> ndarray:
    """a / b, and `empty` where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    return np.divide(a, b, out=np.full(a.shape, empty), where=b != 0)


def mean_where(values: ndarray, where: ndarray) -> ndarray:
    """Mean over the last axis of the chosen entries; nan where none is chosen."""
    return divide(np.where(where, values, 0).sum(-1), where.sum(-1), empty=np.nan)


def scalar(value: Any) -> Any:
    """A float for what has no axis, the array otherwise."""
    return float(value) if np.ndim(value) == 0 else value


METRICS: dict[str, Metric] = {
    f.__name__: f
    for f in (accuracy, top_k, balanced_accuracy, macro_f1, mean_average_precision, rmse, mae, r2)
}  # each of raw outputs and targets
