"""The law is found again in runs made from one, and its intervals hold what comes."""

import numpy as np
import pytest

from layerwise.errors import DataError
from layerwise.planning.scaling import Point, fit_law, forecast, predict, worth

TRUE = np.array([np.log(1.1), np.log(60.0), 0.33, np.log(90.0), 0.30])
SIZES, AMOUNTS = (2e5, 6e5, 2e6), (2e6, 6e6, 2e7)


def runs(noise: float, seed: int) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [
        Point(n, d, float(predict(TRUE, n, d) * np.exp(noise * rng.standard_normal())))
        for n in SIZES
        for d in AMOUNTS
    ]


def test_runs_without_noise_are_extrapolated_closely():
    law = fit_law(runs(0.0, 0), unique_tokens=1e12)
    found = law.loss(2e7, 4e8)
    assert found.value == pytest.approx(predict(TRUE, 2e7, 4e8), rel=0.02)


def test_intervals_hold_the_truth():
    held = []
    for seed in range(12):
        law = fit_law(runs(0.005, seed), unique_tokens=1e12, seed=seed)
        found = law.loss(1e7, 1e8)
        held.append(found.low <= predict(TRUE, 1e7, 1e8) <= found.high)
        assert found.high / found.low < 1.4
    assert sum(held) >= 10


def sizes_for(flops: float) -> list[tuple[str, float, float]]:
    return [(f"{n:.1e}", n, flops / (6 * n)) for n in np.geomspace(1e5, 1e10, 400)]


def test_the_best_size_beats_its_neighbours():
    law = fit_law(runs(0.0, 0), unique_tokens=1e12)
    found = forecast(law, runs(0.0, 0), sizes_for(1e15), "nats")
    n, d, best = found.best.params, found.best.tokens, found.best.loss.value
    assert 6 * n * d == pytest.approx(1e15)
    assert 0 < found.chosen < len(found.curve) - 1
    assert best <= law.loss(2 * n, d / 2).value
    assert best <= law.loss(n / 2, 2 * d).value


def test_little_text_asks_for_larger_networks_and_fewer_passes():
    rich, poor = (
        forecast(fit_law(runs(0.0, 0), u), runs(0.0, 0), sizes_for(1e17), "nats")
        for u in (1e12, 2e7)
    )
    assert poor.best.tokens < rich.best.tokens


def test_what_came_is_set_beside_the_forecast():
    law = fit_law(runs(0.005, 0), unique_tokens=1e12)
    found = forecast(law, runs(0.005, 0), sizes_for(1e14), "bits_per_byte")
    n, d = found.best.params, found.best.tokens
    right = found.beside(d, float(predict(TRUE, n, d)))
    assert right["within"]
    assert right["low"] < right["value"] < right["high"]
    assert found.beside(d, 2 * right["high"])["within"] is False
    assert found.beside(d)["within"] is None
    assert [c["params"] for c in right["curve"]] == [c.params for c in found.curve]


def test_further_from_the_runs_the_interval_is_wider():
    law = fit_law(runs(0.005, 0), unique_tokens=1e12)
    width = lambda n, d: law.loss(n, d).high / law.loss(n, d).low  # noqa: E731
    assert width(2e6, 2e7) < width(2e7, 2e8) < width(2e8, 2e9)


def test_a_law_that_misses_its_own_largest_runs_says_so():
    """Runs that bend away from any such law: what the largest miss by widens the interval."""
    straight = fit_law(runs(0.0, 0), unique_tokens=1e12)
    bent = [
        Point(p.params, p.tokens, p.loss * (1 + 0.2 * (p.params == SIZES[-1])))
        for p in runs(0.0, 0)
    ]
    assert fit_law(bent, unique_tokens=1e12).slip > 3 * straight.slip


def test_text_read_again_is_worth_less():
    assert worth(5e6, 1e7) == 5e6
    assert 1e7 < worth(2e7, 1e7) < 2e7
    assert worth(1e12, 1e7) < 17e7


@pytest.mark.parametrize(
    "points", [runs(0, 0)[:3], [Point(1e5, d, 3.0) for d in (1e6, 2e6, 3e6, 4e6)]]
)
def test_too_few_runs(points):
    with pytest.raises(DataError, match="at least 4 runs of 2 sizes"):
        fit_law(points, 1e9)
