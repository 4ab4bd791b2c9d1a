"""Scores as a task asks for them."""

import numpy as np
import pytest

from layerwise.errors import OptionError
from layerwise.tasks import scores
from layerwise.tasks.classify import Classify
from layerwise.tasks.regress import Regress
from layerwise.tasks.tag import Tag


def drawn(task, n=200, seed=0):
    """Outputs of a fair and of a better model, and targets, as this task has them."""
    rng = np.random.default_rng(seed)
    if task.name == "regress":
        targets = rng.normal(size=n)
        noise = rng.normal(size=(2, n, 1))
        return targets[:, None] + noise[0], targets[:, None] + 0.5 * noise[1], targets
    c = task.n_outputs
    one = rng.integers(c, size=n)
    targets = one if task.name == "classify" else np.eye(c)[one].astype(np.uint8)
    noise = rng.normal(size=(2, n, c))
    return noise[0] + np.eye(c)[one], noise[1] + 3 * np.eye(c)[one], targets


TASKS = [Classify(("a", "b", "c")), Tag(("a", "b", "c", "d")), Regress()]


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_every_task_has_its_score_with_an_interval_and_a_paired_test(task):
    fair, good, targets = drawn(task)
    value, low, high = scores.score_interval(task, fair, targets)
    assert low < value < high
    assert value == pytest.approx(task.metrics(fair, targets)[task.score])
    found = scores.paired(task, fair, good, targets)
    assert found["sentence"].startswith("B is better")
    assert found["p_value"] < 0.01
    assert (found["difference"] > 0) == task.higher_is_better
    assert (found["low"] > 0) == (found["high"] > 0)


def test_an_unknown_score_is_an_error_with_the_nearest():
    task = Regress()
    task.score = "rsme"
    with pytest.raises(OptionError, match="did you mean 'rmse'"):
        scores.score_interval(task, np.zeros((2, 1)), np.zeros(2))


def test_thresholds_by_confidence():
    held_out = np.arange(1.0, 100)
    assert scores.conformal_threshold(held_out, 0.9) == 90
    with pytest.raises(OptionError, match=r"0 and 1 .* 90 was given"):
        scores.conformal_threshold(held_out, 90)
