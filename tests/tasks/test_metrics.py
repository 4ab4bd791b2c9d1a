"""Metrics against closed forms, scikit-learn, and their own weighted definition."""

import functools

import numpy as np
import pytest
from sklearn import metrics as sk

from layerwise.errors import DataError
from layerwise.tasks.scores import metrics


@pytest.fixture
def classes():
    rng = np.random.default_rng(0)
    targets = rng.integers(5, size=300)
    logits = rng.normal(size=(300, 5)) + 1.5 * np.eye(5)[targets]
    return np.round(logits, 1), targets  # rounded, so that there are ties


@pytest.fixture
def tags():
    rng = np.random.default_rng(1)
    targets = (rng.random((200, 4)) < [0.5, 0.1, 0.3, 0.9]).astype(np.uint8)
    return np.round(rng.normal(size=(200, 4)) + targets, 1), targets


@pytest.fixture
def numbers():
    rng = np.random.default_rng(2)
    targets = 1e6 + rng.normal(size=150)
    return targets + rng.normal(size=150), targets


def test_class_metrics_equal_scikit_learn(classes):
    logits, targets = classes
    predicted, p = logits.argmax(1), metrics.softmax(logits)
    assert metrics.accuracy(logits, targets) == sk.accuracy_score(targets, predicted)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12)
    close(
        metrics.balanced_accuracy(logits, targets), sk.balanced_accuracy_score(targets, predicted)
    )
    close(metrics.macro_f1(logits, targets), sk.f1_score(targets, predicted, average="macro"))
    close(metrics.log_loss(p, targets), sk.log_loss(targets, p))
    close(metrics.auc(p, targets), sk.roc_auc_score(targets, p, multi_class="ovr"))
    np.testing.assert_array_equal(
        metrics.confusion(logits, targets), sk.confusion_matrix(targets, predicted)
    )


def test_top_k_equals_scikit_learn_without_ties_and_counts_ties_against():
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(400, 7)), rng.integers(7, size=400)
    assert metrics.top_k(outputs, targets, k=3) == sk.top_k_accuracy_score(targets, outputs, k=3)
    assert metrics.top_k(np.zeros((4, 7)), np.arange(4), k=5) == 0


def test_macro_f1_leaves_out_classes_that_neither_occur_nor_are_predicted():
    logits = np.eye(4)[[0, 0, 1, 1]]
    targets = np.array([0, 1, 1, 1])
    expected = sk.f1_score(targets, logits.argmax(1), average="macro")
    assert metrics.macro_f1(logits, targets) == pytest.approx(expected)


def test_binary_auc_equals_scikit_learn_with_ties(tags):
    outputs, targets = tags[0][:, 0], tags[1][:, 0].astype(int)
    expected = sk.roc_auc_score(targets, outputs)
    assert metrics.auc(outputs, targets) == pytest.approx(expected, abs=1e-12)
    two = np.stack([-outputs, outputs], 1)
    assert metrics.auc(two, targets) == pytest.approx(expected, abs=1e-12)
    assert metrics.auc(np.ones(len(targets)), targets) == 0.5
    assert np.isnan(metrics.auc(outputs, np.ones(len(targets))))


def test_mean_average_precision_equals_scikit_learn_and_skips_labels_that_never_occur(tags):
    outputs, targets = tags
    expected = sk.average_precision_score(targets, outputs, average="macro")
    assert metrics.mean_average_precision(outputs, targets) == pytest.approx(expected, abs=1e-12)
    with_empty = np.concatenate([targets, np.zeros((200, 1), np.uint8)], 1)
    got = metrics.mean_average_precision(np.concatenate([outputs, outputs[:, :1]], 1), with_empty)
    assert got == pytest.approx(expected, abs=1e-12)


def test_number_metrics_equal_scikit_learn_far_from_zero(numbers):
    outputs, targets = numbers
    assert metrics.rmse(outputs, targets) == pytest.approx(
        sk.root_mean_squared_error(targets, outputs), rel=1e-12
    )
    assert metrics.mae(outputs, targets) == pytest.approx(sk.mean_absolute_error(targets, outputs))
    assert metrics.r2(outputs, targets) == pytest.approx(sk.r2_score(targets, outputs), rel=1e-9)
    assert np.isnan(metrics.r2(outputs, np.full(150, 1e6)))


CASES = {
    "accuracy": ("classes", metrics.accuracy),
    "top 2": ("classes", functools.partial(metrics.top_k, k=2)),
    "balanced": ("classes", metrics.balanced_accuracy),
    "f1": ("classes", metrics.macro_f1),
    "auc": ("classes", metrics.auc),
    "map": ("tags", metrics.mean_average_precision),
    "rmse": ("numbers", metrics.rmse),
    "mae": ("numbers", metrics.mae),
    "r2": ("numbers", metrics.r2),
}


@pytest.mark.parametrize("case", CASES)
def test_a_weight_of_k_means_that_the_row_is_there_k_times(case, request):
    """The whole bootstrap rests on this, for one weighting and for many at once."""
    kind, metric = CASES[case]
    outputs, targets = request.getfixturevalue(kind)
    rng = np.random.default_rng(3)
    rows = rng.integers(len(targets), size=(3, len(targets)))
    weights = np.stack([np.bincount(r, minlength=len(targets)) for r in rows]).astype(float)
    expected = [metric(outputs[r], targets[r]) for r in rows]
    np.testing.assert_allclose(metric(outputs, targets, weights), expected, rtol=1e-9)
    assert metric(outputs, targets, weights[0]) == pytest.approx(expected[0], rel=1e-9)
    assert isinstance(metric(outputs, targets), float)


def test_softmax_and_sigmoid_stand_any_logit():
    p = metrics.softmax(np.array([[1e4, 0.0], [-1e4, -1e4]]))
    np.testing.assert_array_equal(p, [[1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(metrics.sigmoid(np.array([-1e4, 0, 1e4])), [0, 0.5, 1])
    assert metrics.log_loss(p, np.array([1, 0])) == pytest.approx((-np.log(1e-15) + np.log(2)) / 2)


def test_rows_that_cannot_be_scored_are_errors_that_say_which():
    with pytest.raises(DataError, match="3 outputs for 2 targets"):
        metrics.accuracy(np.zeros((3, 2)), np.zeros(2, int))
    with pytest.raises(DataError, match="no row to score"):
        metrics.rmse(np.zeros(0), np.zeros(0))
    bad = np.zeros((4, 2))
    bad[2, 1] = np.nan
    with pytest.raises(DataError, match=r"1 of 4 .*row 2 .*diverge"):
        metrics.macro_f1(bad, np.zeros(4, int))
