"""Rows of named, typed columns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from layerwise.data.cells import as_array, flat


@dataclass(frozen=True)
class Table(Sequence[dict[str, Any]]):
    """Rows of named, typed columns: float64, timestamps or text; null where a cell is missing."""

    data: pa.Table

    @classmethod
    def of(cls, rows: Any) -> "Table":
        """A Table of a list of dicts, one dict, a dict of columns, an Arrow table or a frame."""
        if isinstance(rows, Table):
            return rows
        if isinstance(rows, pa.Table):
            return cls(rows)
        if isinstance(rows, Mapping):
            one = any(isinstance(x, str) or not hasattr(x, "__len__") for x in rows.values())
            columns = {name: [cell] for name, cell in rows.items()} if one else rows
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

    def __getitem__(self, row: int) -> dict[str, Any]:  # type: ignore[override]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row = row % len(self)
        return {name: self.data.column(name)[row].as_py() for name in self.columns}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.data.to_pylist())

    def column(self, name: str) -> pa.Array:
        return flat(self.data.column(name))

    def take(self, rows: np.ndarray | Sequence[int]) -> "Table":
        return Table(self.data.take(pa.array(np.asarray(rows, np.int64))))
