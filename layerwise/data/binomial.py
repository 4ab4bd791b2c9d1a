"""Exact tests and intervals of counts."""

import math
from collections.abc import Callable

import numpy as np
from numpy import ndarray


def mcnemar(right_a: ndarray, right_b: ndarray) -> float:
    """Two-sided exact p-value that A and B are right equally often, of (n,) booleans each."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    if only_a == only_b:
        return 1.0
    return min(1.0, 2 * binomial_tail(min(only_a, only_b), only_a + only_b, 0.5))


def exact_share(hits: int, n: int, level: float) -> tuple[float, float]:
    """Clopper-Pearson interval of `hits` of `n`, by bisection on the binomial tails."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else solve(lambda p: binomial_tail(n - hits, n, 1 - p) - tail)
    high = 1.0 if hits == n else solve(lambda p: tail - binomial_tail(hits, n, p))
    return low, high


def solve(rising: Callable[[float], float]) -> float:
    """Where a rising function of [0, 1] crosses 0, to 1e-12."""
    low, high = 0.0, 1.0
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X <= k) of a binomial, exact, in logarithms so that large n do not underflow."""
    if k >= n or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    i = np.arange(k + 1)
    log_factorial = np.r_[0.0, np.cumsum(np.log(np.arange(1, n + 1)))]
    log_choose = log_factorial[n] - log_factorial[i] - log_factorial[n - i]
    return float(np.exp(log_choose + i * math.log(p) + (n - i) * math.log1p(-p)).sum())
