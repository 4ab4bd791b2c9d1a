"""Simple questions to a matrix of activations: what can be read from it, how much room it uses, how
alike two of them are. Closed forms, in numpy, double precision.

Papers: Alain and Bengio, "Understanding intermediate layers using linear classifier probes",
arXiv:1610.01644. Hewitt and Liang, "Designing and interpreting probes with control tasks",
arXiv:1909.03368. Roy and Vetterli, "The effective rank", EUSIPCO 2007. Kornblith et al.,
"Similarity of neural network representations revisited", arXiv:1905.00414; without its bias for few
rows: Nguyen, Raghu, Kornblith, arXiv:2010.15327.

Legend: n rows, D features, K outputs, C classes.
"""

from dataclasses import dataclass

import numpy as np

PENALTIES = 10.0 ** np.arange(-4, 5)  # of the ridge, times the mean variance of the features


@dataclass(frozen=True)
class Ridge:
    """Linear regression with a penalty on the weights' size, prepared for any number of targets.

    left, scales: the singular vectors (n, r) and values (r,) of the standardised training rows;
    projected: the test rows in the same coordinates (m, r).
    """

    left: np.ndarray
    scales: np.ndarray
    projected: np.ndarray

    @classmethod
    def prepare(cls, train: np.ndarray, test: np.ndarray) -> "Ridge":
        """train: (n, D), test: (m, D). Features that do not vary in training are left out."""
        mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
        varies = deviation > 1e-8 * max(1.0, float(np.abs(mean).max(initial=0.0)))
        if not varies.any():
            return cls(np.zeros((len(train), 1)), np.zeros(1), np.zeros((len(test), 1)))
        x = (train[:, varies] - mean[varies]) / deviation[varies]
        left, scales, right = np.linalg.svd(x, full_matrices=False)
        keep = scales > 1e-6 * scales[0]
        left, scales, right = left[:, keep], scales[keep], right[keep]
        return cls(left, scales, (test[:, varies] - mean[varies]) / deviation[varies] @ right.T)

    def predict(self, targets: np.ndarray) -> np.ndarray:
        """targets: (n, K) of the training rows. Returns (m, K) for the test rows.

        The penalty is the one with the smallest leave-one-out error, which a ridge gives in closed
        form: the residual over one minus the row's own weight in its prediction.
        """
        mean = targets.mean(0)
        y = self.left.T @ (targets - mean)  # (r, K)
        best, chosen = np.inf, np.zeros_like(self.scales)
        for penalty in PENALTIES * len(self.left):
            shrink = self.scales**2 / (self.scales**2 + penalty)  # (r,)
            own = (self.left**2 * shrink).sum(1) + 1 / len(self.left)  # (n,)
            residual = targets - mean - self.left @ (shrink[:, None] * y)
            error = float(((residual / (1 - own).clip(1e-6)[:, None]) ** 2).mean())
            if error < best:
                best, chosen = error, self.scales / (self.scales**2 + penalty)
        return mean + self.projected @ (chosen[:, None] * y)


class CrossFit:
    """Ridge predictions for every row, each from a fit that did not see the row.

    x: (n, D); folds: (n,) the number of the fold each row belongs to.
    """

    def __init__(self, x: np.ndarray, folds: np.ndarray):
        self.parts = [(folds != f, folds == f) for f in np.unique(folds)]
        self.ridges = [Ridge.prepare(x[train], x[test]) for train, test in self.parts]

    def predict(self, targets: np.ndarray) -> np.ndarray:
        """targets: (n, K). Returns (n, K)."""
        out = np.empty(targets.shape)
        for ridge, (train, test) in zip(self.ridges, self.parts, strict=True):
            out[test] = ridge.predict(targets[train])
        return out


def one_hot(classes: np.ndarray) -> np.ndarray:
    """(n,) class indices as (n, C) zeros and ones."""
    return np.eye(int(classes.max()) + 1)[classes]


def r_squared(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Share of the targets' variance that the prediction accounts for, from 0 to 1: (n, K) each."""
    total = ((targets - targets.mean(0)) ** 2).sum(0)
    left = ((targets - predicted) ** 2).sum(0)
    varies = total > 0
    if not varies.any():
        return 0.0
    return float(np.mean(np.clip(1 - left[varies] / total[varies], 0, 1)))


def effective_rank(x: np.ndarray) -> float:
    """exp(entropy of the normalised singular values) of the centred rows: 1 to min(n, D)."""
    centred = x - x.mean(0, dtype=np.float64)
    wide = x.shape[1] > x.shape[0]
    gram = centred @ centred.T if wide else centred.T @ centred  # the smaller one
    values = np.sqrt(np.linalg.eigvalsh(gram).clip(0))
    if not values.sum() > 0:
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def cka(features: list[np.ndarray]) -> np.ndarray:
    """Linear CKA between every two of L matrices of the same n rows: (L, L), 1 on the diagonal.

    With the unbiased estimate of HSIC, so that few rows do not make everything look alike.
    """
    kernels = [hollow(x - x.mean(0, dtype=np.float64)) for x in features]
    table = np.zeros((len(kernels), len(kernels)))
    for i, a in enumerate(kernels):
        for j, b in enumerate(kernels[i:], start=i):
            table[i, j] = hsic(a, b)
    sizes = np.sqrt(np.diag(table).clip(1e-300))
    upper = np.triu(table / sizes[:, None] / sizes[None, :], 1)
    return np.clip(upper + upper.T, 0, 1) + np.eye(len(kernels))


def hollow(x: np.ndarray) -> np.ndarray:
    """Inner products of all rows with a zero diagonal, scaled to mean size 1: (n, n)."""
    kernel = x @ x.T
    np.fill_diagonal(kernel, 0.0)
    size = np.sqrt((kernel**2).mean())
    return kernel / size if size > 0 else kernel


def hsic(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased Hilbert-Schmidt independence of two hollow kernels (n, n) (Song et al. 2012)."""
    n = len(a)
    product = (a * b).sum()
    means = a.sum() * b.sum() / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (a.sum(0) @ b.sum(0))
    return float((product + means - cross) / (n * (n - 3)))
