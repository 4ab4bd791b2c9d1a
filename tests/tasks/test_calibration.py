"""Temperature against a known truth, ECE by hand, coverage of conformal sets by simulation."""

import json
import math

import numpy as np
import pytest

from layerwise.errors import DataError, OptionError
from layerwise.tasks import calibration, metrics


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


def test_calibration_lowers_the_error_to_about_chance():
    logits, targets = sample(5000, 3.0)
    got = calibration.calibrate(logits, targets)
    assert got.ece_before > 0.1
    assert got.ece_after < 0.03
    assert got.ece_after < 3 * got.ece_chance
    assert got.log_loss_after < got.log_loss_before
    assert sum(row["count"] for row in got.before) == 5000
    assert calibration.calibrate(logits[:6], targets[:6]).temperature > 0


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


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_conformal_sets_cover_as_promised_even_with_bad_probabilities(method):
    shares = []
    for seed in range(60):
        logits, targets = sample(1200, 4.0, seed=seed)  # far too sure of themselves
        p = metrics.softmax(logits)
        rule = calibration.fit_conformal(p[:200], targets[:200], alpha=0.1, method=method)
        inside = rule.sets(p[200:])
        shares.append(inside[np.arange(1000), targets[200:]].mean())
        assert method == "lac" or inside.any(1).all()
    # the guarantee: mean coverage in [0.9, 0.9 + 1/201]; the mean of 60 has a spread of 0.003
    assert 0.89 < np.mean(shares) < 0.92


def test_answers_are_right_at_least_as_often_as_all_and_unsure_is_minus_one():
    logits, targets = sample(4000, 1.0)
    p = metrics.softmax(logits)
    rule = calibration.fit_conformal(p[:2000], targets[:2000], alpha=0.1)
    answers = rule.answers(p[2000:])
    sure = answers >= 0
    assert 0.05 < sure.mean() < 0.95
    accuracy = (p[2000:].argmax(1) == targets[2000:]).mean()
    assert (answers[sure] == targets[2000:][sure]).mean() > accuracy + 0.1
    assert (answers[sure] == p[2000:][sure].argmax(1)).all()
    unlike_all = np.full((1, 10), 0.1)
    assert rule.answers(unlike_all)[0] == -1


def test_too_few_rows_give_every_class_and_survive_json():
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    rule = calibration.fit_conformal(p, np.array([0, 1]), alpha=0.1)
    assert rule.threshold == math.inf
    assert rule.sets(p).all()
    assert calibration.Conformal.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


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
        margin = calibration.conformal_margin(error[:100], np.zeros(100), alpha=0.2)
        shares.append((np.abs(error[100:]) <= margin).mean())
    assert 0.785 < np.mean(shares) < 0.825


def test_user_errors():
    with pytest.raises(OptionError, match=r"between 0 and 1; 1.5 was given"):
        calibration.fit_conformal(np.eye(2), np.arange(2), alpha=1.5)
    with pytest.raises(OptionError, match="did you mean 'lac'"):
        calibration.fit_conformal(np.eye(2), np.arange(2), method="lack")
    with pytest.raises(DataError, match="no row"):
        calibration.fit_conformal(np.zeros((0, 2)), np.zeros(0, int))
