"""What travels together: the network, the processor that turned raw input into its tensors, the
labels in their order, the task, the calibration, and the card.

A saved model is a folder in the Hugging Face layout: `config.json`, `model.safetensors`,
`preprocessor_config.json`, and what has no place there in `layerwise.json`. Where the network is
one that timm knows, tensors and config carry timm's names, so `timm.create_model("local-dir:...")`
opens it.
"""

import dataclasses
import json
import pathlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx.proxy import TraceError

from layerwise import models, runtime
from layerwise.adapt import lora, peft
from layerwise.adapt.fuse import fused
from layerwise.data.each_processor import EachProcessor
from layerwise.data.examples import Examples
from layerwise.data.image import ImageProcessor
from layerwise.data.sources import images_at_once
from layerwise.data.span_processor import SpanProcessor
from layerwise.data.table import TableProcessor
from layerwise.data.text_processor import TextProcessor
from layerwise.data.tokens import Tokenizer
from layerwise.data.word_processor import WordProcessor
from layerwise.errors import StorageError, WeightsError, unknown
from layerwise.generate import greedy
from layerwise.tasks import FORMS, reader_of_head, task_from_dict, task_of_head
from layerwise.tasks.calibration import conformal_quantile
from layerwise.tasks.metrics import sigmoid, softmax
from layerwise.train.checkpoint import storage_error
from layerwise.train.run import predict_rows
from layerwise.weights import config_encoders, files, names, published
from layerwise.weights.cards import CARDS, Card
from layerwise.weights.config_json import read_json
from layerwise.weights.config_text import write_config

WORTH_FUSING = 256  # rows from which preparing the fused network pays
CERTIFIED = 8  # rows on which it must say the same first
PROCESSORS = {"image": ImageProcessor, "table": TableProcessor}
# of texts: what a row is to them
READERS = {p.reads: p for p in (TextProcessor, WordProcessor, SpanProcessor, EachProcessor)}
OURS = "layerwise"


@dataclass
class Prediction:
    """What the model says of one row.

    classes: label, its probability, and the likeliest others in `top`; `set` holds the labels that
    contain the truth at the asked confidence, `unsure` says that none or several do.
    numbers: `value`, and with a confidence asked for its `interval`.
    words: `words`, each with its tag and that tag's probability; `entities` with kind, text, place
    in characters (start, end) and words (first, last), probability of the least sure word.
    questions: `answer`, empty for none, and its `place` in the context's characters.
    """

    name: str
    label: str | None = None
    probability: float | None = None
    top: list[tuple[str, float]] = field(default_factory=list)
    labels: list[str] | None = None  # every label above one half, for several labels
    value: float | None = None
    interval: tuple[float, float] | None = None
    set: list[str] | None = None
    unsure: bool | None = None
    words: list[tuple[str, str, float]] | None = None
    entities: list[dict[str, Any]] | None = None
    answer: str | None = None
    place: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, [])}


