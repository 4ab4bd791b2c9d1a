"""`config.json` of text encoders, both ways; and the folders of sentence-transformers.

Hugging Face's `model_type` says whose network it is, `architectures` which head the file has;
`modules.json` says how sentence-transformers makes one vector of a text. What they ask for and our
network cannot do is an error that names the field.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layerwise.errors import WeightsError
from layerwise.models.bert import Config
from layerwise.storage import read_json
from layerwise.weights.cards import Card, named_labels, numbered
from layerwise.weights.configs.rope import check, refused
from layerwise.weights.configs.text import HARMLESS

# ours: theirs in BERT and RoBERTa, theirs in DistilBERT, their default where both have one
FIELDS: dict[str, tuple[str, str, Any]] = {
    "vocab_size": ("vocab_size", "vocab_size", None),
    "dim": ("hidden_size", "dim", 768),
    "n_layers": ("num_hidden_layers", "n_layers", None),
    "n_heads": ("num_attention_heads", "n_heads", 12),
    "mlp_dim": ("intermediate_size", "hidden_dim", 3072),
    "max_seq_len": ("max_position_embeddings", "max_position_embeddings", 512),
    "dropout": ("hidden_dropout_prob", "dropout", 0.1),
    "attn_dropout": ("attention_probs_dropout_prob", "attention_dropout", 0.1),
    "head_dropout": ("classifier_dropout", "seq_classif_dropout", None),
}
STYLES = {  # their model_type: ours; XLM-RoBERTa and CamemBERT are RoBERTa with other words
    "bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta",
    "distilbert": "distilbert",
}  # fmt: skip
KINDS = {  # what follows "BertFor" in `architectures`: our head_kind
    "MaskedLM": "masked", "PreTraining": "masked", "SequenceClassification": "class",
    "TokenClassification": "tag", "QuestionAnswering": "span",
}  # fmt: skip
PROBLEMS = ("regression", "multi_label_classification")  # their problem_type, beside one class
CLASSES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
ONLY: dict[str, tuple[Any, ...]] = {  # settings that make a network we do not have
    "hidden_act": ("gelu",), "activation": ("gelu",), "position_embedding_type": ("absolute",),
    "is_decoder": (False,), "add_cross_attention": (False,), "sinusoidal_pos_embds": (False,),
    "is_encoder_decoder": (False,), "pruned_heads": ({}, None),
}  # fmt: skip
# read above or below, or of no effect on what comes out of the network
KNOWN = f"""{HARMLESS} type_vocab_size layer_norm_eps num_labels _num_labels tie_word_embeddings
tie_weights_ qa_dropout gradient_checkpointing directionality finetuning_task output_past
name_or_path pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
pooler_type sentence_transformers"""


# ---- theirs to ours ----------------------------------------------------------------------------
def encoder_config(values: Mapping[str, Any], head_kind: str | None = None) -> Config:
    """Our Config for their config.json; the head is that of `architectures` unless given.

    Errors: WeightsError naming a field whose value asks for another network.
    """
    kind = values.get("model_type", "")
    if kind not in STYLES:
        raise refused("model_type", kind, STYLES)
    check(values, ONLY, {*KNOWN.split(), *(name for row in FIELDS.values() for name in row[:2])})
    style, head_kind = STYLES[kind], head_kind or _head_kind(values)
    if head_kind == "masked" and not values.get("tie_word_embeddings", True):
        raise refused("tie_word_embeddings", False, (True,))
    if "vocab_size" not in values:
        raise WeightsError("config.json: no vocab_size in it; fetch the file again")
    fields = _sizes(values, style)
    fields["n_classes"] = len(values.get("id2label") or {}) or values.get("num_labels", 2)
    if head_kind == "span" and fields["n_classes"] != 2:
        raise refused("num_labels", fields["n_classes"], (2,))
    return Config(style=style, head_kind=head_kind, **fields)


def _sizes(values: Mapping[str, Any], style: str) -> dict[str, Any]:
    distil = style == "distilbert"
    fields = {ours: values.get(row[distil], row[2]) for ours, row in FIELDS.items()}
    if fields["n_layers"] is None:
        fields["n_layers"] = 6 if distil else 12
    if fields["head_dropout"] is None:
        fields["head_dropout"] = 0.2 if distil else fields["dropout"]
    if style == "roberta":
        fields["max_seq_len"] -= Config(style=style).first_position
        if values.get("pad_token_id", 1) != 1:  # positions count from the one after it
            raise refused("pad_token_id", values["pad_token_id"], (1,))
    fields["n_token_types"] = 0 if distil else values.get("type_vocab_size", 2)
    fields["norm_eps"] = 1e-12 if distil else values.get("layer_norm_eps", 1e-12)
    return fields


def _head_kind(values: Mapping[str, Any]) -> str:
    """From "BertForMaskedLM" and the like; a bare "BertModel" gives vectors."""
    name = next(iter(values.get("architectures") or ()), "Model")
    if name.endswith("Model"):
        return "embed"
    kind = KINDS.get(name.partition("For")[2])
    if kind is None:
        raise refused("architectures", name, (f"...For{k}" for k in KINDS))
    return kind


# ---- sentence-transformers ---------------------------------------------------------------------
POOLING = "1_Pooling"
MODULES = ("Transformer", "Pooling", "Normalize")


def sentence_fields(folder: Path) -> dict[str, Any]:
    """How a folder of sentence-transformers pools: our `head_kind`, `pooling`, `normalise`.

    Empty for a folder without `modules.json`. Errors: WeightsError for modules we do not have.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    modules = {m["type"].rsplit(".", 1)[-1]: m for m in read_json(path, list)}
    for name in modules:
        if name not in MODULES:
            raise refused("type", name, MODULES, path)
    place = folder / modules.get("Pooling", {}).get("path", POOLING) / "config.json"
    values = read_json(place)
    ways = [key for key in values if key.startswith("pooling_mode_") and values[key]]
    mode = values.get("pooling_mode") or "+".join(w.removeprefix("pooling_mode_") for w in ways)
    known = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}
    if mode not in known:
        raise refused("pooling_mode", mode, ("mean", "cls"), place)
    return {"head_kind": "embed", "pooling": known[mode], "normalise": "Normalize" in modules}


