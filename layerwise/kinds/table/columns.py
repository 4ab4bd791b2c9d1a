"""How one column of a table becomes features: numbers, categories, dates.

Each is a frozen dataclass of scalars, learned from the training rows by `fit` and applied by
`encode`. Legend: n rows, B rows of a batch.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions on import, where no type checker sees them)

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layerwise.data.cells import dates_of, numbers_of, texts_of

CLIP = 8.0  # standardised numbers beyond this are held there: one cell must not rule the batch
MOST_LEVELS = 64  # categories past these most frequent ones share one place
RARE = 0.002  # and so do those in fewer than this share of the rows
QUARTILES_PER_STD = 1.349  # of a normal distribution
DAY = np.timedelta64(1, "D")
PERIODS = {"year": 365.2425, "week": 7.0, "day": 1.0}  # days


@dataclass(frozen=True)
class NumberColumn:
    """(x - centre) / scale, after sign(x) log(1 + |x|) where `log`; missing: 0 and an indicator.

    edges: bounds of equally filled ranges; each then adds how far x has come within it, 0 to 1
    (piecewise-linear encoding, Gorishniy et al. 2022, arXiv:2203.05556, section 3.2).
    """

    name: str
    centre: float
    scale: float
    log: bool = False
    missing: bool = False
    edges: tuple[float, ...] = ()

    @classmethod
    def fit(cls, name: str, cells: pa.Array, ranges: int = 0) -> "NumberColumn":
        x = numbers_of(cells)
        known = x[~np.isnan(x)]
        log = _heavily_skewed(known)
        centre, scale = _robust(_log(known) if log else known)
        edges = _edges(known, ranges) if ranges else ()
        return cls(name, centre, scale, log, len(known) < len(x), edges)

    def encode(self, cells: pa.Array) -> np.ndarray:  # (B, width)
        x = numbers_of(cells)  # (B,)
        unknown = np.isnan(x)
        z = ((_log(x) if self.log else x) - self.centre) / self.scale
        parts = [np.where(unknown, 0.0, np.clip(z, -CLIP, CLIP))[:, None]]
        if self.edges:
            low, high = np.array(self.edges[:-1]), np.array(self.edges[1:])
            within = np.clip((x[:, None] - low) / (high - low), 0.0, 1.0)  # (B, ranges)
            parts.append(np.where(unknown[:, None], 0.5, within))
        return np.hstack([*parts, unknown[:, None]]) if self.missing else np.hstack(parts)

    @property
    def features(self) -> tuple[str, ...]:
        pieces = [f"{self.name} {a:g}..{b:g}" for a, b in pairwise(self.edges)]
        return (self.name, *pieces, *([f"{self.name} missing"] if self.missing else []))


@dataclass(frozen=True)
class CategoryColumn:
    """One place per level. `other`, a place for what is rare, is there only if training had any:
    a place that never occurred in training would carry untrained weights. Then, an unknown level
    is all zeros."""

    name: str
    levels: tuple[str, ...]
    other: bool = False
    missing: bool = False

    @classmethod
    def fit(cls, name: str, cells: pa.Array) -> "CategoryColumn":
        text = texts_of(cells)
        counts = [(c["counts"], c["values"]) for c in text.drop_null().value_counts().to_pylist()]
        enough = max(2, RARE * len(text))
        frequent = sorted((c for c in counts if c[0] >= enough), key=lambda c: (-c[0], c[1]))
        levels = tuple(sorted(level for _, level in frequent[:MOST_LEVELS]))
        return cls(name, levels, len(levels) < len(counts), text.null_count > 0)

    def encode(self, cells: pa.Array) -> np.ndarray:  # (B, width)
        text = texts_of(cells)
        if set(self.levels) <= {"true", "false"}:  # also as True, from Python or a spreadsheet
            text = pc.utf8_lower(text)
        place = pc.index_in(text, pa.array(self.levels, pa.string()))
        place = pc.fill_null(place, -1).to_numpy(zero_copy_only=False)  # (B,)
        unknown = text.is_null().to_numpy(zero_copy_only=False)
        out = np.zeros((len(text), len(self.features)))
        rows = np.flatnonzero((place >= 0) & ~unknown)
        out[rows, place[rows]] = 1
        if self.other:
            out[(place < 0) & ~unknown, len(self.levels)] = 1
        if self.missing:
            out[unknown, -1] = 1
        return out

    @property
    def features(self) -> tuple[str, ...]:
        ends = (["other"] if self.other else []) + (["missing"] if self.missing else [])
        return tuple(f"{self.name} = {level}" for level in (*self.levels, *ends))


@dataclass(frozen=True)
class DateColumn:
    """Days since 1970 (standardised), and the place in the year, the week and, where the training
    rows have times, the day: each as sine and cosine so that December lies beside January."""

    name: str
    centre: float
    scale: float
    times: bool = False
    missing: bool = False

    @classmethod
    def fit(cls, name: str, cells: pa.Array) -> "DateColumn":
        days = _days(cells)
        known = days[~np.isnan(days)]
        centre, scale = _robust(known)
        return cls(name, centre, scale, bool((known % 1 != 0).any()), len(known) < len(days))

    def encode(self, cells: pa.Array) -> np.ndarray:  # (B, width)
        days = _days(cells)  # (B,)
        unknown = np.isnan(days)
        parts = [np.clip((days - self.centre) / self.scale, -CLIP, CLIP)]
        for _, period in self._periods():
            angle = 2 * np.pi * (days % period) / period
            parts += [np.sin(angle), np.cos(angle)]
        out = np.where(unknown[:, None], 0.0, np.stack(parts, 1))
        return np.hstack([out, unknown[:, None]]) if self.missing else out

    def _periods(self) -> list[tuple[str, float]]:
        return [(k, v) for k, v in PERIODS.items() if k != "day" or self.times]

    @property
    def features(self) -> tuple[str, ...]:
        waves = [f"{self.name} {w} of {k}" for k, _ in self._periods() for w in ("sin", "cos")]
        return (self.name, *waves, *([f"{self.name} missing"] if self.missing else []))


def _robust(x: np.ndarray) -> tuple[float, float]:
    """Median and a standard deviation from the quartiles; the plain one where those coincide."""
    if not len(x):
        return 0.0, 1.0
    low, centre, high = np.quantile(x, [0.25, 0.5, 0.75])
    scale = (high - low) / QUARTILES_PER_STD
    if scale <= 1e-9 * max(1.0, abs(centre)):
        centre, scale = x.mean(), x.std()
    return float(centre), float(scale) if scale > 0 else 1.0


def _log(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.log1p(np.abs(x))


def _heavily_skewed(x: np.ndarray) -> bool:
    """Whether the skewness is beyond 3 and a logarithm at least halves it."""
    return len(x) > 2 and abs(_skewness(x)) > 3 and abs(_skewness(_log(x))) < abs(_skewness(x)) / 2


def _skewness(x: np.ndarray) -> float:
    std = x.std()
    return float((((x - x.mean()) / std) ** 3).mean()) if std > 0 else 0.0


def _edges(x: np.ndarray, ranges: int) -> tuple[float, ...]:
    """Bounds of at most `ranges` ranges that hold equally many of x; none where x is constant."""
    edges = np.unique(np.quantile(x, np.linspace(0, 1, ranges + 1))) if len(x) else np.zeros(0)
    return tuple(map(float, edges)) if len(edges) > 2 else ()


def _days(cells: pa.Array) -> np.ndarray:
    """Days since 1970 with the time of day as a fraction, NaN where there is no date: (n,)."""
    dates = dates_of(cells)
    days = (dates - np.datetime64("1970-01-01", "us")) / DAY
    return np.where(np.isnat(dates), np.nan, days.astype(np.float64))
