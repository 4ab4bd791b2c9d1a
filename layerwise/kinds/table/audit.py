"""Columns that say nothing, miss much, or know too much.

A column knows too much when the target can be read off it alone: on one half of the rows its
values are looked up in a table of the other half. So a column of names, new in every row, is not
suspected, but a code that was written down after the fact is.

Legend: n rows, C classes.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions on import, where no type checker sees them)

import numpy as np
import pyarrow as pa

from layerwise.data.cells import is_number, numbers_of, texts_of
from layerwise.data.examples import Examples, Finding
from layerwise.data.naming import about
from layerwise.data.table import Table

MANY_MISSING = 0.5  # share of a column from which on it is a warning
FEWEST = 50  # rows, below which nothing is suspected
RANGES = 256  # that numbers are cut into
LEFT = 0.02  # of what could be wrong may still be wrong for a column that tells the target


def audit_columns(examples: Examples) -> list[Finding]:
    """Constant columns, missing shares, columns that give the target away."""
    table = Table.of(examples["table"])
    same = [c for c in table.columns if len(table.column(c).unique()) <= 1]
    said = about("constant_column", "warning", same, "columns have one value", "leave them out")
    return [*said, *missing(table), *giveaways(examples, table)]


def missing(table: Table) -> list[Finding]:
    """How much is missing: a warning for mostly empty columns, a note for the rest."""
    shares = {c: table.column(c).null_count / max(1, len(table)) for c in table.columns}
    order = sorted(shares, key=lambda c: -shares[c])
    many = [c for c in order if shares[c] >= MANY_MISSING]
    few = [c for c in order if 0 < shares[c] < MANY_MISSING]
    said = [", ".join(f"'{c}' {shares[c]:.1%}" for c in part[:5]) for part in (many, few)]
    cure = "fill their cells or leave the columns out"
    return [
        *about("missing_cells", "warning", many, f"columns are mostly missing ({said[0]})", cure),
        *about("missing_cells", "note", few, f"columns are partly missing ({said[1]})"),
    ]


# ---- target leakage --------------------------------------------------------------------------


def giveaways(examples: Examples, table: Table) -> list[Finding]:
    """Columns that tell the target of nearly every row by themselves."""
    y, n = examples.targets, len(table)
    if y is None or examples.target_kind == "classes" or n < FEWEST:
        return []
    tells = tells_class if examples.target_kind == "class" else tells_number
    half = np.random.default_rng(0).permutation(n) < n // 2
    found = [c for c in table.columns if tells(table.column(c), y, half)]
    what = "columns alone tell the target of nearly every row: are they known before it is?"
    cure = "leave such a column out, or the score says nothing about new rows"
    return about("giveaway", "warning", found, what, cure)


def tells_class(cells: pa.Array, y: np.ndarray, half: np.ndarray) -> bool:
    """Whether a look-up of the column's values is right where the commonest class is not."""
    codes = codes_of(cells, half)
    n_classes = int(y.max()) + 1
    votes = np.zeros((int(codes.max()) + 1, n_classes), np.int32)
    np.add.at(votes, (codes[half], y[half]), 1)
    commonest = votes.sum(0).argmax()
    votes[:, commonest] += votes.sum(1) == 0  # a value not seen says the commonest class
    wrong = (votes[codes[~half]].argmax(1) != y[~half]).mean()
    base = (y[~half] != commonest).mean()
    return bool(base > 0 and wrong <= LEFT * base)


def tells_number(cells: pa.Array, y: np.ndarray, half: np.ndarray) -> bool:
    """Whether the column orders or names the target almost without error."""
    if is_number(cells.type):
        x = numbers_of(cells)
        known = ~np.isnan(x)
        if known.mean() < 0.9 or len(np.unique(x[known])) < 3:
            return False
        return abs(rank_correlation(x[known], y[known])) > 0.9995
    codes = codes_of(cells, half)
    count = np.bincount(codes[half], minlength=int(codes.max()) + 1)
    total = np.bincount(codes[half], y[half], minlength=len(count))
    mean = np.where(count > 0, total / np.maximum(count, 1), y[half].mean())
    error = np.square(y[~half] - mean[codes[~half]]).mean()
    return bool(error <= 1e-3 * max(y[~half].var(), 1e-300))


def codes_of(cells: pa.Array, half: np.ndarray) -> np.ndarray:
    """The value of each cell as an integer (n,): its level, or the range its number lies in."""
    if is_number(cells.type):
        x = numbers_of(cells)
        known = np.unique(x[half & ~np.isnan(x)])
        if len(known) > RANGES:
            known = np.unique(np.quantile(x[half & ~np.isnan(x)], np.linspace(0, 1, RANGES + 1)))
        return np.where(np.isnan(x), 0, np.searchsorted(known, x) + 1)
    return texts_of(cells).dictionary_encode("encode").indices.to_numpy(zero_copy_only=False)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, ties at their mean rank."""
    ranks = []
    for v in (x, y):
        _, of, count = np.unique(v, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count + 1) / 2)[of])
    spread = ranks[0].std() * ranks[1].std()
    return float(np.cov(*ranks, bias=True)[0, 1] / spread) if spread > 0 else 0.0
