"""How sure a score is, and whether one model is better than another on the same rows.

Intervals: bias-corrected accelerated (BCa) bootstrap over rows; DiCiccio and Efron, "Bootstrap
confidence intervals", Statistical Science 1996. A share of exactly 0 or 1 has no spread to
resample: it gets the exact (Clopper-Pearson) interval, so 20 right of 20 is [83.2%, 100%].
Tests: exact McNemar for accuracies; paired permutation (swapping the two models' rows) otherwise.

Shapes: n rows, R resamples. All randomness follows from `seed`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy import ndarray

from layerwise.data.binomial import exact_share, mcnemar
from layerwise.errors import DataError
from layerwise.tasks.scores import metrics
from layerwise.tasks.scores.metrics import Metric

LEVEL = 0.95  # of intervals, and one less the largest p of a difference that is shown
CELLS = 1 << 22  # weights held at once: 32 MiB
ALL_OR_NOTHING = {  # 1 where every row is right, 0 where none is
    "accuracy", "top_k", "balanced_accuracy", "macro_f1", "recall_at_1", "entity_f1", "answer_f1"
}  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A score and where it may as well lie: `level` of such intervals hold the true value."""

    value: float
    low: float
    high: float
    level: float
    n: int
    method: str  # "BCa bootstrap" or "Clopper-Pearson"


@dataclass(frozen=True)
class Comparison:
    """Model B against model A on the same rows; `difference` is B minus A."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    n: int
    test: str
    better: str  # "A", "B", or "" where no difference is shown
    sentence: str = ""


# ---- one model -------------------------------------------------------------------------------


def interval(
    metric: Metric, outputs: ndarray, targets: ndarray, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The metric on all rows with its interval.

    metric: any function (outputs, targets, weights) of `metrics`. outputs, targets: n rows.
    Errors: DataError without rows.
    """
    n = len(targets)
    value = metric(outputs, targets)
    draws = np.concatenate([metric(outputs, targets, w) for w in counts(n, resamples, seed)])
    if np.ptp(draws) == 0:
        if plain(metric).__name__ in ALL_OR_NOTHING and value in (0, 1):
            low, high = exact_share(round(value * n), n, LEVEL)
            return Interval(value, low, high, LEVEL, n, "Clopper-Pearson")
        return Interval(value, value, value, LEVEL, n, "BCa bootstrap")
    groups = [metric(outputs, targets, w) for w in leave_out(n, seed)]
    low, high = bca(draws, value, np.concatenate(groups))
    return Interval(value, low, high, LEVEL, n, "BCa bootstrap")


def plain(metric: object) -> Any:
    """The function behind `functools.partial(top_k, k=3)`."""
    return getattr(metric, "func", metric)


def counts(n: int, resamples: int, seed: int) -> Iterator[ndarray]:
    """Bootstrap weights (r, n), in pieces of limited memory: how often each row was drawn."""
    rng = np.random.default_rng(seed)
    step = max(1, CELLS // max(1, n))
    for start in range(0, resamples, step):
        r = min(step, resamples - start)
        drawn = rng.integers(n, size=(r, n)) + n * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)


