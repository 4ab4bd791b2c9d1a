"""What lies in a folder, in natural order: the files, the folders, and what was passed over.

Symbolic links are followed, a link back to a folder above it is not; hidden files and what
operating systems leave behind (Thumbs.db, __MACOSX, .ipynb_checkpoints) are ignored. Names may be
in any script; one that is not valid text is shown with its bytes escaped.
"""

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from layerwise.data.examples import Finding
from layerwise.data.naming import about, shown
from layerwise.data.text_files import CODE, PROSE, bare

_SUFFIXES = """.jpg .jpeg .jpe .jfif .png .gif .bmp .dib .tif .tiff .webp .avif .ppm .pgm .pbm .pnm
.tga .jp2 .ico"""
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
# the first bytes of a file whose name has no suffix
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
LEFT_BEHIND = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r", "@eadir"})
SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "eval"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
Parts = tuple[str, ...]


@dataclass(frozen=True)
class FileKind:
    """Files that each hold one value of a kind. mine: whether a file is one, by its name or start.
    columns: names of a table's column of such files; hub_type: of one that holds them, on the hub;
    starts: whether some bytes begin such a file. groups: names of a column of which equal values
    stay in one split.
    """

    kind: str
    noun: str  # "images"
    mine: Callable[[Path], bool]
    columns: tuple[str, ...]
    hub_type: str
    starts: Callable[[bytes], bool]
    groups: tuple[str, ...] = ()


@dataclass
class Listing:
    """A folder and all that is below it; every path is relative, as its parts."""

    root: Path
    files: list[Parts] = field(default_factory=list)  # in natural order
    folders: list[Parts] = field(default_factory=list)
    loops: list[Parts] = field(default_factory=list)  # links back to a folder above
    broken: list[Parts] = field(default_factory=list)  # links to nothing, no permission

    def path(self, parts: Parts) -> Path:
        return self.root.joinpath(*parts)

    @property
    def here(self) -> list[Path]:
        """The files that lie in the folder itself."""
        return [self.path(parts) for parts in self.files if len(parts) == 1]

    @property
    def mostly_text(self) -> bool:
        """Whether the files are documents or source code with a few pictures among them."""
        suffixes = [bare(Path(parts[-1])).suffix.lower() for parts in self.files]
        pictures = sum(suffix in IMAGE_SUFFIXES for suffix in suffixes)
        return 0 < 10 * pictures < sum(suffix in PROSE | CODE for suffix in suffixes)

    def findings(self) -> list[Finding]:
        """What could not be followed, each with what to do about it."""
        loops, broken = map(shown, self.loops), map(shown, self.broken)
        circles = "symbolic links lead back to a folder above them and were not followed"
        closed = "entries could not be opened (links to nothing, or no permission)"
        return [
            *about("symlink_loop", "warning", loops, circles, "remove the links"),
            *about("unreadable", "error", broken, closed, "fix the links or the permissions"),
        ]


@dataclass(frozen=True)
class Place:
    """What the user named: a file, or a folder with all that is below it."""

    path: Path
    listing: Listing | None = None  # of a folder

    @property
    def folder(self) -> Path:
        return self.path.parent if self.listing is None else self.path


def walk(root: Path) -> Listing:
    """Everything below `root` that is not hidden, in natural order."""
    listing = Listing(root)
    _enter(listing, (), (_identity(root),))
    return listing


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _enter(listing: Listing, parts: Parts, above: tuple[tuple[int, int], ...]) -> None:
    with os.scandir(listing.path(parts)) as scan:
        entries = sorted((e for e in scan if not ignored(e.name)), key=lambda e: natural(e.name))
    for entry in entries:
        here = (*parts, entry.name)
        try:
            if not entry.is_dir():
                found = listing.files if entry.is_file() else listing.broken
                found.append(here)
                continue
            identity = _identity(Path(entry.path))
            if identity in above:
                listing.loops.append(here)
                continue
            listing.folders.append(here)
            _enter(listing, here, (*above, identity))
        except OSError:  # no permission, or a link that points at itself
            listing.broken.append(here)


def ignored(name: str) -> bool:
    """Hidden, or left behind by an operating system or a notebook."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def is_image(path: Path) -> bool:
    """By the suffix in any case; a file whose name has none is known by its first bytes."""
    if path.suffix:
        return path.suffix.lower() in IMAGE_SUFFIXES
    with suppress(OSError), open(path, "rb") as f:
        return starts_image(f.read(12))
    return False


def starts_image(content: bytes) -> bool:
    return content.startswith(IMAGE_STARTS) or content[8:12] == b"WEBP"


def split_named(name: str) -> str:
    """`train`, `val` or `test` where a whole name says so in one of its usual words, else ''."""
    return SPLITS.get(name.strip().lower(), "")


def split_within(name: str) -> str:
    """As `split_named`, for a word within a name: train-00000-of-00002, train10k, adult.data."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    letters = re.split(r"[^a-z]+", name.lower())
    said = next((SPLITS[w] for w in (*words, *letters) if w in SPLITS), "")
    return said or ("test" if "t10k" in words else "train" if words[-1] == "data" else "")


def split_of(parts: Parts) -> str:
    """The split that a file's folder or name tells: data/train-00000-of-00002.parquet."""
    folders = [split_named(part) for part in parts[:-1]]
    return next((s for s in folders if s), "") or split_within(bare(Path(parts[-1])).stem)


def splits_said(given: np.ndarray) -> str:
    """The given splits in words: ', train (900) and test (100) given'."""
    counts = Counter(given.tolist())
    named = [f"{part} ({counts[part]:,})" for part in ("train", "val", "test") if counts[part]]
    listed = " and ".join([", ".join(named[:-1]), *named[-1:]]) if named[1:] else "".join(named)
    return f", {listed} given" if named else ""


def natural(text: str) -> tuple:
    """The key by which people sort: img2 before img10, -1 before 0; case and accents break ties."""
    text = unicodedata.normalize("NFC", text)
    marked = unicodedata.normalize("NFD", text.casefold())
    bare = "".join(letter for letter in marked if not unicodedata.combining(letter))
    key = tuple((int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", bare) if p)
    with suppress(ValueError):
        if math.isfinite(whole := float(text)):  # numbers by their value, before everything else
            return (0, whole, key, text)
    return (1, 0.0, key, text)