@dataclass
class Model:
    """A network and everything it needs to be used; its verbs are the command line's."""

    network: nn.Module
    family: str
    processor: Any
    task: Any
    variant: str = ""
    temperature: float = 1.0
    conformal: tuple[float, ...] = ()  # scores of held-out rows, sorted
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.task.labels

    @property
    def kind(self) -> str:
        return next((k for k, c in PROCESSORS.items() if isinstance(self.processor, c)), "text")

    # ---- use -----------------------------------------------------------------------------------

    def machine(self, threads: int = 0) -> runtime.Runtime:
        """What it computes with: the arithmetic of its run, so that its scores come again."""
        return runtime.start(dtype=self.card.get("dtype", "auto"), threads=threads)

    def outputs(self, rows: Examples, machine: runtime.Runtime | None = None, **options: Any):
        """Raw outputs (n, n_outputs), as numpy, divided by the calibrated temperature."""
        if rows.kind != self.kind and (self.kind, rows.kind) != ("text", "tokens"):
            raise WeightsError(
                f"this model reads {self.kind}s, but {rows.source or 'the data'} holds {rows.kind}s"
            )
        if self.task is None or (rows.kind == "text" and self.task.name in FORMS["plain"]):
            writes = getattr(self.task, "name", "") == "causal"
            more = ", or `layerwise generate` from a prompt" if writes else ""
            raise WeightsError(
                f"{self.variant} has no answer to give of a row: `layerwise fit` it by --base{more}"
            )
        machine = machine or self.machine()
        network = self.network.to(machine.device)
        if machine.device == "cpu" and rows.kind == "image" and len(rows) >= WORTH_FUSING:
            network = self.fast(rows, machine, options.get("batch_size", 0))
        raw = predict_rows(network, self.task, self.processor, rows, machine, **options)
        return raw / self.temperature if self.task.name == "classify" else raw

    def fast(self, rows: Examples, machine: runtime.Runtime, batch_size: int) -> nn.Module:
        """The network fused for inference, once it has been seen to say the same on these rows.

        The network itself where its forward pass cannot be followed, or where both differ by more
        (relative to the largest output) than the rounding of this dtype explains.
        """
        some = rows.subset(np.arange(min(CERTIFIED, len(rows))))
        inputs = self.processor(some.inputs)  # (B, 3, h, w)
        machine = dataclasses.replace(machine, dtype=runtime.kernel_dtype(machine.dtype))
        size = min(batch_size or images_at_once(self.processor.size), len(rows))
        try:
            example = inputs[:1].expand(size, *inputs.shape[1:])
            quick = fused(self.network, example, machine.dtype)
            with runtime.evaluating(self.network):
                with machine.autocast():
                    want = self.network(inputs).float()
                error = (quick(inputs) - want).abs().max() / want.abs().max().clamp_min(1e-9)
        except (TraceError, RuntimeError, TypeError):
            return self.network
        limit = 1e-4 if machine.dtype == torch.float32 else 0.05
        return quick if float(error) < limit else self.network

    def predict(
        self, data: Any, confidence: float = 0.0, top: int = 3, threads: int = 0
    ) -> list[Prediction]:
        """A prediction for each row of `data` (a path, or what `open_data` gave).

        confidence: with e.g. 0.9 each prediction carries a conformal set (or interval) that holds
        the truth with that probability, and `unsure` where it is not one label.
        """
        rows = self.rows(data)
        outputs = self.outputs(rows, self.machine(threads))
        level = self.conformal_level(confidence) if confidence else None
        if hasattr(self.task, "read"):
            each = zip(rows.names, rows.inputs, outputs, strict=True)
            return [Prediction(name, **self.task.read(row, out)) for name, row, out in each]
        return [
            self.read(name, out, top, level) for name, out in zip(rows.names, outputs, strict=True)
        ]

    def rows(self, data: Any) -> Examples:
        """Rows to predict: of a path, bare texts, dicts of fields, or as they are.

        The lines of a text file are rows of their own for a model that learned from rows.
        """
        from layerwise.data.open import open_data
        from layerwise.data.text_documents import lines_of, text_examples
        from layerwise.data.text_files import sniff

        if isinstance(data, Examples):
            return data
        if self.kind != "text":
            return open_data(data, target=self.card.get("target"), learn=False)
        if isinstance(data, list | tuple):
            said = [f"text {i}" for i in range(len(data))]
            if data and isinstance(data[0], dict):
                return text_examples("spans", list(data), said, [""] * len(data))
            return text_examples("plain", [{"text": t} for t in data], said, [""] * len(data))
        rows = open_data(data, target=self.card.get("target"), kind="text", learn=False)
        path, learned = pathlib.Path(data), "target" in self.card or self.task.name == "words"
        by_line = learned and path.is_file() and sniff(path) == "document"
        return lines_of(rows) if by_line else rows

    def conformal_level(self, confidence: float) -> float:
        if not self.conformal:
            raise WeightsError(
                "this model carries no held-out scores, so it cannot give a set at a confidence; "
                "train it with `layerwise fit`, or evaluate it with `--calibrate`"
            )
        return conformal_quantile(np.asarray(self.conformal), 1 - confidence)

    def read(self, name: str, out: np.ndarray, top: int, level: float | None) -> Prediction:
        """One row of outputs in words."""
        if self.task.name == "regress":
            value = float(out[0])
            interval = None if level is None else (value - level, value + level)
            return Prediction(name, value=value, interval=interval)
        if self.task.name == "tag":
            shares = sigmoid(out)
            order = np.argsort(-shares, kind="stable")[:top]
            chosen = [self.labels[i] for i in np.flatnonzero(shares > 0.5)]
            ranked = [(self.labels[i], float(shares[i])) for i in order]
            return Prediction(name, labels=chosen, top=ranked)
        shares = softmax(out[None])[0]  # (C,)
        order = np.argsort(-shares, kind="stable")
        best = Prediction(
            name,
            self.labels[order[0]],
            float(shares[order[0]]),
            [(self.labels[i], float(shares[i])) for i in order[:top]],
        )
        if level is not None:
            best.set = [self.labels[i] for i in order if 1 - shares[i] <= level]
            best.unsure = len(best.set) != 1
        return best

    def generate(self, prompt: str, n_tokens: int = 64) -> str:
        """What this model writes after `prompt`, always the likeliest token, until its end token.

        Errors: WeightsError for a model that does not continue text.
        """
        if getattr(self.task, "name", "") != "causal":
            raise WeightsError(
                f"this model does not continue text: it is a {self.family} for "
                f"{self.task.name if self.task else 'other tasks to start from'}"
            )
        words = self.processor.tokenizer
        ids = words.encode(prompt)
        ids = ids[:-1] if len(ids) > 1 and ids[-1] == words.eos_id else ids
        ids = ids or [words.bos_id if words.bos_id is not None else words.eos_id or 0]
        stop = () if words.eos_id is None else (words.eos_id,)
        tokens = torch.tensor([ids], device=next(self.network.parameters()).device)
        out = greedy.generate(self.network, tokens, n_tokens, stop)[0].tolist()
        return words.decode(out)[len(words.decode(ids)) :]

    # ---- keep ----------------------------------------------------------------------------------

    def save(self, folder: str | pathlib.Path) -> pathlib.Path:
        """Write the folder described above, each file whole or not at all.

        Errors: StorageError for a full disk or a missing permission.
        """
        folder = pathlib.Path(folder)
        form = self.saved_format()
        tensors = self.network.state_dict()
        if form != OURS:
            tensors = names.publish(tensors, models.family(self.family).PUBLISHED[form])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files.save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
            if self.kind == "text":
                self.processor.save(folder)
                self.save_pooling(folder)
            else:
                write_json(folder / "preprocessor_config.json", self.processor.to_dict())
            write_json(folder / "config.json", self.config_json(form))
            write_json(folder / "layerwise.json", self.own_json(form))
        except StorageError:
            raise
        except OSError as e:
            raise storage_error(e, folder) from e
        return folder

    @property
    def published_names(self) -> dict[str, str]:
        """The naming of its tensors elsewhere, as weights/names.py reads it."""
        form = self.card.get("format") or self.saved_format()
        return {"": ""} if form == OURS else models.family(self.family).PUBLISHED[form]

    def save_pooling(self, folder: pathlib.Path) -> None:
        """How a text becomes a vector, as sentence-transformers reads it."""
        config: Any = self.network.config
        if getattr(config, "head_kind", "") == "embed":
            held = config_encoders.sentence_json(config, self.processor.max_seq_len)
            for name, values in held.items():
                (folder / name).parent.mkdir(exist_ok=True)
                write_json(folder / name, values)

    def saved_format(self) -> str:
        """What opens it elsewhere: "timm", "huggingface" for text, else our own names."""
        module = models.family(self.family)
        if self.family == "bert":
            return config_encoders.published_format(self.network.config)  # type: ignore[arg-type]
        if self.kind == "text":
            return "huggingface"
        known = module.VARIANTS.get(self.variant)
        config: Any = self.network.config
        own = None if known is None else dataclasses.replace(known, n_classes=config.n_classes)
        same = own == config
        in_timm = self.variant in {c.variant for c in CARDS.values() if c.format == "timm"}
        return "timm" if same and in_timm else OURS

    def config_json(self, form: str) -> dict[str, Any]:
        if form == OURS:
            config = dataclasses.asdict(self.network.config)  # type: ignore[call-overload]
            return {"model_type": f"layerwise-{self.family}", **config}
        if self.kind == "text":
            return self.text_config()
        p = self.processor.to_dict()
        size = p.get("crop_size", p["size"])
        return {
            "architecture": self.variant,
            "num_classes": len(self.labels),
            "label_names": list(self.labels),
            "pretrained_cfg": {
                "input_size": [3, size["height"], size["width"]],
                "mean": p["image_mean"],
                "std": p["image_std"],
                "num_classes": len(self.labels),
            },
        }

    def text_config(self) -> dict[str, Any]:
        """What transformers reads, its special tokens and labels among it."""
        config: Any = self.network.config
        if self.family == "bert":
            values = config_encoders.encoder_json(config, self.labels)
        else:
            values = write_config(self.family, config)
        words = self.processor.tokenizer
        ids = {f"{role}_token_id": getattr(words, f"{role}_id") for role in ("bos", "eos", "pad")}
        return values | {k: v for k, v in ids.items() if self.family != "bert" or v is not None}

    def own_json(self, form: str) -> dict[str, Any]:
        return {
            "version": 1,
            "family": self.family,
            "variant": self.variant,
            "format": form,
            "config": dataclasses.asdict(self.network.config),  # type: ignore[call-overload]
            "kind": self.kind,
            "task": self.task.to_dict(),
            "temperature": self.temperature,
            "conformal": list(self.conformal),
            "card": self.card,
            **(self.reading() if self.kind == "text" else {}),
        }

    def reading(self) -> dict[str, Any]:
        """How texts are read, and by which tokenizer."""
        return {
            "processor": self.processor.to_dict(),
            "tokenizer": self.processor.tokenizer.fingerprint,
        }


