"""Which network, processor, recipe and augmentation images are learned with from nothing.

Every choice is a plain rule with its reason beside it; `fit` prints what was chosen.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from layerwise import models
from layerwise.data.binomial import mcnemar
from layerwise.data.examples import Examples
from layerwise.errors import DataError
from layerwise.kinds.contract import Choice, Ends, Start
from layerwise.kinds.image.augment import Augment, augment_named
from layerwise.kinds.image.processor import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor, decode
from layerwise.settings import Settings

Channels = tuple[float, float, float]
LEAST_SIDE = 12  # smaller images are enlarged: two halvings must leave something to see
SMALL_SIDE = 64  # images up to here are used as they are
PHOTO_SIDE = 128  # photographs, when nothing pre-trained fixes the side
USUAL_SIDE = 224  # of published networks
MANY_ROWS = 10_000
STARTS = {
    "airbench": Start(0.24, 1000, 8, "muon", 0.0, "linear", grad_clip=False),  # as in the record
    "scratch": Start(2e-3, 128, 30, flexible=True),
    "small": Start(5e-3, 128, 30, flexible=True),
    "full": Start(3e-4, 32, 15),
    "lora": Start(1e-3, 32, 15, weight_decay=0.0),
}


def style_of(way: str, choice: Choice) -> str:
    """Which of STARTS fits."""
    if way != "scratch":
        return way
    if choice.family == "airbench":
        return "airbench"
    return "small" if choice.processors["image"].size[0] <= SMALL_SIDE else "scratch"


def network_for(examples: Examples, ends: Ends, settings: Settings) -> Choice:
    """A network with fresh weights for these images."""
    size = usual_side(examples, settings)
    small = image_side(examples) <= SMALL_SIDE
    if settings.model != "auto":
        name, why = settings.model, "as asked"
    elif small and len(examples) >= MANY_ROWS:
        name, why = "airbench94", "small images, many rows: the fast network of the CIFAR-10 record"
    elif small:
        name, why = "resnet20", "small images, few rows: a small residual network"
    else:
        name, why = "resnet18", "photographs and no pre-trained base in reach"
    if name == "airbench94" and not settings.image_size:
        size = max(28, size)
    overrides: dict[str, Any] = {"n_classes": ends.n_outputs} if ends.n_outputs else {}
    if models.variants().get(name) == "mlp":
        overrides["n_in"] = 3 * size * size
    processor = processor_for(examples, size)
    if models.variants().get(name) == "airbench":
        # grey images leave two thirds of the whitened channels without variance; normalising those
        # by next to nothing made gradients of 3e6 on MNIST, which then never learned
        grey = len(set(processor.mean)) == len(set(processor.std)) == 1
        overrides["norm_eps"] = 1e-2 if grey else 1e-5
    family, config = models.resolve(name, **overrides)
    return Choice(name, family, config, {"image": processor}, why)


def usual_side(examples: Examples, settings: Settings) -> int:
    """Small images as they are, photographs smaller than published networks take them."""
    side = image_side(examples)
    return settings.image_size or (max(LEAST_SIDE, side) if side <= SMALL_SIDE else PHOTO_SIDE)


def processor_for(examples: Examples, size: int) -> ImageProcessor:
    """size: of the network's input, in pixels."""
    small = image_side(examples) <= SMALL_SIDE
    resize, how = (size, "bilinear") if small else (round(size * 1.143), "bicubic")
    mean, std = pixel_statistics(examples)
    return ImageProcessor((size, size), resize, interpolation=how, mean=mean, std=std)


def natural_side(family: str, variant: str) -> int:
    """The side of the images that a named size was published for."""
    config = models.family(family).VARIANTS.get(variant)
    small = family == "airbench" or "cifar" in variant
    small |= family == "resnet" and config is not None and config.small_stem
    return 32 if small else USUAL_SIDE


def augmentation(side: int, settings: Settings, mirror: bool) -> Augment:
    """As asked, or by the size of the images. mirror: a mirrored image keeps its class."""
    if settings.augment != "auto":
        return augment_named(settings.augment)
    chosen = augment_named("flip_crop" if side <= SMALL_SIDE else "full")
    return chosen if mirror else replace(chosen, flip="none")


def image_side(examples: Examples) -> int:
    """The median longer side of a sample of the images, in pixels."""
    sides = [max(pixels.shape[:2]) for _, pixels in readable(examples, spread(examples, 32))]
    if not sides:
        raise DataError(f"none of the images in {examples.source} could be read")
    return int(np.median(sides))


def spread(examples: Examples, most: int) -> list[int]:
    """Rows from all over."""
    return np.linspace(0, len(examples) - 1, min(most, len(examples))).astype(int).tolist()


def readable(examples: Examples, rows: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """These rows with their pixels (h, w, 3); the audit lists those that cannot be read."""
    for i in rows:
        with suppress(DataError):
            yield i, decode(examples["image"][i])


def pixel_statistics(examples: Examples) -> tuple[Channels, Channels]:
    """Mean and standard deviation per channel over a sample of the images, in 0..1."""
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for _, image in readable(examples, sorted(set(spread(examples, 500)))):
        pixels = image.reshape(-1, 3) / 255.0
        total, squares = total + pixels.sum(0), squares + (pixels**2).sum(0)
        count += len(pixels)
    if not count:
        return IMAGENET_MEAN, IMAGENET_STD
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))
    (r, g, b), (dr, dg, db) = np.round(mean, 4).tolist(), np.round(std, 4).tolist()
    return (r, g, b), (dr, dg, db)


def mirror_safe(examples: Examples, most: int = 2000) -> bool:
    """Whether a mirrored image still shows its class: true of cats, not of digits.

    Half of a sample answers for the other half by its nearest neighbour on small grey pictures;
    unsafe when mirrored questions are answered clearly worse (McNemar's test).
    """
    if examples.target_kind != "class" or len(examples) < 40:
        return True
    rows = np.random.default_rng(0).permutation(len(examples))[:most]
    seen = dict(readable(examples, rows.tolist()))
    small = [Image.fromarray(pixels).convert("L").resize((12, 12)) for pixels in seen.values()]
    pictures = np.stack([np.asarray(image, np.float32) for image in small])  # (n, 12, 12)
    pictures -= pictures.mean((1, 2), keepdims=True)
    targets, half = np.asarray(examples.targets)[list(seen)], len(seen) // 2
    known = pictures[:half].reshape(half, -1)

    def right(asked: np.ndarray) -> np.ndarray:
        flat = asked.reshape(len(asked), -1)
        distance = (known**2).sum(1) - 2 * flat @ known.T  # (n_asked, half), up to a constant
        return targets[:half][distance.argmin(1)] == targets[half:]

    as_is, mirrored = right(pictures[half:]), right(pictures[half:, :, ::-1])
    return mirrored.mean() > as_is.mean() - 0.03 or mcnemar(as_is, mirrored) > 0.01
