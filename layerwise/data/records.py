"""Files of rows of any format, read as one: their columns, and the split and name of each row.

Tables, tables that name image files, Parquet that holds images, and rows of text all begin here:
which column says the split, which is to be learned, which tables of a folder belong together.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from layerwise.data.arrays import Arrays
from layerwise.data.delimited import RawTable, read_delimited
from layerwise.data.examples import Finding, TargetKind
from layerwise.data.listing import Listing, split_named, split_of, split_within
from layerwise.data.naming import reason, shown, some
from layerwise.data.rows import read_json_rows, read_tagged
from layerwise.data.text_files import bare, blocks, sniff
from layerwise.errors import DataError, nearest

_SUFFIXES = ".csv .tsv .tab .data .test .txt .parquet .pq .jsonl .ndjson"
SUFFIXES = frozenset(_SUFFIXES.split())
TARGET_CURE = "Name the column to learn with --target NAME"
Names = Sequence[str]  # of columns, or of rows
SPLIT_NAMES = ("split", "subset", "partition", "set")


@dataclass
class Reading:
    """How the caller wants columns read."""

    target: str | None = None
    target_kind: TargetKind | None = None
    split_column: str | None = None
    learn: bool = True  # False: to predict or evaluate; a target is welcome but not needed
    kind: str | None = None  # what the caller said that the data is
    read: dict[Path, RawTable] = field(default_factory=dict)  # files that were read already
    arrays: dict[Path, Arrays | None] = field(default_factory=dict)

    def table(self, path: Path) -> RawTable:
        """A file's rows, read once while it is found out what they are."""
        if path not in self.read:
            self.read[path] = read_table(path)
        return self.read[path]


@dataclass
class Records:
    """One or several files read as one table."""

    data: pa.Table
    names: list[str]  # "metadata.csv row 17"
    given: np.ndarray  # (n,) the split of each row, "" where none is given
    files: str  # in words
    findings: list[Finding]

    def cells(self, column: str) -> list[Any]:
        return self.data.column(column).to_pylist()

    def keep(self, rows: np.ndarray) -> "Records":
        """The rows of this boolean mask."""
        if rows.all():
            return self
        names = [self.names[i] for i in np.flatnonzero(rows)]
        data = self.data.filter(pa.array(rows))
        return replace(self, data=data, names=names, given=self.given[rows])


def is_table(path: Path) -> bool:
    """By its suffix, below that of a compression too."""
    return bare(path).suffix.lower() in SUFFIXES


def is_parquet(path: Path) -> bool:
    return bare(path).suffix.lower() in (".parquet", ".pq")


def parquet_tables(listing: Listing, reading: Reading) -> tuple[list[RawTable], list[str]]:
    """All Parquet files of a folder, each with its split."""
    files = [parts for parts in listing.files if is_parquet(Path(parts[-1]))]
    return [reading.table(listing.path(parts)) for parts in files], list(map(split_of, files))


def read_table(path: Path) -> RawTable:
    """The rows of one file. Errors name the file and the row."""
    readers = {"parquet": _read_parquet, "json": read_json_rows, "tagged": read_tagged}
    return readers.get(sniff(path), read_delimited)(path)


def _read_parquet(path: Path) -> RawTable:
    """Errors: damaged, no rows, a column name twice."""
    file = shown(path.name)
    try:
        source = path if bare(path) == path else pa.BufferReader(b"".join(blocks(path)))
        data = parquet.ParquetFile(source).read()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as e:
        raise DataError(
            f"'{file}' cannot be read as Parquet ({reason(e)}); it may be cut off: copy it again"
        ) from e
    if not data.num_rows or len(set(data.column_names)) < data.num_columns:
        raise DataError(f"'{file}' should have rows, and columns that each have their own name")
    return RawTable(data, file)


def together(raw: Sequence[RawTable], splits: Sequence[str], reading: Reading) -> Records:
    """Tables below each other; a column of splits comes before the split of a file.

    Errors: columns of one name and different kinds; a split of another name.
    """
    files = " and ".join(part.file for part in raw[:3])
    try:
        data = pa.concat_tables([part.data for part in raw], promote_options="permissive")
    except pa.ArrowException as e:
        raise DataError(f"{files} do not fit together ({reason(e)}); name one of them") from e
    lengths = [part.data.num_rows for part in raw]
    given = np.repeat(np.array(splits, "U5"), lengths)
    names = [name for part in raw for name in part.row_names()]
    records = Records(data, names, given, files, [note for part in raw for note in part.findings])
    column, said = read_splits(data.column_names, records.cells, names, files, reading.split_column)
    if column:
        records.given = np.array(said, "U5")
        records.data = data.drop_columns([column])
    return records


def read_splits(
    columns: Names, cells: Callable[[str], list[Any]], names: Names, files: str, asked: str | None
) -> tuple[str, list[str]]:
    """The column that says the split, and what it says; ('', []) where there is none.

    It is the one asked for, else one called `split` whose cells are such words for the most part.
    names: of the rows. Errors: there is no such column; a cell names no split.
    """
    if asked is not None and asked not in columns:
        no_column(files, columns, asked, "Name the split column")
    for column in [asked] if asked else [c for c in columns if c.lower() in SPLIT_NAMES]:
        values = ["" if v is None else str(v) for v in cells(column)]
        said = [split_named(v) for v in values]
        odd = [i for i, v in enumerate(values) if v.strip() and not said[i]]
        if odd and (asked or len(odd) < sum(map(bool, said))):
            raise DataError(
                f"column '{column}' should say train, val or test, but {names[odd[0]]} has "
                f"{values[odd[0]]!r}"
            )
        if asked or (any(said) and not odd):
            return column, said
    return "", []


def first_named(columns: Iterable[str], known: Names) -> str:
    """The first of these columns that has a known name, in any case; '' where none has."""
    lower = {name.lower(): name for name in reversed(list(columns))}
    return next((lower[name] for name in known if name in lower), "")


def no_column(files: str, columns: Names, wanted: str, cure: str) -> NoReturn:
    """Errors: always, with the nearest name and the columns there are."""
    raise DataError(
        f"'{files}' has no column '{wanted}'{nearest(wanted, columns) or ';'} it has "
        f"{some(columns, 12)}. {cure}"
    )


def target_column(records: Records, columns: list[str], known: Names, reading: Reading) -> str:
    """The column asked for, else the first with a known name; '' where there is none.

    Errors: to learn, a column was asked for that is not there.
    """
    if reading.target is None:
        return first_named(columns, known)
    if reading.target not in columns and reading.learn:
        no_column(records.files, records.data.column_names, reading.target, TARGET_CURE)
    return reading.target if reading.target in columns else ""


def pair_files(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """The tables of a folder that belong together, with their splits: adult.data and adult.test.

    Error: several tables of which no pair can be made.
    """
    paths = [p for p in paths if "sample_submission" not in p.name.lower()] or list(paths)
    if len(paths) == 1:
        return [(paths[0], "")]
    splits = [split_within(path.name) for path in paths]
    if all(splits) and len({_stem(path.name) for path in paths}) == 1 and "train" in splits:
        return list(zip(paths, splits, strict=True))
    raise DataError(
        f"{len(paths)} tables that do not belong together: {some([shown(p.name) for p in paths])}; "
        "name one file, or put one table, or train and test, in a folder of their own"
    )


def _stem(name: str) -> str:
    """A file name without the words for its split, its numbering and its suffixes."""
    words = re.findall(r"[a-z0-9]+", name.lower().split(".")[0])
    return " ".join(w for w in words if not split_named(w) and not w.isdigit() and w != "of")
