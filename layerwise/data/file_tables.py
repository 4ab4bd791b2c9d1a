"""Files that a table names or holds (images, recordings), with the labels of its columns.

A table beside files: metadata.csv, .jsonl or .parquet, or any table with a column of files:
`file_name` (relative to the table), `label` or several labels, optionally `split`. Tables may also
lie in folders train, val and test, each with its files.

Parquet with the files inside, as on the Hugging Face hub: a column of structs {bytes, path}, or of
encoded bytes; class names come from the schema's own metadata (ClassLabel).
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions on import, where no type checker sees them)

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layerwise.data import records as record_files
from layerwise.data.cells import flat
from layerwise.data.delimited import RawTable
from layerwise.data.examples import Column, Examples, Finding
from layerwise.data.folders import open_folder
from layerwise.data.listing import FileKind, Listing, split_named, splits_said, walk
from layerwise.data.naming import about, shown
from layerwise.data.records import Reading, Records, first_named, no_column, together
from layerwise.data.targets import numbered_targets, read_targets, with_targets
from layerwise.errors import DataError, nearest

FILE_NAMES = ("file_name", "filename", "file", "path", "filepath")
_LABELS = "label labels class classes category categories tag tags target targets class_name y"
LABEL_NAMES = (*_LABELS.split(), "fine_label", "fine_labels")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


# ---- tables that name files --------------------------------------------------------------------


def metadata_files(folder: Path) -> list[Path]:
    """metadata.* of a folder; else of its folders train, val, test."""
    below = [p for p in sorted(folder.iterdir()) if split_named(p.name) and p.is_dir()]
    for places in ([folder], below):
        found = [place / f"metadata{suffix}" for place in places for suffix in SUFFIXES]
        found = [path for path in found if path.is_file()]
        if found:
            return found
    return []


def open_files(listing: Listing, reading: Reading, what: FileKind) -> Examples | None:
    """A folder of files of one kind, by what says their labels: metadata, Parquet that holds them,
    one table that names them, their folders; None where there are none."""
    if tables := metadata_files(listing.root):
        return open_metadata(tables, listing, reading, what)
    if not any(what.mine(listing.path(parts)) for parts in listing.files):
        raw, splits = record_files.parquet_tables(listing, reading)
        held = raw and held_column(raw[0], what)
        return open_held(raw, splits, reading, what) if held else None
    naming = [path for path in listing.here if names_files(path, reading, what)]
    if len(naming) == 1:
        return open_metadata(naming, listing, reading, what)
    return open_folder(listing, what, reading.learn)


def open_table(path: Path, reading: Reading, what: FileKind) -> Examples | None:
    """The files that a table holds or names; None where it does neither."""
    raw = reading.table(path)
    if held_column(raw, what):
        return open_held([raw], [""], reading, what)
    if path.name.lower().startswith("metadata.") or names_files(path, reading, what):
        return open_metadata([path], walk(path.parent), reading, what)
    return None


def names_files(path: Path, reading: Reading, what: FileKind) -> bool:
    """Whether this is a table that names files that lie beside it."""
    try:
        rows = reading.table(path).sample(20) if record_files.is_table(path) else [{}]
    except DataError:  # some notes beside the files
        return False
    column = first_named(rows[0], what.columns)
    first = [row.get(column) for row in rows] if column else []
    return any(isinstance(x, str) and os.path.isfile(path.parent / x) for x in first if x)


def open_metadata(
    files: Sequence[Path], listing: Listing, reading: Reading, what: FileKind
) -> Examples:
    """The files that these tables name.

    Errors: no column of file names or of labels (the nearest is named), a row without a file name,
    most files do not exist, no labels at all.
    """
    root = listing.root
    raw = [reading.table(path) for path in files]
    splits = [split_named(p.parent.name) if p.parent != root else "" for p in files]
    records = together(raw, splits, reading)
    columns = records.data.column_names
    column = first_named(columns, what.columns)
    column = column or no_column(records.files, columns, "file_name", "Rename the column of files")
    folders = [p.parent for p, table in zip(files, raw, strict=True) for _ in range(len(table))]
    paths = []
    for row, name in enumerate(records.cells(column)):
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{records.names[row]} has no file name in column '{column}'; write the path of "
                "its file, relative to the table, or remove the row"
            )
        paths.append(folders[row] / name.strip())
    exist = np.array([path.is_file() for path in paths], bool)
    findings = listing.findings() + _absent(paths, exist, records, root)
    findings += _unlisted({*files, *paths}, listing, what)
    records = records.keep(exist)
    paths = [path for path, there in zip(paths, exist, strict=True) if there]
    names = [_below(root, path) for path in paths]
    said = f"{len(paths):,} {what.noun} named by {records.files}"
    records.findings = records.findings + findings
    examples = Examples.of(what.kind, paths, names, records.given, said)
    return _labelled(examples, records, column, reading, what)


def _below(root: Path, path: Path) -> str:
    return shown(path.relative_to(root) if path.is_relative_to(root) else path)


def _absent(paths: list[Path], exist: np.ndarray, records: Records, root: Path) -> list[Finding]:
    """Files that are named but do not exist: an error where they are most of them."""
    absent = [f"{records.names[i]}: {_below(root, paths[i])}" for i in np.flatnonzero(~exist)]
    if 2 * len(absent) > len(exist):
        first = paths[int(exist.argmin())]
        there = first.parent.iterdir() if first.parent.is_dir() else []
        raise DataError(
            f"{records.files} names {len(exist):,} files, of which {len(absent):,} do not exist "
            f"(first: {absent[0]}{nearest(first.name, [p.name for p in there]).rstrip('?')}); "
            "names are relative to the table: fix them, or put the files there"
        )
    cure = "their rows are set aside: add the files, or remove the rows"
    return about("absent_file", "error", absent, f"files named by {records.files} are absent", cure)


def _unlisted(named: set[Path], listing: Listing, what: FileKind) -> list[Finding]:
    """Files of the folder that no table names."""
    others = [path for path in map(listing.path, listing.files) if path not in named]
    mine = [path for path in others if what.mine(path)]
    rest = [path for path in others if path not in set(mine)]
    unlisted, strange = ([_below(listing.root, p) for p in s] for s in (mine, rest))
    return [
        *about("unlisted", "note", unlisted, f"{what.noun} are named by no row and left out"),
        *about("unused", "note", strange, f"files are not {what.noun}, left out"),
    ]


# ---- tables that hold files -------------------------------------------------------------------


def held_column(raw: RawTable, what: FileKind) -> str:
    """The column of encoded files; '' where there is none."""
    if not isinstance(raw.held, pa.Table):
        return ""
    features = hub_features(raw.data.schema)
    for field in raw.data.schema:
        struct = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if features.get(field.name, {}).get("_type") == what.hub_type:
            return field.name
        if struct or field.type in (pa.binary(), pa.large_binary()):
            first = raw.data.column(field.name)[0].as_py() or b""
            first = (first["bytes"] or b"") if struct and first else first
            if what.starts(first):
                return field.name
    return ""


def hub_features(schema: pa.Schema) -> dict[str, Any]:
    """What Hugging Face wrote about the columns: {"label": {"_type": "ClassLabel", "names"}}."""
    try:
        written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return dict(written["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}


def class_names(feature: object) -> tuple[str, ...]:
    """Of a column of classes, or of lists of them; () for another."""
    inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
    return tuple(inner.get("names") or ()) if isinstance(inner, dict) else ()


def with_class_names(raw: RawTable) -> RawTable:
    """Rows with the names of classes in place of their numbers; nothing where these are below 0."""

    def named(cell: object) -> Any:
        if isinstance(cell, list):
            return [named(one) for one in cell]
        return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else None

    if not isinstance(raw.held, pa.Table):
        return raw
    held = raw.held
    for column, feature in hub_features(held.schema).items():
        if column in held.column_names and (names := class_names(feature)):
            cells = pa.array(list(map(named, held.column(column).to_pylist())))
            held = held.set_column(held.column_names.index(column), column, cells)
    return replace(raw, held=held)


def open_held(
    raw: Sequence[RawTable], splits: Sequence[str], reading: Reading, what: FileKind
) -> Examples:
    """Files held in Parquet, each table with its split.

    Errors: no label column, no row has a file.
    """
    records, column = together(raw, splits, reading), held_column(raw[0], what)
    held = _encoded(records.data.column(column))
    there = held.is_valid().to_numpy(zero_copy_only=False)
    absent = [records.names[i] for i in np.flatnonzero(~there)]
    if not there.any():
        raise DataError(f"no row holds {what.noun} ({absent[0]} and all others are empty)")
    cure = f"they are set aside: add the {what.noun}, or remove the rows"
    said = f"rows hold no {what.noun}"
    records.findings = records.findings + about("unreadable", "error", absent, said, cure)
    files = records.files if len(raw) == 1 else f"{len(raw)} Parquet files"
    said, records = f"{len(held):,} {what.noun} held in {files}", records.keep(there)
    values = Column(held.drop_null())
    examples = Examples.of(what.kind, values, records.names, records.given, said)
    return _labelled(examples, records, column, reading, what)


def _encoded(column: pa.ChunkedArray) -> pa.Array:
    """The bytes of each file."""
    array = flat(column)
    array = array.field("bytes") if pa.types.is_struct(array.type) else array
    return array.cast(pa.large_binary())


# ---- labels --------------------------------------------------------------------------------------


def _labelled(
    examples: Examples, records: Records, held: str, reading: Reading, what: FileKind
) -> Examples:
    """Files with the labels of a column of their table, other than the one that holds them."""
    examples.findings = records.findings
    columns = [name for name in records.data.column_names if name != held]
    if group := first_named(columns, what.groups):
        examples.fields[group] = [str(cell) for cell in records.cells(group)]
        examples.findings += kept_together(examples, group)
    column = record_files.target_column(records, columns, LABEL_NAMES, reading)
    if not column and reading.learn:
        no_column(records.files, records.data.column_names, "label", record_files.TARGET_CURE)
    if column and (reading.learn or any(cell not in (None, "") for cell in records.cells(column))):
        targets = _targets(records, column, reading)
        examples = with_targets(examples, targets)
        examples.understood += f", {targets.said} from column '{column}'"
    else:
        examples.understood += ", without labels"
    examples.understood += splits_said(examples.given)
    left = [name for name in columns if name not in (column, group)]
    examples.findings += about("unused", "note", left, "columns are not used")
    return examples


def kept_together(examples: Examples, group: str) -> list[Finding]:
    """Equal values of this column stay in one split, unless the splits are given: then it is said
    which ones are on both sides."""
    values = np.array(examples[group])
    if not any(examples.given):
        examples.together = group
        n = len(set(values.tolist()))
        examples.understood += f" of {n:,} in column '{group}', each in one split"
        return []
    held = np.isin(examples.given, ("val", "test"))
    both = sorted(set(values[held].tolist()) & set(values[~held].tolist()))
    what = f"values of column '{group}' are in train and in the held-out rows, so the score is of "
    cure = "for a score of new ones leave the given split out"
    return about("shared_group", "warning", both, what + "known ones", cure)


def _targets(records: Records, column: str, reading: Reading) -> Any:
    """Class numbers with the names the schema gives them; else as any column of labels."""
    what = f"column '{column}' of {records.files}"
    feature: object = hub_features(records.data.schema).get(column, {})
    several = isinstance(feature, list) or feature.get("_type") in ("Sequence", "List")
    classes = class_names(feature)
    cells, values = flat(records.data.column(column)), records.cells(column)
    if classes and pa.types.is_integer(cells.type):
        return numbered_targets(pc.fill_null(cells, -1).to_numpy().astype(np.int64), classes, what)
    if classes and several:
        values = [v and [classes[i] for i in v] for v in values]
    return read_targets(values, what, records.names, reading.target_kind)
