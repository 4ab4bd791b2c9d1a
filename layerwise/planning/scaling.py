"""What loss a size and a number of tokens will come to, from small runs on the very same text.

L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al., "Training Compute-Optimal Large Language
Models", arXiv:2203.15556, approach 3), fitted as there on the logarithm of the loss with Huber's
penalty. A handful of small runs cannot tell five constants apart, so the exponents are drawn to
usual ones as far as the runs leave them open: that of the size as in the paper, that of the tokens
as on corpora of a few megabytes, where it is steeper and the loss levels off sooner (docs/log.md).
Text that is read again is worth less each time (Muennighoff et al., arXiv:2305.16264): D counts as
U + U R* (1 - exp(-(D / U - 1) / R*)) where only U tokens are there.

How far such a law can be trusted is measured on the runs themselves: the largest are predicted from
the smaller ones, and what that misses by, per factor of e of compute, widens every interval.

Legend: N parameters that multiply, D tokens trained on, U different tokens, C FLOPs = 6 N D.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerwise.errors import DataError
from layerwise.planning.estimate import Estimate

REPEATS_WORTH = 15.4  # R*: how many times reading again still pays
EXPONENTS = (0.34, 0.40)  # of N: table A3 of the paper; of D: docs/log.md, the paper has 0.28
PULL = 0.03  # how far from these the fit takes them without protest
HUBER = 1e-3
DRAWS = 60  # refits on resampled residuals, for the interval
LEAST_RUNS = 4
FLOPS = 6  # per parameter and token: forward 2, backward 4
# runs that a law of smaller ones predicted missed it by 2.2% (root mean square; docs/log.md), so
# however well the runs fit, that much is not known of a single one, and more further out
LEAST_NOISE, LEAST_SLIP = 0.02, 0.02
Runs = tuple[np.ndarray, np.ndarray]  # (n,) parameters, and tokens with repetitions discounted


@dataclass(frozen=True)
class Point:
    """One small run: its size, what it read, and the validation loss, in any unit."""

    params: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """A fitted law, and how else it might have come out."""

    constants: np.ndarray  # (5,) log E, log A, alpha, log B, beta
    draws: np.ndarray  # (DRAWS, 5), fits on resampled residuals
    unique_tokens: float
    noise: float  # standard deviation of the logarithm of the loss around the fit
    slip: float  # error of the logarithm per unit of ln C past what was fitted, as measured
    reach: float  # ln C of the largest run

    def loss(self, params: float, tokens: float) -> Estimate:
        """The expected loss with its 95% interval, the noise of a single run included."""
        read = worth(tokens, self.unique_tokens)
        many = np.log([predict(c, params, read) for c in self.draws])
        beyond = max(0.0, math.log(params * tokens) - self.reach)
        spread = math.hypot(float(many.std()), max(self.noise, LEAST_NOISE), self.slip * beyond)
        value = float(predict(self.constants, params, read))
        return Estimate(value, value * math.exp(-1.96 * spread), value * math.exp(1.96 * spread))


@dataclass(frozen=True)
class Candidate:
    """A size, the tokens that the compute at hand pays for, and the loss expected of it."""

    name: str
    params: float
    tokens: float
    loss: Estimate


@dataclass(frozen=True)
class Forecast:
    """What every size would come to at this compute, and the one that was chosen."""

    law: Law
    runs: tuple[Point, ...]
    curve: tuple[Candidate, ...]
    chosen: int
    unit: str  # of the loss

    @property
    def best(self) -> Candidate:
        return self.curve[self.chosen]

    def beside(self, tokens: float, came: float | None = None) -> dict[str, Any]:
        """The chosen size after the tokens that it really read, and what came; for the report."""
        expected = self.law.loss(self.best.params, tokens)
        return {
            "unit": self.unit,
            "tokens": tokens,
            **vars(expected),
            "came": came,
            "within": None if came is None else expected.low <= came <= expected.high,
            "chosen": self.best.name,
            "params": self.best.params,
            "epochs": tokens / self.law.unique_tokens,
            "curve": [
                {k: v for k, v in vars(c).items() if k != "loss"} | vars(c.loss) for c in self.curve
            ],
            "runs": [vars(p) for p in self.runs],
        }


def forecast(law: Law, runs: Sequence[Point], sizes: Sequence[Any], unit: str) -> Forecast:
    """sizes: (name, parameters, tokens that can be paid for) of each network that could be."""
    curve = tuple(Candidate(name, n, d, law.loss(n, d)) for name, n, d in sizes)
    best = int(np.argmin([c.loss.value for c in curve]))
    return Forecast(law, tuple(runs), curve, best, unit)


def worth(tokens: np.ndarray | float, unique: float) -> np.ndarray:
    """Tokens read, repetitions discounted."""
    again = np.maximum(np.asarray(tokens, float) / unique - 1, 0)
    repeated = unique * (1 + REPEATS_WORTH * -np.expm1(-again / REPEATS_WORTH))
    return np.where(again > 0, repeated, tokens)


def predict(constants: np.ndarray, params: np.ndarray | float, tokens: np.ndarray | float):
    e, a, alpha, b, beta = constants
    return np.exp(e) + np.exp(a) / np.power(params, alpha) + np.exp(b) / np.power(tokens, beta)


def fit_law(points: Sequence[Point], unique_tokens: float, seed: int = 0) -> Law:
    """The law of these runs.

    Errors: DataError for fewer than 4 runs, or fewer than 2 sizes or amounts of text.
    """
    sizes, amounts = {p.params for p in points}, {p.tokens for p in points}
    if len(points) < LEAST_RUNS or len(sizes) < 2 or len(amounts) < 2:
        raise DataError(
            f"a scaling law needs at least {LEAST_RUNS} runs of 2 sizes and 2 amounts of text; "
            f"{len(points)} runs of {len(sizes)} sizes and {len(amounts)} amounts were given"
        )
    params, tokens, losses = np.array([(p.params, p.tokens, p.loss) for p in points]).T
    logs, runs = np.log(losses), (params, worth(tokens, unique_tokens))
    constants = solve(runs, logs, start_at(runs, logs))
    fitted = np.log(predict(constants, *runs))
    noise = float((logs - fitted).std() * math.sqrt(len(points) / max(1, len(points) - 3)))
    rng = np.random.default_rng(seed)
    draws = [
        solve(runs, fitted + noise * rng.standard_normal(len(logs)), constants, rng)
        for _ in range(DRAWS)
    ]
    reach = float(np.log(params * tokens).max())
    slip = slip_of(runs, logs, noise)
    return Law(constants, np.array(draws), unique_tokens, noise, slip, reach)


def slip_of(runs: Runs, logs: np.ndarray, noise: float) -> float:
    """What predicting larger runs from the smaller ones misses by, per factor of e of compute.

    Each size's longest run from all shorter ones, and the largest size from the smaller ones.
    """
    params, tokens = runs
    longest = tokens >= np.array([tokens[params == n].max() for n in params])
    largest = params == params.max()
    compute, missed = np.log(params * tokens), []
    for unseen in (longest, largest):
        known = ~unseen
        if known.sum() < 3 or len(set(params[known])) < 2:
            continue
        seen = params[known], tokens[known]
        found = solve(seen, logs[known], start_at(seen, logs[known]))
        for i in np.flatnonzero(unseen):
            own = known & (params == params[i])
            far = compute[i] - compute[own if own.any() else known].max()
            gap = abs(math.log(predict(found, params[i], tokens[i])) - logs[i])
            missed.append(max(0.0, gap - noise) / max(0.5, far))
    return max(LEAST_SLIP, float(np.sqrt(np.mean(np.square(missed)))) if missed else 0.0)


def start_at(runs: Runs, logs: np.ndarray) -> np.ndarray:
    """A third of the lowest loss to each of the three terms."""
    third = float(logs.min()) - math.log(3)
    alpha, beta = EXPONENTS
    a, b = third + alpha * math.log(runs[0].max()), third + beta * math.log(runs[1].max())
    return np.array([third, a, alpha, b, beta])


def solve(
    runs: Runs, logs: np.ndarray, start: np.ndarray, rng: np.random.Generator | None = None
) -> np.ndarray:
    """The constants of least Huber penalty; with `rng`, the exponents' centres are drawn too."""
    from scipy.optimize import least_squares

    centre = np.array(EXPONENTS) + (PULL * rng.standard_normal(2) if rng else 0.0)

    def misfit(constants: np.ndarray) -> np.ndarray:
        gap = np.log(predict(constants, *runs)) - logs
        huber = np.sign(gap) * np.sqrt(np.where(abs(gap) < HUBER, gap**2, 2 * HUBER * abs(gap)))
        pull = (constants[[2, 4]] - centre) / PULL * HUBER
        return np.concatenate([huber, pull])

    bounds = ([-9, -9, 0.05, -9, 0.05], [9, 40, 1.5, 40, 1.5])
    return least_squares(misfit, np.clip(start, *bounds), bounds=bounds).x
