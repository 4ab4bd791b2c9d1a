"""Probes against closed forms and scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV

from layerwise.data.splits import stratified_folds
from layerwise.inspection.probe import CrossFit, Ridge, cka, effective_rank


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_ridge_agrees_with_scikit_learn(rng):
    x, new = rng.standard_normal((80, 12)), rng.standard_normal((20, 12))
    y = x @ rng.standard_normal((12, 3)) + rng.standard_normal((80, 3))
    scaled, scaled_new = (x - x.mean(0)) / x.std(0), (new - x.mean(0)) / x.std(0)
    theirs = RidgeCV(alphas=10.0 ** np.arange(-4, 5) * 80).fit(scaled, y).predict(scaled_new)
    assert np.allclose(Ridge.prepare(x, new).predict(y), theirs, atol=1e-8)


def test_ridge_takes_more_features_than_rows_and_constant_ones(rng):
    x = np.concatenate([rng.standard_normal((30, 200)), np.ones((30, 1))], 1)
    predicted = Ridge.prepare(x[:20], x[20:]).predict(x[:20, :1])
    assert np.isfinite(predicted).all()
    flat = Ridge.prepare(np.ones((20, 4)), np.ones((10, 4))).predict(x[:20, :1])
    assert np.allclose(flat, x[:20, 0].mean())


def test_cross_fit_never_sees_the_row_it_predicts(rng):
    x = rng.standard_normal((60, 40))
    y = rng.standard_normal((60, 1))
    folds = stratified_folds(np.zeros(60, int), 3, seed=0)
    before = CrossFit(x, folds).predict(y)
    y[folds == 1] += 100.0
    after = CrossFit(x, folds).predict(y)
    assert np.allclose(before[folds == 1], after[folds == 1])
    assert not np.allclose(before[folds == 0], after[folds == 0])


def test_folds_hold_every_class_alike(rng):
    codes = rng.integers(0, 3, 301)
    folds = stratified_folds(codes, 2, seed=1)
    for c in range(3):
        counts = np.bincount(folds[codes == c], minlength=2)
        assert abs(counts[0] - counts[1]) <= 1


def test_effective_rank_of_known_matrices(rng):
    q, _ = np.linalg.qr(rng.standard_normal((400, 8)))
    q -= q.mean(0)
    assert effective_rank(q) == pytest.approx(8, rel=0.01)
    assert effective_rank(np.outer(rng.standard_normal(50), np.ones(9))) == pytest.approx(1)
    assert effective_rank(np.ones((10, 3))) == 0.0


def test_cka_knows_rotations_and_strangers(rng):
    x = rng.standard_normal((300, 20)) * np.arange(1, 21)
    turned = x @ np.linalg.qr(rng.standard_normal((20, 20)))[0] * 7 + 3
    stranger = rng.standard_normal((300, 200))  # many features, few rows: biased CKA would be high
    table = cka([x, turned, stranger])
    assert table[0, 1] == pytest.approx(1, abs=1e-6)
    assert table[0, 2] < 0.05
    assert np.allclose(table, table.T)
    assert np.allclose(np.diag(table), 1)
