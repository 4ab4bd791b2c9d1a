"""Decoded pixels, mapped into memory from a file: images are decoded once, not every epoch.

A store is `<geometry>-<rows>.pixels`, all images one after the other as uint8 RGB, and beside it a
`.json` that says what is inside. The index is renamed into place last: a store is whole or absent.

Rows are recognised by content: arrays and bytes by their hash, files by path, size, and the times
of last change of content and of inode, of which the last cannot be set back. So a store also serves
any subset of its rows, and equal rows are stored once.

Shapes: n rows, B rows of a batch, images of h x w pixels, uint8 RGB, channels last.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from layerwise.data.examples import Examples
from layerwise.data.threads import parallel
from layerwise.kinds.image.processor import RESAMPLE, ImageProcessor, Raw, is_plain, open_image
from layerwise.storage import cache_folder, fingerprint, replacing

FORMAT = 2
PIECE = 64  # images decoded before they are written
Index = dict[str, Any]  # what the `.json` of a store says
Progress = Callable[[int, int], None] | None  # told how many of how many are done


@dataclass(frozen=True)
class Geometry:
    """What is stored of an image. short_side 0: exactly `processor.pixels`; above 0: the whole
    image, scaled down to that short side where it is larger."""

    processor: ImageProcessor
    short_side: int = 0

    def pixels(self, raw: Raw, name: str) -> np.ndarray:
        """uint8 (h, w, 3)."""
        if not self.short_side:
            return self.processor.pixels(raw, name)
        image = open_image(raw, name, self.short_side)
        if min(image.size) > self.short_side:
            scale = self.short_side / min(image.size)
            w, h = (max(self.short_side, round(side * scale)) for side in image.size)
            image = image.resize((w, h), Image.Resampling(RESAMPLE[self.processor.interpolation]))
        return np.asarray(image)

    def ready(self, inputs: Sequence[Any]) -> np.ndarray | None:
        """`inputs` where they are an array that needs neither decoding nor resizing."""
        if not isinstance(inputs, np.ndarray) or not is_plain(inputs) or not inputs.size:
            return None
        h, w = inputs.shape[1:3]
        keeps = min(h, w) <= self.short_side if self.short_side else self.processor.keeps(h, w)
        return inputs if keeps else None

    def to_dict(self) -> dict[str, Any]:
        """All that decides what pixels are stored; mean and std do not."""
        p = self.processor
        shared = {"format": FORMAT, "interpolation": p.interpolation}
        if self.short_side:
            return {**shared, "short_side": self.short_side}
        size, resize = (list(v) if isinstance(v, tuple) else v for v in (p.size, p.resize))
        return {**shared, "size": size, "resize": resize}

    def expected_bytes(self, n: int) -> int:
        """Exact where all images get one size, else as for photographs of 4 : 3."""
        short = self.short_side
        h, w = (short, short * 4 // 3) if short else self.processor.size
        return n * h * w * 3


class PixelCache:
    """The pixels of every row of `examples`, decoded on first use of a data set, then mapped.

    short_side 0: exactly `processor.pixels`, all of the processor's size (evaluation, and training
    at a fixed size). Above 0: whole images with their aspect, scaled down to that short side where
    they are larger (training on random crops).

    Arrays that already have the right size are used where they are, without a file.
    Errors: DataError naming an unreadable row; StorageError for a full or read-only disk.

    Attributes: `uniform`, whether all images have one size; `path` of the store, or None;
    `bytes` of pixels; `built`, whether this call decoded them.
    """

    def __init__(
        self,
        examples: Examples,
        processor: ImageProcessor,
        folder: str | Path | None = None,
        *,
        short_side: int = 0,
        threads: int = 1,
        progress: Progress = None,
    ):
        self.path: Path | None = None
        self.built, geometry = False, Geometry(processor, short_side)
        self.array: np.ndarray | None = geometry.ready(examples["image"])
        if self.array is not None:
            self.uniform, self.bytes = True, self.array.nbytes
            return
        keys = list(map(fingerprint, examples["image"], examples.names))
        folder = cache_folder(folder)
        store = find_store(folder, geometry, keys)
        if store is None:
            first = {key: row for row, key in reversed(list(enumerate(keys)))}
            rows = dict(sorted((row, key) for key, row in first.items()))
            images = decoded(examples, geometry, list(rows), threads, progress)
            write_store(folder, geometry, list(rows.values()), images)
            store, self.built = find_store(folder, geometry, keys), True
            assert store is not None
        self.path, index = store
        # copy-on-write, because torch warns about tensors over memory that cannot be written
        self.flat = np.asarray(np.memmap(self.path, np.uint8, "c"))
        place = {key: i for i, key in enumerate(index["rows"])}
        self.slots = np.array([place[key] for key in keys], np.int64)
        self.sizes = np.array(index["sizes"], np.int64).reshape(-1, 2)  # (n, 2) or (1, 2)
        self.bytes, self.uniform = index["bytes"], len(self.sizes) == 1
        self.starts = np.concatenate([[0], np.cumsum(self.sizes.prod(1) * 3)])
        if self.uniform:
            self.array = self.flat.reshape(-1, *self.sizes[0], 3)

    def gather(self, rows: np.ndarray) -> Tensor | list[Tensor]:
        """The images of these rows: uint8 (B, h, w, 3), or where sizes differ B of (h_i, w_i, 3).

        The list's tensors are views of the file: do not write to them.
        """
        if self.array is None:
            return [self.view(slot) for slot in self.slots[rows].tolist()]
        slots = rows if self.path is None else self.slots[rows]
        pixels = self.array[slots]
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        if pixels.shape[3] == 1:
            pixels = np.repeat(pixels, 3, axis=3)
        return torch.from_numpy(pixels)

    def view(self, slot: int) -> Tensor:
        h, w = self.sizes[slot].tolist()
        start = self.starts[slot]
        return torch.from_numpy(self.flat[start : start + h * w * 3].reshape(h, w, 3))


# ---- decoding ------------------------------------------------------------------------------------


def decoded(
    examples: Examples, geometry: Geometry, rows: list[int], threads: int, progress: Progress
) -> Iterator[np.ndarray]:
    """The pixels of these rows in order, PIECE of them at a time, so that memory stays bounded."""
    each, decode = parallel(threads), make_decoder(examples, geometry)
    for start in range(0, len(rows), PIECE):
        for done, image in enumerate(each(decode, rows[start : start + PIECE]), start + 1):
            yield image
            if progress is not None:
                progress(done, len(rows))


def make_decoder(examples: Examples, geometry: Geometry) -> Callable[[int], np.ndarray]:
    """A function from a row to its pixels as they are stored."""
    images, names = examples["image"], examples.names
    return lambda row: geometry.pixels(images[row], names[row])


# ---- the store ---------------------------------------------------------------------------------


def stem(geometry: Geometry, keys: list[str] | None = None) -> str:
    parts = [json.dumps(geometry.to_dict(), sort_keys=True)]
    parts += [] if keys is None else ["".join(keys)]
    return "-".join(hashlib.blake2b(p.encode(), digest_size=6).hexdigest() for p in parts)


def find_store(folder: Path, geometry: Geometry, keys: list[str]) -> tuple[Path, Index] | None:
    """A whole store of this geometry that has all these rows, and its index; the smallest one."""
    wanted, found = set(keys), []
    for path in folder.glob(stem(geometry) + "-*.json"):
        index = read_index(path)
        if index and index["geometry"] == geometry.to_dict() and wanted <= set(index["rows"]):
            found.append((path.with_suffix(".pixels"), index))
    return min(found, key=lambda f: f[1]["bytes"]) if found else None


def read_index(path: Path) -> Index | None:
    """None for an index that is damaged or whose pixels are not all there: built anew then."""
    try:
        index = json.loads(path.read_text())
        whole = path.with_suffix(".pixels").stat().st_size == index["bytes"]
        whole = whole and {"geometry", "rows", "sizes"} <= index.keys()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if whole else None


# ---- writing -------------------------------------------------------------------------------------


def write_store(
    folder: Path, geometry: Geometry, keys: list[str], images: Iterator[np.ndarray]
) -> None:
    """Write the pixels, then the index that promises them; nothing is left on an error."""
    expected = geometry.expected_bytes(len(keys))
    path = folder / f"{stem(geometry, keys)}.pixels"
    cure = (
        f"The decoded images need about {expected / 1e6:,.0f} MB there: free some space, or set "
        "LAYERWISE_CACHE to another folder"
    )
    sizes = []
    with replacing(path, cure) as partial:
        if shutil.disk_usage(folder).free < expected:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with open(partial, "wb") as file:
            for image in images:
                file.write(np.ascontiguousarray(image).data)
                sizes.append(image.shape[:2])
    total = sum(h * w * 3 for h, w in sizes)
    sizes = sizes[:1] if len(set(sizes)) == 1 else sizes  # one size stands for all
    index = {"geometry": geometry.to_dict(), "bytes": total, "sizes": sizes, "rows": keys}
    with replacing(path.with_suffix(".json"), cure) as partial:
        partial.write_text(json.dumps(index))
