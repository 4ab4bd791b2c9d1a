"""Augmentation of whole batches of pixels; everything random follows from one generator.

Papers: random resized crop, Szegedy et al., arXiv:1409.4842, in torchvision's form; cutout, DeVries
and Taylor, arXiv:1708.04552; mixup, Zhang et al., arXiv:1710.09412; cutmix, Yun et al.,
arXiv:1905.04899; alternating flip, Jordan, arXiv:2404.00498.

What is drawn is here; what is done to pixels, with its departures, is in `distort.py`.
Shapes: B images of h x w pixels, (B, h, w, 3) uint8 or float in 0..255; C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.errors import OptionError, unknown
from layerwise.kinds.image import distort
from layerwise.kinds.image.distort import Range, Rng

THUMBNAIL = 64  # sides up to this are shifted by `pad`, larger ones cut by `scale`, if both are set
FLIPS = ("none", "random", "alternate")
Mixed = tuple[Tensor, Tensor | None]  # images, and their targets


@dataclass(frozen=True)
class Augment:
    """What is done to a batch, in this order.

    flip: "random" mirrors each image with probability one half; "alternate" mirrors a fixed half
        of the rows in even epochs and the other half in odd ones, so no image is seen the same way
        twice running.
    pad: a shift of up to this share of the side, over reflected borders (0.125 of 32 is 4 pixels).
    scale, ratio: a crop of this share of the area and this aspect, resized (antialiased bilinear).
    brightness, contrast, saturation: factors drawn from 1 - x to 1 + x.
    cutout: the side of a square of `fill`, as a share of the image's side.
    mixup, cutmix: the parameter of their Beta distribution, 0 for none; with both, one of them by
        even chance. Targets become shares. `mix_share` is the share of batches that are mixed.
    """

    flip: str = "none"
    pad: float = 0.0
    scale: Range | None = None
    ratio: Range = (3 / 4, 4 / 3)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    cutout: float = 0.0
    fill: tuple[int, int, int] = (124, 116, 104)  # ImageNet's mean
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_share: float = 1.0

    def __post_init__(self) -> None:
        if self.flip not in FLIPS:
            raise unknown("flip", self.flip, FLIPS)
        shares = ("pad", "brightness", "contrast", "saturation", "cutout", "mix_share")
        for name in (*shares, "mixup", "cutmix"):
            value = getattr(self, name)
            if value < 0 or (name in shares and value > 1):
                raise OptionError(f"augmentation {name}: a share from 0 to 1 was expected: {value}")
        for name, (low, high) in {"scale": self.scale or (1, 1), "ratio": self.ratio}.items():
            if not 0 < low <= high:
                raise OptionError(f"augmentation {name}: 0 < low <= high was expected: {low, high}")

    def resizes(self, size: tuple[int, int]) -> bool:
        """Whether images for inputs of this size are cut and resized, so may be any size before."""
        return self.scale is not None and (not self.pad or min(size) > THUMBNAIL)

    def __call__(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Tensor | None,
        generator: torch.Generator,
        *,
        size: tuple[int, int] | None = None,
        rows: np.ndarray | None = None,
        epoch: int = 0,
        n_classes: int = 0,
        each: Callable[..., Any] = map,
    ) -> Mixed:
        """The augmented batch and its targets.

        images: (B, h, w, 3); where `resizes(size)`, also a sequence of B tensors (h_i, w_i, 3).
        targets: (B,) classes or numbers, or (B, C) shares; soft (B, C) where classes were mixed.
        size: of the result, by default that of the images. rows, epoch: for the alternating flip.
        each: `map` or a thread pool's, over the images that are resized one by one.
        """
        size = size or (images[0].shape[0], images[0].shape[1])
        seed = int(torch.randint(2**62, (1,), generator=generator))
        rng = np.random.default_rng(seed)
        flips = self.choose_flips(len(images), rng, rows, epoch)
        if self.resizes(size):
            scale = self.scale or (1, 1)
            pixels = distort.resized_crops(images, size, flips, scale, self.ratio, rng, each)
        else:
            assert isinstance(images, Tensor), "images of several sizes need a `scale`"
            pixels = distort.pad_crop(distort.flip(images, flips), self.pad, rng)
        if self.brightness or self.contrast or self.saturation:
            strengths = (self.brightness, self.contrast, self.saturation)
            factors = [1 + s * rng.uniform(-1, 1, len(pixels)) for s in strengths]
            pixels = distort.colour(pixels, *factors)
        if self.cutout:
            pixels = distort.cutout(pixels, self.cutout, self.fill, rng)
        return self.mix(pixels, targets, n_classes, rng)

    def choose_flips(self, n: int, rng: Rng, rows: np.ndarray | None, epoch: int) -> np.ndarray:
        """Which of n images are mirrored: (n,) bool."""
        if self.flip == "random":
            return rng.random(n) < 0.5
        if self.flip == "alternate":
            return (parity(np.arange(n) if rows is None else rows) + epoch) % 2 == 1
        return np.zeros(n, bool)

    def mix(self, pixels: Tensor, targets: Tensor | None, n_classes: int, rng: Rng) -> Mixed:
        kinds = [
            (f, a) for f, a in ((distort.mixup, self.mixup), (distort.cutmix, self.cutmix)) if a
        ]
        if not kinds or rng.random() >= self.mix_share:
            return pixels, targets
        blend, alpha = kinds[rng.integers(len(kinds))]
        partner = torch.from_numpy(rng.permutation(len(pixels)))
        pixels, share = blend(pixels, partner, float(rng.beta(alpha, alpha)), rng)
        return pixels, distort.mix_targets(targets, partner, share, n_classes)


AUGMENTS = {
    "none": Augment(),
    "light": Augment(flip="random", pad=0.0625, scale=(0.6, 1.0)),
    "flip_crop": Augment(flip="alternate", pad=0.125, scale=(0.35, 1.0)),
    "full": Augment(
        flip="random", pad=0.125, scale=(0.2, 1.0), brightness=0.3, contrast=0.3, saturation=0.3,
        cutout=0.25, mixup=0.2, cutmix=1.0, mix_share=0.5,
    ),
}  # fmt: skip


def augment_named(name: str) -> Augment:
    """A preset. Errors: OptionError for an unknown name, with the nearest one."""
    if name not in AUGMENTS:
        raise unknown("augmentation", name, AUGMENTS)
    return AUGMENTS[name]


def parity(rows: np.ndarray) -> np.ndarray:
    """A fixed fair coin per row number: (n,) of 0 and 1 (splitmix64's mixing of the bits)."""
    x = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(63)).astype(np.int64)
