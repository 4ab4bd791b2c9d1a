"""One look at every picture: can it be read, is it what its name says, what does it resemble.

Each file is read once, decoded at reduced size (JPEGs at an eighth where that is enough), and kept
as a thumbnail, on several threads. What is refused here is what `image.decode` refuses.

Legend: n pictures, h x w pixels.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from layerwise.data.examples import Finding
from layerwise.data.groups import first_alike, groups_of
from layerwise.data.naming import about
from layerwise.data.threads import parallel
from layerwise.kinds.image import processor
from layerwise.kinds.image.duplicates import SIDE, near_duplicates
from layerwise.storage import UNREADABLE, content_hash

LUMA = (0.299, 0.587, 0.114)
GRID = 4  # of the colours
PIECE = 2048  # arrays shrunk at once

BAD = {  # set aside: what is said, and what to do
    "empty": ("are empty (0 bytes)", "copy them again, or delete them"),
    "unreadable": ("are not images that can be read", "replace or delete them"),
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
class Seen:
    """What was found out about one picture."""

    problem: str = ""  # a key of BAD, or "" for a picture that can be used
    detail: str = ""
    traits: tuple[str, ...] = ()  # keys of TRAITS
    grey: np.ndarray | None = None  # (32, 32) uint8
    colour: np.ndarray | None = None  # (4, 4, 3) uint8
    digest: bytes = b""


@dataclass
class Pictures:
    """All pictures: thumbnails where `usable`, and the content of each as bytes."""

    usable: np.ndarray  # (n,) bool
    grey: np.ndarray  # (n, 32, 32) uint8
    colour: np.ndarray  # (n, 4, 4, 3) uint8
    digests: list[bytes]
    findings: list[Finding]


def look_at_all(inputs: Sequence[Any], names: Sequence[str]) -> Pictures:
    """Look at every picture; a bad one becomes a finding, never an error."""
    n = len(inputs)
    grey, colour = np.zeros((n, SIDE, SIDE), np.uint8), np.zeros((n, GRID, GRID, 3), np.uint8)

    def one(i: int) -> Seen:
        seen = look_safely(inputs[i], str(names[i]))
        if seen.grey is not None and seen.colour is not None:
            grey[i], colour[i] = seen.grey, seen.colour
        seen.grey = seen.colour = None
        return seen

    if isinstance(inputs, np.ndarray) and processor.is_plain(inputs):
        found = look_at_array(inputs, grey, colour)
    else:
        found = list(parallel(min(8, (os.cpu_count() or 1) + 1))(one, range(n)))
    usable = np.array([not seen.problem for seen in found], bool)
    return Pictures(usable, grey, colour, [s.digest for s in found], findings_of(found, names))


def copies(pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """The first row with the same content, and the first with the same picture: (n,) each."""
    rows, exact = np.arange(len(pictures.usable)), first_alike(pictures.digests)
    first = np.flatnonzero(pictures.usable & (exact == rows))  # one of each content
    pairs = first[near_duplicates(pictures.grey[first], pictures.colour[first])]
    return exact, groups_of(len(rows), np.concatenate([pairs, np.stack([exact, rows], 1)]))


# ---- one file --------------------------------------------------------------------------------


def look_safely(raw: object, name: str) -> Seen:
    """`look_at_one`, every failure as a problem: damaged files make decoders raise anything."""
    try:
        return look_at_one(raw, name)
    except Exception as e:
        said, kind = str(e), "unreadable"
        if isinstance(e, Image.UnidentifiedImageError):
            said = "not a format that Pillow knows"
        elif isinstance(e, Image.DecompressionBombError) or "pixels" in said:
            kind = "too_large"
        elif isinstance(e, EOFError) or "truncated" in said.lower():
            kind = "truncated"
        return Seen(kind, said, digest=content_hash(UNREADABLE + os.fsencode(name)))


def look_at_one(raw: Any, name: str) -> Seen:
    """One picture, of a path, bytes or an array. Errors: whatever its decoder raises."""
    if isinstance(raw, np.ndarray):
        return with_thumbnail(processor.from_array(raw, name), (), raw)
    content = Path(raw).read_bytes() if isinstance(raw, str | os.PathLike) else raw
    if not content:
        return Seen("empty", digest=content_hash(UNREADABLE + os.fsencode(name)))
    with processor.quietly():
        image = Image.open(io.BytesIO(content))
    processor.check_size(image.size, name)
    traits = traits_of(image, "" if isinstance(raw, bytes) else Path(raw).suffix)
    image.draft("RGB", (2 * SIDE, 2 * SIDE))
    image.load()
    image = processor.to_rgb(processor.upright(image), name)
    return with_thumbnail(image, tuple(traits), content)


def traits_of(image: Image.Image, suffix: str) -> list[str]:
    """What is unusual, from the header alone."""
    form = {"MPO": "JPEG"}.get(str(image.format), image.format)  # with another one behind it
    checks = {
        "wrong_extension": extensions().get(suffix.lower(), form) not in (form, image.format),
        "cmyk": image.mode == "CMYK",
        "sixteen_bit": image.mode == "I" or image.mode.startswith("I;16"),
        "alpha": image.has_transparency_data,
        "rotated": processor.orientation(image) > 1,
        "animated": image.format != "MPO" and getattr(image, "is_animated", False),
    }
    return [name for name, holds in checks.items() if holds]


@cache
def extensions() -> dict[str, str]:
    return Image.registered_extensions()


def with_thumbnail(image: Image.Image, traits: tuple[str, ...], content: object) -> Seen:
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"))
    colour = np.asarray(small.resize((GRID, GRID), Image.Resampling.BOX))
    if np.ptp(np.asarray(small).reshape(-1, 3), axis=0).max() < 3:
        traits = (*traits, "blank")
    return Seen("", "", traits, grey, colour, content_hash(content))


# ---- arrays ----------------------------------------------------------------------------------


def look_at_array(pixels: np.ndarray, grey: np.ndarray, colour: np.ndarray) -> list[Seen]:
    """Pictures that lie decoded in one array (n, h, w[, 1 or 3]): no threads, a few products.

    grey (n, 32, 32), colour (n, 4, 4, 3): where their thumbnails are written.
    """
    n = len(pixels)
    for i in range(0, n, PIECE):
        x = torch.tensor(pixels[i : i + PIECE], dtype=torch.float32)
        x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x[:, None]  # (b, c, h, w)
        small = F.interpolate(x, (SIDE, SIDE), mode="area")
        weights = torch.tensor(LUMA if x.shape[1] == 3 else (1.0,))
        grey[i : i + PIECE] = (small * weights[:, None, None]).sum(1).round().numpy()
        coarse = F.interpolate(small, (GRID, GRID), mode="area")
        colour[i : i + PIECE] = coarse.permute(0, 2, 3, 1).round().numpy()
    blank = np.ptp(grey.reshape(n, -1), axis=1) < 3
    blank &= np.ptp(colour.reshape(n, -1, 3), axis=1).max(1) < 3
    traits = [("blank",) if b else () for b in blank]
    return [Seen(traits=t, digest=content_hash(x)) for t, x in zip(traits, pixels, strict=True)]


# ---- words -----------------------------------------------------------------------------------


def findings_of(pictures: Sequence[Seen], names: Sequence[str]) -> list[Finding]:
    """One finding per sort, with every file of that sort."""
    findings, of = [], f"of {len(pictures):,} pictures"
    for kind, (what, cure) in BAD.items():
        rows = [i for i, seen in enumerate(pictures) if seen.problem == kind]
        why = pictures[rows[0]].detail.removeprefix(f"{names[rows[0]]}: ") if rows else ""
        what = f"{of} {what} and were set aside" + f" ({why})" * bool(why)
        findings += about(kind, "error", [names[i] for i in rows], what, cure)
    for kind, (what, cure) in TRAITS.items():
        having = [name for seen, name in zip(pictures, names, strict=True) if kind in seen.traits]
        severity = "warning" if kind == "blank" else "note"
        findings += about(kind, severity, having, f"{of} {what} ({cure})", cure)
    return findings