def leave_out(n: int, seed: int, most: int = 200) -> Iterator[ndarray]:
    """Jackknife weights (g, n): each leaves out one of at most `most` random groups of rows."""
    groups = min(n, most)
    member = np.random.default_rng([seed, 1]).permutation(n) % groups
    step = max(1, CELLS // max(1, n))
    for start in range(0, groups, step):
        left_out = np.arange(start, min(start + step, groups))[:, None]
        yield (member != left_out).astype(np.float64)


def bca(draws: ndarray, value: float, jackknife: ndarray) -> tuple[float, float]:
    """Ends of the interval: percentiles of `draws` moved for bias and skewness."""
    normal = NormalDist()
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return math.nan, math.nan
    share = (np.mean(draws < value) + np.mean(draws <= value)) / 2  # ties count half
    edge = 0.5 / max(1, len(draws))
    bias = normal.inv_cdf(float(np.clip(share, edge, 1 - edge)))
    d = np.nanmean(jackknife) - jackknife[~np.isnan(jackknife)]
    acceleration = float(metrics.divide((d**3).sum(), 6 * (d**2).sum() ** 1.5))
    ends = []
    for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        z = bias + normal.inv_cdf(tail)
        ends.append(normal.cdf(bias + z / max(1e-6, 1 - acceleration * z)))
    low, high = np.quantile(draws, ends)
    return float(low), float(high)


# ---- two models ------------------------------------------------------------------------------


def compare(
    metric: Metric,
    outputs_a: ndarray,
    outputs_b: ndarray,
    targets: ndarray,
    higher_is_better: bool = True,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Is B better than A? Both gave outputs for the same n rows.

    The interval of the difference is a paired BCa bootstrap: both models see the same resample.
    Errors: DataError when the rows are not the same number.
    """
    if len(outputs_a) != len(outputs_b):
        both = f"A has {len(outputs_a)} rows and B {len(outputs_b)}"
        raise DataError(f"{both}: compare on the same rows")
    n = len(targets)
    a, b = metric(outputs_a, targets), metric(outputs_b, targets)

    def gap(w: ndarray) -> ndarray:
        return metric(outputs_b, targets, w) - metric(outputs_a, targets, w)

    draws = np.concatenate([gap(w) for w in counts(n, resamples, seed)])
    groups = np.concatenate([gap(w) for w in leave_out(n, seed)])
    low, high = (b - a, b - a) if np.ptp(draws) == 0 else bca(draws, b - a, groups)
    if metric is metrics.accuracy:
        p = mcnemar(outputs_a.argmax(1) == targets, outputs_b.argmax(1) == targets)
        test = "McNemar's exact test"
    else:
        p = permutation_p(metric, [outputs_a, outputs_b], targets, b - a, resamples, seed)
        test = "paired permutation test"
    ahead = "B" if (b > a) == higher_is_better else "A"
    better = ahead if p < 1 - LEVEL and a != b else ""
    spread = float(np.std(draws[~np.isnan(draws)] if b == b and a == a else 0.0))
    found = Comparison(a, b, b - a, low, high, p, n, test, better)
    return replace(found, sentence=say(metric, found, spread))


def permutation_p(
    metric: Metric,
    pair: list[ndarray],
    targets: ndarray,
    difference: float,
    resamples: int,
    seed: int,
) -> float:
    """Two-sided p-value: how often swapping A and B row by row at random gives this much."""
    rng = np.random.default_rng([seed, 2])
    both, twice = np.concatenate(pair), np.concatenate([targets, targets])
    n, extreme = len(targets), 0
    step = max(1, CELLS // (2 * n))
    for start in range(0, resamples, step):
        swap = rng.integers(2, size=(min(step, resamples - start), n)).astype(np.float64)
        a = metric(both, twice, np.concatenate([1 - swap, swap], 1))
        b = metric(both, twice, np.concatenate([swap, 1 - swap], 1))
        extreme += int((~(np.abs(b - a) < abs(difference) * (1 - 1e-9))).sum())
    return (extreme + 1) / (resamples + 1)


SHARES = (metrics.accuracy, metrics.top_k, metrics.balanced_accuracy)  # said in points of 100


def say(metric: Metric, found: Comparison, spread: float) -> str:
    """The result in one sentence for a person, with what it would take where it is open."""
    scale, unit = (100, " points") if plain(metric) in SHARES else (1, "")
    name, n = plain(metric).__name__.replace("_", " "), found.n
    values = found.a, found.b, found.difference, found.low, found.high
    a, b, d, low, high = (scale * v for v in values)
    evidence = (
        f"{name} {a:.4g} for A and {b:.4g} for B, difference {d:+.3g}{unit}, {LEVEL:.0%} interval "
        f"{low:+.3g} to {high:+.3g}, p = {found.p:.2g} ({found.test}, {n:,} rows)"
    )
    if found.better:
        return f"{found.better} is better: {evidence}."
    if math.isnan(d):
        return f"One of the scores is not defined: {evidence}."
    if d == 0 or spread == 0:
        return f"A and B score the same: {evidence}."
    # 2.8 = 1.96 + 0.84: 95% confidence, and 80% power to see a difference of this size
    needed = math.ceil(n * (2.8 * spread * scale / abs(d)) ** 2)
    return (
        f"No difference is shown: {evidence}. "
        f"To tell a difference of this size about {float(f'{needed:.2g}'):,.0f} rows are needed."
    )
