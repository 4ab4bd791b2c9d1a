"""What augmentation does to pixels: pure functions of a batch and of what was drawn for it.

Every product and sum is its own operation, so a batch is the same to the bit for any thread count.
Departures: brightness, contrast and saturation act as one affine map that is clipped once, contrast
around the mean of a grid of pixels; a crop none of whose tries fits lies anywhere, not centred.

Shapes: B images of h x w pixels, (B, h, w, 3) uint8 or float in 0..255; C classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from layerwise.kinds.image.processor import chunks

Rng = np.random.Generator
Range = tuple[float, float]
GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow and torchvision weigh it


def flip(images: Tensor, which: ndarray) -> Tensor:
    """Mirror some of (B, h, w, 3); `images` stays as it is."""
    if not which.any():
        return images
    chosen = torch.from_numpy(np.flatnonzero(which))
    out = images.clone()
    out[chosen] = mirror(images[chosen])
    return out


def mirror(images: Tensor) -> Tensor:
    """Left to right, (B, h, w, 3); seen as channels first, which torch does ten times faster."""
    return images.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)


def pad_crop(images: Tensor, pad: float, rng: Rng) -> Tensor:
    """Each of (B, h, w, 3) shifted by up to `pad` of its side, the borders filled by reflection."""
    B, h, w, c = images.shape
    py, px = round(pad * h), round(pad * w)
    if not py and not px:
        return images
    ys, xs = (np.pad(np.arange(n), p, mode="reflect") for n, p in ((h, py), (w, px)))
    padded = images.numpy().take(ys, axis=1).take(xs, axis=2).reshape(B, h + 2 * py, -1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w * c), axis=(1, 2))
    top, left = rng.integers(2 * py + 1, size=B), rng.integers(2 * px + 1, size=B)
    return torch.from_numpy(windows[np.arange(B), top, left * c].reshape(B, h, w, c))


def crop_boxes(sizes: ndarray, scale: Range, ratio: Range, rng: Rng) -> ndarray:
    """Random (top, left, height, width) inside images of sizes (B, 2): (B, 4) int.

    The first of ten tries that fits; failing all, the largest box of a permitted aspect.
    """
    h, w = sizes[:, :1].astype(float), sizes[:, 1:].astype(float)
    area = h * w * rng.uniform(*scale, (len(sizes), 10))
    aspect = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), area.shape))
    bh, bw = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (bh >= 1) & (bh <= h) & (bw >= 1) & (bw <= w)
    first = fits.argmax(1)[:, None]
    largest_h = np.rint(np.minimum(h, w / ratio[0])).clip(1)
    largest_w = np.rint(np.minimum(w, h * ratio[1])).clip(1)
    any_fits = fits.any(1, keepdims=True)
    bh = np.where(any_fits, np.take_along_axis(bh, first, 1), largest_h)
    bw = np.where(any_fits, np.take_along_axis(bw, first, 1), largest_w)
    top = np.floor(rng.random(h.shape) * (h - bh + 1))
    left = np.floor(rng.random(h.shape) * (w - bw + 1))
    return np.concatenate([top, left, bh, bw], 1).astype(np.int64)


def resized_crops(
    images: Tensor | Sequence[Tensor],
    size: tuple[int, int],
    flips: ndarray,
    scale: Range,
    ratio: Range,
    rng: Rng,
    each: Callable[..., Any] = map,
) -> Tensor:
    """A random box of each image, mirrored where `flips` says, as (B, h, w, 3) of this size."""
    sizes = np.array([image.shape[:2] for image in images]).reshape(-1, 2)
    boxes = crop_boxes(sizes, scale, ratio, rng).tolist()
    out = torch.empty((len(images), *size, 3), dtype=images[0].dtype)

    def one(i: int) -> None:
        top, left, h, w = boxes[i]
        x = images[i][None, top : top + h, left : left + w].permute(0, 3, 1, 2)
        x = F.interpolate(x, size, mode="bilinear", antialias=True)
        out[i] = (x.flip(3) if flips[i] else x)[0].permute(1, 2, 0)

    for _ in each(one, range(len(images))):
        pass
    return out


def colour(images: Tensor, brightness: ndarray, contrast: ndarray, saturation: ndarray) -> Tensor:
    """Each image with its own factors (B,); 1 leaves it as it is."""
    B, h, w, _ = images.shape
    both = brightness * contrast
    own, grey, flat = (
        torch.from_numpy(f.astype(np.float32))[:, None, None]  # (B, 1, 1): of pixel, grey, constant
        for f in (both * saturation, both * (1 - saturation), brightness * (1 - contrast))
    )
    apart = max(1, min(h, w) // 32)  # a grid of about 1,000 pixels says how bright an image is
    out = torch.empty_like(images)
    for part in chunks(B, h * w * 12):
        x = images[part].permute(0, 3, 1, 2).contiguous().float()  # (b, 3, h, w)
        value = x[:, 0] * GREY[0] + x[:, 1] * GREY[1] + x[:, 2] * GREY[2]  # (b, h, w)
        mean = value[:, ::apart, ::apart].mean((1, 2), keepdim=True)
        base = value.mul_(grey[part]).add_(mean * flat[part])
        x.mul_(own[part][:, None]).add_(base[:, None]).clamp_(0, 255)
        out[part] = to_dtype(x, images.dtype).permute(0, 2, 3, 1)
    return out


def to_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats in 0..255 as `dtype`, to the nearest where that is an integer; changes `values`."""
    return values.to(dtype) if dtype.is_floating_point else values.round_().to(dtype)


