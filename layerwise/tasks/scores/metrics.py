"""Metrics, each a function of weighted rows, so that one definition serves score and bootstrap.

Every metric takes `weights`: None (each row counts once), (n,), or (R, n) for R weightings at
once, and gives a float or (R,) accordingly. A bootstrap resample is then a row of counts, and a
thousand resamples are one matrix product (see `intervals.py`).

Shapes: n rows, C classes or labels, R weightings. Ties in scores count as one threshold (half a
win in the area under the curve), so results do not depend on the order of the rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from layerwise.errors import DataError

Metric = Callable[..., Any]
Weights = ndarray | None
Arrays = tuple[ndarray, ndarray]  # outputs and targets

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


def accuracy(outputs: ndarray, targets: ndarray, weights: Weights = None) -> Any:
    """Share of rows whose largest output (n, C) is the right class (n,)."""
    check_rows(outputs, targets)
    return average(outputs.argmax(1) == targets, weights)


def top_k(outputs: ndarray, targets: ndarray, weights: Weights = None, k: int = 5) -> Any:
    """Share of rows whose class is among the `k` largest outputs; ties count against it."""
    check_rows(outputs, targets)
    own = outputs[np.arange(len(targets)), targets][:, None]  # (n, 1)
    rank = (outputs >= own).sum(1)  # 1 = the single largest
    return average(rank <= k, weights)


def balanced_accuracy(outputs: ndarray, targets: ndarray, weights: Weights = None) -> Any:
    """Mean over the classes that occur of the share of their rows that is right (recall)."""
    hits, occurs, _ = class_counts(outputs, targets, weights)
    return scalar(mean_where(divide(hits, occurs), occurs > 0))


def macro_f1(outputs: ndarray, targets: ndarray, weights: Weights = None) -> Any:
    """Mean F1 over the classes that occur or are predicted, each counting the same."""
    hits, occurs, predicted = class_counts(outputs, targets, weights)
    both = occurs + predicted
    return scalar(mean_where(divide(2 * hits, both), both > 0))


def confusion(outputs: ndarray, targets: ndarray) -> ndarray:
    """Counts (C, C): row = true class, column = predicted class."""
    check_rows(outputs, targets)
    c = outputs.shape[1]
    return np.bincount(targets * c + outputs.argmax(1), minlength=c * c).reshape(c, c)


def log_loss(probabilities: ndarray, targets: ndarray, weights: Weights = None) -> Any:
    """Mean negative log probability (nats) of the right class; zeros count as 1e-15."""
    check_rows(probabilities, targets)
    own = np.asarray(probabilities, np.float64)[np.arange(len(targets)), targets]
    return average(-np.log(np.maximum(own, 1e-15)), weights)


def auc(outputs: ndarray, targets: ndarray, weights: Weights = None) -> Any:
    """Area under the ROC curve; more than two classes: mean of each class against the rest.

    outputs: scores (n,) of the positive class, or (n, C); with more than two classes give
    probabilities, since the rows must be comparable. targets: (n,) classes or 0/1.
    Classes that do not occur, or are all there is, are left out; nan when nothing remains.
    """
    check_rows(outputs, targets)
    w = columns(weights, len(targets))
    if outputs.ndim == 2 and outputs.shape[1] == 2:
        outputs, targets = outputs[:, 1] - outputs[:, 0], targets == 1
    if outputs.ndim == 1:
        return like(rank_area(outputs, targets > 0, w), weights)
    areas = [rank_area(outputs[:, c], targets == c, w) for c in range(outputs.shape[1])]
    areas = np.stack(areas, -1)  # (R, C)
    return like(mean_where(areas, ~np.isnan(areas)), weights)


def mean_average_precision(outputs: ndarray, targets: ndarray, weights: Weights = None) -> Any:
    """Average precision of each label, averaged over the labels that occur.

    outputs, targets: (n, C) scores and 0/1. Average precision is the step-wise area under the
    precision-recall curve, as in scikit-learn (no interpolation).
    """
    check_rows(outputs, targets)
    w = columns(weights, len(targets))
    each = [average_precision(o, t > 0, w) for o, t in zip(outputs.T, targets.T, strict=True)]
    each = np.stack(each, -1)  # (R, C)
    return like(mean_where(each, ~np.isnan(each)), weights)


# ---- numbers: outputs (n,) or (n, 1), targets (n,) -------------------------------------------


def rmse(outputs: ndarray, targets: ndarray, weights: Weights = None) -> Any:
    """Root of the mean squared error, in the target's unit."""
    return scalar(np.sqrt(average(errors(outputs, targets) ** 2, weights)))


