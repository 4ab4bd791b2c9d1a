"""CSV, TSV, UCI and Parquet tables to examples: which column is the target, which are dropped.

The target is the column that was named; else one called target, label, class, y ...; else the
last. It is said which. Classes or a quantity: see `targets`.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions on import, where no type checker sees them)

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layerwise.data.delimited import RawTable
from layerwise.data.examples import Examples, Finding, TargetKind
from layerwise.data.kept_columns import giveaways, typed_columns
from layerwise.data.listing import some, split_named
from layerwise.data.raw_tables import read_table
from layerwise.data.table import Table
from layerwise.data.targets import Targets, label_text, read_targets
from layerwise.errors import DataError, nearest

TARGET_NAMES = ("target", "label", "labels", "class", "y", "outcome", "response", "classification")
SPLIT_NAMES = ("split", "subset", "partition")


@dataclass
class Reading:
    """How the caller wants a table read."""

    target: str | None = None
    target_kind: TargetKind | None = None
    split_column: str | None = None
    learn: bool = True  # False: to predict or evaluate; a target is welcome but not needed
    read: dict[Path, RawTable] = field(default_factory=dict)  # tables that were read already

    def table(self, path: Path) -> RawTable:
        """A file's table, read once while it is found out what it is."""
        if path not in self.read:
            self.read[path] = read_table(path)
        return self.read[path]


@dataclass
class _Parts:
    """One or several files read as one table."""

    raw: list[RawTable]
    given: np.ndarray  # (n,) the split of each row
    notes: list[Finding] = field(default_factory=list)

    @property
    def data(self) -> pa.Table:
        tables = [raw.data for raw in self.raw]
        return pa.concat_tables(tables, promote_options="permissive") if tables[1:] else tables[0]

    def row_name(self, row: int) -> str:
        for raw in self.raw:
            if row < raw.data.num_rows:
                return raw.row_name(row)
            row -= raw.data.num_rows
        raise IndexError(row)

    def names(self) -> list[str]:
        return [raw.row_name(i) for raw in self.raw for i in range(raw.data.num_rows)]


def open_tables(files: Sequence[tuple[Path, str]], reading: Reading) -> Examples:
    """Tables of one make as Examples; each file comes with its split, '' where none is given.

    Errors: columns that differ between files, an unknown target, a target without any value.
    """
    parts = _read_parts(files, reading)
    data = parts.data
    names = _names_without_index(data)
    split_column = _split_column(names, data, reading.split_column, parts.raw[0].file)
    target, why = _target_column([n for n in names if n != split_column], reading, parts)
    inputs = [n for n in names if n not in (split_column, target)]
    european = parts.raw[0].delimiter == ";"
    columns, infinite, findings = typed_columns(
        data, inputs, parts.row_name, european, reading.learn
    )
    table = Table(pa.table(columns) if columns else data.select([]), infinite)
    given = _given(parts, data, split_column)
    targets = None if target is None else _targets(data.column(target), target, parts, reading)
    if target is not None and not table.columns:
        raise DataError(
            f"'{parts.raw[0].file}' has no column to learn from besides the target '{target}'"
        )
    said = _understood(parts, table, target, why, targets)
    findings = parts.notes + findings
    names = parts.names()
    examples = Examples("table", table, None, "none", (), names, given, said, findings=findings)
    if targets is None:
        return examples
    examples.target_name = target or ""
    examples.findings += targets.findings
    examples = examples.subset(targets.labelled)
    examples.targets, examples.target_kind = targets.values, targets.kind
    examples.labels = targets.labels
    examples.findings += giveaways(examples, target or "")
    return examples


def _read_parts(files: Sequence[tuple[Path, str]], reading: Reading) -> _Parts:
    files = sorted(files, key=lambda file: file[1] != "train")  # the others must be like train
    raw = [reading.table(path) for path, _ in files]
    parts = _Parts(raw, np.zeros(0), [f for r in raw for f in r.findings])
    splits = [split for _, split in files]
    first = raw[0]
    for other in raw[1:]:
        if first.header and not other.header and other.data.num_columns == first.data.num_columns:
            other.data = other.data.rename_columns(first.data.column_names)
    keep = [i for i, other in enumerate(raw) if _same_columns(first, other, reading, parts)]
    parts.raw = [raw[i] for i in keep]
    parts.given = np.concatenate([np.full(raw[i].data.num_rows, splits[i], "U5") for i in keep])
    return parts


