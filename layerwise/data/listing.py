"""What lies in a folder, in natural order: the files, the folders, and what was passed over.

Symbolic links are followed, a link back to a folder above it is not; hidden files and what
operating systems leave behind (Thumbs.db, __MACOSX, .ipynb_checkpoints) are ignored. Names may be
in any script; one that is not valid text is shown with its bytes escaped.
"""

import math
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from layerwise.data.examples import Finding
from layerwise.errors import nearest

_SUFFIXES = """.jpg .jpeg .jpe .jfif .png .gif .bmp .dib .tif .tiff .webp .avif .ppm .pgm .pbm .pnm
.tga .jp2 .ico"""
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
IMAGE_STARTS = (  # the first bytes of a file whose name has no suffix
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
)
LEFT_BEHIND = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r", "@eadir"})
SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "eval"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}


@dataclass
class Listing:
    """A folder and all that is below it; every path is relative, as its parts."""

    root: Path
    files: list[tuple[str, ...]] = field(default_factory=list)  # in natural order
    folders: list[tuple[str, ...]] = field(default_factory=list)
    loops: list[tuple[str, ...]] = field(default_factory=list)  # links back to a folder above
    broken: list[tuple[str, ...]] = field(default_factory=list)  # links to nothing, no permission

    def path(self, parts: tuple[str, ...]) -> Path:
        return self.root.joinpath(*parts)

    def findings(self) -> list[Finding]:
        """What could not be followed, each with what to do about it."""
        said = []
        if self.loops:
            said.append(
                Finding(
                    "symlink_loop",
                    "warning",
                    f"{len(self.loops)} symbolic links lead back to a folder above them and were "
                    f"not followed (first: {shown(self.loops[0])})",
                    tuple(map(shown, self.loops)),
                    "remove the links",
                )
            )
        if self.broken:
            said.append(
                Finding(
                    "unreadable",
                    "error",
                    f"{len(self.broken)} entries could not be opened: links to nothing, or no "
                    f"permission (first: {shown(self.broken[0])})",
                    tuple(map(shown, self.broken)),
                    "mend the links, or give read permission",
                )
            )
        return said


def walk(root: Path) -> Listing:
    """Everything below `root` that is not hidden, in natural order."""
    listing = Listing(root)
    _enter(listing, (), (_identity(root),))
    return listing


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _enter(listing: Listing, parts: tuple[str, ...], above: tuple[tuple[int, int], ...]) -> None:
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
    try:
        with open(path, "rb") as f:
            start = f.read(12)
    except OSError:
        return False
    return start.startswith(IMAGE_STARTS) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")


def split_named(name: str) -> str:
    """`train`, `val` or `test` where a whole name says so in one of its usual words, else ''."""
    return SPLITS.get(name.strip().lower(), "")


def split_within(name: str) -> str:
    """As `split_named`, for a word within a name: train-00000-of-00002, train10k, adult.data."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    found = [SPLITS[w] for w in words if w in SPLITS]
    found = found or [SPLITS[w] for w in re.split(r"[^a-z]+", name.lower()) if w in SPLITS]
    if found:
        return found[0]
    return "test" if "t10k" in words else "train" if words[-1] == "data" else ""


def natural(text: str) -> tuple:
    """The key by which people sort: img2 before img10, -1 before 0; case and accents break ties."""
    text = unicodedata.normalize("NFC", text)
    try:
        whole = float(text)
    except ValueError:
        whole = float("nan")
    bare = text.casefold()
    if not bare.isascii():
        marked = unicodedata.normalize("NFD", bare)
        bare = "".join(letter for letter in marked if not unicodedata.combining(letter))
    parts = re.split(r"(\d+)", bare)
    key = tuple((int(p), "") if p.isdecimal() else (-1, p) for p in parts if p)
    if math.isfinite(whole):  # numbers by their value, before everything else
        return (0, whole, key, text)
    return (1, 0.0, key, text)


def shown(name: str | Path | tuple[str, ...]) -> str:
    """A path as it can be printed anywhere: bytes that are not text are escaped."""
    text = "/".join(name) if isinstance(name, tuple) else str(name)
    return text.encode("utf8", "backslashreplace").decode("utf8")


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of many names: `'a', 'b', 'c' and 12 more`."""
    names = list(names)
    text = ", ".join(f"'{n}'" for n in names[:most])
    return text + (f" and {len(names) - most:,} more" if len(names) > most else "")


def reason(error: BaseException) -> str:
    """What a library said went wrong, short and on one line."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    return said[0][:100].rstrip(": ")


def nearest_path(path: Path) -> str:
    """A hint for a path that does not exist: what its folder holds that is spelt alike."""
    there = path.parent
    while not there.is_dir() and there != there.parent:
        path, there = there, there.parent
    try:
        names = [n for n in os.listdir(there) if not ignored(n)]
    except OSError:
        return ""
    return nearest(path.name, names) or f"; the folder '{shown(there)}' has nothing of that name."