def mae(outputs: ndarray, targets: ndarray, weights: Weights = None) -> Any:
    """Mean absolute error, in the target's unit."""
    return average(np.abs(errors(outputs, targets)), weights)


def r2(outputs: ndarray, targets: ndarray, weights: Weights = None) -> Any:
    """Share of the target's variance that is explained; nan when the target does not vary."""
    error = average(errors(outputs, targets) ** 2, weights)
    y = np.asarray(targets, np.float64)
    y = y - y.mean()  # the variance below is a difference of squares: keep them small
    variance = average(y**2, weights) - np.square(average(y, weights))
    return scalar(1 - divide(error, np.where(variance > 1e-12 * np.mean(y**2), variance, np.nan)))


def pearson(outputs: ndarray, targets: ndarray, weights: Weights = None) -> Any:
    """Correlation of outputs (n,) with targets (n,); nan where one of them does not vary."""
    check_rows(outputs, targets)
    w = np.ones((1, len(targets))) if weights is None else np.atleast_2d(weights)
    return like(correlation(np.asarray(outputs, np.float64), targets, w), weights)


def spearman(outputs: ndarray, targets: ndarray, weights: Weights = None) -> Any:
    """Correlation of the ranks of outputs (n,) and targets (n,); equal values share their rank."""
    check_rows(outputs, targets)
    w = np.ones((1, len(targets))) if weights is None else np.atleast_2d(weights)
    return like(correlation(ranks(np.asarray(outputs), w), ranks(targets, w), w), weights)


def ranks(values: ndarray, w: ndarray) -> ndarray:
    """The mean rank of each of the values (n,) among all rows as often as they count: (R, n)."""
    order, first, last = ranked(values)
    up_to = np.cumsum(w[:, order], axis=1)
    before = up_to - w[:, order]
    out = np.empty_like(up_to)
    out[:, order] = (before[:, first] + up_to[:, last] + 1) / 2
    return out


def correlation(a: ndarray, b: ndarray, w: ndarray) -> ndarray:
    """Of a and b, (n,) or (R, n), by the weights (R, n): (R,)."""
    share = w / w.sum(1, keepdims=True)
    least = [1e-20 * (share * x * x).sum(1) for x in (a, b)]  # what rounding leaves of no variance
    a, b = (x - (share * x).sum(1, keepdims=True) for x in (a, b))
    spreads = [(share * x * x).sum(1) for x in (a, b)]
    varies = (spreads[0] > least[0]) & (spreads[1] > least[1])
    spread = np.sqrt(spreads[0] * spreads[1])
    return divide((share * a * b).sum(1), np.where(varies, spread, 0), empty=np.nan)


def errors(outputs: ndarray, targets: ndarray) -> ndarray:
    """outputs - targets, (n,) float64."""
    check_rows(outputs, targets)
    return np.subtract(np.reshape(outputs, np.shape(targets)), targets, dtype=np.float64)


# ---- weighted counts -------------------------------------------------------------------------


def check_rows(outputs: ndarray, targets: ndarray) -> None:
    """Errors: DataError when the lengths differ, there is no row, or an output is not finite."""
    if len(outputs) != len(targets):
        both = f"{len(outputs)} outputs for {len(targets)} targets"
        raise DataError(f"{both}: they must be of the same rows")
    if not len(targets):
        raise DataError("there is no row to score; give a test set with at least one row")
    if not np.isfinite(outputs).all():
        bad = np.flatnonzero(~np.isfinite(np.reshape(outputs, (len(outputs), -1))).all(1))
        raise DataError(
            f"{len(bad)} of {len(outputs)} rows of outputs are not finite, row {bad[0]} the first; "
            "no score can be given: did the training diverge?"
        )


