"""What a base knows before it is trained: features of rows, their neighbours, linear probes.

Legend: n rows, D features, C classes.
"""

import pathlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerwise import runtime
from layerwise.adapt.packed import at_once, without_padding
from layerwise.data.examples import Examples
from layerwise.data.loader import in_order
from layerwise.model.model import Model, read_json, write_json
from layerwise.runtime import Runtime
from layerwise.tasks.words import over_windows

NEIGHBOURS = 5
ASKED = 1024  # rows whose neighbours are looked for at once: 20,000 known ones take 330 MB
ENOUGH = 20_000  # rows that neighbours and probes are given: more move a linear layer little
WORDS = 30_000  # words that a probe is given: most have the one usual tag
TIMED = 64  # rows by which the time of features is judged
FEATURES_SHARE = 0.15  # of a budget


@dataclass
class Features:
    """What a base makes of some training rows: which (k,), and their features (k, D)."""

    rows: np.ndarray
    values: np.ndarray


def features_of(base: Model, rows: Examples, machine: Runtime) -> np.ndarray:
    """The base's features for every row: (n, D) float32."""
    found: dict[int, np.ndarray] = {}
    with runtime.evaluating(base.network):
        network = without_padding(base.network, machine, len(rows))
        for batch in in_order(rows, base.processor, times=at_once(network, machine)):
            batch = batch.to(machine.device)
            with machine.autocast():
                if batch["inputs"].ndim == 3:  # windows of long texts
                    got = over_windows(network.features, batch)
                else:
                    got = network.features(batch["inputs"], **batch.context)
                if hasattr(network, "pooled"):  # (B, T, D), a vector for each token
                    mask = batch.context.get("mask")
                    got = network.pooled(got, mask if mask is None else mask.flatten(1))
            if got.ndim == 4:  # a map, where the head works on every place (squeezenet)
                got = got.mean((2, 3))
            values = got.float().flatten(1).cpu().numpy()
            found |= zip(batch.rows.tolist(), values, strict=True)
    return np.stack([found[i] for i in range(len(rows))])


def some_features(
    base: Model, rows: Examples, machine: Runtime, seed: int, most: int = ENOUGH
) -> Features:
    """The features of all rows, or of so many at random."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])
    return Features(chosen, features_of(base, rows.subset(chosen), machine))


def word_features(
    base: Model, rows: Examples, task: Any, machine: Runtime, seed: int, most: int = ENOUGH
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors (k, D) of words' first tokens in so many sentences, at most WORDS; their tags."""
    rng, found = np.random.default_rng(seed), []
    some = rows.subset(np.sort(rng.permutation(len(rows))[:most]))
    with runtime.evaluating(base.network):
        network = without_padding(base.network, machine, len(some))
        for batch in in_order(some, base.processor, times=at_once(network, machine)):
            batch = batch.to(machine.device)
            tags = task.token_targets(batch)
            with machine.autocast():
                vectors = over_windows(network.features, batch)
            found.append((vectors[tags >= 0].cpu().numpy(), tags[tags >= 0].cpu().numpy()))
    vectors, tags = map(np.concatenate, zip(*found, strict=True))
    chosen = rng.permutation(len(tags))[:WORDS]
    return vectors[chosen], tags[chosen]


def affordable_rows(
    base: Model, rows: Examples, machine: Runtime, seconds: float, folder: pathlib.Path
) -> int:
    """How many rows' features are worth their time: ENOUGH, or what a share of the budget pays for.

    What was measured is kept in the run's folder, so that a resumed run takes as many.
    """
    kept = folder / "features.json"
    if not kept.exists():
        some = rows.subset(np.linspace(0, len(rows) - 1, TIMED).astype(int))
        spent = []
        for _ in range(2):  # the first warms up
            started = time.perf_counter()
            features_of(base, some, machine)
            spent.append(time.perf_counter() - started)
        paid = min(FEATURES_SHARE * seconds / spent[-1] * TIMED, ENOUGH)
        write_json(kept, {"rows": max(TIMED, int(paid))})
    return read_json(kept)["rows"]


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


def linear_probe(features: np.ndarray, targets: np.ndarray, task: Any, seed: int):
    """Weight (C, D) and bias (C,) of the best linear layer on frozen features.

    Its regularisation is chosen by cross-validation on the training rows.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    z = (features - mean) / std
    weight, bias = PROBES[task.name](z, targets, seed)
    weight = weight / std
    return weight.astype(np.float32), (bias - weight @ mean).astype(np.float32)


def probe_classes(z: np.ndarray, targets: np.ndarray, seed: int):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    smallest = np.bincount(targets).min()
    strengths = [1e-4, 1e-3, 1e-2, 1e-1]
    best = 1e-2
    if smallest >= 3 and len(z) <= 20_000:
        cv = StratifiedKFold(3, shuffle=True, random_state=seed)
        log_losses = [
            cross_val_score(
                LogisticRegression(C=c, max_iter=300), z, targets, cv=cv, scoring="neg_log_loss"
            ).mean()
            for c in strengths
        ]
        best = strengths[int(np.argmax(log_losses))]
    fitted = LogisticRegression(C=best, max_iter=500).fit(z, targets)
    if len(fitted.coef_) == 1:  # two classes: one direction, shared between both logits
        half = fitted.coef_ / 2, fitted.intercept_ / 2
        return np.concatenate([-half[0], half[0]]), np.concatenate([-half[1], half[1]])
    return fitted.coef_, fitted.intercept_


def probe_tags(z: np.ndarray, targets: np.ndarray, seed: int):
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


def probe_number(z: np.ndarray, targets: np.ndarray, seed: int):
    from sklearn.linear_model import RidgeCV

    fitted = RidgeCV(alphas=np.logspace(-1, 5, 13)).fit(z, targets)
    return np.asarray(fitted.coef_)[None], np.array([fitted.intercept_])


PROBES = {
    "classify": probe_classes, "words": probe_classes, "tag": probe_tags, "regress": probe_number
}  # fmt: skip
