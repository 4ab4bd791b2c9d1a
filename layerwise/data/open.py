"""Open data of any kind without being told what it is, and say in one line what was understood.

Tried in this order: a single file by its suffix or first bytes; of a folder its metadata table,
MNIST idx files, CIFAR batches, `.npz`, Parquet, images, text, tables. What cannot be learned from
(one class, one image per class, no labels, classes that only the test has) is an error here,
before any time is spent.
"""

import errno
import json
import os
import re
from itertools import islice
from pathlib import Path

from layerwise.data.arrays import open_arrays
from layerwise.data.cifar import cifar_members, is_tar, read_cifar
from layerwise.data.delimited import columns_of
from layerwise.data.examples import Examples, Finding, TargetKind
from layerwise.data.folders import find_images, one_image, open_folder
from layerwise.data.formats import Arrays, looks_like_idx, read_idx_files, read_npz
from layerwise.data.learnable import check_learnable
from layerwise.data.listing import (
    IMAGE_SUFFIXES,
    Listing,
    is_image,
    nearest_path,
    shown,
    some,
    split_named,
    split_within,
    walk,
)
from layerwise.data.metadata import file_column, metadata_files, open_metadata
from layerwise.data.parquet_images import has_images, open_image_parquet
from layerwise.data.raw_tables import is_table, pair_files
from layerwise.data.table_files import Reading, open_tables
from layerwise.data.text import open_text_file, open_text_folder
from layerwise.data.text_files import CODE, PROSE, TABLES, bare, lines, sniff
from layerwise.errors import DataError, unknown

KINDS = ("image", "table", "text")
TARGET_KINDS = ("class", "classes", "number")
ARCHIVES = (".zip", ".7z", ".rar")
ACCEPTED = (
    "class folders, a folder of images with metadata.csv, Parquet, .npz, MNIST idx, CIFAR batches, "
    "a CSV/TSV/Parquet table, or text (.txt, source code, JSON, JSONL, CSV, TSV, Parquet, CoNLL)"
)


def open_data(
    path: str | Path,
    target: str | None = None,
    kind: str | None = None,
    *,
    target_kind: TargetKind | None = None,
    split_column: str | None = None,
    learn: bool = True,
) -> Examples:
    """Rows of raw data from a file or folder, in a fixed order.

    target: the column to learn, where there are columns. kind: "image", "table" or "text", to
    overrule what is recognised. target_kind: "class", "classes" or "number", likewise.
    split_column: the column that says train, val or test. learn=False: to predict or evaluate;
    then labels may be absent and what cannot be learned from is no error.

    Returns Examples; `.understood` says in a line what was found, `.findings` what is odd.
    Errors: DataError, one sentence with the file and row, and what to do.
    """
    if kind is not None and kind not in KINDS:
        raise unknown("kind of data", kind, KINDS)
    if target_kind is not None and target_kind not in TARGET_KINDS:
        raise unknown("kind of target", target_kind, TARGET_KINDS)
    where = Path(os.path.expanduser(path))
    _check_exists(where)
    reading = Reading(target, target_kind, split_column, learn)
    try:
        read = _open_folder if where.is_dir() else _open_file
        opened = read(where, kind, reading)
    except OSError as e:
        name = shown(e.filename or where)
        raise DataError(
            f"'{name}' cannot be read ({e.strerror or e}); check its permissions and the disk"
        ) from e
    opened.source = shown(where)
    if learn:
        check_learnable(opened)
    return opened


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise DataError(
                f"'{shown(path)}' is a symbolic link to '{shown(os.readlink(path))}', which does "
                "not exist; mend the link"
            ) from None
        raise DataError(f"'{shown(path)}' does not exist{nearest_path(path)}") from None
    except OSError as e:
        why = "it is a loop of symbolic links" if e.errno == errno.ELOOP else e.strerror
        raise DataError(
            f"'{shown(path)}' cannot be opened: {why}; name the real file or folder"
        ) from None


