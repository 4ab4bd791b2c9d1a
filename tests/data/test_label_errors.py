"""Changed labels are found; the predictions come from models that never saw the row."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from layerwise.errors import DataError
from layerwise.kinds import label_errors
from layerwise.kinds.image.duplicates import COSINES, pixel_features


def blobs(n=600, d=20, c=4, gap=2.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(c, d)) * gap
    y = rng.integers(c, size=n)
    return (centres[y] + rng.normal(size=(n, d)) * 2).astype(np.float32), y


def test_probabilities_are_those_of_scikit_learns_model(monkeypatch):
    x, y = blobs()
    penalty = 1e-4
    monkeypatch.setattr(label_errors, "PENALTIES", (penalty,))
    monkeypatch.setattr(label_errors, "STEPS", 400)
    fold = np.arange(len(y)) % 3
    p = label_errors.out_of_fold(x, y, fold)
    z = label_errors.whitened(x).numpy()[:, :-1].astype(np.float64)
    for k in range(3):
        inside = fold != k
        # theirs: C * sum of losses + |w|^2 / 2; ours: mean of losses + penalty * |w|^2
        theirs = LogisticRegression(C=1 / (2 * penalty * inside.sum()), max_iter=5000, tol=1e-8)
        theirs.fit(z[inside], y[inside])
        np.testing.assert_allclose(p[~inside], theirs.predict_proba(z[~inside]), atol=5e-3)


def test_a_row_is_never_judged_by_a_model_that_saw_it():
    """Random labels: what saw them would do better than chance, given more features than rows."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 300)), rng.integers(2, size=120)
    p = label_errors.out_of_fold(x, y)
    assert (p.argmax(1) == y).mean() < 0.65


def test_many_classes_train_fold_by_fold_to_the_same_result(monkeypatch):
    x, y = blobs(200, c=3)
    whole = label_errors.out_of_fold(x, y, 4, seed=1)
    monkeypatch.setattr(label_errors, "COLUMNS", 3)
    alone = label_errors.out_of_fold(x, y, 4, seed=1)
    np.testing.assert_allclose(whole, alone, atol=0.02)
    np.testing.assert_allclose(whole.sum(1), 1)


def test_folds_are_stratified_seeded_and_keep_groups_together():
    y = np.repeat([0, 1], [90, 10])
    fold = label_errors.stratified_folds(y, 5, 0)
    assert np.bincount(fold[y == 1]).tolist() == [2] * 5
    assert np.bincount(fold[y == 0]).tolist() == [18] * 5
    np.testing.assert_array_equal(fold, label_errors.stratified_folds(y, 5, 0))
    groups = np.arange(100) // 2
    fold = label_errors.stratified_groups(y, groups, 5, 0)
    assert (fold[::2] == fold[1::2]).all()


def test_changed_labels_are_found_and_the_worst_come_first():
    x, y = blobs(1500, gap=2.5)
    rng = np.random.default_rng(1)
    changed = rng.permutation(len(y))[:60]
    given = y.copy()
    given[changed] = (given[changed] + rng.integers(1, 4, 60)) % 4
    found = label_errors.find_suspects(label_errors.out_of_fold(x, given), given)
    right = np.isin(found.rows, changed)
    assert right.mean() > 0.9
    assert right.sum() > 35
    assert (found.suggested[right] == y[found.rows[right]]).mean() > 0.95
    assert (np.diff(found.certainty) <= 0).all()


def test_clean_labels_are_hardly_accused():
    x, y = blobs(1500, gap=2.5)
    assert len(label_errors.find_suspects(label_errors.out_of_fold(x, y), y).rows) <= 15


def test_suspicion_by_hand():
    p = np.array([[0.9, 0.1], [0.98, 0.02], [0.2, 0.8], [0.6, 0.4], [0.02, 0.98]])
    y = np.array([0, 1, 1, 0, 1])
    found = label_errors.find_suspects(p, y, certain=0.9)
    assert found.rows.tolist() == [1]
    assert found.suggested.tolist() == [0]
    assert found.certainty[0] == pytest.approx(0.98)
    assert found.accuracy == 0.8
    finding = label_errors.suspect_labels(p, y, list("abcde"), ["cat", "dog"])
    assert finding.names == ("b (dog, looks like cat)",)
    assert finding.severity == "warning"
    assert label_errors.suspect_labels(p[[0, 2]], y[[0, 2]], list("ac"), ["cat", "dog"]) is None


def test_a_weak_judge_only_notes():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.2, 0.2], 300)
    finding = label_errors.suspect_labels(p, rng.integers(2, size=300), range(300), ["a", "b"])
    assert finding.severity == "note"
    assert "only hard" in finding.message


def test_features_of_pixels_tell_digits_apart():
    from sklearn.datasets import load_digits

    x, y = (part[:900] for part in load_digits(return_X_y=True))
    grey = np.repeat(np.repeat(x.reshape(-1, 8, 8), 4, 1), 4, 2) * 15
    features = pixel_features(grey.astype(np.uint8), np.zeros((len(x), 4, 4, 3)))
    assert features.shape == (len(x), COSINES)
    p = label_errors.out_of_fold(features, y)
    assert (p.argmax(1) == y).mean() > 0.95


def test_errors_say_which_row():
    x, y = blobs(50)
    x[7, 3] = np.inf
    with pytest.raises(DataError, match="row 7 are not finite"):
        label_errors.out_of_fold(x, y)
    with pytest.raises(DataError, match="at least 2 folds"):
        label_errors.out_of_fold(x[:, :2], y, np.zeros(50, int))
    with pytest.raises(DataError, match="3 rows of probabilities for 2"):
        label_errors.find_suspects(np.ones((3, 2)), np.zeros(2, int))
