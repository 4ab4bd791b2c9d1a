"""What "auto" comes to: network, processor and recipe, from the data and the machine.

Every choice is a plain rule with its reason beside it; `fit` prints what was chosen.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from layerwise import models
from layerwise.data.examples import Examples
from layerwise.errors import DataError
from layerwise.kinds.image.augment import augment_named
from layerwise.kinds.image.processor import ImageProcessor, decode
from layerwise.kinds.table.processor import TableProcessor
from layerwise.settings import Settings
from layerwise.tasks.scores.intervals import mcnemar
from layerwise.train.run import Recipe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Channels = tuple[float, float, float]
LEAST_SIDE = 12  # smaller images are enlarged: two halvings must leave something to see
SMALL_SIDE = 64  # images up to here are used as they are
PHOTO_SIDE = 128  # photographs, when nothing pre-trained fixes the side
MANY_ROWS = 10_000


@dataclass(frozen=True)
class Choice:
    """A network that can be built, its processor, and why it was chosen."""

    variant: str
    family: str
    config: Any
    processor: Any
    why: str
    fitted: dict[str, Any] = field(default_factory=dict)  # fields of the recipe that come with it
    most_steps: int = 0  # that would pay, where there is time for more than the recipe has
    forecast: Any = None  # of the loss, where a law was fitted: plan/scaling.py


def image_side(examples: Examples) -> int:
    """The median longer side of a sample of the images, in pixels."""
    rows = np.linspace(0, len(examples) - 1, min(32, len(examples))).astype(int)
    sides = []
    for i in rows:
        try:
            sides.append(max(decode(examples.inputs[i]).shape[:2]))
        except DataError:  # the audit lists what cannot be read
            continue
    if not sides:
        raise DataError(f"none of the images in {examples.source} could be read")
    return int(np.median(sides))


def choose_scratch(examples: Examples, task: Any, settings: Settings) -> Choice:
    """A network with fresh weights for this data."""
    if examples.kind == "table":
        return choose_table(examples, task, settings)
    side = image_side(examples)
    small = side <= SMALL_SIDE
    size = settings.image_size or (max(LEAST_SIDE, side) if small else PHOTO_SIDE)
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
    overrides: dict[str, Any] = {"n_classes": task.n_outputs}
    if models.variants().get(name) == "mlp":
        overrides["n_in"] = 3 * size * size
    mean, std = pixel_statistics(examples)
    if models.variants().get(name) == "airbench":
        # grey images leave two thirds of the whitened channels without variance; normalising those
        # by next to nothing made gradients of 3e6 on MNIST, which then never learned
        overrides["norm_eps"] = 1e-2 if len(set(mean)) == len(set(std)) == 1 else 1e-5
    family, config = models.resolve(name, **overrides)
    processor = ImageProcessor(
        size=(size, size),
        resize=size if small else round(size * 1.143),
        interpolation="bilinear" if small else "bicubic",
        mean=mean,
        std=std,
    )
    return Choice(name, family, config, processor, why)


def choose_table(examples: Examples, task: Any, settings: Settings) -> Choice:
    processor = TableProcessor.fit(examples)
    name = "mlp" if settings.model == "auto" else settings.model
    family, config = models.resolve(name, n_in=processor.n_in, n_classes=task.n_outputs)
    return Choice(name, family, config, processor, "tables go to a multilayer perceptron")


def pixel_statistics(examples: Examples) -> tuple[Channels, Channels]:
    """Mean and standard deviation per channel over a sample of the images, in 0..1."""
    rows = np.linspace(0, len(examples) - 1, min(500, len(examples))).astype(int)
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for i in np.unique(rows):
        try:
            pixels = decode(examples.inputs[i]).reshape(-1, 3) / 255.0
        except DataError:
            continue
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
    grey, kept = [], []
    for i in rows:
        try:
            image = Image.fromarray(decode(examples.inputs[i])).convert("L").resize((12, 12))
        except DataError:
            continue
        grey.append(np.asarray(image, np.float32))
        kept.append(i)
    pictures = np.stack(grey)  # (n, 12, 12)
    pictures -= pictures.mean((1, 2), keepdims=True)
    targets, half = np.asarray(examples.targets)[kept], len(kept) // 2
    known = pictures[:half].reshape(half, -1)

    def right(asked: np.ndarray) -> np.ndarray:
        flat = asked.reshape(len(asked), -1)
        distance = (known**2).sum(1) - 2 * flat @ known.T  # (n_asked, half), up to a constant
        return targets[:half][distance.argmin(1)] == targets[half:]

    as_is, mirrored = right(pictures[half:]), right(pictures[half:, :, ::-1])
    return mirrored.mean() > as_is.mean() - 0.03 or mcnemar(as_is, mirrored) > 0.01


# ---- recipes: starting points per way of training, then the user's own settings over them ----

STARTS: dict[str, dict[str, Any]] = {
    "airbench": {"optimizer": "muon", "lr": 0.24, "weight_decay": 0.0, "batch": 1000, "epochs": 8},
    "scratch": {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05, "batch": 128, "epochs": 30},
    "small": {"optimizer": "adamw", "lr": 5e-3, "weight_decay": 0.05, "batch": 128, "epochs": 30},
    "table": {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.02, "batch": 256, "epochs": 20},
    "full": {"optimizer": "adamw", "lr": 3e-4, "weight_decay": 0.05, "batch": 32, "epochs": 15},
    "lora": {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0, "batch": 32, "epochs": 15},
    "tokens_scratch": {
        "optimizer": "muon", "lr": 4e-3, "weight_decay": 0.1, "batch": 32, "epochs": 5,
    },
    "tokens_full": {
        "optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.1, "batch": 16, "epochs": 3,
    },
    "tokens_lora": {
        "optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.0, "batch": 16, "epochs": 3,
    },
    # Devlin et al., appendix A.3: 2e-5 to 5e-5 for 2 to 4 passes; narrower networks: rate_for
    "text_full": {"optimizer": "adamw", "lr": 5e-5, "weight_decay": 0.01, "batch": 32, "epochs": 3},
    "text_lora": {"optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.0, "batch": 32, "epochs": 3},
    "text_scratch": {
        "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch": 64, "epochs": 10,
    },
}  # fmt: skip

BERT_WIDTH, LEAST_RATE, MOST_RATE = 768, 2e-5, 3e-4  # of text_full, see rate_for
MOST_PASSES, LEAST_READ = 20, 19_200  # of text_full: little data is read again until so many rows
# whose passes follow from the number of rows
FLEXIBLE = ("scratch", "small", "table", "tokens_scratch")
# in place of the default schedule: as in the record; what lets a run go on
COURSES = {"airbench": "linear", "tokens_scratch": "wsd"}


def rate_for(way: str, width: int) -> float:
    """The learning rate to start from. A whole network that learns a task of texts takes more where
    it is narrow (measured, docs/log.md; Turc et al., arXiv:1908.08962, tune small ones up to 3e-4).
    """
    rate = STARTS[way]["lr"]
    if way != "text_full" or not width:
        return rate
    return min(max(rate * (BERT_WIDTH / width) ** 2, LEAST_RATE), MOST_RATE)


def recipe_for(
    way: str, n_rows: int, side: int, settings: Settings, mirror: bool = True, width: int = 0
) -> Recipe:
    """The recipe of one way of training, a name of `STARTS`.

    n_rows: training rows; side: of images in pixels, 0 for other rows; mirror: a mirrored image
    keeps its class; width: of the network, 0 where it does not matter.
    """
    start = STARTS[way]
    micro = settings.device_batch_size or max(1, start["batch"] // settings.grad_accum_steps)
    batch = min(micro * settings.grad_accum_steps, max(1, n_rows))
    per_epoch = max(1, n_rows // batch)
    epochs = settings.epochs or start["epochs"]
    steps = settings.steps or max(1, round(epochs * per_epoch))
    if not settings.epochs and not settings.steps and way in FLEXIBLE:
        steps = min(max(steps, 300), 4000)  # little data needs more passes, much data fewer
    if not settings.epochs and not settings.steps and way == "text_full":
        steps = max(steps, min(MOST_PASSES * per_epoch, LEAST_READ // batch))
    warmup = settings.warmup_steps if settings.warmup_steps >= 0 else round(0.05 * steps)
    augment = settings.augment
    if augment == "auto":
        augment = "none" if not side else "flip_crop" if side <= SMALL_SIDE else "full"
    chosen = augment_named(augment)
    if not mirror and settings.augment == "auto":
        chosen = replace(chosen, flip="none")
    clip = 0.0 if way == "airbench" and settings.grad_clip == 1.0 else settings.grad_clip
    schedule = settings.schedule
    if schedule == "cosine":  # the default
        schedule = "linear" if way.startswith("text") else COURSES.get(way, schedule)
    every = settings.evaluate_every or max(per_epoch, -(-steps // 20))
    return Recipe(
        steps=steps,
        global_batch_size=batch,
        grad_accum_steps=settings.grad_accum_steps,
        lr=settings.lr or rate_for(way, width),
        optimizer=start["optimizer"] if settings.optimizer == "auto" else settings.optimizer,
        weight_decay=start["weight_decay"] if settings.weight_decay < 0 else settings.weight_decay,
        schedule=schedule,
        warmup_steps=min(warmup, max(0, steps - 1)),
        grad_clip=clip,
        ema=settings.ema,
        layer_decay=settings.layer_decay,
        unfreeze=settings.unfreeze,
        augment=chosen,
        evaluate_every=every,
        checkpoint_every=settings.checkpoint_every or every,
        keep=settings.keep,
        seed=settings.seed,
        loader_threads=settings.loader_threads,
        watch_every=settings.watch_every,
        checkpointing=settings.checkpointing,
        compile=settings.compile,
    )