def _open_file(path: Path, kind: str | None, reading: Reading) -> Examples:
    if path.stat().st_size == 0:
        raise DataError(f"'{shown(path)}' is empty (0 bytes); copy or download it again")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _arrays(read_npz(path), path.parent, kind, reading)
    if looks_like_idx(path):
        return _arrays(read_idx_files(_with_labels(path)), path.parent, kind, reading)
    if is_tar(path) or suffix in (".bin", "") or "batch" in path.name:
        members = cifar_members(path)
        if members:
            return _arrays(read_cifar(members, reading.target), path.parent, kind, reading)
    if kind == "text":
        return open_text_file(path, reading, asked=True) or _refuse_file(path, suffix)
    if is_table(path):
        if kind != "table" and suffix in (".parquet", ".pq") and has_images(path):
            return open_image_parquet([(path, "")], reading)
        prose = kind is None and bare(path).suffix.lower() not in TABLES
        document = prose and sniff(path) in ("document", "tagged")
        if kind != "table" and not document and _names_images(path, reading):
            return open_metadata([path], walk(path.parent), reading)
        text = open_text_file(path, reading) if kind is None else None
        return text or open_tables([(path, "")], reading)
    if is_image(path):
        return one_image(path)
    archive = suffix in ARCHIVES or is_tar(path)
    text = open_text_file(path, reading) if kind is None and not archive else None
    return text or _refuse_file(path, suffix)


def _refuse_file(path: Path, suffix: str) -> Examples:
    raise DataError(
        f"'{shown(path)}' is of no kind that is read here; expected {ACCEPTED}"
        + (". Unpack the archive first" if suffix in ARCHIVES or is_tar(path) else "")
    )


def _arrays(arrays: Arrays, folder: Path, kind: str | None, reading: Reading) -> Examples:
    return open_arrays(arrays, folder, kind, reading.target_kind)


def _with_labels(path: Path) -> list[Path]:
    """An idx file of images and the one with its labels beside it, whichever was named."""
    beside = {p.name: p for p in path.parent.iterdir() if looks_like_idx(p)}
    swapped = {"images": "labels", "labels": "images", "idx3": "idx1", "idx1": "idx3"}
    words = re.split(r"(images|labels|idx3|idx1)", path.name.removesuffix(".gz"))
    other = "".join(swapped.get(word, word) for word in words)
    for name in (other, f"{other}.gz"):
        if name in beside and name != path.name:
            return [path, beside[name]]
    return [path]


def _names_images(path: Path, reading: Reading) -> bool:
    """Whether a table names files that lie beside it."""
    if path.name.lower().startswith("metadata."):
        return True
    try:
        if sniff(path) == "json":  # whose rows may be long texts: only the first are read
            columns = columns_of([json.loads(line) for _, line in islice(lines(path), 20) if line])
        else:
            columns = reading.table(path).data.slice(0, 20).to_pydict()
    except (DataError, ValueError, AttributeError):
        return False  # reading it as a table will say what is wrong
    column = file_column(list(columns))
    first = [str(name) for name in columns[column] if name] if column else []
    return any((path.parent / name).is_file() for name in first)


def _open_folder(folder: Path, kind: str | None, reading: Reading) -> Examples:
    listing = walk(folder)
    if not listing.files:
        _refuse_empty(listing)
    here = [folder / parts[0] for parts in listing.files if len(parts) == 1]
    if kind in (None, "image") and not (kind is None and _mostly_text(listing)):
        opened = _open_images(listing, here, kind, reading)
        if opened is not None:
            return opened
    if kind in (None, "text"):
        opened = open_text_folder(listing, reading, kind == "text")
        if opened is not None:
            return opened
    parquet = [parts for parts in listing.files if parts[-1].lower().endswith((".parquet", ".pq"))]
    if parquet:
        return open_tables(_split_files(listing, parquet), reading)
    tables = [p for p in here if is_table(p)]
    if not tables:
        raise DataError(
            f"'{shown(folder)}' holds {len(listing.files):,} files but nothing that is read here "
            f"(such as {some(map(shown, listing.files))}); expected {ACCEPTED}"
        )
    opened = open_tables(pair_files(tables), reading)
    others = [p.name for p in here if p not in tables]
    if others:
        message = f"{len(others)} other files were left out: {some(others)}"
        opened.findings = [*opened.findings, Finding("unused", "note", message, tuple(others))]
    return opened


