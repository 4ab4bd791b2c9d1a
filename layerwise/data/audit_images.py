"""One look at every picture: can it be read, is it what its name says, what does it resemble.

Each file is read once, decoded at reduced size (JPEGs at an eighth where that is enough), and kept
as a thumbnail, on several threads. What is refused here is what `image.decode` refuses.

Legend: n pictures, h x w pixels.
"""

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from layerwise.data.duplicates import SIDE
from layerwise.data.examples import Finding
from layerwise.data.image import (
    EXIF_ORIENTATION,
    check_size,
    from_array,
    quietly,
    to_rgb,
    upright,
)
from layerwise.data.splits import DIGEST
from layerwise.errors import DataError

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
GRID = 4  # of the colours
PIECE = 2048  # arrays shrunk at once

BAD = {  # set aside: what is said, and what to do
    "empty": ("are empty (0 bytes)", "copy them again, or delete them"),
    "unreadable": ("are no image that can be read", "replace or delete them"),
    "truncated": ("are truncated: the end of the file is missing", "copy them again"),
    "too_large": ("have too many pixels or none", "scale them to a usual size"),
}
TRAITS = {  # used as they are: what is said, and what is done about it
    "wrong_extension": ("have another format than their name says", "they are read all the same"),
    "cmyk": ("are in CMYK (for print)", "converted to RGB; colours may shift a little"),
    "sixteen_bit": ("have 16 bits per channel", "scaled to 8 bits"),
    "alpha": ("have transparency", "laid over white"),
    "animated": ("are animated", "the first frame is used"),
    "rotated": ("are turned by their EXIF orientation", "turned upright"),
    "blank": ("are of one single colour", "look whether they belong to the data"),
}


@dataclass
class Look:
    """What one look at a picture gave."""

    problem: str = ""  # a key of BAD, or "" for a picture that can be used
    detail: str = ""
    traits: tuple[str, ...] = ()  # keys of TRAITS
    grey: np.ndarray | None = None  # (32, 32) uint8
    colour: np.ndarray | None = None  # (4, 4, 3) uint8
    digest: bytes = b""


@dataclass
class Looks:
    """All pictures: thumbnails where `usable`, and the content of each as bytes."""

    usable: np.ndarray  # (n,) bool
    grey: np.ndarray  # (n, 32, 32) uint8
    colour: np.ndarray  # (n, 4, 4, 3) uint8
    digests: list[bytes]
    findings: list[Finding]


def look_at_all(inputs: Sequence[Any], names: Sequence[str]) -> Looks:
    """Look at every picture; a bad one becomes a finding, never an error."""
    if isinstance(inputs, np.ndarray) and is_plain(inputs):
        return look_at_array(inputs, names)
    n = len(inputs)
    grey, colour = np.zeros((n, SIDE, SIDE), np.uint8), np.zeros((n, GRID, GRID, 3), np.uint8)

    def one(i: int) -> Look:
        seen = look_safely(inputs[i], str(names[i]))
        if seen.grey is not None and seen.colour is not None:
            grey[i], colour[i] = seen.grey, seen.colour
        seen.grey = seen.colour = None
        return seen

    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        looks = list(pool.map(one, range(n)))
    usable = np.array([not seen.problem for seen in looks], bool)
    return Looks(usable, grey, colour, [s.digest for s in looks], findings_of(looks, names))


# ---- one file --------------------------------------------------------------------------------


def look_safely(raw: Any, name: str) -> Look:
    """`look`, with every failure as a problem: damaged files make decoders raise anything."""
    try:
        return look(raw, name)
    except DataError as e:
        kind = "too_large" if "pixels" in str(e) else "unreadable"
        return Look(kind, str(e), digest=name_digest(name))
    except Image.DecompressionBombError as e:
        return Look("too_large", str(e), digest=name_digest(name))
    except Image.UnidentifiedImageError:
        return Look("unreadable", "no format that Pillow knows", digest=name_digest(name))
    except Exception as e:
        cut = isinstance(e, EOFError) or "truncated" in str(e).lower()
        return Look("truncated" if cut else "unreadable", str(e), digest=name_digest(name))


def look(raw: Any, name: str) -> Look:
    """One picture, of a path, bytes or an array. Errors: whatever its decoder raises."""
    if isinstance(raw, np.ndarray):
        image = from_array(raw, name)
        return with_thumbnail(image, (), np.ascontiguousarray(raw).tobytes())
    content = Path(raw).read_bytes() if isinstance(raw, str | os.PathLike) else raw
    if not content:
        return Look("empty", digest=name_digest(name))
    with quietly():
        image = Image.open(io.BytesIO(content))
    check_size(image.size, name)
    traits = list(traits_of(image, Path(raw) if not isinstance(raw, bytes) else None))
    image.draft("RGB", (2 * SIDE, 2 * SIDE))
    image.load()
    return with_thumbnail(to_rgb(upright(image), name), tuple(traits), content)


