"""Published networks: from a card's name, a file, a folder or a hub id to a network, and back.

Nothing is guessed from tensors: a card, a `config.json`, or the caller says which network and which
naming a file has; the tensors are only checked against it.
"""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerwise.data.image import ImageProcessor
from layerwise.errors import WeightsError, nearest, unknown
from layerwise.models import family as family_module
from layerwise.models import resolve
from layerwise.weights import hub
from layerwise.weights.cards import CARDS, Card, card_for_file, labels_of
from layerwise.weights.config_json import card_of_folder, labels_for, read_json
from layerwise.weights.files import (
    IN_A_FOLDER,
    load_into,
    read_tensors,
    save_tensors,
    weights_file,
)
from layerwise.weights.names import COUNTER, publish, rename

__all__ = ["in_reach", "labels_of", "load_published", "save_published"]

ENCODERS = (  # of text, on the hub
    "FacebookAI/roberta-base",
    "google-bert/bert-base-uncased",
    "sentence-transformers/all-MiniLM-L12-v2",
    "sentence-transformers/all-MiniLM-L6-v2",
    "distilbert/distilbert-base-uncased",
)
BESIDE = (  # what a hub repository of text holds beside the weights: a tokenizer, how it is pooled
    *("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),
)


def load_published(
    source: str | Path, name: str | None = None, format: str | None = None, **fields: Any
) -> tuple[nn.Module, Card]:
    """A network with published weights, in evaluation mode on the CPU, and its card.

    source: the name of a card ("resnet18.a1_in1k"), a weights file, a folder in the layout of
        Hugging Face or timm (with `config.json`), or a hub id ("timm/resnet18.a1_in1k").
    name, format: for a file that no card knows: its size ("resnet18") and naming ("torchvision").
    fields: of the network's config, where it departs from that size (`n_classes=10`).
    Errors: WeightsError for a source that is not there, damaged, or of another network.
    """
    path, source = Path(source).expanduser(), str(source)
    if name is not None:
        return _load(path, _card_by_hand(path, name, format, fields))
    if path.is_dir():
        return _load(weights_file(path), card_of_folder(path, source))
    if path.is_file():
        return _load(path, _card_of_file(path))
    if source in CARDS:
        return _load(hub.fetch_card(CARDS[source]), CARDS[source])
    known = next((c for c in CARDS.values() if c.source == source), None)
    if known is not None:
        return _load(hub.fetch_card(known), known)
    if hub.is_hub_id(source) and path.suffix.lower() not in (".safetensors", ".pth", ".pt", ".th"):
        return _load_hub(source)
    raise WeightsError(
        f"{source}: neither a file or folder here, nor a card's name, nor a hub id (owner/name)"
        f"{nearest(source, CARDS)} Cards: {', '.join(sorted(CARDS))}."
    )


def in_reach(kind: str = "image") -> list[str]:
    """Names of the bases that are on this machine, the best first: ImageNet's, or encoders."""
    if kind == "text":
        return [name for name in ENCODERS if hub.cached(name, "model.safetensors")]
    here = [c for c in CARDS.values() if c.labels == "imagenet-1k" and hub.find_card(c)]
    return [c.name for c in sorted(here, key=lambda c: -c.scores.get("top1", 0.0))]


def tokenizer_folder(card: Card) -> Path:
    """Where the tokenizer of a text network's folder or hub id lies."""
    if (folder := Path(card.source).expanduser()).is_dir():
        return folder
    return hub.fetch(card.source, "config.json").parent


def save_published(
    network: nn.Module, family: str, format: str, path: str | Path, counters: bool = True
) -> None:
    """Write a `.safetensors` file under the published names, bit for bit what was read.

    counters: False leaves out BatchNorm's batch counters; `card.counters` says what a file had.
    """
    rules = _rules(family, format)
    save_tensors(path, publish(network.state_dict(), rules, counters=counters))


def _rules(family: str, format: str) -> dict[str, str]:
    formats = family_module(family).PUBLISHED
    if format not in formats:
        raise unknown(f"format of {family}", format, formats)
    return formats[format]


def _load(path: Path, card: Card) -> tuple[nn.Module, Card]:
    """Build on the meta device, rename strictly, take the tensors over."""
    _, config = resolve(card.variant, **card.config)
    with torch.device("meta"):
        network = family_module(card.family).Model(config)
    tensors = read_tensors(path)
    wanted = network.state_dict()
    ours = rename(tensors, _rules(card.family, card.format), wanted, what=str(path))
    load_into(network, ours, what=str(path))
    counted = any(n.endswith(COUNTER) for n in tensors)
    return network.eval(), replace(card, counters=counted)


# ---- which network a file holds ----------------------------------------------------------------
def _card_of_file(path: Path) -> Card:
    if card := card_for_file(path):
        return card
    read_tensors(path)  # damaged and foreign files are better named as that
    for card in CARDS.values():
        if card.filename == path.name and card.sha256:
            hub.check_sha256(path, card.sha256)
    raise WeightsError(
        f"{path}: no card knows this file, so it has to be said which network it holds: "
        f"load_published(path, 'resnet18', 'torchvision'), or put it into a folder with its "
        f"config.json"
    )


def _card_by_hand(path: Path, variant: str, format: str | None, fields: dict[str, Any]) -> Card:
    family, config = resolve(variant, **fields)
    formats = list(family_module(family).PUBLISHED)
    if format is None:
        raise WeightsError(f"{path}: say in which naming it is: format= one of {formats}")
    side = getattr(config, "image_size", 224)
    return Card(
        name=path.stem,
        family=family,
        variant=variant,
        format=format,
        source=str(path),
        licence="unknown",
        paper="",
        processor=ImageProcessor.from_crop_pct(side, 0.875).to_dict(),
        labels=labels_for(config.n_classes),
        trained_on="unknown",
        config=fields,
    )


def _load_hub(hub_id: str) -> tuple[nn.Module, Card]:
    config = hub.fetch(hub_id, "config.json")
    path = hub.fetch_first(hub_id, IN_A_FOLDER)
    if path.name.endswith(".index.json"):
        for shard in sorted(set(read_json(path).get("weight_map", {}).values())):
            hub.fetch(hub_id, shard)
    config_json = read_json(config)
    beside = BESIDE if "vocab_size" in config_json else ("preprocessor_config.json",)
    for name in beside:  # timm keeps its own inside config.json
        with contextlib.suppress(hub.MissingFileError):
            hub.fetch(hub_id, name)
    return _load(path, card_of_folder(config.parent, hub_id))
