"""Published networks: from a card's name, a file, a folder or a hub id to a network; and the
tokenizers that lie with those that read text.

Nothing is guessed from tensors: a card, a `config.json`, or the caller says which network and which
naming a file has; the tensors are only checked against it.
"""

import contextlib
from pathlib import Path
from typing import Any

from layerwise import models
from layerwise.errors import WeightsError, nearest, unknown
from layerwise.kinds.contract import Kind
from layerwise.kinds.image.processor import ImageProcessor
from layerwise.models.network import Network
from layerwise.storage import read_json
from layerwise.tokens.files import IN_A_FOLDER as TOKENIZERS
from layerwise.tokens.tokenizer import Tokenizer
from layerwise.weights import hub, llama2c
from layerwise.weights.cards import CARDS, Card, card_for_file, labels_for, labels_of
from layerwise.weights.configs.json import card_of_folder
from layerwise.weights.configs.text import decoder_card
from layerwise.weights.files import IN_A_FOLDER, filled, read_tensors, weights_file
from layerwise.weights.gguf.models import load_gguf
from layerwise.weights.gguf.read import read_metadata

__all__ = ["in_reach", "labels_of", "load_published", "tokenizer_of"]


def load_published(
    source: str | Path, name: str | None = None, format: str | None = None, **fields: object
) -> tuple[Network, Card]:
    """A network with published weights, in evaluation mode on the CPU, and its card.

    source: the name of a card ("resnet18.a1_in1k"), a weights file (of text networks: .gguf, or
        llama2.c's .bin), a folder in the layout of Hugging Face or timm (with `config.json`), or a
        hub id ("timm/resnet18.a1_in1k", "owner/name/file.gguf").
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
        return _load_file(path, source)
    if card := next((c for c in CARDS.values() if source in (c.name, c.source)), None):
        return _load(hub.fetch_card(card), card)
    if _is_file_of_hub(source):
        return _load_file(fetched(source), source)
    if hub.is_hub_id(source) and path.suffix.lower() not in (".safetensors", ".pth", ".pt", ".th"):
        folder = fetched(source)
        return _load(weights_file(folder), card_of_folder(folder, source))
    raise WeightsError(
        f"{source}: neither a file or folder here, nor a card's name, nor a hub id (owner/name)"
        f"{nearest(source, CARDS)} Cards: {', '.join(sorted(CARDS))}."
    )


def in_reach(kind: Kind) -> list[str]:
    """Names of the bases of a kind that are on this machine, the best first: ImageNet's by their
    score, or those that the kind itself names."""
    cards = [c for c in CARDS.values() if c.labels == "imagenet-1k" and hub.find_card(c)]
    cards = [c for c in cards if models.reads(c.family)[0] == kind.tensor]
    cards.sort(key=lambda c: -c.scores.get("top1", 0.0))
    return [c.name for c in cards] + [
        name for name in kind.bases if hub.cached(name, "model.safetensors")
    ]


def _rules(family: str, format: str) -> dict[str, str]:
    formats = models.family(family).PUBLISHED
    if format not in formats:
        raise unknown(f"format of {family}", format, formats)
    return formats[format]


def _load(path: Path, card: Card) -> tuple[Network, Card]:
    """Build on the meta device, rename strictly, take the tensors over."""
    _, config = models.resolve(card.variant, **card.config)
    tensors = read_tensors(path)
    rules = _rules(card.family, card.format)
    return filled(card.family, config, tensors, rules, str(path)), card


def _load_file(path: Path, source: str) -> tuple[Network, Card]:
    if path.suffix == ".gguf":
        network, family, keys = load_gguf(path)
        licence = keys.get("general.license", "")
        return network, decoder_card(family, network.config, "gguf", source, licence)
    if llama2c.is_llama2c(path):
        fields, tensors = llama2c.read_llama2c(path)
        network = filled("llama", models.config_from_dict("llama", fields), tensors, what=str(path))
        return network, decoder_card("llama", network.config, "llama2c", source)
    return _load(path, _card_of_file(path))


def tokenizer_of(card: Card) -> Tokenizer:
    """The tokenizer that lies with the weights of a text network.

    Errors: WeightsError where there is none, or where it belongs to other weights.
    """
    path, n_tokens = Path(card.source).expanduser(), card.config["vocab_size"]
    path = path if path.exists() else fetched(card.source)
    if path.suffix == ".gguf":
        tokenizer = Tokenizer.from_gguf(read_metadata(path))
    elif path.is_file():
        beside = llama2c.tokenizer_beside(path, n_tokens)
        tokenizer = Tokenizer.from_gguf(llama2c.read_llama2c_tokenizer(beside, n_tokens))
    else:
        tokenizer = Tokenizer.load(path)
    tokenizer.check(n_tokens, what=f"{path}: ")
    return tokenizer


# ---- which network a file holds ----------------------------------------------------------------
def _card_of_file(path: Path) -> Card:
    if card := card_for_file(path):
        return card
    read_tensors(path)  # damaged and foreign files are better named as that
    for card in CARDS.values():
        if card.filename == path.name and card.sha256:
            hub.check_sha256(path, card.sha256)
    raise WeightsError(
        f"{path}: this file is not a published one, so it has to be said which network it holds: "
        f"load_published(path, 'resnet18', 'torchvision'), or put it into a folder with its "
        f"config.json"
    )


def _card_by_hand(path: Path, variant: str, format: str | None, fields: dict[str, Any]) -> Card:
    family, config = models.resolve(variant, **fields)
    formats = list(models.family(family).PUBLISHED)
    if format is None:
        raise WeightsError(f"{path}: say in which naming it is: format= one of {formats}")
    side = vars(config).get("image_size", 224)
    return Card(
        *(path.stem, family, variant, format, str(path)),
        processor=ImageProcessor.from_crop_pct(side, 0.875).to_dict(),
        labels=labels_for(config.n_classes),
        config=fields,
    )


# ---- the hub -----------------------------------------------------------------------------------
BESIDE_TEXT = (
    *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "merges.txt", *TOKENIZERS),
)


def _is_file_of_hub(source: str) -> bool:
    """Whether this reads as owner/name/file.gguf, and not as a place on this machine."""
    owner, *rest = source.split("/", 2)
    named = source.endswith(".gguf") and len(rest) == 2 and hub.is_hub_id(f"{owner}/{rest[0]}")
    return named and not Path(owner).exists()


def fetched(source: str) -> Path:
    """A model of the hub on this machine: the folder of "owner/name", or "owner/name/file.gguf"."""
    if source.count("/") > 1:
        owner, name, file = source.split("/", 2)
        return hub.fetch(f"{owner}/{name}", file)
    folder = hub.fetch(source, "config.json").parent
    weights = hub.fetch_first(source, IN_A_FOLDER)
    if weights.name.endswith(".index.json"):
        for name in sorted(set(read_json(weights).get("weight_map", {}).values())):
            hub.fetch(source, name)
    is_text = {"vocab_size", "text_config"} & read_json(folder / "config.json").keys()
    for name in BESIDE_TEXT if is_text else ("preprocessor_config.json",):  # timm's is in config
        with contextlib.suppress(hub.MissingFileError):
            hub.fetch(source, name)
    return folder
