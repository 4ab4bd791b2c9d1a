"""Open data of any kind without being told what it is, and say in one line what was understood.

Tried in this order: a single file by its suffix or first bytes; of a folder its metadata table,
MNIST idx files, CIFAR batches, `.npz`, images, Parquet, text, tables. What cannot be learned from
(one class, one image per class, no labels, classes that only the test has) is an error here,
before any time is spent.
"""

import errno
import os
from pathlib import Path

from layerwise.data.arrays import (
    Arrays,
    idx_set,
    looks_like_idx,
    open_arrays,
    read_idx_files,
    read_npz,
)
from layerwise.data.examples import Examples, TargetKind
from layerwise.data.folders import one_image, open_folder
from layerwise.data.learnable import check_learnable
from layerwise.data.listing import IMAGE_SUFFIXES, Listing, ignored, is_image, split_of, walk
from layerwise.data.naming import about, shown, some
from layerwise.data.records import Reading, is_parquet, is_table, pair_files
from layerwise.data.text_files import CODE, PROSE, bare, sniff
from layerwise.errors import DataError, nearest, unknown
from layerwise.kinds.image.cifar import cifar_members, is_tar, read_cifar
from layerwise.kinds.image.tables import (
    image_column,
    metadata_files,
    names_images,
    open_image_parquet,
    open_metadata,
)
from layerwise.kinds.table.files import open_tables
from layerwise.kinds.text.opening import open_text_file, open_text_folder

KINDS = ("image", "table", "text")
TARGET_KINDS = ("class", "classes", "number")
ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz")
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
    reading = Reading(target, target_kind, split_column, learn)
    try:
        where.stat()
        read = _open_folder if where.is_dir() else _open_file
        opened = read(where, kind, reading)
    except OSError as e:
        name = shown(e.filename or where)
        if isinstance(e, FileNotFoundError):
            raise DataError(f"'{name}' does not exist{_instead(Path(e.filename or where))}") from e
        loop = "a loop of symbolic links; name the real file"
        why = loop if e.errno == errno.ELOOP else e.strerror or e
        raise DataError(
            f"'{name}' cannot be read ({why}); check its permissions, its links and the disk"
        ) from e
    opened.source = shown(where)
    if learn:
        check_learnable(opened)
    return opened


def _instead(path: Path) -> str:
    """What may be meant by a path that does not exist."""
    if path.is_symlink():
        return f": it is a symbolic link to '{shown(os.readlink(path))}'; mend the link"
    there = path.parent
    while not there.is_dir() and there != there.parent:
        path, there = there, there.parent
    names = os.listdir(there) if os.access(there, os.R_OK) else []
    names = [name for name in names if not ignored(name)]
    return nearest(path.name, names) or f"; the folder '{shown(there)}' has nothing of that name"


def _open_file(path: Path, kind: str | None, reading: Reading) -> Examples:
    name, suffix = shown(path), path.suffix.lower()
    if path.stat().st_size == 0:
        raise DataError(f"'{name}' is empty (0 bytes); copy or download it again")
    batch = is_tar(path) or suffix in (".bin", "") or "batch" in path.name
    beside = idx_set(path) if looks_like_idx(path) else [path]
    arrays = _read_arrays(beside, [[path]] if batch else [], reading)
    if arrays is not None:
        return open_arrays(arrays, path.parent, kind, reading.target_kind)
    if is_image(path) and kind != "text":
        return one_image(path)
    if is_table(path) and (kind == "image" or (kind is None and sniff(path) != "document")):
        opened = _images_of_table(path, reading)
        if opened is not None:
            return opened
    opened = open_text_file(path, reading, kind == "text") if kind in (None, "text") else None
    if opened is None and is_table(path):
        opened = open_tables([reading.table(path)], [""], reading)
    if opened is None:
        unpack = ". Unpack the archive first" if suffix in ARCHIVES else ""
        raise DataError(f"'{name}' is of no kind that is read here; expected {ACCEPTED}{unpack}")
    return opened


def _images_of_table(path: Path, reading: Reading) -> Examples | None:
    """The images that a table holds or names; None where it does neither."""
    raw = reading.table(path)
    if image_column(raw):
        return open_image_parquet([raw], [""], reading)
    if path.name.lower().startswith("metadata.") or names_images(raw, path.parent):
        return open_metadata([path], walk(path.parent), reading)
    return None