def traits_of(image: Image.Image, path: Path | None) -> list[str]:
    """What is unusual, from the header alone."""
    checks = {
        "wrong_extension": path is not None and not extension_fits(path.suffix, image.format),
        "cmyk": image.mode == "CMYK",
        "sixteen_bit": image.mode == "I" or image.mode.startswith("I;16"),
        "alpha": image.has_transparency_data,
        "rotated": orientation(image) in range(2, 9),
        "animated": image.format != "MPO" and getattr(image, "is_animated", False),
    }
    return [name for name, holds in checks.items() if holds]


def orientation(image: Image.Image) -> int:
    """What EXIF says of it, 1 (upright) where it says nothing or is garbled."""
    try:
        with quietly():
            return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # garbled bytes make its parser raise almost anything
        return 1


def extension_fits(suffix: str, form: str | None) -> bool:
    """Unknown suffixes fit; an MPO is a JPEG with another one behind it."""
    known = extensions().get(suffix.lower())
    return known is None or known == form or {known, form} <= {"JPEG", "MPO"}


@cache
def extensions() -> dict[str, str]:
    return Image.registered_extensions()


def with_thumbnail(image: Image.Image, traits: tuple[str, ...], content: bytes) -> Look:
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"))
    colour = np.asarray(small.resize((GRID, GRID), Image.Resampling.BOX))
    if np.ptp(np.asarray(small).reshape(-1, 3), axis=0).max() < 3:
        traits = (*traits, "blank")
    return Look("", "", traits, grey, colour, digest_of(content))


def digest_of(content: Any) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


def name_digest(name: str) -> bytes:
    """For what cannot be read: its own content, equal to no other's."""
    return digest_of(b"unreadable " + os.fsencode(name))


# ---- arrays ----------------------------------------------------------------------------------


def look_at_array(pixels: np.ndarray, names: Sequence[str]) -> Looks:
    """Pictures that lie decoded in one array (n, h, w[, 1 or 3]): no threads, a few products."""
    n = len(pixels)
    grey, colour = np.empty((n, SIDE, SIDE), np.uint8), np.empty((n, GRID, GRID, 3), np.uint8)
    for i in range(0, n, PIECE):
        x = pixels[i : i + PIECE]
        small = shrink(x if x.ndim == 4 else x[..., None], SIDE)  # (b, 32, 32, c)
        luma = small @ LUMA if small.shape[3] == 3 else small[..., 0]
        grey[i : i + PIECE] = np.rint(luma)
        colour[i : i + PIECE] = np.rint(shrink(small, GRID))
    digests = [digest_of(np.ascontiguousarray(row).data) for row in pixels]
    blank = np.ptp(grey.reshape(n, -1), axis=1) < 3
    blank &= np.ptp(colour.reshape(n, -1, 3), axis=1).max(1) < 3
    looks = [Look("", "", ("blank",) if b else ()) for b in blank]
    return Looks(np.ones(n, bool), grey, colour, digests, findings_of(looks, names))


def is_plain(pixels: np.ndarray) -> bool:
    """Grey or RGB: what needs no conversion."""
    shaped = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] in (1, 3))
    return shaped and pixels.dtype == np.uint8


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """(b, h, w, c) to (b, side, side, c) float32, each pixel the mean of the area it covers."""
    x = pixels.astype(np.float32, copy=False)
    x = np.tensordot(x, area_means(x.shape[1], side), ([1], [1]))  # (b, w, c, side)
    return np.tensordot(x, area_means(pixels.shape[2], side), ([1], [1])).transpose(0, 2, 3, 1)


def area_means(n_in: int, n_out: int) -> np.ndarray:
    """The matrix (n_out, n_in) that averages a line of pixels over n_out equal stretches."""
    ends = np.linspace(0, n_in, n_out + 1)
    pixel = np.arange(n_in)
    cover = np.minimum(ends[1:, None], pixel + 1) - np.maximum(ends[:-1, None], pixel)
    cover = np.maximum(cover, 0)
    return (cover / cover.sum(1, keepdims=True)).astype(np.float32)


# ---- words -----------------------------------------------------------------------------------


def findings_of(looks: Sequence[Look], names: Sequence[str]) -> list[Finding]:
    """One finding per sort, with every file of that sort."""
    found = []
    for kind, (what, cure) in BAD.items():
        rows = [i for i, seen in enumerate(looks) if seen.problem == kind]
        if rows:
            first = looks[rows[0]].detail.removeprefix(f"{names[rows[0]]}: ")
            why = f"; {names[rows[0]]}: {first}" if first else ""
            message = f"{len(rows):,} of {len(looks):,} pictures {what} and were set aside{why}"
            found.append(Finding(kind, "error", message, tuple(names[i] for i in rows), cure))
    for kind, (what, cure) in TRAITS.items():
        rows = [i for i, seen in enumerate(looks) if kind in seen.traits]
        if rows:
            severity = "warning" if kind == "blank" else "note"
            message = f"{len(rows):,} of {len(looks):,} pictures {what} ({cure})"
            found.append(Finding(kind, severity, message, tuple(names[i] for i in rows), cure))
    return found
