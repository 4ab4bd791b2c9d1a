"""Intervals cover what they claim; tests find what is there and nothing else."""

import functools
import math

import numpy as np
import pytest
from scipy import stats

from layerwise.data import binomial
from layerwise.errors import DataError
from layerwise.tasks.embed import recall_at_1
from layerwise.tasks.scores import intervals, metrics


def right_and_wrong(rng, n, share):
    """Outputs (n, 2) that are right in about this share of the rows, and their targets."""
    targets = rng.integers(2, size=n)
    right = rng.random(n) < share
    return np.eye(2)[np.where(right, targets, 1 - targets)], targets


def test_binomial_tail_and_clopper_pearson_equal_scipy():
    for k, n, p in ((0, 10, 0.3), (7, 10, 0.3), (480, 1000, 0.5), (9000, 10000, 0.899)):
        assert binomial.binomial_tail(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), rel=1e-9)
    for k, n in ((0, 20), (20, 20), (3, 7), (950, 1000)):
        exact = stats.binomtest(k, n).proportion_ci(0.95)
        assert intervals.exact_share(k, n, 0.95) == pytest.approx(tuple(exact), abs=1e-9)


def test_bca_equals_scipy_on_a_skewed_mean():
    x = np.random.default_rng(0).exponential(size=60)
    got = intervals.interval(metrics.mae, x, np.zeros(60), resamples=20000)
    theirs = stats.bootstrap(
        (x,), np.mean, n_resamples=20000, method="BCa", random_state=np.random.default_rng(1)
    ).confidence_interval
    assert (got.low, got.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)
    assert got.method == "BCa bootstrap"
    assert got.low < got.value < got.high


@pytest.mark.parametrize("share", [0.7, 0.95])
def test_nominal_95_percent_intervals_cover(share):
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(400):
        outputs, targets = right_and_wrong(rng, 120, share)
        got = intervals.interval(metrics.accuracy, outputs, targets, resamples=400, seed=i)
        hits += got.low <= share <= got.high
    assert 0.92 <= hits / 400 <= 0.985


def test_rmse_intervals_cover():
    rng = np.random.default_rng(1)
    hits = 0
    for i in range(400):
        errors = rng.normal(size=100)
        got = intervals.interval(metrics.rmse, errors, np.zeros(100), resamples=400, seed=i)
        hits += got.low <= 1 <= got.high
    assert 0.91 <= hits / 400 <= 0.985


def test_a_perfect_score_is_not_certain():
    outputs, targets = np.eye(3)[[0, 1, 2] * 7][:20], np.array([0, 1, 2] * 7)[:20]
    got = intervals.interval(metrics.accuracy, outputs, targets)
    assert got.method == "Clopper-Pearson"
    assert (got.low, got.high) == pytest.approx((0.025 ** (1 / 20), 1.0))
    top2 = functools.partial(metrics.top_k, k=2)
    assert intervals.interval(top2, outputs, targets).low == pytest.approx(0.025 ** (1 / 20))
    found = intervals.interval(recall_at_1, np.ones(16), np.zeros(16))
    assert (found.low, found.high) == pytest.approx((0.025 ** (1 / 16), 1.0))
    assert intervals.interval(recall_at_1, np.full(60, 2), np.zeros(60)).high > 0.05


def test_a_score_that_is_not_defined_is_no_error():
    constant, varied = np.zeros(30), np.arange(30.0)
    found = intervals.interval(metrics.spearman, constant, varied)
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    both = intervals.compare(metrics.spearman, constant, varied, varied)
    assert both.p == 1.0
    assert not both.better


def test_intervals_follow_from_the_seed_alone():
    rng = np.random.default_rng(0)
    outputs, targets = right_and_wrong(rng, 90, 0.8)
    a, b, c = (intervals.interval(metrics.macro_f1, outputs, targets, seed=s) for s in (1, 1, 2))
    assert a == b != c


def test_bootstrap_counts_are_the_same_whatever_the_pieces(monkeypatch):
    whole = np.concatenate(list(intervals.counts(50, 40, 0)))
    monkeypatch.setattr(intervals, "CELLS", 150)
    pieces = list(intervals.counts(50, 40, 0))
    assert len(pieces) > 10
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert (whole.sum(1) == 50).all()


def test_mcnemar_equals_the_binomial_test():
    a, b = np.zeros(100, bool), np.zeros(100, bool)
    a[:12] = True
    b[10:40] = True  # 10 right in A alone, 28 in B alone
    assert intervals.mcnemar(a, b) == pytest.approx(stats.binomtest(10, 38).pvalue)
    assert intervals.mcnemar(a, a) == 1.0


def test_a_better_model_is_found_and_said():
    rng = np.random.default_rng(0)
    a, targets = right_and_wrong(rng, 1000, 0.80)
    b = a.copy()
    wrong = np.flatnonzero(a.argmax(1) != targets)[:60]
    b[wrong] = np.eye(2)[targets[wrong]]  # B repairs 60 rows and breaks none
    got = intervals.compare(metrics.accuracy, a, b, targets)
    assert got.better == "B"
    assert got.difference == pytest.approx(0.06)
    assert got.low < 0.06 < got.high
    assert got.p == pytest.approx(2 * 0.5**60)
    assert got.sentence.startswith("B is better: accuracy ")
    assert "+6 points" in got.sentence
    assert "1,000 rows" in got.sentence
    turned = intervals.compare(metrics.accuracy, b, a, targets)
    assert (turned.better, turned.difference) == ("A", -got.difference)


def test_lower_is_better_where_told():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=300)
    a, b, targets = noise * 1.5, noise * 0.5, np.zeros(300)
    got = intervals.compare(metrics.rmse, a, b, targets, higher_is_better=False)
    assert got.better == "B"
    assert got.high < 0
    assert got.test == "paired permutation test"


def test_equal_models_are_rarely_called_different_by_either_test():
    rng = np.random.default_rng(0)
    false = {"accuracy": 0, "mae": 0}
    for i in range(200):
        a, targets = right_and_wrong(rng, 80, 0.7)
        right = rng.random(80) < 0.7
        b = np.eye(2)[np.where(right, targets, 1 - targets)]
        got = intervals.compare(metrics.accuracy, a, b, targets, resamples=200, seed=i)
        false["accuracy"] += bool(got.better)
        x, y = rng.exponential(size=(2, 80))
        got = intervals.compare(metrics.mae, x, y, np.zeros(80), resamples=200, seed=i)
        false["mae"] += bool(got.better)
    assert false["accuracy"] <= 16  # nominal 10 of 200, the exact test is below it
    assert 2 <= false["mae"] <= 19


def test_an_open_result_says_how_many_rows_it_would_take():
    rng = np.random.default_rng(0)
    a, targets = right_and_wrong(rng, 100, 0.8)
    b, _ = right_and_wrong(rng, 100, 0.8)
    b = np.where(targets[:, None] == 0, b, b[:, ::-1])
    got = intervals.compare(metrics.balanced_accuracy, a, b, targets)
    if not got.better:
        assert "No difference is shown" in got.sentence
        assert "rows are needed" in got.sentence
    same = intervals.compare(metrics.accuracy, a, a, targets)
    assert (same.p, same.low, same.high, same.better) == (1.0, 0.0, 0.0, "")
    assert "score the same" in same.sentence


def test_other_rows_for_a_and_b_are_an_error():
    with pytest.raises(DataError, match="A has 3 rows and B 2"):
        intervals.compare(metrics.mae, np.zeros(3), np.zeros(2), np.zeros(3))
