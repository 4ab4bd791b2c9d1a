"""Rows of raw data in a fixed order, as `open_data` understood them, and batches of tensors.

Legend: n rows, C classes, B rows of one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

TargetKind = Literal["class", "classes", "number", "tags", "answers", "none"]
Severity = Literal["error", "warning", "note"]


CONTEXT = ("mask", "documents", "token_types")  # tensors that networks take by these names


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
    """Raw rows: inputs are decoded only when a processor asks for them.

    kind: modality of `inputs`: "image" (each a Path, bytes, or uint8 array (h, w[, c])), "table",
    or "text" (each a dict of the fields of `form`, see `text_forms`).
    targets: (n,) int64 for "class", (n, C) uint8 for "classes", (n,) float64 for "number", or None;
    (n, W) int64 for "tags" of up to W words, -1 behind the last; (n,) rows for "answers".
    labels: the class names, in their natural order; the index in `targets` is the place here.
    names: what to call each row in a message: a relative path, or "file.csv row 17".
    given: (n,) split each row came with: "train", "val", "test", or "" where none was given.
    """

    kind: str
    inputs: Sequence[Any]
    targets: np.ndarray | None
    target_kind: TargetKind
    labels: tuple[str, ...]
    names: Sequence[str]
    given: np.ndarray
    understood: str
    source: str = ""
    target_name: str = ""  # of the column that was the target, for tables
    findings: list[Finding] = field(default_factory=list)
    form: str = ""  # of text: "plain", "labelled", "tagged", "pairs" ...

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, rows: np.ndarray) -> "Examples":
        """The rows of these indices (or of this boolean mask), in that order."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            inputs=take(self.inputs, rows),
            targets=None if self.targets is None else self.targets[rows],
            names=take(self.names, rows),
            given=self.given[rows],
        )


def take(values: Sequence[Any], rows: np.ndarray) -> Sequence[Any]:
    """`values[rows]` for arrays, lists, and anything that has its own `take(rows)`."""
    array: Any = values
    if isinstance(values, np.ndarray):
        return array[rows]
    if hasattr(values, "take"):
        return array.take(rows)
    return [values[i] for i in rows]


@dataclass
class Batch:
    """Tensors that share their first axis B, and which rows of the data they came from."""

    tensors: dict[str, Tensor]  # at least "inputs"; "targets" where there are any
    rows: np.ndarray  # (B,) indices into the Examples
    parts: int = 1  # in how many the task may work through a batch that must stay whole

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def context(self) -> dict[str, Tensor]:
        """What a network takes by name beside its inputs: padding, documents, token types."""
        return {name: t for name, t in self.tensors.items() if name in CONTEXT}

    @property
    def flat(self) -> "Batch":
        """Texts or windows (B, N, T) that belong to one row as rows (B N, T) of their own."""
        inputs = self["inputs"]
        if inputs.ndim != 3 or inputs.is_floating_point():
            return self
        like = {k: t for k, t in self.tensors.items() if k in CONTEXT or t.shape == inputs.shape}
        rows = np.repeat(self.rows, inputs.shape[1])
        return Batch({name: t.flatten(0, 1) for name, t in like.items()}, rows)

    def split(self, parts: int, whole: bool = False) -> "list[Batch]":
        """`parts` micro-batches of equal size (the last may be smaller), in order.

        whole: one batch that knows its number of parts, for tasks that learn all rows together.
        """
        if parts == 1 or whole:
            return [replace(self, parts=parts)]
        size = -(-len(self) // parts)
        pieces = range(0, len(self), size)
        return [
            Batch({k: v[i : i + size] for k, v in self.tensors.items()}, self.rows[i : i + size])
            for i in pieces
        ]

    def to(self, device: str) -> "Batch":
        if device == "cpu":
            return self
        moved = {k: v.to(device, non_blocking=True) for k, v in self.tensors.items()}
        return Batch(moved, self.rows)
