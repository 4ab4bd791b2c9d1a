"""Open data of any kind without being told what it is, and say in one line what was understood.

Every kind is asked how sure it is that a place is its own (`recognise`); the surest opens it. What
cannot be learned from (one class, one image per class, no labels, classes that only the test has)
is an error here, before any time is spent.
"""

import errno
import os
from pathlib import Path

from layerwise import kinds
from layerwise.data.examples import Examples, TargetKind
from layerwise.data.learnable import check_learnable
from layerwise.data.listing import Listing, Place, ignored, walk
from layerwise.data.naming import shown, some
from layerwise.data.records import Reading
from layerwise.errors import DataError, nearest, unknown

TARGET_KINDS = ("class", "classes", "number")
ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz")


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

    target: the column to learn, where there are columns. kind: a name of `kinds.KINDS`, to overrule
    what is recognised. target_kind: "class", "classes" or "number", likewise. split_column: the
    column that says train, val or test. learn=False: to predict or evaluate; then labels may be
    absent, and data that cannot be learned from is not an error.

    Returns Examples; `.understood` says in a line what was found, `.findings` what is odd and what
    was not used. Errors: DataError, one sentence with the file and row, and what to do.
    """
    if kind is not None and kind not in kinds.KINDS:
        raise unknown("kind of data", kind, kinds.KINDS)
    if target_kind is not None and target_kind not in TARGET_KINDS:
        raise unknown("kind of target", target_kind, TARGET_KINDS)
    where = Path(os.path.expanduser(path))
    try:
        where.stat()
        listing = walk(where) if where.is_dir() else None
        reading = Reading(target, target_kind, split_column, learn, kind)
        opened = _open(Place(where, listing), reading)
    except OSError as e:
        name = shown(e.filename or where)
        if isinstance(e, FileNotFoundError):
            raise DataError(f"'{name}' does not exist{_instead(Path(e.filename or where))}") from e
        why = e.strerror or e
        if e.errno == errno.ELOOP:
            why = "a loop of symbolic links; name the real file"
        said = f"'{name}' cannot be read ({why}); check its permissions, its links and the disk"
        raise DataError(said) from e
    opened.source = shown(where)
    if learn:
        check_learnable(opened, kinds.of(opened).noun)
    return opened


def _open(place: Place, reading: Reading) -> Examples:
    """The rows of the kind that is surest of the place.

    Errors: nothing is there, or nothing that any kind knows.
    """
    name, listing = shown(place.path), place.listing
    asked = [kinds.kind(reading.kind)] if reading.kind else kinds.every()
    accepted = ", ".join(kind.accepts for kind in asked)
    if listing is None and place.path.stat().st_size == 0:
        raise DataError(f"'{name}' is empty (0 bytes); copy or download it again")
    if listing is not None and not listing.files:
        raise DataError(f"'{name}' is empty{_inside(listing)}; expected {accepted}")
    claims = [claim for kind in asked if (claim := kind.recognise(place, reading))]
    for claim in sorted(claims, key=lambda claim: -claim.sure):
        opened = claim.open()
        if opened is not None:
            return opened
    if reading.kind:
        said = f"'{name}' cannot be read as {asked[0].noun}, which --kind asks for"
    elif listing is None:
        said = f"'{name}' is not of a kind that is read here"
    else:
        said = f"'{name}' holds {len(listing.files):,} files but nothing that is read here "
        said += f"(such as {some(map(shown, listing.files))})"
    packed = listing is None and place.path.suffix.lower() in ARCHIVES
    raise DataError(f"{said}; expected {accepted}" + ". Unpack the archive first" * packed)


def _instead(path: Path) -> str:
    """What may be meant by a path that does not exist."""
    if path.is_symlink():
        return f": it is a symbolic link to '{shown(os.readlink(path))}'; fix the link"
    there = path.parent
    while not there.is_dir() and there != there.parent:
        path, there = there, there.parent
    names = os.listdir(there) if os.access(there, os.R_OK) else []
    names = [name for name in names if not ignored(name)]
    return nearest(path.name, names) or f"; the folder '{shown(there)}' has nothing of that name"


def _inside(listing: Listing) -> str:
    """What a folder without files holds instead."""
    loops, broken = listing.loops, listing.broken
    if loops or broken:
        odd = "symbolic links that lead back to a folder above" if loops else "what cannot be read"
        return f", it holds only {odd} ({some(map(shown, loops or broken))}): check them"
    return f" ({len(listing.folders):,} empty folders)" if listing.folders else ""
