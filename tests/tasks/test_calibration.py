"""Temperature against a known truth, ECE by hand, coverage of conformal sets by simulation."""

import math

import numpy as np
import pytest

from layerwise.errors import DataError, OptionError
from layerwise.tasks.scores import calibration, metrics


def sample(n, temperature, c=10, seed=0, strength=2.0):
    """Logits whose true probabilities are softmax(logits / temperature), and drawn classes."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, c)) * strength
    cumulative = np.cumsum(metrics.softmax(true), 1)
    targets = (rng.random((n, 1)) > cumulative).sum(1).clip(0, c - 1)
    return true * temperature, targets


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_spoiled_the_logits_is_found(temperature):
    logits, targets = sample(20000, temperature)
    assert calibration.fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.03)


def test_the_fitted_temperature_is_the_minimum_of_log_loss_and_prior():
    logits, targets = sample(500, 2.0)
    best = calibration.fit_temperature(logits, targets)

    def loss(t):
        return metrics.log_loss(metrics.softmax(logits / t), targets) + np.log(t) ** 2 / 1000

    assert loss(best) < min(loss(best * 1.001), loss(best / 1.001))


def test_rows_that_are_all_right_or_all_wrong_give_no_certainty():
    targets = np.arange(20) % 3
    sure = 5.0 * np.eye(3)[targets]
    right = calibration.fit_temperature(sure, targets)
    assert 0.5 < right < 1  # more sure than before, but a right class stays below 100%
    assert metrics.softmax(sure / right).max() < 0.9999
    assert calibration.fit_temperature(-sure, targets) > 5
    assert np.isfinite(calibration.fit_temperature(1e5 * sure, targets))
    assert np.isfinite(calibration.fit_temperature(-1e5 * sure, targets))


def test_temperature_of_several_labels():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(5000, 4)) * 2
    targets = (rng.random((5000, 4)) < metrics.sigmoid(true)).astype(np.uint8)
    assert calibration.fit_temperature(true * 2.5, targets) == pytest.approx(2.5, rel=0.05)


def test_calibration_lowers_the_error_of_rows_it_did_not_see():
    logits, targets = sample(10000, 3.0)
    fit, held = slice(5000), slice(5000, None)
    temperature = calibration.fit_temperature(logits[fit], targets[fit])
    before, after = (metrics.softmax(logits[held] / t) for t in (1.0, temperature))
    assert calibration.ece(before, targets[held]) > 0.1
    assert calibration.ece(after, targets[held]) < 0.03
    assert metrics.log_loss(after, targets[held]) < metrics.log_loss(before, targets[held])
    assert sum(row["count"] for row in calibration.reliability(after, targets[held])) == 5000


def test_ece_and_reliability_by_hand():
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.0, 1.0]])
    targets = np.array([0, 1, 1, 1])
    # bins (13/15, 14/15]: 2 rows, confidence 0.9, accuracy 0.5; 0.6 and 1.0 alone, both right
    assert calibration.ece(p, targets) == pytest.approx((0.8 + 0.4 + 0.0) / 4)
    table = calibration.reliability(p, targets)
    row = table[13]
    assert (row["count"], row["confidence"], row["accuracy"]) == pytest.approx((2, 0.9, 0.5))
    assert math.isnan(table[0]["accuracy"])
    assert table[-1]["count"] == 1
    assert len(table) == 15


def test_sets_cover_as_promised_even_with_bad_probabilities():
    shares = []
    for seed in range(60):
        logits, targets = sample(1200, 4.0, seed=seed)  # far too sure of themselves
        strange = 1 - metrics.softmax(logits)
        own = strange[np.arange(1200), targets]
        shares.append((own[200:] <= calibration.conformal_quantile(own[:200], 0.1)).mean())
    # the guarantee: mean coverage in [0.9, 0.9 + 1/201]; the mean of 60 has a spread of 0.003
    assert 0.89 < np.mean(shares) < 0.92


def test_the_quantile_is_the_exact_rank():
    values = np.arange(1.0, 10)  # n = 9: rank 9 for alpha 0.1, rank 5 for 0.5
    assert calibration.conformal_quantile(values, 0.1) == 9
    assert calibration.conformal_quantile(values, 0.5) == 5
    assert calibration.conformal_quantile(values, 0.05) == math.inf


def test_margins_around_numbers_cover():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(100):
        error = rng.standard_t(3, size=1100)
        margin = calibration.conformal_quantile(np.abs(error[:100]), 0.2)
        shares.append((np.abs(error[100:]) <= margin).mean())
    assert 0.785 < np.mean(shares) < 0.825


def test_user_errors():
    with pytest.raises(OptionError, match=r"between 0 and 1; 1\.5 was given"):
        calibration.conformal_quantile(np.ones(9), alpha=1.5)
    with pytest.raises(DataError, match="none were given"):
        calibration.conformal_quantile(np.zeros(0), alpha=0.1)
