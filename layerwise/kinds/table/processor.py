"""Tables: typed columns, and the processor that turns their rows into numbers a network can use.

Numbers are centred on the median and scaled by the interquartile range (heavily skewed ones after
a logarithm), categories become one place per frequent level, dates their parts. What was learned
from the training rows is a tuple of small frozen columns, saved with the model: serving runs the
same code. Legend: B rows, n_in features.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from layerwise.data.examples import Examples
from layerwise.data.table import Table
from layerwise.errors import DataError, nearest
from layerwise.kinds.table.columns import CategoryColumn, DateColumn, NumberColumn

MOST_RANGES, FEWEST_RANGES = 32, 8  # pieces that a number is cut into
ROWS_PER_RANGE = 50
MOST_PIECES = 1024  # of all numbers together
KINDS = {"number": NumberColumn, "category": CategoryColumn, "date": DateColumn}
AnyColumn = NumberColumn | CategoryColumn | DateColumn


@dataclass(frozen=True)
class TableProcessor:
    """Rows of a table to float32 features: the same in training and when serving."""

    columns: tuple[AnyColumn, ...]

    @classmethod
    def fit(cls, examples: Examples, ranges: int | None = None) -> "TableProcessor":
        """Learn the columns from these (training) rows alone.

        ranges: also encode each number piecewise over this many equally filled ranges; None: as
        many as the rows can fill, none where there are hundreds of columns.
        """
        table = Table.of(examples["table"])
        if ranges is None:
            ranges = _affordable_ranges(table)
        return cls(tuple(_fit(name, table.column(name), ranges) for name in table.columns))

    @property
    def n_in(self) -> int:
        return len(self.features)

    @property
    def features(self) -> tuple[str, ...]:
        """What each feature is, in words: (n_in,)."""
        return tuple(feature for column in self.columns for feature in column.features)

    def __call__(self, inputs: object) -> Tensor:
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
            columns.append(KINDS[str(values.pop("kind"))](**values))
        return cls(tuple(columns))


def _affordable_ranges(table: Table) -> int:
    """At most 32, each with 50 rows or more, and 1,024 features in all; fewer than 8 do not pay."""
    n_numbers = sum(pa.types.is_floating(table.data.schema.field(n).type) for n in table.columns)
    ranges = min(MOST_RANGES, len(table) // ROWS_PER_RANGE, MOST_PIECES // max(1, n_numbers))
    return ranges if ranges >= FEWEST_RANGES else 0


def _fit(name: str, cells: pa.Array, ranges: int) -> AnyColumn:
    if pa.types.is_timestamp(cells.type) or pa.types.is_date(cells.type):
        return DateColumn.fit(name, cells)
    if pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type):
        return NumberColumn.fit(name, cells, ranges)
    return CategoryColumn.fit(name, cells)
