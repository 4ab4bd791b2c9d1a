"""Images as tensors: from a cache of decoded pixels, or decoded each time.

Shapes: n rows, B rows of a batch, images of h x w pixels.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from layerwise import runtime
from layerwise.data.examples import Examples
from layerwise.data.sources import ROWS, Draw, Source, Tensors
from layerwise.data.threads import parallel
from layerwise.kinds.image.augment import Augment
from layerwise.kinds.image.cache import Geometry, PixelCache, Progress, make_decoder
from layerwise.kinds.image.processor import ImageProcessor

PIXELS = 1 << 20  # of an evaluation's batch, at most
MARGIN = 1.15  # photographs are stored with this many times the short side that a crop needs


class Images(Source):
    """Images from a cache of decoded pixels, or decoded each time (cached=False).

    augment: for training; one that resizes has whole images stored, others the processor's size.
    threads: that decode on the first pass, and resize crops within a batch.
    """

    def __init__(
        self,
        examples: Examples,
        processor: ImageProcessor,
        augment: Augment,
        dtype: torch.dtype,
        cache_dir: str | Path | None = None,
        threads: int = 1,
        cached: bool = True,
        progress: Progress = None,
    ):
        self.n = len(examples)
        self.processor, self.augment, self.dtype = processor, augment, dtype
        self.n_classes, self.each = len(examples.labels), parallel(threads)
        resizes = augment.resizes(processor.size)
        short = resizes * round(MARGIN * min(processor.size))
        self.cache: PixelCache | None = None
        if cached and self.n:
            self.cache = PixelCache(
                examples, processor, cache_dir, short_side=short, threads=threads, progress=progress
            )
        self.decode = make_decoder(examples, Geometry(processor))

    def at_once(self, times: int) -> int:
        return images_at_once(self.processor.size, times)

    def pixels(self, rows: np.ndarray) -> Tensor | list[Tensor]:
        if self.cache is not None:
            return self.cache.gather(rows)
        return torch.from_numpy(np.stack(list(self.each(self.decode, rows.tolist()))))

    def look(self, rows: np.ndarray) -> Tensors:
        pixels = self.pixels(rows)
        assert isinstance(pixels, Tensor), "without augmentation all have the processor's size"
        return {"image": self.processor.normalise(pixels, self.dtype)}

    def learn(self, rows: np.ndarray, draw: Draw, learned: Tensors) -> Tensors:
        """Where classes are mixed, "targets" become shares of them."""
        pixels, targets = self.augment(
            self.pixels(rows),
            learned.get("targets"),
            runtime.generator(draw.seed, draw.step),
            size=self.processor.size,
            rows=rows,
            epoch=draw.epoch,
            n_classes=self.n_classes,
            each=self.each,
        )
        image = self.processor.normalise(pixels, self.dtype)
        return {"image": image} | ({} if targets is None else {"targets": targets})


def images_at_once(size: tuple[int, int], times: int = 1) -> int:
    """How many images (h, w) an evaluation looks at together."""
    return max(1, times * min(ROWS, PIXELS // (size[0] * size[1])))