def _same_columns(first: RawTable, other: RawTable, reading: Reading, parts: _Parts) -> bool:
    """Whether a file joins the first; one that lacks the target alone is set aside with a word."""
    ours, theirs = first.data.column_names, other.data.column_names
    if set(ours) == set(theirs):
        other.data = other.data.select(ours)
        return True
    lacking = [name for name in ours if name not in theirs]
    extra = [name for name in theirs if name not in ours]
    likely = reading.target or next((n for n in TARGET_NAMES if n in lacking), ours[-1])
    if not extra and lacking in ([likely], [ours[-1]]):
        message = (
            f"'{other.file}' has no column '{lacking[0]}': its {other.data.num_rows:,} rows are "
            "there to predict and were left out"
        )
        parts.notes.append(Finding("unlabelled", "note", message, (other.file,)))
        return False
    raise DataError(
        f"'{first.file}' and '{other.file}' should have the same columns"
        + (f"; '{other.file}' lacks {some(lacking)}" if lacking else "")
        + (f"; only '{other.file}' has {some(extra)}" if extra else "")
        + ". Rename or remove columns, or name one file alone"
    )


def _names_without_index(data: pa.Table) -> list[str]:
    """Column names without the index that pandas writes in front: nameless, counting the rows."""
    first = data.column_names[0]
    if first.lower().startswith("unnamed:") or first == "__index_level_0__":
        return data.column_names[1:]
    return data.column_names


def _split_column(names: list[str], data: pa.Table, asked: str | None, file: str) -> str | None:
    """The column that says which split a row is in: the one named, else one called `split`."""
    if asked is not None:
        if asked not in names:
            hint = nearest(asked, names) or ";"
            raise DataError(
                f"'{file}' has no column '{asked}'{hint} split_column should name the one that "
                f"says train, val or test; it has {some(names, 12)}"
            )
        return asked
    for name in names:
        if name.lower() in SPLIT_NAMES:
            values = pc.unique(data.column(name).cast(pa.string())).to_pylist()
            if all(v is None or not v.strip() or split_named(v) for v in values):
                return name
    return None


def read_splits(values: Sequence[Any], what: str, row_name: Any) -> np.ndarray:
    """A column of split names to `given` (n,). Error: a word that is none, with its row."""
    given = ["" if v is None or not str(v).strip() else split_named(str(v)) or "?" for v in values]
    if "?" in given:
        row = given.index("?")
        raise DataError(
            f"{what} should say train, val or test, but {row_name(row)} has {values[row]!r}"
        )
    return np.array(given, "U5")


def _given(parts: _Parts, data: pa.Table, split_column: str | None) -> np.ndarray:
    if split_column is None:
        return parts.given
    values = data.column(split_column).to_pylist()
    return read_splits(values, f"column '{split_column}'", parts.row_name)


def _target_column(names: list[str], reading: Reading, parts: _Parts) -> tuple[str | None, str]:
    """The column to learn, and why that one."""
    file = parts.raw[0].file
    if reading.target in names:
        return reading.target, "as asked"
    if not reading.learn:
        return None, ""  # nothing is guessed: what looks like a target may be an input of the model
    if reading.target is not None:
        raise DataError(
            f"'{file}' has no column '{reading.target}'{nearest(reading.target, names) or ';'} it "
            f"has {some(names, 12)}. Name the column to learn with --target NAME"
        )
    lower = {name.lower(): name for name in reversed(names)}
    for name in TARGET_NAMES:
        if name in lower:
            return lower[name], "by its name"
    if len(names) < 2:
        raise DataError(
            f"'{file}' has the single column {some(names)}; expected columns to learn from and a "
            "target. Is the delimiter unusual?"
        )
    return names[-1], "the last column; name another with --target"


def _targets(column: pa.ChunkedArray, name: str, parts: _Parts, reading: Reading) -> Targets:
    values = column.to_pylist()
    if pa.types.is_string(column.type):
        values = _without_test_dots([label_text(v) if v else v for v in values], parts)
    what = f"column '{name}' of {parts.raw[0].file}"
    targets = read_targets(values, what, reading.target_kind, True, parts.row_name)
    if targets.kind == "class" and len(targets.labels) > max(20, len(targets.values) // 2):
        raise DataError(
            f"{what} has {len(targets.labels):,} different values in {len(targets.values):,} rows "
            f"(such as {some(targets.labels)}), so it is no class to learn; name the column to "
            "learn with --target"
        )
    return targets


def _without_test_dots(values: list[Any], parts: _Parts) -> list[Any]:
    """UCI's adult.test ends each class with a dot that adult.data has not: taken off."""
    train = {v for v, part in zip(values, parts.given, strict=True) if v and part != "test"}
    test = {v for v, part in zip(values, parts.given, strict=True) if v and part == "test"}
    if not test or not train or not all(v.endswith(".") and v[:-1] in train for v in test):
        return values
    parts.notes.append(
        Finding("target", "note", "the classes of the test file end in a dot, which was taken off")
    )
    return [v[:-1] if v in test else v for v in values]


def _understood(
    parts: _Parts, table: Table, target: str | None, why: str, targets: Targets | None
) -> str:
    files = " and ".join(raw.file for raw in parts.raw[:3])
    text = f"a table of {len(table):,} rows and {len(table.columns)} columns to learn from ({files}"
    text += ")" if all(raw.header for raw in parts.raw) else ", without a header)"
    if target is None or targets is None:
        return text + "; no target"
    return f"{text}; the target is '{target}' ({why}): {targets.said}"