def max_length(folder: Path, config: Config) -> int:
    """How many tokens of a text are read: fewer than the network could where the folder says so."""
    path = folder / "sentence_bert_config.json"
    said = read_json(path).get("max_seq_length") if path.is_file() else None
    return min(said or config.max_seq_len, config.max_seq_len)


def encoder_card(values: Mapping[str, Any], source: str, folder: Path) -> Card:
    """The card of a model folder: what network, which names, labels, how long texts may be."""
    sentence = sentence_fields(folder)
    config = encoder_config(values, sentence.get("head_kind"))
    fields = {**vars(config), **sentence} if sentence else {**vars(config), "normalise": False}
    said = "regression" if config.n_classes == 1 else values.get("problem_type")
    problem = said if config.head_kind == "class" and said in PROBLEMS else ""
    labels = named_labels(values) or numbered(config.n_classes)
    return Card(
        *(source, "bert", "bert-base-uncased", published_format(config), source),
        processor={"max_length": max_length(folder, config)},
        labels=labels if config.head_kind in ("class", "tag") and problem != PROBLEMS[0] else (),
        config=fields,
        problem=problem,
    )


def published_format(config: Config) -> str:
    """Which table of `PUBLISHED` names the tensors of such a network."""
    return f"{config.style}-{config.head_kind}"


# ---- ours to theirs ----------------------------------------------------------------------------
def encoder_json(config: Config, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Their config.json for our Config."""
    distil = config.style == "distilbert"
    kind = next((k for k, ours in KINDS.items() if ours == config.head_kind), None)
    n_labels = 2 if kind == "QuestionAnswering" else config.n_classes
    labels = labels or [f"LABEL_{i}" for i in range(n_labels)]
    values = {row[distil]: vars(config)[ours] for ours, row in FIELDS.items()}
    values |= {
        "model_type": config.style,
        "architectures": [CLASSES[config.style] + (f"For{kind}" if kind else "Model")],
        "max_position_embeddings": config.max_seq_len + config.first_position,
        "pad_token_id": 1 if config.style == "roberta" else 0,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "activation" if distil else "hidden_act": "gelu",
    }
    if config.style == "roberta":
        values |= {"bos_token_id": 0, "eos_token_id": 2}
    if not distil:
        values |= {"type_vocab_size": config.n_token_types, "layer_norm_eps": config.norm_eps}
    return values


def sentence_json(config: Config, max_length: int) -> dict[str, Any]:
    """The files of sentence-transformers beside config.json: path in the folder -> content."""
    names = MODULES if config.normalise else MODULES[:2]
    cls, paths = config.pooling == "cls", ("", POOLING, "2_Normalize")
    types = [f"sentence_transformers.models.{name}" for name in names]
    modules = [{"idx": i, "name": str(i), "path": paths[i], "type": t} for i, t in enumerate(types)]
    return {
        "modules.json": modules,
        f"{POOLING}/config.json": {
            "word_embedding_dimension": config.dim,
            "pooling_mode_cls_token": cls,
            "pooling_mode_mean_tokens": not cls,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
    }