def cutout(images: Tensor, share: float, fill: tuple[int, int, int], rng: Rng) -> Tensor:
    """A square around a random pixel of each image painted over; it may reach over the border."""
    B, h, w, _ = images.shape
    side = max(1, round(share * min(h, w)))
    tops = rng.integers(-(side // 2), h - side // 2, size=B).tolist()
    lefts = rng.integers(-(side // 2), w - side // 2, size=B).tolist()
    out = images.clone()
    for image, top, left in zip(out.numpy(), tops, lefts, strict=True):
        image[max(0, top) : top + side, max(0, left) : left + side] = fill
    return out


def mixup(images: Tensor, partner: Tensor, share: float, rng: Rng) -> tuple[Tensor, float]:
    """Every image with `share` of itself and the rest of its partner."""
    out = torch.empty_like(images)
    for part in chunks(len(images), images[0].numel() * 4):
        x = images[part].float().mul_(share)
        x.add_(images[partner[part]].float().mul_(1 - share))
        out[part] = to_dtype(x, images.dtype)
    return out, share


def cutmix(images: Tensor, partner: Tensor, share: float, rng: Rng) -> tuple[Tensor, float]:
    """A box of about 1 - `share` of the area from the partner; the share that is left."""
    h, w = images.shape[1:3]
    bh, bw = (round(n * math.sqrt(1 - share)) for n in (h, w))
    y, x = int(rng.integers(h)) - bh // 2, int(rng.integers(w)) - bw // 2
    top, bottom, left, right = max(0, y), min(h, y + bh), max(0, x), min(w, x + bw)
    out = images.clone()
    out[:, top:bottom, left:right] = images[partner, top:bottom, left:right]
    return out, 1 - (bottom - top) * (right - left) / (h * w)


def mix_targets(
    targets: Tensor | None, partner: Tensor, share: float, n_classes: int
) -> Tensor | None:
    """Shares (B, C) from classes (B,); shares and numbers are averaged as they are."""
    if targets is None:
        return None
    if not targets.is_floating_point():
        assert n_classes > 0, "classes to mix need n_classes"
        targets = F.one_hot(targets, n_classes).float()
    return targets * share + targets[partner] * (1 - share)