KEYS = {
    "version", "family", "variant", "format", "config", "kind", "task", "temperature", "conformal",
    "card", "processor", "tokenizer",
}  # fmt: skip


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
    variant, processor = card.variant, None
    if hasattr(network.config, "vocab_size"):
        *_, above, name = ("", *pathlib.Path(card.name).parts)
        variant, processor = above if name == "model" else name, reader_of(network, card)
    processor = processor or ImageProcessor.from_dict(dict(card.processor))
    head = getattr(network.config, "head_kind", "class" if card.labels else "causal")
    task = task_of_head(card.problem or head, published.labels_of(card))
    return Model(network, card.family, processor, task, variant, card=dataclasses.asdict(card))


def load_adapted(folder: pathlib.Path) -> Model:
    """The base that a PEFT adapter names, with the adapter merged into it.

    Errors: WeightsError for an adapter of another base or vocabulary, or that names none.
    """
    base = peft.read_adapter_config(folder)["base_model_name_or_path"]
    if not base:
        raise WeightsError(
            f"{folder}: {peft.CONFIG} names no base; write its hub id or folder there, under "
            "base_model_name_or_path"
        )
    model = load(base)
    if (folder / "tokenizer.json").exists():
        Tokenizer.load(folder).check(model.network.config.vocab_size)  # type: ignore[union-attr]
    give_head(model, *peft.head_of(folder))
    peft.load_adapter(model.network, model.published_names, folder)
    model.card |= {"adapter": str(folder), "merged": lora.merge(model.network).to_dict()}
    model.network.requires_grad_(True)
    return model


