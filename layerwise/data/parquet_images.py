"""Parquet files that hold the images themselves, as the data sets on the Hugging Face hub do.

The images: a column of structs {bytes, path}, or of encoded bytes. Class names come from the
schema's own metadata (ClassLabel). Splits come from file names such as train-00000-of-00002.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions on import, where no type checker sees them)

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from layerwise.data.arrays import numbered_targets, with_targets
from layerwise.data.cells import flat
from layerwise.data.examples import Examples, Finding
from layerwise.data.folders import splits_said
from layerwise.data.listing import IMAGE_STARTS, shown, some
from layerwise.data.metadata import LABEL_COLUMNS, SPLIT_COLUMNS
from layerwise.data.raw_tables import read_parquet
from layerwise.data.table_files import Reading, read_splits
from layerwise.data.targets import Targets, read_targets
from layerwise.errors import DataError, nearest


class EncodedImages(Sequence[bytes]):
    """Files held in a column: each row is the bytes of one."""

    def __init__(self, column: pa.LargeBinaryArray):
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: int) -> bytes:  # type: ignore[override]
        return self.column[int(row)].as_py()

    def __iter__(self) -> Iterator[bytes]:
        return (value.as_py() for value in self.column)

    def take(self, rows: np.ndarray) -> "EncodedImages":
        return EncodedImages(self.column.take(pa.array(np.asarray(rows, np.int64))))


def has_images(path: Path) -> bool:
    """Whether a Parquet file has a column of encoded images; a damaged file has none."""
    try:
        schema = parquet.read_schema(path)
        return bool(_image_column(schema, path))
    except (pa.ArrowInvalid, OSError):
        return False


def _image_column(schema: pa.Schema, path: Path) -> str:
    features = _features(schema)
    for field in schema:
        if features.get(field.name, {}).get("_type") == "Image" or _is_file(field.type):
            return field.name
    for name in [f.name for f in schema if f.type in (pa.binary(), pa.large_binary())]:
        batch = next(parquet.ParquetFile(path).iter_batches(1, columns=[name]), None)
        first = batch.column(0)[0].as_py() if batch is not None and batch.num_rows else None
        if first and (first.startswith(IMAGE_STARTS) or first[8:12] == b"WEBP"):
            return name
    return ""


def _is_file(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What Hugging Face wrote about the columns: {"label": {"_type": "ClassLabel", "names"}}."""
    try:
        written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return dict(written["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}


def open_image_parquet(files: Sequence[tuple[Path, str]], reading: Reading) -> Examples:
    """Images held in Parquet files; each file comes with its split, '' where none is given.

    Errors: no label column, columns that differ between files, no row has an image.
    """
    schema = parquet.read_schema(files[0][0])
    image = _image_column(schema, files[0][0])
    tables = [read_parquet(path) for path, _ in files]
    for (path, _), table in zip(files, tables, strict=True):
        if set(table.column_names) != set(schema.names):
            raise DataError(
                f"'{shown(files[0][0].name)}' and '{shown(path.name)}' should have the same "
                f"columns; they have {some(schema.names, 8)} and {some(table.column_names, 8)}"
            )
    data = pa.concat_tables([t.select(schema.names) for t in tables], promote_options="permissive")
    lengths = [table.num_rows for table in tables]
    starts = [shown(path.name) for path, _ in files]
    names = [f"{f} row {i}" for f, n in zip(starts, lengths, strict=True) for i in range(n)]
    given = np.repeat(np.array([split for _, split in files], "U5"), lengths)
    split = reading.split_column or next((n for n in SPLIT_COLUMNS if n in data.column_names), None)
    if split is not None and split in data.column_names:
        given = read_splits(data.column(split).to_pylist(), f"column '{split}'", names.__getitem__)
    encoded = _encoded(data.column(image), files[0][0].parent)
    inputs = EncodedImages(encoded)
    said = f"{len(inputs):,} images held in {_files_said(files)}"
    examples = Examples("image", inputs, None, "none", (), names, given, said)
    label = _label(data.column_names, image, shown(files[0][0].name), reading)
    if label:
        targets = _targets(data.column(label), label, schema, names, reading)
        examples = with_targets(examples, targets)
        examples.understood = f"{said}, {targets.said} from column '{label}'"
    examples.understood += splits_said(examples.given)
    return _with_bytes(examples)


def _files_said(files: Sequence[tuple[Path, str]]) -> str:
    return shown(files[0][0].name) if len(files) == 1 else f"{len(files)} Parquet files"


def _encoded(column: pa.ChunkedArray, folder: Path) -> pa.Array:
    """The bytes of each image; those of a path where a struct holds only that."""
    array = flat(column)
    if not pa.types.is_struct(array.type):
        return array.cast(pa.large_binary())
    held = array.field("bytes").cast(pa.large_binary())
    if held.null_count and array.type.get_field_index("path") >= 0:
        paths = array.field("path").to_pylist()
        read = [b or _read(folder, p) for b, p in zip(held.to_pylist(), paths, strict=True)]
        held = pa.array(read, pa.large_binary())
    return held


def _read(folder: Path, path: str | None) -> bytes | None:
    try:
        return (folder / path).read_bytes() if path else None
    except OSError:
        return None


def _label(columns: Sequence[str], image: str, file: str, reading: Reading) -> str | None:
    others = [name for name in columns if name != image]
    asked = reading.target
    found = [asked] if asked in others else []
    if asked is None:
        found = [name for name in LABEL_COLUMNS if name in others]
        found += [name for name in others if name.startswith("fine_label")]
    if found:
        return found[0]
    if not reading.learn:
        return None
    hint = nearest(asked or "label", others) or ";"
    raise DataError(
        f"'{file}' has no column '{asked or 'label'}'{hint} besides the images it has "
        f"{some(others, 12) or 'none'}; name the column with --target NAME"
    )


def _targets(
    column: pa.ChunkedArray, name: str, schema: pa.Schema, rows: list[str], reading: Reading
) -> Targets:
    """Class numbers with the names the schema gives them; else as any column of labels."""
    feature: Any = _features(schema).get(name, {})
    several = isinstance(feature, list) or feature.get("_type") in ("Sequence", "List")
    inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
    names = tuple(inner.get("names") or ())
    cells = flat(column)
    what = f"column '{name}'"
    if names and pa.types.is_integer(cells.type):
        numbers = pc.fill_null(cells, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return numbered_targets(numbers, names, what)
    values = cells.to_pylist()
    if names and several:
        values = [v and [names[i] for i in v] for v in values]
    kind = "class" if pa.types.is_integer(cells.type) else None
    return read_targets(values, what, reading.target_kind or kind, row_name=rows.__getitem__)


def _with_bytes(examples: Examples) -> Examples:
    """Without the rows that have no image at all."""
    there = examples.inputs.column.is_valid().to_numpy(zero_copy_only=False)  # type: ignore
    if there.all():
        return examples
    absent = tuple(examples.names[int(i)] for i in np.flatnonzero(~there))
    if not there.any():
        raise DataError(f"no row holds an image ({absent[0]} and all others are empty)")
    message = f"{len(absent):,} rows hold no image (first: {absent[0]}); they are set aside"
    finding = Finding("unreadable", "error", message, absent, "add the images, or remove the rows")
    examples = examples.subset(there)
    examples.findings = [*examples.findings, finding]
    return examples
