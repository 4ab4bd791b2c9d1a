"""Image files with a table beside them that says what they are: metadata.csv, .jsonl or .parquet.

Columns: `file_name` (relative to the table), `label` or several labels, optionally `split`. A table
of another name counts too where it has such a column of files. Tables may also lie in folders
train, val and test, each with its images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from layerwise.data.arrays import with_targets
from layerwise.data.delimited import RawTable
from layerwise.data.examples import Examples, Finding
from layerwise.data.folders import splits_said
from layerwise.data.listing import Listing, is_image, shown, some, split_named
from layerwise.data.raw_tables import read_table
from layerwise.data.table_files import Reading, read_splits
from layerwise.data.targets import read_targets
from layerwise.errors import DataError, nearest

FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "path", "filepath", "img")
_LABEL_COLUMNS = (
    "label labels class classes category categories tag tags target targets class_name y"
)
LABEL_COLUMNS = tuple(_LABEL_COLUMNS.split())
SPLIT_COLUMNS = ("split", "subset", "partition", "set")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass
class _Rows:
    """What the tables say, row by row."""

    paths: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # paths relative to the root, as shown
    given: list[str] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)  # "metadata.csv row 2"
    label_column: str = ""


def metadata_files(folder: Path) -> list[Path]:
    """metadata.* of a folder; else of its folders train, val, test."""
    below = [p for p in sorted(folder.iterdir()) if split_named(p.name) and p.is_dir()]
    for places in ([folder], below):
        found = [place / f"metadata{suffix}" for place in places for suffix in SUFFIXES]
        found = [path for path in found if path.is_file()]
        if found:
            return found
    return []


def file_column(columns: Sequence[str]) -> str | None:
    """The column that names image files."""
    lower = {name.lower(): name for name in reversed(columns)}
    return next((lower[name] for name in FILE_COLUMNS if name in lower), None)


def open_metadata(tables: Sequence[Path], listing: Listing, reading: Reading) -> Examples:
    """The images that these tables name.

    Errors: no column of file names or of labels (the nearest is named), a row without a file name,
    most files do not exist, no labels at all.
    """
    rows = _Rows()
    for path in tables:
        _add_table(rows, path, listing.root, reading)
    exist = np.array([path.is_file() for path in rows.paths], bool)
    where = " and ".join(shown(path.relative_to(listing.root)) for path in tables[:3])
    findings = listing.findings() + _absent(rows, exist, where) + _unlisted(rows, listing, tables)
    examples = Examples(
        "image",
        rows.paths,
        None,
        "none",
        (),
        rows.names,
        np.array(rows.given, "U5"),
        "",
        findings=findings,
    ).subset(exist)
    what = f"{len(examples):,} images named by {where}"
    filled = reading.learn or any(label not in (None, "") for label in rows.labels)
    if rows.label_column and filled:
        kept = np.flatnonzero(exist)
        column = f"column '{rows.label_column}' of {where}"
        targets = read_targets(
            [rows.labels[i] for i in kept],
            column,
            reading.target_kind,
            row_name=lambda row: rows.rows[kept[row]],
        )
        examples = with_targets(examples, targets)
        what += f", {targets.said} from column '{rows.label_column}'"
    else:
        what += ", without labels"
    examples.understood = what + splits_said(examples.given)
    return examples


def _add_table(rows: _Rows, path: Path, root: Path, reading: Reading) -> None:
    raw = read_table(path)
    columns = raw.data.column_names
    files = _column(raw, "file_name", FILE_COLUMNS, None)
    label = _label_column(raw, reading)
    split = _column(raw, "split", SPLIT_COLUMNS, reading.split_column, needed=False)
    n = raw.data.num_rows
    folder_split = split_named(path.parent.name) if path.parent != root else ""
    for row, name in enumerate(raw.data.column(files).to_pylist()):
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{raw.row_name(row)} has no file name in column '{files}'; write the path of its "
                f"image, relative to '{raw.file}', or remove the row"
            )
        rows.paths.append(path.parent / name.strip())
        rows.names.append(shown(rows.paths[-1].relative_to(root)))
        rows.rows.append(raw.row_name(row))
    cells = raw.data.column(split).to_pylist() if split in columns else [folder_split] * n
    given = read_splits(cells, f"column '{split}'", raw.row_name)
    rows.given += given.tolist()
    rows.labels += raw.data.column(label).to_pylist() if label else [None] * n
    rows.label_column = label or rows.label_column


def _label_column(raw: RawTable, reading: Reading) -> str:
    if reading.target is None and not reading.learn:
        return _column(raw, "label", LABEL_COLUMNS, None, needed=False)
    return _column(raw, "label", LABEL_COLUMNS, reading.target, needed=reading.learn)


def _column(
    raw: RawTable, wanted: str, known: Sequence[str], asked: str | None, needed: bool = True
) -> str:
    """The column asked for, else the first with a known name; '' where it is not needed."""
    columns = raw.data.column_names
    lower = {name.lower(): name for name in reversed(columns)}
    found = [lower[name] for name in known if name in lower]
    if asked is not None:
        found = [asked] if asked in columns else []
    if found:
        return found[0]
    if not needed and (asked is None or wanted == "label"):
        return ""
    hint = nearest(asked or wanted, columns) or ";"
    raise DataError(
        f"'{raw.file}' has no column '{asked or wanted}'{hint} it has {some(columns, 12)}. "
        + ("Name the column with --target NAME" if wanted == "label" else "Rename the column")
    )


def _absent(rows: _Rows, exist: np.ndarray, where: str) -> list[Finding]:
    """Files that are named but do not exist: an error where they are most of them."""
    absent = np.flatnonzero(~exist)
    if not len(absent):
        return []
    first = f"{rows.rows[absent[0]]}: '{rows.names[absent[0]]}'"
    if 2 * len(absent) > len(exist):
        hint = nearest(rows.paths[absent[0]].name, _neighbours(rows.paths[absent[0]]))
        raise DataError(
            f"{where} names {len(exist):,} files, of which {len(absent):,} do not exist (first: "
            f"{first}{hint.rstrip('?')}); names are relative to the table: mend them, or put the "
            "images there"
        )
    return [
        Finding(
            "absent_file",
            "error",
            f"{len(absent):,} of {len(exist):,} files named by {where} do not exist (first: "
            f"{first}); their rows are set aside",
            tuple(rows.names[i] for i in absent),
            "add the files, or remove the rows",
        )
    ]


def _neighbours(path: Path) -> list[str]:
    try:
        return [p.name for p in path.parent.iterdir()]
    except OSError:
        return []


def _unlisted(rows: _Rows, listing: Listing, tables: Sequence[Path]) -> list[Finding]:
    """Files of the folder that no table names."""
    named = {path.relative_to(listing.root).parts for path in (*tables, *rows.paths)}
    others = [parts for parts in listing.files if parts not in named]
    if not others:
        return []
    images = [shown(parts) for parts in others if is_image(listing.path(parts))]
    rest = [shown(parts) for parts in others if not is_image(listing.path(parts))]
    found = []
    if images:
        message = f"{len(images):,} images are named by no row and left out: {some(images)}"
        found.append(Finding("unlisted", "note", message, tuple(images), "add rows for them"))
    if rest:
        message = f"{len(rest):,} files are no images, left out: {some(rest)}"
        found.append(Finding("not_an_image", "note", message, tuple(rest)))
    return found
