"""Tables: typed columns, and the processor that turns their rows into numbers a network can use.

Numbers are centred on the median and scaled by the interquartile range (heavily skewed ones after
a logarithm), categories become one place per frequent level, dates their parts. What was learned
from the training rows is a tuple of small frozen columns, saved with the model: serving runs the
same code. Legend: B rows, n_in features.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from layerwise.data.cells import as_array, dates_of, flat, numbers_of, texts_of
from layerwise.data.examples import Examples
from layerwise.errors import DataError, nearest

CLIP = 8.0  # standardised numbers beyond this are held there: one cell must not rule the batch
MOST_LEVELS = 64  # categories past these most frequent ones share one place
RARE = 0.002  # and so do those in fewer than this share of the rows
QUARTILES_PER_STD = 1.349  # of a normal distribution
DAY = np.timedelta64(1, "D")
PERIODS = {"year": 365.2425, "week": 7.0, "day": 1.0}  # days


@dataclass(frozen=True)
class Table:
    """Rows of named, typed columns: float64, timestamps or text; null where a cell is missing.

    infinite: per column the rows whose cell was infinite (they count as missing).
    """

    data: pa.Table
    infinite: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Any) -> "Table":
        """A Table of a list of dicts, a dict of columns, an Arrow table or a pandas frame."""
        if isinstance(rows, Table):
            return rows
        if isinstance(rows, pa.Table):
            return cls(rows)
        if isinstance(rows, Mapping):
            columns = rows
        elif hasattr(rows, "to_dict"):
            columns = rows.to_dict("list")
        else:
            names = dict.fromkeys(name for row in rows for name in row)
            columns = {name: [row.get(name) for row in rows] for name in names}
        return cls(pa.table({str(name): as_array(cells) for name, cells in columns.items()}))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.data.column_names)

    def __len__(self) -> int:
        return self.data.num_rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row = row % len(self)
        return {name: self.data.column(name)[row].as_py() for name in self.columns}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.data.to_pylist())

    def column(self, name: str) -> pa.Array:
        return flat(self.data.column(name))

    def take(self, rows: np.ndarray | Sequence[int]) -> "Table":
        rows = np.asarray(rows, np.int64)
        infinite = {
            name: np.flatnonzero(np.isin(rows, where)) for name, where in self.infinite.items()
        }
        return Table(self.data.take(pa.array(rows)), infinite)

    def missing(self) -> dict[str, np.ndarray]:
        """Per column the rows whose cell is missing, columns without any left out."""
        return {
            name: np.flatnonzero(self.column(name).is_null().to_numpy(zero_copy_only=False))
            for name in self.columns
            if self.column(name).null_count
        }


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
        pieces = [f"{self.name} {a:g}..{b:g}" for a, b in zip(self.edges, self.edges[1:])]  # noqa: B905
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
        waves = [f"{self.name} {wave} of {k}" for k, _ in self._periods() for wave in ("sin", "cos")]
        return (self.name, *waves, *([f"{self.name} missing"] if self.missing else []))


KINDS = {"number": NumberColumn, "category": CategoryColumn, "date": DateColumn}
AnyColumn = NumberColumn | CategoryColumn | DateColumn


@dataclass(frozen=True)
class TableProcessor:
    """Rows of a table to float32 features: the same in training and when serving."""

    columns: tuple[AnyColumn, ...]

    @classmethod
    def fit(cls, examples: Examples, ranges: int = 0) -> "TableProcessor":
        """Learn the columns from these (training) rows alone.

        ranges: also encode each number piecewise over this many equally filled ranges.
        """
        table = Table.of(examples.inputs)
        return cls(tuple(_fit(name, table.column(name), ranges) for name in table.columns))

    @property
    def n_in(self) -> int:
        return len(self.features)

    @property
    def features(self) -> tuple[str, ...]:
        """What each feature is, in words: (n_in,)."""
        return tuple(feature for column in self.columns for feature in column.features)

    def __call__(self, inputs: Any) -> Tensor:
        """A Table, Arrow table, list of dicts or dict of columns to (B, n_in) float32.

        Columns the model does not know are ignored, an unknown category counts as other. Error: a
        column is missing.
        """
        table = Table.of(inputs)
        self._check(table.columns)
        parts = [column.encode(table.column(column.name)) for column in self.columns]
        return torch.from_numpy(np.hstack(parts).astype(np.float32))  # (B, n_in)

    def _check(self, names: Sequence[str]) -> None:
        absent = [column.name for column in self.columns if column.name not in names]
        if absent:
            raise DataError(
                f"the table lacks {len(absent)} of the {len(self.columns)} columns the model was "
                f"trained on: {', '.join(repr(name) for name in absent[:5])}"
                f"{nearest(absent[0], names) or ';'} add the column (its cells may be empty)"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain scalars and lists, as saved in `layerwise.json`."""
        kinds = {column: kind for kind, column in KINDS.items()}
        return {
            "kind": "table",
            "columns": [{"kind": kinds[type(c)], **dataclasses.asdict(c)} for c in self.columns],
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "TableProcessor":
        columns = []
        for entry in saved["columns"]:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
            columns.append(KINDS[values.pop("kind")](**values))
        return cls(tuple(columns))


def _fit(name: str, cells: pa.Array, ranges: int) -> AnyColumn:
    if pa.types.is_timestamp(cells.type) or pa.types.is_date(cells.type):
        return DateColumn.fit(name, cells)
    if pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type):
        return NumberColumn.fit(name, cells, ranges)
    return CategoryColumn.fit(name, cells)


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
