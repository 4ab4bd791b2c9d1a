"""Probabilities that mean what they say: temperature, reliability, conformal sets, "unsure".

Temperature: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
Conformal sets: Vovk et al. 2005; of the classes with 1 - p at most a quantile of that of held-out
rows (LAC): Sadinle, Lei, Wasserman, JASA 2019; of numbers, all within a quantile of the errors.
They hold the truth with the chance asked for, over new rows of the same kind, not class by class.

Shapes: n rows, C classes. Fit everything here on rows the network was not trained on.
"""

import math

import numpy as np
from numpy import ndarray

from layerwise.errors import DataError, OptionError
from layerwise.tasks.scores.metrics import check_rows

BINS = 15
Bin = dict[str, float]
COLDEST, HOTTEST = 0.02, 50.0  # the bounds of the search


# ---- temperature -----------------------------------------------------------------------------


def fit_temperature(logits: ndarray, targets: ndarray) -> float:
    """The T > 0 for which softmax(logits / T) has the least log loss on these rows.

    logits: (n, C) with targets (n,), or (n, C) with 0/1 targets (n, C): each label for itself.
    A prior, log T ~ normal(0, 1), worth about one row, keeps T from running to 0 where every row
    is right (20 of 20 does not prove certainty). Newton steps on log(1 / T), kept in a bracket.
    """
    if np.ndim(targets) == 2:
        z = np.asarray(logits, np.float64).reshape(-1)
        logits, targets = np.stack([0 * z, z], 1), np.asarray(targets).reshape(-1).astype(np.int64)
    check_rows(logits, targets)
    z = np.asarray(logits, np.float64)
    z = z - z[np.arange(len(z)), targets][:, None]  # relative to the right class
    low, high, u = -math.log(HOTTEST), -math.log(COLDEST), 0.0
    for _ in range(60):
        beta = math.exp(u)
        mean, square = moments(z, beta)
        slope = beta * mean.mean() + u / len(z)
        curve = beta**2 * (square - mean**2).mean() + 1 / len(z)
        low, high = (low, u) if slope > 0 else (u, high)
        step = u - slope / curve
        new = step if low < step < high else (low + high) / 2
        if abs(new - u) < 1e-7:
            break
        u = new
    return math.exp(-u)


def moments(z: ndarray, beta: float) -> tuple[ndarray, ndarray]:
    """Mean of z (n, C) and of its square under softmax(beta z), row by row: (n,) each."""
    p = beta * (z - z.max(1, keepdims=True))
    np.exp(p, out=p)
    total = p.sum(1)
    mean = np.einsum("ij,ij->i", p, z) / total
    np.multiply(p, z, out=p)
    return mean, np.einsum("ij,ij->i", p, z) / total


def reliability(probabilities: ndarray, targets: ndarray, bins: int = BINS) -> list[Bin]:
    """Per bin of the top probability: low, high, count, mean confidence, accuracy (nan: empty)."""
    count, sure, hits = bin_sums(probabilities, targets, bins)
    filled = np.where(count > 0, count, np.nan)
    columns = (np.arange(bins) / bins, np.arange(1, bins + 1) / bins, count)
    names = ("low", "high", "count", "confidence", "accuracy")
    rows = zip(*columns, sure / filled, hits / filled, strict=True)
    return [dict(zip(names, map(float, row), strict=True)) for row in rows]


def ece(probabilities: ndarray, targets: ndarray, bins: int = BINS) -> float:
    """Expected calibration error: mean gap between confidence and accuracy, weighted by rows."""
    _, sure, hits = bin_sums(probabilities, targets, bins)
    return float(np.abs(sure - hits).sum() / len(targets))


def bin_sums(probabilities: ndarray, targets: ndarray, bins: int) -> list[ndarray]:
    """Sums per bin (low, high] of the top probability: rows, this probability, right rows."""
    check_rows(probabilities, targets)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return [np.bincount(index, w, bins) for w in (None, confidence, right)]


# ---- conformal sets --------------------------------------------------------------------------
def conformal_quantile(values: ndarray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest value; infinite when n is too small for alpha.

    values: how badly the truth fitted held-out rows, (n,).
    """
    if not 0 < alpha < 1:
        what = "alpha is the share of sets that may miss, between 0 and 1"
        raise OptionError(f"{what}; {alpha} was given")
    if not len(values):
        raise DataError("conformal sets need held-out rows; none were given")
    rank = math.ceil((len(values) + 1) * (1 - alpha) - 1e-9)
    return math.inf if rank > len(values) else float(np.partition(values, rank - 1)[rank - 1])
