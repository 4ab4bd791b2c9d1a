"""Scores as the tasks ask for them."""

import numpy as np
import pytest

from layerwise.tasks.classify import Classify
from layerwise.tasks.regress import Regress
from layerwise.tasks.scores import intervals
from layerwise.tasks.tag import Tag
from tests.rows import numbered


def drawn(task, n=200, seed=0):
    """Predictions of a fair and of a better model, and rows with targets, as this task has them."""
    fair, good, targets = outputs_drawn(task, n, seed)
    rows = numbered(n, targets=targets, target_kind=task.target_kind, labels=task.labels)
    return task.of_outputs(fair), task.of_outputs(good), rows


def outputs_drawn(task, n, seed):
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
    fair, good, rows = drawn(task)
    found = intervals.interval(task.metric, *task.scored(fair, rows))
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(task.metrics(fair, rows)[task.score])
    (a, targets), (b, _) = task.scored(fair, rows), task.scored(good, rows)
    both = intervals.compare(task.metric, a, b, targets, task.higher_is_better)
    assert both.better == "B"
    assert both.sentence.startswith("B is better")
    assert both.p < 0.01
    assert (both.difference > 0) == task.higher_is_better
    assert (both.low > 0) == (both.high > 0)