def average(values: ndarray, weights: Weights) -> Any:
    """Weighted mean over rows of values (n,): a float, or (R,) for weights (R, n)."""
    values = np.asarray(values, np.float64)
    if weights is None:
        return float(values.mean())
    return scalar(weights @ values / weights.sum(-1))


def class_counts(outputs: ndarray, targets: ndarray, weights: Weights) -> Sequence[ndarray]:
    """Weighted (..., C) counts: right, occurring, predicted."""
    check_rows(outputs, targets)
    predicted = outputs.argmax(1)
    right = predicted == targets
    c = outputs.shape[1]
    if weights is None:
        weights = np.ones(len(targets))
    hits = predicted[right]
    rows = [
        [np.bincount(hits, w[right], c), np.bincount(targets, w, c), np.bincount(predicted, w, c)]
        for w in np.atleast_2d(weights)
    ]
    counts = np.moveaxis(np.array(rows), 1, 0)  # (3, R, C)
    return list(counts if weights.ndim == 2 else counts[:, 0])


def columns(weights: ndarray | None, n: int) -> ndarray:
    """Weights as (n, R) float32, R = 1 for none: whole rows are gathered and summed up fast.

    Counts are exact in float32 up to 16 million rows.
    """
    rows = np.ones((1, n)) if weights is None else np.atleast_2d(weights)
    return np.ascontiguousarray(rows.T, np.float32)


def ranked(scores: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Rows by rising score, and for each place the first and the last place of equal score."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    ends = np.r_[starts[1:], len(scores)] - 1
    group = np.searchsorted(starts, np.arange(len(scores)), side="right") - 1
    return order, starts[group], ends[group]


def rank_area(scores: ndarray, positive: ndarray, w: ndarray) -> ndarray:
    """Chance that a positive row scores above a negative one, (R,); nan where one side is empty.

    w: (n, R) of `columns`. Equal scores count half.
    """
    order, first, last = ranked(scores)
    yes, w = positive[order], w[order]
    no = np.cumsum(w * ~yes[:, None], axis=0)  # (n, R) negatives up to here
    no = np.concatenate([np.zeros_like(no[:1]), no])
    below = no[first[yes]] + no[last[yes] + 1]  # twice the negatives below a positive
    wins = np.einsum("ir,ir->r", w[yes], below, dtype=np.float64)
    total = w[yes].sum(0, dtype=np.float64) * no[-1]
    return divide(wins, 2 * total, empty=np.nan)


def average_precision(scores: ndarray, positive: ndarray, w: ndarray) -> ndarray:
    """Sum over thresholds of (rise in recall) x precision, (R,); nan where nothing is positive."""
    order, _, last = ranked(-scores)
    yes, w = positive[order], w[order]
    at = last[yes]  # the threshold of each positive takes in all rows of its score
    found = np.cumsum(w * yes[:, None], axis=0)[at]
    chosen = np.cumsum(w, axis=0)[at]
    gain = w[yes].astype(np.float64) * found / np.maximum(chosen, 1e-30)
    return divide(gain.sum(0), w[yes].sum(0, dtype=np.float64), empty=np.nan)


def divide(a: object, b: object, empty: float = 0.0) -> ndarray:
    """a / b, and `empty` where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    return np.divide(a, b, out=np.full(a.shape, empty), where=b != 0)


def mean_where(values: ndarray, where: ndarray) -> ndarray:
    """Mean over the last axis of the chosen entries; nan where none is chosen."""
    return divide(np.where(where, values, 0).sum(-1), where.sum(-1), empty=np.nan)


def like(values: ndarray, weights: Weights) -> Any:
    """(R,) for many weightings, a float for one."""
    return values if weights is not None and weights.ndim == 2 else float(values[0])


def scalar(value: float | ndarray) -> Any:
    """A float for what has no axis, the array otherwise."""
    return float(value) if np.ndim(value) == 0 else value
