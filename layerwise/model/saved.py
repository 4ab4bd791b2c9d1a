"""Models on disk. A saved model is a folder in the Hugging Face layout: `config.json`,
`model.safetensors`, the processors' own files, and what has no place there in `layerwise.json`.
Where the network is one that timm knows, tensors and config carry timm's names, so
`timm.create_model("local-dir:...")` opens it.
"""

import dataclasses
import pathlib
from typing import Any

from layerwise import kinds, models
from layerwise.adapt import lora, peft
from layerwise.errors import WeightsError, unknown
from layerwise.kinds.text.readers import OF_HEAD, READERS
from layerwise.model.model import Model
from layerwise.models.network import head_kind, reads_tokens
from layerwise.storage import read_json, write_json
from layerwise.tasks import task_from_dict, task_of_head
from layerwise.tasks.task import Calibration
from layerwise.tokens.tokenizer import Tokenizer
from layerwise.weights import files, names, published
from layerwise.weights.cards import CARDS
from layerwise.weights.configs import encoders
from layerwise.weights.configs.text import write_config

OURS = "layerwise"
KEYS = {
    "version", "family", "variant", "format", "config", "kind", "task", "temperature", "conformal",
    "card", "processor", "tokenizer", "processors",
}  # fmt: skip


def save(model: Model, folder: pathlib.Path) -> pathlib.Path:
    """Write the folder described above, each file whole or not at all.

    Errors: StorageError for a full disk or a missing permission.
    """
    form = saved_format(model)
    tensors = model.network.state_dict()
    if form != OURS:
        tensors = names.publish(tensors, models.family(model.family).PUBLISHED[form])
    files.save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    kept = {
        name: kinds.kind(name).save(p, home(folder, name, model.kind.name))
        for name, p in model.processors.items()
    }
    if head_kind(model.network) == "embed":
        held = encoders.sentence_json(model.network.config, model.processor.max_seq_len)
        for name, values in held.items():  # how a text becomes a vector, for sentence-transformers
            write_json(folder / name, values)
    write_json(folder / "config.json", config_json(model, form))
    write_json(folder / "layerwise.json", own_json(model, form, kept))
    return folder


def home(folder: pathlib.Path, kind: str, first: str) -> pathlib.Path:
    """Where the files of this kind's processor lie: of all but the first in a folder each."""
    place = folder if kind == first else folder / kind
    place.mkdir(exist_ok=True)
    return place


def saved_format(model: Model) -> str:
    """What opens it elsewhere: "timm", "huggingface" for text, else our own names."""
    module = models.family(model.family)
    if "embed" in model.network.HEADS:
        return encoders.published_format(model.network.config)
    if "causal" in model.network.HEADS:
        return "huggingface"
    if "timm" not in module.PUBLISHED:
        return OURS
    known, config = module.VARIANTS.get(model.variant), model.network.config
    own = None if known is None else dataclasses.replace(known, n_classes=config.n_classes)
    in_timm = model.variant in {c.variant for c in CARDS.values() if c.format == "timm"}
    return "timm" if own == config and in_timm else OURS


def config_json(model: Model, form: str) -> dict[str, Any]:
    """What timm or transformers reads, with labels and how rows are prepared."""
    config, family = model.network.config, model.family
    if form == OURS:
        return {"model_type": f"layerwise-{family}", **dataclasses.asdict(config)}
    prepared = model.kind.published_config(model.processor, model.labels)
    if "embed" in model.network.HEADS:
        given = {k: v for k, v in prepared.items() if v is not None}
        return encoders.encoder_json(config, model.labels) | given
    if "causal" in model.network.HEADS:
        return write_config(family, config) | prepared
    return {"architecture": model.variant, **prepared}