def _open_folder(folder: Path, kind: str | None, reading: Reading) -> Examples:
    listing = walk(folder)
    if not listing.files:
        raise DataError(f"'{shown(folder)}' is empty{_inside(listing)}; expected {ACCEPTED}")
    here = [folder / parts[0] for parts in listing.files if len(parts) == 1]
    opened = None
    if kind == "image" or (kind is None and not _mostly_text(listing)):
        opened = _open_images(listing, here, kind, reading)
    if opened is None and kind in (None, "text"):
        opened = open_text_folder(listing, reading, kind == "text")
    if opened is None and kind != "text":
        opened = _open_tables(listing, here, reading)
    if opened is None:
        raise DataError(
            f"'{shown(folder)}' holds {len(listing.files):,} files but nothing that is read here "
            f"(such as {some(map(shown, listing.files))}); expected {ACCEPTED}"
        )
    return opened


def _mostly_text(listing: Listing) -> bool:
    """Documents or source code with a few pictures among them."""
    suffixes = [bare(Path(parts[-1])).suffix.lower() for parts in listing.files]
    pictures = sum(suffix in IMAGE_SUFFIXES for suffix in suffixes)
    return 0 < 10 * pictures < sum(suffix in PROSE | CODE for suffix in suffixes)


def _open_tables(listing: Listing, here: list[Path], reading: Reading) -> Examples | None:
    """All Parquet files of a folder, else the tables that lie in it; None where it has none."""
    parquet = [parts for parts in listing.files if is_parquet(Path(parts[-1]))]
    if parquet:
        raw, splits = [reading.table(listing.path(p)) for p in parquet], map(split_of, parquet)
        return open_tables(raw, list(splits), reading)
    tables = [p for p in here if is_table(p)]
    if not tables:
        return None
    pairs = pair_files(tables)
    opened = open_tables([reading.table(p) for p, _ in pairs], [s for _, s in pairs], reading)
    others = [shown(p.name) for p in here if p not in tables]
    opened.findings = opened.findings + about("unused", "note", others, "files were left out")
    return opened


def _inside(listing: Listing) -> str:
    """What a folder without files holds instead."""
    loops, broken = listing.loops, listing.broken
    if loops or broken:
        odd = "symbolic links that lead back to a folder above" if loops else "what cannot be read"
        return f", it holds only {odd} ({some(map(shown, loops or broken))}): check them"
    return f" ({len(listing.folders):,} empty folders)" if listing.folders else ""


def _open_images(
    listing: Listing, here: list[Path], kind: str | None, reading: Reading
) -> Examples | None:
    """A folder as one of the ways to hold images; None where it holds none."""
    folder = listing.root
    tables = metadata_files(folder)
    if tables:
        return open_metadata(tables, listing, reading)
    top = [listing.path(parts) for parts in listing.folders if len(parts) == 1]
    places = [[folder], top, [p for p in here if is_tar(p)]]
    arrays = _read_arrays(here, places, reading)
    if arrays is not None:
        return open_arrays(arrays, folder, kind, reading.target_kind)
    images = [parts for parts in listing.files if is_image(listing.path(parts))]
    if not images:
        return _open_image_parquet(listing, reading)
    naming = [p for p in here if is_table(p) and _names_images(p, reading)]
    if len(naming) == 1:
        return open_metadata(naming, listing, reading)
    return open_folder(listing, images, reading.learn)


def _open_image_parquet(listing: Listing, reading: Reading) -> Examples | None:
    files = [parts for parts in listing.files if is_parquet(Path(parts[-1]))]
    if not files or not image_column(reading.table(listing.path(files[0]))):
        return None
    raw = [reading.table(listing.path(parts)) for parts in files]
    return open_image_parquet(raw, list(map(split_of, files)), reading)


def _names_images(path: Path, reading: Reading) -> bool:
    try:
        return names_images(reading.table(path), path.parent)
    except DataError:
        return False  # some notes beside the images


def _read_arrays(files: list[Path], cifar: list[list[Path]], reading: Reading) -> Arrays | None:
    """What idx files, CIFAR batches or `.npz` hold; None where there are none.

    cifar: where batches may be: a folder, the one folder within it, or the one archive there.
    """
    if idx := [p for p in files if looks_like_idx(p)]:
        return read_idx_files(idx)
    for place in cifar:
        if len(place) == 1 and (members := cifar_members(place[0])):
            return read_cifar(members, reading.target)
    npz = [p for p in files if p.suffix.lower() == ".npz"]
    return read_npz(npz) if npz else None
