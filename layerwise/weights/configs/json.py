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
from layerwise.weights.cards import Card, labels_for, named_labels, numbered
from layerwise.weights.configs.encoders import STYLES, encoder_card
from layerwise.weights.configs.rope import check
from layerwise.weights.configs.text import DIALECTS, decoder_card, read_config


def card_of_folder(folder: Path, source: str) -> Card:
    """From `config.json`: timm says "architecture", Hugging Face "model_type"."""
    path = folder / "config.json"
    if not path.is_file():
        raise WeightsError(f"{folder}: no config.json, so it is unknown which network this holds")
    config = read_json(path)
    kind = config.get("model_type", "")
    if "architecture" in config:
        return timm_card(config, source, path)
    if kind in STYLES:
        return encoder_card(config, source, folder)
    if kind in (*DIALECTS, "gemma3"):
        return decoder_card(*read_config(config), source)
    if kind in HUGGINGFACE:
        return huggingface_card(config, source, folder)
    raise WeightsError(
        f"{path}: model_type {config.get('model_type')!r} is not one that layerwise reads "
        f"({', '.join([*HUGGINGFACE, *STYLES, *DIALECTS])})"
    )


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
        *(source, family, variant, "timm", source),
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
VIT = {  # ours: theirs in ViTConfig, and its default, those of ViT-B/16
    "image_size": ("image_size", 224), "patch_size": ("patch_size", 16),
    "dim": ("hidden_size", 768), "n_layers": ("num_hidden_layers", 12),
    "n_heads": ("num_attention_heads", 12), "mlp_dim": ("intermediate_size", 3072),
    "norm_eps": ("layer_norm_eps", 1e-12),
}  # fmt: skip


def _vit(c: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    check(c, {"hidden_act": ("gelu",), "qkv_bias": (True,), "num_channels": (3,)})
    return "vit_base_patch16_224", {ours: c.get(*theirs) for ours, theirs in VIT.items()}


def _resnet(c: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The fields of ResNetConfig; hidden sizes count a bottleneck's output, ours its inside."""
    bottleneck = c.get("layer_type", "bottleneck") == "bottleneck"
    sizes = c.get("hidden_sizes", (256, 512, 1024, 2048))
    widths = tuple(size // 4 if bottleneck else size for size in sizes)
    only = {
        "hidden_act": ("relu",), "embedding_size": (widths[0],), "num_channels": (3,),
        "downsample_in_first_stage": (False,), "downsample_in_bottleneck": (False,),
    }  # fmt: skip
    check(c, only)
    depths = tuple(c.get("depths", (3, 4, 6, 3)))
    return "resnet50", {"depths": depths, "widths": widths, "bottleneck": bottleneck}


HUGGINGFACE: dict[str, Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]]
HUGGINGFACE = {"vit": _vit, "resnet": _resnet}


def huggingface_card(config: dict[str, Any], source: str, folder: Path) -> Card:
    variant, fields = HUGGINGFACE[config["model_type"]](config)
    labels = named_labels(config)
    fields |= {"n_classes": len(labels) or int(config.get("num_labels", 2))}
    family, _ = resolve(variant, **fields)
    pixels = folder / "preprocessor_config.json"
    return Card(
        *(source, family, variant, "huggingface", source),
        processor=read_json(pixels) if pixels.is_file() else ImageProcessor().to_dict(),
        labels=labels or numbered(fields["n_classes"]),
        config=fields,
    )
