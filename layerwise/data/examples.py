"""Rows of raw data with named fields, in a fixed order; and batches of tensors.

Legend: n rows, C classes, B rows of one batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

TargetKind = Literal["class", "classes", "number", "none"]
Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing the audit or the reader has to say about the data."""

    kind: str  # "unreadable", "near_duplicate", "leak", "imbalance", "wrong_label" ...
    severity: Severity  # error: the rows were set aside
    message: str  # a sentence with the evidence
    names: tuple[str, ...] = ()  # the files or rows meant
    cure: str = ""  # what to do about it


@dataclass
class Examples:
    """Raw rows; a value is decoded only when a processor asks for it.

    fields: the values of each field, (n,) each: {"image": [...]}, {"text_a": [...], "text_b":
    [...]}, {"audio": [...], "text": [...]}. An image is a Path, bytes or a uint8 array (h, w[, c]);
    a row of a table is one value.
    kinds: which kind reads a field; fields without one are not read but learned (tags, answers).
    targets: what is to be learned where it is a label or a number: (n,) int64 for "class", (n, C)
    uint8 for "classes", (n,) float64 for "number", or None.
    labels: the class names, in their natural order; the index in `targets` is the place here.
    names: what to call each row in a message: a relative path, or "file.csv row 17".
    given: (n,) split each row came with: "train", "val", "test", or "" where none was given.
    together: a field of which equal values stay in one split.
    """

    fields: dict[str, Sequence[Any]]
    kinds: dict[str, str]
    names: Sequence[str]
    given: np.ndarray
    understood: str = ""
    targets: np.ndarray | None = None
    target_kind: TargetKind = "none"
    labels: tuple[str, ...] = ()
    source: str = ""
    target_name: str = ""  # of the column that was the target
    findings: list[Finding] = field(default_factory=list)
    together: str = ""

    @classmethod
    def of(
        cls, kind: str, values: Any, names: Sequence[str], given: Any = None, understood: str = ""
    ) -> "Examples":
        """Rows of one field, called as its kind is. given: left out where none was given."""
        given = np.full(len(names), "", "U5") if given is None else given
        return cls({kind: values}, {kind: kind}, names, given, understood)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> Sequence[Any]:
        """The values of a field: (n,)."""
        return self.fields[name]

    @property
    def kind(self) -> str:
        """The kinds of its fields in words: "image", or "audio and text"."""
        return " and ".join(dict.fromkeys(self.kinds.values()))

    def of_kind(self, kind: str) -> dict[str, Sequence[Any]]:
        """The fields that a kind reads."""
        return {name: v for name, v in self.fields.items() if self.kinds.get(name) == kind}

    def has(self, *names: str) -> bool:
        return all(name in self.fields for name in names)

    def rows(self) -> list[dict[str, Any]]:
        """Each row as a dict of its fields."""
        values = [listed(v) for v in self.fields.values()]
        return [dict(zip(self.fields, row, strict=True)) for row in zip(*values, strict=True)]

    def subset(self, rows: np.ndarray) -> "Examples":
        """The rows of these indices (or of this boolean mask), in that order."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            fields={name: take(values, rows) for name, values in self.fields.items()},
            targets=None if self.targets is None else self.targets[rows],
            names=take(self.names, rows),
            given=self.given[rows],
        )


class Column(Sequence[Any]):
    """Texts or bytes that lie in an Arrow array: each is made a Python object when asked for."""

    def __init__(self, values: pa.Array):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> Any:  # type: ignore[override]  # rows only, no slices
        return self.values[int(row)].as_py()

    def tolist(self) -> list[Any]:
        return self.values.to_pylist()

    def take(self, rows: np.ndarray) -> "Column":
        return Column(self.values.take(pa.array(np.asarray(rows, np.int64))))


def listed(values: Sequence[Any]) -> list[Any]:
    return values.tolist() if isinstance(values, Column) else list(values)


def take(values: Any, rows: np.ndarray) -> Any:
    """`values[rows]` for arrays, lists, and anything that has its own `take(rows)`."""
    if isinstance(values, np.ndarray):
        return values[rows]
    if isinstance(values, list | tuple):
        return [values[i] for i in rows]
    return values.take(rows)


@dataclass
class Batch:
    """Tensors that share their first axis B, and which rows of the data they came from."""

    tensors: dict[str, Tensor]  # by the names that networks and tasks read
    rows: np.ndarray  # (B,) indices into the Examples
    parts: int = 1  # in how many the task may work through a batch that must stay whole

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of these tensors that there are: what a network reads, `network.READS`."""
        return {name: self.tensors[name] for name in names if name in self.tensors}

    def main(self, names: Iterable[str]) -> Tensor:
        """The first of these tensors that there is: what a network mainly reads."""
        return next(iter(self.select(names).values()))

    @property
    def tokens_per_row(self) -> int:
        """0 where rows are not made of tokens."""
        tokens = self.tensors.get("tokens")
        return 0 if tokens is None else tokens[:1].numel()

    @property
    def flat(self) -> "Batch":
        """Texts or windows (B, N, T) that belong to one row as rows (B N, T) of their own."""
        tokens = self.tensors.get("tokens")
        if tokens is None or tokens.ndim != 3:
            return self
        like = {k: t for k, t in self.tensors.items() if t.shape == tokens.shape}
        rows = np.repeat(self.rows, tokens.shape[1])
        return Batch({name: t.flatten(0, 1) for name, t in like.items()}, rows)

    def first(self, n: int) -> "Batch":
        return self.stretch(0, n)

    def stretch(self, start: int, end: int) -> "Batch":
        return Batch({k: v[start:end] for k, v in self.tensors.items()}, self.rows[start:end])

    def split(self, parts: int, whole: bool = False) -> "list[Batch]":
        """`parts` micro-batches of equal size (the last may be smaller), in order.

        whole: one batch that knows its number of parts, for tasks that learn all rows together.
        """
        if parts == 1 or whole:
            return [replace(self, parts=parts)]
        size = -(-len(self) // parts)
        return [self.stretch(i, i + size) for i in range(0, len(self), size)]

    def to(self, device: str) -> "Batch":
        if device == "cpu":
            return self
        moved = {k: v.to(device, non_blocking=True) for k, v in self.tensors.items()}
        return Batch(moved, self.rows)


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches of the same tensors as one."""
    names = batches[0].tensors
    tensors = {name: torch.cat([batch[name] for batch in batches]) for name in names}
    return Batch(tensors, np.concatenate([batch.rows for batch in batches]))
