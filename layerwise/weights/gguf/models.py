"""Networks from GGUF files and to them: `names.py` says how each architecture spells them."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch

from layerwise.errors import WeightsError
from layerwise.models.network import Network
from layerwise.tokens.gguf_vocabulary import KEY
from layerwise.tokens.sentencepieces import UNUSED
from layerwise.weights.files import filled
from layerwise.weights.gguf.config import architecture_for, config_of, divisors_of, metadata_of
from layerwise.weights.gguf.names import Architecture, Keys
from layerwise.weights.gguf.read import read_gguf
from layerwise.weights.gguf.write import write_gguf
from layerwise.weights.names import Rules, publish

FREQUENCIES = "rope_freqs.weight"  # Llama 3.1's scaling: what each frequency is divided by


def load_gguf(
    path: Path | str, dtype: torch.dtype | None = None
) -> tuple[Network, str, dict[str, Any]]:
    """The network in a GGUF file, its family, and the file's keys (tokenizer, chat template).

    dtype: of the weights; float32 by default. Errors: WeightsError for architectures and settings
    that no family of ours has, and for everything that `read_gguf` refuses.
    """
    metadata, tensors = read_gguf(path, dtype)
    shapes = {name: entry.shape for name, entry in tensors.entries.items()}
    scale = tensors[FREQUENCIES].double().numpy() if FREQUENCIES in shapes else None
    try:
        architecture, config = config_of(metadata, shapes, scale)
    except WeightsError as e:
        raise WeightsError(f"{path}: {e}") from e
    rules = tensor_rules(architecture, vars(config))
    network = filled(architecture.family, config, tensors, rules, str(path), dtype)
    return network, architecture.family, metadata


def save_gguf(
    path: Path | str,
    family: str,
    network: Network,
    kind: str = "BF16",
    metadata: Keys | None = None,
) -> None:
    """Write a network as a GGUF file that llama.cpp runs. kind: see `write_gguf`.

    metadata: further keys: the tokenizer ("tokenizer.ggml. ..."), "tokenizer.chat_template",
    "general.name". A vocabulary with fewer tokens than the network has rows is filled up.
    Errors: WeightsError for a network that llama.cpp would not compute the same.
    """
    fields = vars(network.config)
    architecture = architecture_for(family, fields)
    extra = metadata_of(architecture, fields) | dict(metadata or {})
    extra = _filled_up(extra, fields["vocab_size"])
    tensors = publish(network.state_dict(), tensor_rules(architecture, fields))
    if fields.get("rope_scaling") == "llama3":
        tensors = {FREQUENCIES: torch.from_numpy(divisors_of(fields)), **tensors}
    write_gguf(path, extra, tensors, kind)


def tensor_rules(architecture: Architecture, fields: Keys) -> Rules:
    """The architecture's names for a network with these fields of its config."""
    with_sizes = partial(re.sub, r"<(\w+)>", lambda found: str(fields[found[1]]))
    return {ours: with_sizes(theirs) for ours, theirs in architecture.tensors.items()}


def _filled_up(metadata: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """As many tokens as rows: published tables are padded, and llama.cpp counts the tokens."""
    tokens = metadata.get(f"{KEY}tokens")
    if tokens is None or len(tokens) == vocab_size:
        return metadata
    if len(tokens) > vocab_size:
        raise WeightsError(
            f"the tokenizer has {len(tokens):,} tokens, the network {vocab_size:,} rows for them; "
            f"it belongs to other weights"
        )
    spare = range(len(tokens), vocab_size)
    more: dict[str, list[Any]] = {f"{KEY}tokens": [f"[PAD{i}]" for i in spare]}
    more |= {f"{KEY}token_type": [UNUSED] * len(spare), f"{KEY}scores": [-1000.0] * len(spare)}
    return metadata | {k: [*metadata[k], *v] for k, v in more.items() if k in metadata}
