"""`ImageProcessor` as Hugging Face's `preprocessor_config.json`, in both directions.

Understood: the processors that resize, crop, rescale and normalise (ViT, DeiT, CLIP, BiT,
MobileNet, ConvNeXt with its `crop_pct`, MobileViT with its BGR and no normalisation). Means are in
RGB order there, for channels are flipped last; ours are in the order the network sees.

No class of `transformers` both normalises and flips. Such a file names none, so that `transformers`
refuses it instead of leaving out the one or the other.
"""

from typing import Any

from layerwise.errors import OptionError, unknown
from layerwise.kinds.image.processor import RESAMPLE, ImageProcessor

_USED = """do_resize size resample do_center_crop crop_size crop_pct do_rescale rescale_factor
do_normalize image_mean image_std do_flip_channel_order image_processor_type feature_extractor_type
crop_down"""  # the last is ours, and `transformers` passes over it
USED = frozenset(_USED.split())
# no effect on pixels: conversion to RGB always happens, the rest is plumbing
_PLUMBING = """do_convert_rgb processor_class _processor_class default_to_square input_data_format
data_format return_tensors device disable_grouping use_fast auto_map"""
WITHOUT_EFFECT = frozenset(_PLUMBING.split())
Size = tuple[int, int]  # height and width
SQUARE = ("ViT", "Deit", "DeiT", "Beit", "BeiT")  # a bare `size` number means both sides there


def to_config(processor: ImageProcessor) -> dict[str, Any]:
    """The dictionary `transformers` reads; a class named in it has this very transform."""
    flip = processor.channel_order == "BGR"
    mean, std = (list(v)[:: -1 if flip else 1] for v in (processor.mean, processor.std))
    crop = processor.resize != processor.size
    normalises = (processor.mean, processor.std) != ((0,) * 3, (1,) * 3)
    h, w = processor.resize if isinstance(processor.resize, tuple) else processor.size
    exact = not isinstance(processor.resize, int)
    kind = "MobileViT" if flip else "CLIP" if crop else "ViT"
    unnamed = flip and (normalises or not crop)
    return {
        **({} if unnamed else {"image_processor_type": f"{kind}ImageProcessor"}),
        "do_convert_rgb": True,
        "do_resize": processor.resize is not None,
        "size": {"height": h, "width": w} if exact else {"shortest_edge": processor.resize},
        "resample": RESAMPLE[processor.interpolation],
        "do_center_crop": crop,
        "crop_size": {"height": processor.size[0], "width": processor.size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": normalises,
        "image_mean": mean,
        "image_std": std,
        **({"do_flip_channel_order": True} if flip else {}),
        **({"crop_down": True} if processor.crop_down else {}),
    }


def from_config(config: dict[str, Any]) -> ImageProcessor:
    """Errors: a key that is neither understood, nor without effect, nor switched off."""
    for key, value in config.items():
        if key not in USED | WITHOUT_EFFECT and value not in (None, False):
            raise unknown("key of preprocessor_config.json", key, USED | WITHOUT_EFFECT)
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    size, resize = geometry(config, kind)
    bgr = kind.startswith("MobileViT")  # which never normalises, whatever its file says
    mean, std = statistics(config, normalises=config.get("do_normalize", True) and not bgr)
    flip = bool(config.get("do_flip_channel_order", bgr))
    names = {number: name for name, number in RESAMPLE.items()}
    resample = config.get("resample", RESAMPLE["bilinear"])
    if resample not in names:
        raise OptionError(f"resample: one of {names} was expected, {resample!r} came")
    (r, g, b), (dr, dg, db) = (mean[::-1], std[::-1]) if flip else (mean, std)
    order, down = "BGR" if flip else "RGB", bool(config.get("crop_down", False))
    how = names[resample]
    return ImageProcessor(size, resize, how, (r, g, b), (dr, dg, db), order, down)


def geometry(config: dict[str, Any], kind: str) -> tuple[Size, int | Size | None]:
    """`size` and `resize` of the processor."""
    crops = bool(config.get("do_center_crop", False))
    short, exact = sides(config.get("size"), square=kind.startswith(SQUARE) or not crops)
    if kind.startswith("ConvN"):  # ConvNext, ConvNeXT: crops by percentage below 384, else squashes
        side = short or (exact or (384, 384))[0]
        crop_pct = config.get("crop_pct") or 224 / 256
        return (side, side), int(side / crop_pct) if side < 384 else (side, side)
    if config.get("crop_pct"):
        raise OptionError("crop_pct: understood for ConvNext processors only; give size, crop_size")
    resize = (short or exact) if config.get("do_resize", True) else None
    if crops:
        crop_short, crop = sides(config.get("crop_size", config.get("size")), square=True)
        return crop or (crop_short or 0, crop_short or 0), resize
    if exact is None:
        raise OptionError(
            f"size: {config.get('size')!r} without a centre crop gives images of varying size; "
            "give a height and a width, or do_center_crop and crop_size"
        )
    return exact, resize


def sides(value: object, square: bool) -> tuple[int | None, Size | None]:
    """A size as (short side, None) or (None, (h, w)); a bare number is `square` or a short side."""
    if isinstance(value, int):
        return (None, (value, value)) if square else (value, None)
    if isinstance(value, list | tuple) and len(value) == 2:
        return None, (int(value[0]), int(value[1]))
    given = {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else {}
    if given.keys() == {"shortest_edge"}:
        return int(given["shortest_edge"]), None
    if given.keys() == {"height", "width"}:
        return None, (int(given["height"]), int(given["width"]))
    raise OptionError(f"size: a height and width, or a shortest_edge, was expected; {value!r} came")


def statistics(config: dict[str, Any], normalises: bool) -> tuple[list[float], list[float]]:
    """Mean and std for pixels in 0..1, in RGB order."""
    mean, std = [0.0] * 3, [1.0] * 3
    if normalises:
        mean, std = (three(config, key) for key in ("image_mean", "image_std"))
    rescales = config.get("do_rescale", True)
    unit = 255 * float(config.get("rescale_factor") or 1 / 255) if rescales else 255.0  # white
    return [m / unit for m in mean], [s / unit for s in std]


def three(config: dict[str, Any], key: str) -> list[float]:
    values = config.get(key)
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise OptionError(f"{key}: three numbers (one per channel) were expected, {values!r} came")
    return [float(v) for v in values]
