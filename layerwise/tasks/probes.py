"""Linear models and neighbours on given features: what a base knows before it is trained.

Legend: n rows, D features, C classes.
"""

from typing import Any

import numpy as np

from layerwise.data.examples import Examples
from layerwise.kinds.contract import PlainFeatures
from layerwise.tasks.task import Probe

NEIGHBOURS = 5
ASKED = 1024  # rows whose neighbours are looked for at once: 20,000 known ones take 330 MB


def logistic() -> Any:
    """The linear model of a baseline."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=2.0, max_iter=300, tol=1e-3)


def decided(model: Any, plain: PlainFeatures, train: Examples, test: Examples) -> np.ndarray:
    """What a linear model on plain features of the training rows says of test rows: (n, C)."""
    outputs = model.fit(plain.of(train), train.targets).decision_function(plain.of(test))
    return np.stack([-outputs, outputs], 1) / 2 if outputs.ndim == 1 else outputs


def neighbours(known: np.ndarray, targets: np.ndarray, asked: np.ndarray, n_classes: int):
    """Log votes of the nearest neighbours by cosine: (n, C)."""
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)  # noqa: E731
    known, asked, k = unit(known), unit(asked), min(NEIGHBOURS, len(known))
    votes = np.full((len(asked), n_classes), 1e-3)
    for i in range(0, len(asked), ASKED):
        near = asked[i : i + ASKED] @ known.T  # (ASKED, n_known)
        nearest = np.argpartition(-near, k - 1, axis=1)[:, :k]
        np.add.at(votes[i : i + ASKED], (np.arange(len(near))[:, None], targets[nearest]), 1)
    return np.log(votes)


def linear(features: np.ndarray, targets: np.ndarray, probe: Probe | None, seed: int):
    """Weight (C, D) and bias (C,) of the best linear layer on frozen features.

    probe: of the task, one of the functions below.
    """
    assert probe is not None, "of a task that has one"
    mean, std = features.mean(0), features.std(0) + 1e-6
    weight, bias = probe((features - mean) / std, targets, seed)
    weight = weight / std
    return weight.astype(np.float32), (bias - weight @ mean).astype(np.float32)


# ---- probes of standardised features z (n, D): weight (C, D) and bias (C,) ----------------------


def of_classes(z: np.ndarray, targets: np.ndarray, seed: int):
    """Targets (n,); the regularisation is chosen by cross-validation on these rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    smallest = np.bincount(targets).min()
    strengths = [1e-4, 1e-3, 1e-2, 1e-1]
    best = 1e-2
    if smallest >= 3 and len(z) <= 20_000:
        cv = StratifiedKFold(3, shuffle=True, random_state=seed)
        models = [LogisticRegression(C=c, max_iter=300) for c in strengths]
        scores = [cross_val_score(m, z, targets, cv=cv, scoring="neg_log_loss") for m in models]
        best = strengths[int(np.argmax([each.mean() for each in scores]))]
    fitted = LogisticRegression(C=best, max_iter=500).fit(z, targets)
    if len(fitted.coef_) == 1:  # two classes: one direction, shared between both logits
        half = fitted.coef_ / 2, fitted.intercept_ / 2
        return np.concatenate([-half[0], half[0]]), np.concatenate([-half[1], half[1]])
    return fitted.coef_, fitted.intercept_


def of_labels(z: np.ndarray, targets: np.ndarray, seed: int):
    """Targets (n, C) of 0 and 1."""
    from sklearn.linear_model import LogisticRegression

    weights, biases = [], []
    for column in targets.T:
        if column.min() == column.max():  # a label that all or none have
            weights.append(np.zeros(z.shape[1]))
            biases.append(4.0 if column[0] else -4.0)
            continue
        fitted = LogisticRegression(C=1e-2, max_iter=300, random_state=seed).fit(z, column)
        weights.append(fitted.coef_[0])
        biases.append(fitted.intercept_[0])
    return np.stack(weights), np.array(biases)


def of_numbers(z: np.ndarray, targets: np.ndarray, seed: int):
    """Targets (n,)."""
    from sklearn.linear_model import RidgeCV

    fitted = RidgeCV(alphas=np.logspace(-1, 5, 13)).fit(z, targets)
    return np.asarray(fitted.coef_)[None], np.array([fitted.intercept_])