def give_head(model: Model, kind: str, n_outputs: int) -> None:
    """The head that an adapter brings, where its base has another; classes without names."""
    config: Any = model.network.config
    if not kind or (config.head_kind, config.n_classes) == (kind, n_outputs):
        return
    model.network.reset_head(n_outputs, kind)  # type: ignore[operator]
    labels = () if kind == "span" else tuple(f"LABEL_{i}" for i in range(n_outputs))
    model.task, old = task_of_head(kind, labels), model.processor
    model.processor = READERS[reader_of_head(kind)](old.tokenizer, old.max_seq_len, old.token_types)
    model.card["format"] = model.saved_format()


def reader_of(network: nn.Module, card: Card) -> Any:
    """The processor of a published network of text, by the tokenizer that lies beside it."""
    config: Any = network.config
    kinds = getattr(config, "n_token_types", 0)
    make = READERS[reader_of_head(getattr(config, "head_kind", "causal"))]
    return make(published.tokenizer_of(card), card.processor["max_length"], kinds > 1)


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
    if own["kind"] == "text":
        tokenizer = Tokenizer.load(folder)
        tokenizer.check(config.vocab_size, own.get("tokenizer"), f"{folder}: ")
        values = {"reads": "text"} | own["processor"]
        processor: Any = READERS[values.pop("reads")](tokenizer, **values)
    else:
        saved = read_json(folder / "preprocessor_config.json")
        processor = PROCESSORS[own["kind"]].from_dict(saved)
    return Model(
        network,
        own["family"],
        processor,
        task_from_dict(own["task"]),
        own["variant"],
        own["temperature"],
        tuple(own["conformal"]),
        own["card"],
    )


def write_json(path: pathlib.Path, values: Any) -> None:
    """Write beside and rename, so that the file is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=1, ensure_ascii=False), "utf-8")
    partial.replace(path)
