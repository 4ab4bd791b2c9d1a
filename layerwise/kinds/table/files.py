"""CSV, TSV, UCI and Parquet tables to examples: the target, and the columns to learn from.

The target is the column that was named; else one called target, label, class, y ...; else the
last. It is said which. Classes or a quantity: see `targets`.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions on import, where no type checker sees them)

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layerwise.data import targets
from layerwise.data.cells import DATE, typed
from layerwise.data.delimited import RawTable
from layerwise.data.examples import Examples, Finding
from layerwise.data.naming import about, some
from layerwise.data.records import Reading, Records, first_named, target_column, together
from layerwise.data.table import Table
from layerwise.errors import DataError

TARGET_NAMES = ("target", "label", "labels", "class", "y", "outcome", "response", "classification")
INDEX = re.compile(r"unnamed:.*|__index_level_0__", re.IGNORECASE)  # which pandas writes in front
ID_NAME = re.compile(r"(.*[_\s-])?(id|uid|uuid|guid|index|key)", re.IGNORECASE)
FEWEST_FOR_ID = 20  # rows: among fewer, that all differ proves nothing


def open_tables(raw: Sequence[RawTable], splits: Sequence[str], reading: Reading) -> Examples:
    """Tables of one make as Examples; each comes with its split, '' where none is given.

    Errors: columns that differ between files, an unknown target, a target without any value.
    """
    files = sorted(zip(raw, splits, strict=True), key=lambda file: file[1] != "train")
    first = files[0][0]  # the others must be like train
    files = [file for file in files if _joins(first, file[0], reading)]
    records = together([table for table, _ in files], [split for _, split in files], reading)
    columns = [n for i, n in enumerate(records.data.column_names) if i or not INDEX.fullmatch(n)]
    target, why = _target_column(columns, reading, records)
    inputs = [name for name in columns if name != target]
    table = _typed(records, inputs, first.delimiter == ";", reading.learn)
    headers = "" if all(part.header for part, _ in files) else ", without a header"
    said = f"a table of {len(table):,} rows and {len(table.columns)} columns to learn from "
    said += f"({records.files}{headers}); "
    examples = Examples.of("table", table, records.names, records.given, said + "no target")
    examples.findings = records.findings
    if not target:
        return examples
    if not table.columns:
        raise DataError(f"'{records.files}' has no column to learn from besides '{target}'")
    found = _targets(records, target, reading)
    examples.understood = f"{said}the target is '{target}' ({why}): {found.said}"
    examples.target_name = target
    return targets.with_targets(examples, found)


def _joins(first: RawTable, other: RawTable, reading: Reading) -> bool:
    """Whether a file joins the first; one that lacks the target alone is set aside with a word."""
    ours = first.data.column_names
    if first.header and not other.header and other.data.num_columns == len(ours):
        other.data = other.data.rename_columns(ours)
    theirs = other.data.column_names
    if set(ours) == set(theirs):
        return True
    lacking = [name for name in ours if name not in theirs]
    extra = [name for name in theirs if name not in ours]
    likely = reading.target or first_named(lacking, TARGET_NAMES)
    if not extra and lacking in ([likely], [ours[-1]]):
        what = f"file has no column '{lacking[0]}': its rows are there to predict, and left out"
        first.findings += about("unlabelled", "note", [other.file], what)
        return False
    raise DataError(
        f"'{first.file}' and '{other.file}' should have the same columns"
        + (f"; '{other.file}' lacks {some(lacking)}" if lacking else "")
        + (f"; only '{other.file}' has {some(extra)}" if extra else "")
        + ". Rename or remove columns, or name one file alone"
    )


def _target_column(columns: list[str], reading: Reading, records: Records) -> tuple[str, str]:
    """The column to learn, and why that one."""
    if not reading.learn and reading.target is None:
        return "", ""  # nothing is guessed: what looks like a target may be an input of the model
    found = target_column(records, columns, TARGET_NAMES, reading)
    if found or not reading.learn:
        return found, "as asked" if reading.target else "by its name"
    if len(columns) < 2:
        raise DataError(
            f"'{records.files}' has the single column {some(columns)}; expected columns to learn "
            "from and a target. Is the delimiter unusual?"
        )
    return columns[-1], "the last column; name another with --target"


def _targets(records: Records, column: str, reading: Reading) -> targets.Targets:
    values, what = records.cells(column), f"column '{column}' of {records.files}"
    if pa.types.is_string(records.data.column(column).type):
        values = _without_test_dots([targets.label_text(v) if v else v for v in values], records)
    found = targets.read_targets(values, what, records.names, reading.target_kind, table=True)
    targets.check_few_classes(found, what)
    return found


def _without_test_dots(values: list[Any], records: Records) -> list[Any]:
    """UCI's adult.test ends each class with a dot that adult.data has not: taken off."""
    parts = list(zip(values, records.given, strict=True))
    train = {v for v, part in parts if v and part != "test"}
    test = {v for v, part in parts if v and part == "test"}
    if not train or not test or not all(v.endswith(".") and v[:-1] in train for v in test):
        return values
    message = "the classes of the test file end in a dot, which was taken off"
    records.findings.append(Finding("target", "note", message))
    return [v[:-1] if v in test else v for v in values]


# ---- the columns to learn from -----------------------------------------------------------------


def _typed(records: Records, names: list[str], decimal_comma: bool, learn: bool) -> Table:
    """The columns that say something, typed; what was assumed joins the findings of the records.

    learn=False: every column is kept, also one that is empty or the same in these few rows, because
    the model that reads them knows which ones it needs.
    """
    columns: dict[str, pa.Array] = {}
    findings = records.findings
    for name in names:
        column = typed(records.data.column(name), decimal_comma)
        why = "its cells are not numbers, text or dates"
        if column is not None:
            why = _why_dropped(name, column.values) if learn else ""
        if why or column is None:
            message = f"column '{name}' was dropped: {why}"
            findings.append(Finding("dropped_column", "note", message, (name,)))
            continue
        columns[name] = column.values
        if column.note:
            where = records.names[column.note_row]
            message = f"column '{name}': {column.note} (first: {where})"
            findings.append(Finding("assumed", "note", message, (where,)))
        if len(column.infinite):
            rows = [records.names[row] for row in column.infinite]
            what = f"rows are infinite in column '{name}', which is taken as missing"
            findings += about("infinite", "warning", rows, what, "fix the cells, or empty them")
    return Table(pa.table(columns) if columns else records.data.select([]))


def _why_dropped(name: str, cells: pa.Array) -> str:
    """Why a column cannot help: nothing in it, one value, or a name for each row."""
    known = cells.drop_null()
    n_values = len(pc.unique(known))
    if n_values == 0:
        return "it is empty"
    if n_values == 1 and not cells.null_count:
        return f"it has the one value {known[0].as_py()!r} in every row"
    if n_values < len(cells) or len(cells) < FEWEST_FOR_ID or cells.type == DATE:
        return ""
    if pa.types.is_string(cells.type):
        return "each row has its own text, so it is a name or id, not a category"
    x = known.to_numpy(zero_copy_only=False)
    in_order = x[0] in (0, 1) and bool((np.diff(x) == 1).all())
    named = ID_NAME.fullmatch(name) and bool((x == np.round(x)).all())
    return "it numbers the rows" if in_order or named else ""
