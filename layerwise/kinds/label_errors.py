"""Labels that are probably wrong, from predictions of models that did not see them.

Confident learning: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset
Labels", JAIR 2021. A row is suspected when another class than its label is likelier than that class
usually is where it is the label. Departures: the suspicion must also be `CERTAIN`, so that a weak
model accuses few; a row with the usual confidence of its own class is never accused.

Measured on 8,000 rows of MNIST with 5% of the labels changed: 91% of the accused were changed, and
74% of the changed were accused; with none changed, 0.4% of the rows are accused.

The predictions come from multinomial logistic regression on given features (a pre-trained base's,
or the kind's own), trained on the other folds.

Legend: n rows, D features, C classes, k folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from layerwise.data.examples import Finding
from layerwise.data.splits import stratified_folds
from layerwise.errors import DataError
from layerwise.optim.eager import LBFGS

PENALTIES = (1e-3, 1e-4, 1e-5)  # of the squared weights, beside the mean loss; the best is kept
STEPS = 30  # of L-BFGS per penalty
COLUMNS = 512  # folds x classes trained at once
WEAK = 0.8  # accuracy below which accusations are only a note
CERTAIN = 0.95  # least share of the suggested class, of it and the label together


# ---- out-of-fold predictions -----------------------------------------------------------------


def out_of_fold(
    features: np.ndarray, targets: np.ndarray, folds: int | np.ndarray = 5, seed: int = 0
) -> np.ndarray:
    """Probabilities (n, C) for each row by a model that was trained without the row's fold.

    features: (n, D) float. targets: (n,) int. folds: how many (stratified, seeded), or the fold of
    each row (n,): give copies the same fold, else they betray each other.
    All folds train at once on the same features, so the cost is about that of one model.
    Errors: DataError for fewer than 2 folds or features that are not finite.
    """
    y = np.asarray(targets, np.int64)
    fold = stratified_folds(y, folds, seed) if isinstance(folds, int) else folds
    fold = np.unique(fold, return_inverse=True)[1]
    k, c = int(fold.max()) + 1, int(y.max()) + 1
    if k < 2:
        raise DataError("out-of-fold predictions need at least 2 folds of the rows")
    x, target = whitened(features), torch.from_numpy(y)
    parts = np.array_split(np.arange(k), min(k, -(-k * c // COLUMNS)))
    weights = [torch.zeros(x.shape[1], len(part) * c) for part in parts]
    best, best_loss = np.zeros((len(y), c)), np.inf
    for penalty in PENALTIES:  # from strong to weak, each starting where the last one ended
        logits = torch.empty(best.shape)
        for i, part in enumerate(parts):
            seen = torch.from_numpy(fold[:, None] != part)
            weights[i] = train(x, target, seen, weights[i], penalty)
            for own, w in zip(part, weights[i].split(c, 1), strict=True):
                logits[fold == own] = x[fold == own] @ w
        p = logits.double().softmax(1).numpy()
        loss = -np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()
        if loss >= best_loss:
            break
        best, best_loss = p, loss
    return best


def stratified_groups(targets: np.ndarray, groups: np.ndarray, k: int, seed: int) -> np.ndarray:
    """As `stratified_folds`, with all rows of a group (n,) in one fold."""
    first, of = np.unique(groups, return_index=True, return_inverse=True)[1:]
    return stratified_folds(targets[first], k, seed)[of]


def whitened(features: np.ndarray) -> Tensor:
    """Standardised, with a column of ones: (n, D + 1) float32."""
    x = np.asarray(features, np.float32).reshape(len(features), -1)
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(1))[0])
        raise DataError(f"the features of row {row} are not finite; leave the row out")
    mean, std = x.mean(0), x.std(0)
    x = (x - mean) / np.where(std > 1e-6 * (1 + np.abs(mean)), std, np.inf)
    # rows of norm about 1 whatever D is, so that one set of penalties fits all features
    x *= np.float32(1 / np.sqrt(max(1, x.shape[1])))
    return torch.from_numpy(np.hstack([x, np.ones((len(x), 1), np.float32)]))


def train(x: Tensor, target: Tensor, seen: Tensor, start: Tensor, penalty: float) -> Tensor:
    """Weights (D + 1, m C) of m logistic regressions side by side, on the rows `seen` (n, m)."""
    n, m = seen.shape
    share = seen / seen.sum(0).clamp_min(1)
    own = target[:, None, None].expand(n, m, 1)
    w = start.clone().requires_grad_(True)
    options = {"history_size": 12, "tolerance_grad": 1e-5, "line_search_fn": "strong_wolfe"}
    optimizer = LBFGS([w], max_iter=STEPS, **options)

    def closure() -> float:
        optimizer.zero_grad()
        logits = (x @ w).view(n, m, -1)  # (n, m, C)
        nll = torch.logsumexp(logits, 2) - logits.gather(2, own)[..., 0]
        loss = (nll * share).sum() + penalty * w[:-1].square().sum()  # the last row is the bias
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return w.detach()


# ---- suspicion -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Suspects:
    """Rows whose label is probably wrong, the most suspicious first."""

    rows: np.ndarray  # (m,)
    suggested: np.ndarray  # (m,) the class they look like
    certainty: np.ndarray  # (m,) share of the suggested class, of it and the label together
    accuracy: float  # of the predictions on all rows: how much to trust them


def find_suspects(probabilities: ndarray, targets: ndarray, certain: float = CERTAIN) -> Suspects:
    """Confident learning on out-of-fold probabilities (n, C) and labels (n,)."""
    p, y = np.asarray(probabilities, np.float64), np.asarray(targets, np.int64)
    if p.shape[0] != len(y):
        raise DataError(f"{len(p)} rows of probabilities for {len(y)} labels: not the same rows")
    n, c = p.shape
    own = p[np.arange(n), y]
    count = np.bincount(y, minlength=c)
    usual = np.bincount(y, own, c) / np.maximum(count, 1)  # mean confidence in each class
    usual[count == 0] = np.inf
    likely = np.where(p >= usual, p, -1.0)  # (n, C)
    likely[np.arange(n), y] = -1
    suggested = likely.argmax(1)
    other = likely[np.arange(n), suggested]
    certainty = other / np.maximum(other + own, 1e-300)
    rows = np.flatnonzero((other > 0) & (own < usual[y]) & (certainty >= certain))
    rows = rows[np.argsort(-certainty[rows], kind="stable")]
    accuracy = float((p.argmax(1) == y).mean())
    return Suspects(rows, suggested[rows], certainty[rows], accuracy)


def suspect_labels(
    probabilities: np.ndarray, targets: np.ndarray, names: Sequence[str], labels: Sequence[str]
) -> Finding | None:
    """The finding for `find_suspects`, None when nothing is suspected.

    names: what to call each row (n,); labels: the class names (C,).
    Errors: DataError when the probabilities are of other rows.
    """
    found = find_suspects(probabilities, targets)
    if not len(found.rows):
        return None
    pairs = zip(found.rows.tolist(), found.suggested.tolist(), strict=True)
    said = [f"{names[i]} ({labels[int(targets[i])]}, looks like {labels[s]})" for i, s in pairs]
    weak = found.accuracy < WEAK
    message = (
        f"{len(said):,} of {len(targets):,} labels look wrong ({said[0]}), by predictions that "
        f"agreed with {found.accuracy:.1%} of the labels of rows they had not seen"
        + ("; so weak a judge also accuses many rows that are only hard" if weak else "")
    )
    cure = "look at them, the first ones first"
    return Finding("wrong_label", "note" if weak else "warning", message, tuple(said), cure)
