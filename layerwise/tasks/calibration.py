"""Probabilities that mean what they say: temperature, reliability, conformal sets, "unsure".

Temperature: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
Conformal sets: Vovk et al. 2005; LAC: Sadinle, Lei, Wasserman, JASA 2019; APS: Romano, Sesia,
Candes, NeurIPS 2020. Departure from APS: its random tie-breaker is replaced by its mean, so that
a row always gets the same set; the guarantee holds for any score and is not touched.

Shapes: n rows, C classes. Fit everything here on rows the network was not trained on.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from layerwise.errors import DataError, OptionError, unknown
from layerwise.tasks.metrics import check_rows, log_loss, softmax

BINS = 15
COLDEST, HOTTEST = 0.02, 50.0  # no temperature is sought outside


@dataclass(frozen=True)
class Calibration:
    """What the temperature does. "after" is cross-fitted: no row is judged by a temperature it
    helped to choose. `ece_chance`: what a perfectly calibrated model would show on n rows."""

    temperature: float
    ece_before: float
    ece_after: float
    ece_chance: float
    log_loss_before: float
    log_loss_after: float
    before: list[dict[str, float]]  # reliability tables, see `reliability`
    after: list[dict[str, float]]


# ---- temperature -----------------------------------------------------------------------------


def fit_temperature(logits: ndarray, targets: ndarray) -> float:
    """The T > 0 for which softmax(logits / T) has the least log loss on these rows.

    logits: (n, C) with targets (n,), or (n, C) with 0/1 targets (n, C): each label for itself.
    A prior, log T ~ normal(0, 1), worth about one row, keeps T from running to 0 where every row
    is right (20 of 20 is no proof of certainty). Newton steps on log(1 / T), kept in a bracket.
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


def calibrate(logits: ndarray, targets: ndarray, folds: int = 5, seed: int = 0) -> Calibration:
    """Fit the temperature on held-out logits (n, C), targets (n,), and say what it changes."""
    temperature = fit_temperature(logits, targets)
    before = softmax(logits)
    after = before
    n = len(targets)
    if n >= 2 * folds:
        fold = np.random.default_rng(seed).permutation(n) % folds
        parts = [fit_temperature(logits[fold != k], targets[fold != k]) for k in range(folds)]
        after = softmax(logits / np.asarray(parts)[fold][:, None])
    else:  # too few rows to hold any out: say what it does to themselves
        after = softmax(logits / temperature)
    return Calibration(
        temperature,
        ece(before, targets),
        ece(after, targets),
        chance_ece(softmax(logits / temperature), seed),
        log_loss(before, targets),
        log_loss(after, targets),
        reliability(before, targets),
        reliability(after, targets),
    )


def reliability(
    probabilities: ndarray, targets: ndarray, bins: int = BINS
) -> list[dict[str, float]]:
    """Per bin of the top probability: low, high, count, mean confidence, accuracy (nan: empty)."""
    check_rows(probabilities, targets)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    count, sure, hits = bin_sums(confidence, right, bins)
    filled = np.where(count > 0, count, np.nan)
    columns = (np.arange(bins) / bins, np.arange(1, bins + 1) / bins, count)
    names = ("low", "high", "count", "confidence", "accuracy")
    rows = zip(*columns, sure / filled, hits / filled, strict=True)
    return [dict(zip(names, map(float, row), strict=True)) for row in rows]


def ece(probabilities: ndarray, targets: ndarray, bins: int = BINS) -> float:
    """Expected calibration error: mean gap between confidence and accuracy, weighted by rows."""
    check_rows(probabilities, targets)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    _, sure, hits = bin_sums(confidence, right, bins)
    return float(np.abs(sure - hits).sum() / len(targets))


def chance_ece(probabilities: ndarray, seed: int = 0, draws: int = 100) -> float:
    """Mean ECE when the probabilities are true: what sampling noise alone shows on n rows."""
    confidence = probabilities.max(1)
    rng = np.random.default_rng(seed)
    gaps = []
    for _ in range(draws):
        _, sure, hits = bin_sums(confidence, rng.random(len(confidence)) < confidence, BINS)
        gaps.append(np.abs(sure - hits).sum() / len(confidence))
    return float(np.mean(gaps))