def own_json(model: Model, form: str, kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What has no place elsewhere. kept: by kind, what its processor needs beside its files."""
    first = model.kind.name
    return {
        "version": 1,
        "family": model.family,
        "variant": model.variant,
        "format": form,
        "config": dataclasses.asdict(model.network.config),
        "kind": first,
        "task": model.answers().to_dict(),
        "temperature": model.calibration.temperature,
        "conformal": list(model.calibration.conformal),
        "card": model.card,
        **kept[first],
        **({"processors": kept} if len(kept) > 1 else {}),
    }


def load(source: str | pathlib.Path) -> Model:
    """A model from a folder that `save` wrote, a run, a card's name, a weights file or a hub id;
    or from a PEFT adapter, merged into the base that it names.

    Of networks that read text also from a .gguf file, or one of llama2.c's with its tokens beside.
    Errors: WeightsError for files that are damaged, incomplete, or not of this network.
    """
    folder = pathlib.Path(source)
    for candidate in (folder, folder / "model"):
        if (candidate / "layerwise.json").exists():
            return load_saved(candidate)
    if (folder / peft.CONFIG).exists():
        return load_adapted(folder)
    network, card = published.load_published(str(source))
    kind, variant = kinds.read_by(network.READS), card.variant
    if reads_tokens(network):
        *_, above, name = ("", *pathlib.Path(card.name).parts)
        variant = above if name == "model" else name
    processor = kind.of_card(card, network, lambda: published.tokenizer_of(card))
    task = task_of_head(head_kind(network), published.labels_of(card), card.problem)
    processors = {kind.name: processor}
    return Model(network, card.family, processors, task, variant, card=dataclasses.asdict(card))


def load_adapted(folder: pathlib.Path) -> Model:
    """The base that a PEFT adapter names, with the adapter merged into it.

    Errors: WeightsError for an adapter of another base or vocabulary, or that names none.
    """
    base = peft.read_adapter_config(folder)["base_model_name_or_path"]
    if not base:
        cure = "write its hub id or folder there, under base_model_name_or_path"
        raise WeightsError(f"{folder}: {peft.CONFIG} names no base; {cure}")
    model = load(base)
    if (folder / "tokenizer.json").exists():
        Tokenizer.load(folder).check(model.network.config.vocab_size)
    give_head(model, *peft.head_of(folder))
    peft.load_adapter(model.network, model.published_names, folder)
    model.card |= {"adapter": str(folder), "merged": lora.merge(model.network).to_dict()}
    model.network.requires_grad_(True)
    return model


def give_head(model: Model, kind: str, n_outputs: int) -> None:
    """The head that an adapter brings, where its base has another; classes without names."""
    config = model.network.config
    if not kind or (head_kind(model.network), config.n_classes) == (kind, n_outputs):
        return
    model.network.reset_head(n_outputs, kind)
    labels = () if kind == "span" else tuple(f"LABEL_{i}" for i in range(n_outputs))
    model.task, old = task_of_head(kind, labels), model.processor
    make = READERS[OF_HEAD.get(kind, "text")]
    model.processors = {"text": make(old.tokenizer, old.max_seq_len, old.token_types)}
    model.card["format"] = saved_format(model)


def load_saved(folder: pathlib.Path) -> Model:
    own = read_json(folder / "layerwise.json")
    for key in own:
        if key not in KEYS:
            raise unknown(f"key in {folder / 'layerwise.json'}", key, KEYS)
    module = models.family(own["family"])
    config = models.config_from_dict(own["family"], own["config"])
    rules = None if own["format"] == OURS else module.PUBLISHED[own["format"]]
    path = folder / "model.safetensors"
    network = files.filled(own["family"], config, files.read_tensors(path), rules, str(path))
    kept = own.get("processors") or {own["kind"]: own}
    homes = {name: home(folder, name, own["kind"]) for name in kept}
    opened = {n: kinds.kind(n).load(homes[n], saved, config) for n, saved in kept.items()}
    task = task_from_dict(own["task"])
    calibration = Calibration(own["temperature"], tuple(own["conformal"]))
    return Model(network, own["family"], opened, task, own["variant"], calibration, own["card"])