def _open_images(
    listing: Listing, here: list[Path], kind: str | None, reading: Reading
) -> Examples | None:
    """A folder as one of the ways to hold images; None where it holds none."""
    folder = listing.root
    tables = metadata_files(folder)
    if tables:
        return open_metadata(tables, listing, reading)
    idx = [p for p in here if looks_like_idx(p)]
    if idx:
        return _arrays(read_idx_files(_once(idx)), folder, kind, reading)
    members = _find_cifar(listing, here)
    if members:
        return _arrays(read_cifar(members, reading.target), folder, kind, reading)
    npz = [p for p in here if p.suffix.lower() == ".npz"]
    if npz:
        return _arrays(_read_npz_files(npz), folder, kind, reading)
    parquet = [parts for parts in listing.files if parts[-1].lower().endswith((".parquet", ".pq"))]
    if parquet and has_images(listing.path(parquet[0])):
        return open_image_parquet(_split_files(listing, parquet), reading)
    images = find_images(listing)
    if not images:
        return None
    naming = [p for p in here if is_table(p) and _names_images(p, reading)]
    if len(naming) == 1:
        return open_metadata(naming, listing, reading)
    return open_folder(listing, images, reading.learn)


def _mostly_text(listing: Listing) -> bool:
    """Documents or source code with a few pictures among them."""
    suffixes = [bare(Path(parts[-1])).suffix.lower() for parts in listing.files]
    pictures = sum(suffix in IMAGE_SUFFIXES for suffix in suffixes)
    return 0 < 10 * pictures < sum(suffix in PROSE | CODE for suffix in suffixes)


def _refuse_empty(listing: Listing) -> None:
    name = shown(listing.root)
    if listing.loops:
        raise DataError(
            f"'{name}' holds no files, only symbolic links that lead back to a folder above them "
            f"(such as '{shown(listing.loops[0])}'); put the files there, or name their folder"
        )
    if listing.broken:
        raise DataError(
            f"'{name}' holds nothing that can be opened (such as '{shown(listing.broken[0])}'); "
            "check permissions and links"
        )
    inside = f" ({len(listing.folders):,} empty folders)" if listing.folders else ""
    raise DataError(f"'{name}' is empty{inside}; expected {ACCEPTED}")


def _once(paths: list[Path]) -> list[Path]:
    """Without the .gz of a file that lies there unpacked too."""
    names = {p.name for p in paths}
    return [p for p in paths if not (p.name.endswith(".gz") and p.name[:-3] in names)]


def _find_cifar(listing: Listing, here: list[Path]) -> dict:
    """CIFAR batches in a folder, in the folder within it, or in an archive that lies there."""
    members = cifar_members(listing.root)
    top = [parts for parts in listing.folders if len(parts) == 1]
    if not members and len(top) == 1:
        members = cifar_members(listing.path(top[0]))
    archives = [p for p in here if is_tar(p)]
    if not members and len(archives) == 1:
        members = cifar_members(archives[0])
    return members


def _read_npz_files(paths: list[Path]) -> Arrays:
    """One .npz, or one for each split: train.npz and test.npz."""
    if len(paths) == 1:
        return read_npz(paths[0])
    splits = [split_within(p.stem) for p in paths]
    if "" in splits or len(set(splits)) < len(splits):
        raise DataError(
            f"{len(paths)} .npz files that do not belong together: "
            f"{some([shown(p.name) for p in paths])}; name one, or call them train.npz and test.npz"
        )
    both = Arrays({}, {}, source=some([shown(p.name) for p in paths]))
    for path, split in zip(paths, splits, strict=True):
        read = read_npz(path)
        both.inputs[split] = next(iter(read.inputs.values()))
        if read.targets:
            both.targets[split] = next(iter(read.targets.values()))
        both.class_names = both.class_names or read.class_names
        both.findings += read.findings
    return both


def _split_files(listing: Listing, files: list[tuple[str, ...]]) -> list[tuple[Path, str]]:
    """Files with the split their name or folder tells: data/train-00000-of-00002.parquet."""
    found = []
    for parts in files:
        folders = [split_named(part) for part in parts[:-1]]
        split = next((s for s in folders if s), "") or split_within(parts[-1].split(".")[0])
        found.append((listing.path(parts), split))
    return found
