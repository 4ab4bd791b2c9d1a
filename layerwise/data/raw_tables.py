"""A table file of any format as columns of raw cells; which tables of a folder belong together."""

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from layerwise.data.cells import as_array
from layerwise.data.delimited import RawTable, columns_of, read_delimited, read_json_lines
from layerwise.data.listing import reason, shown, some, split_named, split_within
from layerwise.data.text_files import bare, open_stream
from layerwise.errors import DataError

_SUFFIXES = ".csv .tsv .tab .data .test .txt .parquet .pq .jsonl .ndjson"
SUFFIXES = frozenset(_SUFFIXES.split())


def is_table(path: Path) -> bool:
    """By its suffix, below that of a compression too."""
    return bare(path).suffix.lower() in SUFFIXES


def read_table(path: Path) -> RawTable:
    """One file as columns. Errors name the file and the row."""
    file = shown(path.name)
    suffixes = {s.lower() for s in path.suffixes}
    if suffixes & {".parquet", ".pq"}:
        return RawTable(read_parquet(path), file, 0, True)
    if suffixes & {".jsonl", ".ndjson"}:
        rows, lines = read_json_lines(path)
        columns = {name: as_array(cells) for name, cells in columns_of(rows).items()}
        return RawTable(pa.table(columns), file, lines[0], True)
    return read_delimited(path)


def read_parquet(path: Path) -> pa.Table:
    """Errors: damaged, no rows, a column name twice."""
    file = shown(path.name)
    try:
        source = path if bare(path) == path else pa.BufferReader(open_stream(path).read())
        data = parquet.ParquetFile(source).read()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as e:
        raise DataError(
            f"'{file}' cannot be read as Parquet ({reason(e)}); it may be cut off: copy it again"
        ) from e
    twice = sorted({n for n in data.column_names if data.column_names.count(n) > 1})
    if twice:
        raise DataError(f"'{file}' has several columns named '{twice[0]}'; give each its own name")
    if not data.num_rows:
        raise DataError(f"'{file}' has columns but no rows")
    return data


def pair_files(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """The tables of a folder that belong together, with their splits: adult.data and adult.test.

    Error: several tables of which no pair can be made.
    """
    paths = [p for p in paths if "sample_submission" not in p.name.lower()] or list(paths)
    if len(paths) == 1:
        return [(paths[0], "")]
    splits = [split_within(path.name) for path in paths]
    stems = {_stem(path.name) for path in paths}
    if all(splits) and len(stems) == 1 and "train" in splits:
        order = sorted(range(len(paths)), key=lambda i: splits[i] != "train")
        return [(paths[i], splits[i]) for i in order]
    raise DataError(
        f"{len(paths)} tables that do not belong together: {some([shown(p.name) for p in paths])}; "
        "name one file, or put one table, or train and test, in a folder of their own"
    )


def _stem(name: str) -> str:
    """A file name without the words for its split, its numbering and its suffixes."""
    words = [w for w in re.split(r"[^a-z0-9]+", name.lower().split(".")[0]) if w]
    return " ".join(w for w in words if not split_named(w) and not w.isdigit() and w != "of")