def bin_sums(confidence: ndarray, right: ndarray, bins: int) -> tuple[ndarray, ndarray, ndarray]:
    """Sums per bin (low, high]: rows, confidence, right ones."""
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return tuple(np.bincount(index, w, bins) for w in (None, confidence, right))  # type: ignore[return-value]


# ---- conformal sets --------------------------------------------------------------------------


@dataclass(frozen=True)
class Conformal:
    """Sets that hold the right class with chance at least `1 - alpha`.

    The chance is over new rows of the same kind as the n calibration rows, all classes together;
    it promises nothing for one class alone, nor for rows of another kind.
    """

    method: str  # "lac": smallest sets; "aps": more even over easy and hard rows, never empty
    alpha: float
    threshold: float  # inf when n is too small for this alpha: every class is in every set
    n: int

    def sets(self, probabilities: ndarray) -> ndarray:
        """Which classes are in the set of each row: bool (n, C)."""
        inside = strangeness(probabilities, self.method) <= self.threshold
        if self.method == "aps":
            inside[np.arange(len(inside)), probabilities.argmax(1)] = True
        return inside

    def answers(self, probabilities: ndarray) -> ndarray:
        """The class (n,) where the set is that one class alone, -1 for "unsure".

        An empty set (lac only) is "unsure" too: the row resembles no class well enough.
        """
        inside = self.sets(probabilities)
        return np.where(inside.sum(1) == 1, inside.argmax(1), -1)

    def to_dict(self) -> dict[str, Any]:
        threshold = None if math.isinf(self.threshold) else self.threshold
        return {"method": self.method, "alpha": self.alpha, "threshold": threshold, "n": self.n}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Conformal":
        threshold = math.inf if values["threshold"] is None else values["threshold"]
        return cls(values["method"], values["alpha"], threshold, values["n"])


def fit_conformal(
    probabilities: ndarray, targets: ndarray, alpha: float = 0.1, method: str = "lac"
) -> Conformal:
    """The threshold from held-out probabilities (n, C) and their classes (n,).

    Errors: OptionError for alpha outside (0, 1) or an unknown method; DataError without rows.
    """
    if method not in ("lac", "aps"):
        raise unknown("conformal method", method, ("lac", "aps"))
    check_rows(probabilities, targets)
    own = strangeness(probabilities, method)[np.arange(len(targets)), targets]
    return Conformal(method, alpha, conformal_quantile(own, alpha), len(targets))


def strangeness(probabilities: ndarray, method: str) -> ndarray:
    """How ill each class fits each row, (n, C): lac 1 - p, aps the mass above it plus p / 2."""
    p = np.asarray(probabilities, np.float64)
    if method == "lac":
        return 1 - p
    order = np.argsort(-p, axis=1, kind="stable")
    falling = np.take_along_axis(p, order, 1)
    middle = np.cumsum(falling, 1) - falling / 2
    out = np.empty_like(p)
    np.put_along_axis(out, order, middle, 1)
    return out


def conformal_quantile(values: ndarray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest value; infinite when n is too small for alpha."""
    if not 0 < alpha < 1:
        raise OptionError(
            f"alpha is the share of sets that may miss, between 0 and 1; {alpha} was given"
        )
    if not len(values):
        raise DataError("conformal sets need held-out rows; none were given")
    rank = math.ceil((len(values) + 1) * (1 - alpha) - 1e-9)
    return math.inf if rank > len(values) else float(np.partition(values, rank - 1)[rank - 1])


def conformal_margin(outputs: ndarray, targets: ndarray, alpha: float = 0.1) -> float:
    """For numbers: m such that output +- m holds the target with chance at least `1 - alpha`."""
    check_rows(outputs, targets)
    return conformal_quantile(np.abs(np.subtract(outputs, targets, dtype=np.float64)), alpha)
