"""Decoded pixels, mapped into memory from a file: images are decoded once, not every epoch.

Shapes: n rows, B rows of a batch, images of h x w pixels, uint8 RGB, channels last.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from layerwise.data.examples import Examples
from layerwise.data.image import RESAMPLE, ImageProcessor, Raw, open_image
from layerwise.data.store import (
    cache_folder,
    describe_geometry,
    expected_bytes,
    find_store,
    fingerprints,
    write_store,
)


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
        self.array: np.ndarray | None = ready_array(examples.inputs, processor, short_side)
        if self.array is not None:
            self.uniform, self.bytes = True, self.array.nbytes
            return
        keys = fingerprints(examples.inputs, examples.names)
        geometry = describe_geometry(processor, short_side)
        folder = cache_folder(folder)
        store = find_store(folder, geometry, keys)
        if store is None:
            first = {key: row for row, key in reversed(list(enumerate(keys)))}
            rows = sorted(first.values())
            decode = make_decoder(examples, processor, short_side)
            with shared_pool(threads) as pool:
                images = ordered(pool, decode, rows, ahead=4 * threads)
                expected = expected_bytes(len(rows), processor, short_side)
                images = counted(images, len(rows), progress)
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


def make_decoder(
    examples: Examples, processor: ImageProcessor, short_side: int
) -> Callable[[int], np.ndarray]:
    """A function from a row to its pixels as they are stored."""

    def decode(row: int) -> np.ndarray:
        raw, name = examples.inputs[row], examples.names[row]
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


@contextlib.contextmanager
def shared_pool(threads: int) -> Iterator[ThreadPoolExecutor | None]:
    """A pool of threads (Pillow decodes without the interpreter's lock), or None for one."""
    if threads <= 1:
        yield None
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def ordered(
    pool: ThreadPoolExecutor | None, function: Callable[..., Any], items: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """`map(function, items)` with up to `ahead` results waiting, so memory stays bounded."""
    if pool is None:
        yield from map(function, items)
        return
    items = iter(items)
    waiting: deque[Future[Any]] = deque(pool.submit(function, x) for x in islice(items, ahead))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(function, x) for x in islice(items, 1))
        yield result


def counted(
    images: Iterator[np.ndarray], total: int, progress: Callable[[int, int], None] | None
) -> Iterator[np.ndarray]:
    for done, image in enumerate(images, 1):
        yield image
        if progress is not None:
            progress(done, total)
