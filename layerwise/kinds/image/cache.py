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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from layerwise.data.examples import Examples
from layerwise.data.threads import parallel
from layerwise.kinds.image.processor import RESAMPLE, ImageProcessor, Raw, open_image
from layerwise.storage import cache_folder, fingerprint, replacing

FORMAT = 2
PIECE = 64  # images decoded before they are written


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
        progress: Callable[[int, int], None] | None = None,
    ):
        self.path: Path | None = None
        self.built = False
        self.array: np.ndarray | None = ready_array(examples["image"], processor, short_side)
        if self.array is not None:
            self.uniform, self.bytes = True, self.array.nbytes
            return
        keys = [
            fingerprint(x, name) for x, name in zip(examples["image"], examples.names, strict=True)
        ]
        geometry = describe_geometry(processor, short_side)
        folder = cache_folder(folder)
        store = find_store(folder, geometry, keys)
        if store is None:
            first = {key: row for row, key in reversed(list(enumerate(keys)))}
            rows = sorted(first.values())
            images = decoded(examples, processor, short_side, rows, threads, progress)
            expected = expected_bytes(len(rows), processor, short_side)
            write_store(folder, geometry, [keys[r] for r in rows], images, expected)
            store, self.built = find_store(folder, geometry, keys), True
            assert store is not None
        self.path, index = store
        self.map_store(index, keys)

    def map_store(self, index: dict[str, Any], keys: list[str]) -> None:
        # copy-on-write, because torch warns about tensors over memory that cannot be written
        assert self.path is not None
        assert index["bytes"], "a store of no pixels is never written"
        flat = np.asarray(np.memmap(self.path, np.uint8, "c"))
        place = {key: i for i, key in enumerate(index["rows"])}
        self.slots = np.array([place[key] for key in keys], np.int64)
        self.sizes = np.array(index["sizes"], np.int64).reshape(-1, 2)  # (n, 2) or (1, 2)
        self.bytes, self.flat = index["bytes"], flat
        self.uniform = len(self.sizes) == 1
        if self.uniform:
            h, w = self.sizes[0]
            self.array = flat.reshape(-1, h, w, 3)
        else:
            self.starts = np.concatenate([[0], np.cumsum(self.sizes.prod(1) * 3)])

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


def ready_array(
    inputs: Sequence[Any], processor: ImageProcessor, short_side: int
) -> np.ndarray | None:
    """`inputs` where they are an array that needs neither decoding nor resizing."""
    if not isinstance(inputs, np.ndarray) or inputs.dtype != np.uint8 or not inputs.size:
        return None
    if inputs.ndim != 3 and not (inputs.ndim == 4 and inputs.shape[3] in (1, 3)):
        return None
    h, w = inputs.shape[1:3]
    keeps = min(h, w) <= short_side if short_side else processor.keeps(h, w)
    return inputs if keeps else None


# ---- decoding ------------------------------------------------------------------------------------


def decoded(
    examples: Examples,
    processor: ImageProcessor,
    short_side: int,
    rows: list[int],
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[np.ndarray]:
    """The pixels of these rows in order, PIECE of them at a time, so that memory stays bounded."""
    each, decode = parallel(threads), make_decoder(examples, processor, short_side)
    for start in range(0, len(rows), PIECE):
        for done, image in enumerate(each(decode, rows[start : start + PIECE]), start + 1):
            yield image
            if progress is not None:
                progress(done, len(rows))


def make_decoder(
    examples: Examples, processor: ImageProcessor, short_side: int
) -> Callable[[int], np.ndarray]:
    """A function from a row to its pixels as they are stored."""

    def decode(row: int) -> np.ndarray:
        raw, name = examples["image"][row], examples.names[row]
        if short_side:
            return scaled_down(raw, name, short_side, RESAMPLE[processor.interpolation])
        return processor.pixels(raw, name)

    return decode


def scaled_down(raw: Raw, name: str, short_side: int, resample: int) -> np.ndarray:
    """The whole image (h, w, 3), its short side no more than this."""
    image = open_image(raw, name, short_side)
    w, h = image.size
    if min(w, h) > short_side:
        scale = short_side / min(w, h)
        size = (max(short_side, round(w * scale)), max(short_side, round(h * scale)))
        image = image.resize(size, Image.Resampling(resample))
    return np.asarray(image)


# ---- the store ---------------------------------------------------------------------------------


def describe_geometry(processor: ImageProcessor, short_side: int) -> dict[str, Any]:
    """All that decides what pixels are stored; mean and std do not."""
    shared = {"format": FORMAT, "interpolation": processor.interpolation}
    if short_side:
        return {**shared, "short_side": short_side}
    exact = [list(v) if isinstance(v, tuple) else v for v in (processor.size, processor.resize)]
    return {**shared, "size": exact[0], "resize": exact[1]}


def stem(geometry: dict[str, Any], keys: list[str] | None = None) -> str:
    parts = [json.dumps(geometry, sort_keys=True)] + ([] if keys is None else ["".join(keys)])
    return "-".join(hashlib.blake2b(p.encode(), digest_size=6).hexdigest() for p in parts)


def find_store(
    folder: Path, geometry: dict[str, Any], keys: list[str]
) -> tuple[Path, dict[str, Any]] | None:
    """A whole store of this geometry that has all these rows, and its index; the smallest one."""
    wanted = set(keys)
    found = []
    for path in folder.glob(stem(geometry) + "-*.json"):
        index = read_index(path)
        if index and index["geometry"] == geometry and wanted <= set(index["rows"]):
            found.append((index["bytes"], path.with_suffix(".pixels"), index))
    return min(found, key=lambda f: f[0])[1:] if found else None


def read_index(path: Path) -> dict[str, Any] | None:
    """None for an index that is damaged or whose pixels are not all there: built anew then."""
    try:
        index = json.loads(path.read_text())
        whole = path.with_suffix(".pixels").stat().st_size == index["bytes"]
        whole = whole and {"geometry", "rows", "sizes"} <= index.keys()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if whole else None


# ---- writing -------------------------------------------------------------------------------------


def expected_bytes(n: int, processor: ImageProcessor, short_side: int) -> int:
    """Exact where all images get one size, else as for photographs of 4 : 3."""
    h, w = (short_side, short_side * 4 // 3) if short_side else processor.size
    return n * h * w * 3


def write_store(
    folder: Path,
    geometry: dict[str, Any],
    keys: list[str],
    images: Iterator[np.ndarray],
    expected: int,
) -> None:
    """Write the pixels, then the index that promises them; nothing is left on an error."""
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
    index = {"geometry": geometry, "bytes": total, "sizes": sizes, "rows": keys}
    with replacing(path.with_suffix(".json"), cure) as partial:
        partial.write_text(json.dumps(index))
