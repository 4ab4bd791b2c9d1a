"""`config.json`: which network a folder in the layout of timm or Hugging Face holds, as a card.

What a config says and our network cannot do is an error, never dropped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerwise.errors import WeightsError
from layerwise.kinds.image.processor import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor
from layerwise.models import resolve
from layerwise.storage import read_json
from layerwise.weights.cards import Card
from layerwise.weights.configs import text as config_text
from layerwise.weights.configs.rope import refused


def card_of_folder(folder: Path, source: str) -> Card:
    """From `config.json`: timm says "architecture", Hugging Face "model_type"."""
    from layerwise.weights.configs import (
        encoders as config_encoders,  # which reads JSON by this module
    )

    path = folder / "config.json"
    if not path.is_file():
        raise WeightsError(f"{folder}: no config.json, so it is unknown which network this holds")
    config = read_json(path)
    if "architecture" in config:
        return timm_card(config, source, path)
    if config.get("model_type") in config_encoders.STYLES:
        return config_encoders.encoder_card(config, source, folder)
    if config.get("model_type") in (*config_text.DIALECTS, "gemma3"):
        return config_text.decoder_card(*config_text.read_config(config), source)
    reader = HUGGINGFACE.get(config.get("model_type", ""))
    if reader is None:
        raise WeightsError(
            f"{path}: model_type {config.get('model_type')!r} is not one that layerwise reads "
            f"({', '.join([*HUGGINGFACE, *config_encoders.STYLES, *config_text.DIALECTS])})"
        )
    return huggingface_card(config, source, folder, reader)


def numbered(n: int) -> tuple[str, ...]:
    """Names for classes that came without."""
    return tuple(f"class {i}" for i in range(n))


def labels_for(n_classes: int) -> str | tuple[str, ...]:
    """What the outputs of a network of so many classes are called when nothing says it."""
    return "imagenet-1k" if n_classes == 1000 else numbered(n_classes)


# ---- timm's config.json ------------------------------------------------------------------------
def timm_card(config: dict[str, Any], source: str, path: Path) -> Card:
    given = config.get("pretrained_cfg", {})
    variant, n_classes = config["architecture"], int(config.get("num_classes", 1000))
    family, _ = resolve(variant)
    fields = _timm_fields(config.get("model_args") or {}, family, path)
    names = config.get("label_names")
    pixels = ImageProcessor.from_crop_pct(
        given.get("input_size", (3, 224, 224))[-1],
        given.get("crop_pct", 0.875),
        mean=tuple(given.get("mean", IMAGENET_MEAN)),
        std=tuple(given.get("std", IMAGENET_STD)),
        interpolation=given.get("interpolation", "bicubic"),
    )
    return Card(
        name=source,
        family=family,
        variant=variant,
        format="timm",
        source=source,
        licence=given.get("license", "unknown"),
        paper=given.get("paper_ids", ""),
        processor=pixels.to_dict(),
        labels=tuple(names) if names else labels_for(n_classes),
        trained_on=given.get("tag", "unknown"),
        config={"n_classes": n_classes, **fields},
    )


TIMM_HARMLESS = ("num_classes", "drop_rate", "drop_path_rate", "pretrained")  # for what is read


def _timm_fields(args: dict[str, Any], family: str, path: Path) -> dict[str, Any]:
    """Our fields for timm's model arguments. Errors: those that make a network we do not have."""
    vit = family == "vit"
    known = {"in_chans": (3,), "global_pool": ("token",) if vit else ("avg",)}
    fields: dict[str, Any] = {}
    for key, value in args.items():
        sides = value if isinstance(value, list) else [value, value]
        if vit and key == "img_size" and sides[0] == sides[1]:
            fields["image_size"] = sides[0]
        elif key not in TIMM_HARMLESS and value not in known.get(key, ()):
            raise WeightsError(
                f"{path}: model_args {key} = {value!r} changes the network in a way layerwise does "
                f"not know; only networks as timm names them can be read"
            )
    return fields


# ---- Hugging Face's config.json ----------------------------------------------------------------
def _vit(c: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The fields of ViTConfig, theirs on the right; its defaults are those of ViT-B/16."""
    fields = {
        "image_size": c.get("image_size", 224),
        "patch_size": c.get("patch_size", 16),
        "dim": c.get("hidden_size", 768),
        "n_layers": c.get("num_hidden_layers", 12),
        "n_heads": c.get("num_attention_heads", 12),
        "mlp_dim": c.get("intermediate_size", 3072),
        "norm_eps": c.get("layer_norm_eps", 1e-12),
    }
    _require(c, hidden_act=("gelu",), qkv_bias=(True,), num_channels=(3,))
    return "vit_base_patch16_224", fields


def _resnet(c: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The fields of ResNetConfig; hidden sizes count a bottleneck's output, ours its inside."""
    bottleneck = c.get("layer_type", "bottleneck") == "bottleneck"
    widths = c.get("hidden_sizes", (256, 512, 1024, 2048))
    fields = {
        "depths": tuple(c.get("depths", (3, 4, 6, 3))),
        "widths": tuple(w // 4 if bottleneck else w for w in widths),
        "bottleneck": bottleneck,
    }
    _require(
        c,
        hidden_act=("relu",),
        embedding_size=(fields["widths"][0],),
        num_channels=(3,),
        downsample_in_first_stage=(False,),
        downsample_in_bottleneck=(False,),
    )
    return "resnet50", fields


def _require(config: dict[str, Any], **known: tuple[Any, ...]) -> None:
    """Errors: a setting of theirs that our network does not have."""
    for key, values in known.items():
        if config.get(key, values[0]) not in values:
            raise refused(key, config[key], values)


HUGGINGFACE: dict[str, Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    "vit": _vit,
    "resnet": _resnet,
}


def huggingface_card(
    config: dict[str, Any], source: str, folder: Path, reader: Callable[..., Any]
) -> Card:
    variant, fields = reader(config)
    names = config.get("id2label") or {}
    labels = tuple(names[k] for k in sorted(names, key=int))
    fields |= {"n_classes": len(labels) or int(config.get("num_labels", 2))}
    family, _ = resolve(variant, **fields)
    pixels = folder / "preprocessor_config.json"
    return Card(
        name=source,
        family=family,
        variant=variant,
        format="huggingface",
        source=source,
        processor=read_json(pixels) if pixels.is_file() else ImageProcessor().to_dict(),
        labels=labels or numbered(fields["n_classes"]),
        config=fields,
    )
