"""The transformers of `bench/diagnosis.py`: a decoder and an encoder on real text, and how to break
them. Everything else is as for the other architectures in `faults.py`."""

import csv
import functools
import gzip
import pathlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise import models, runtime
from layerwise.data.examples import Batch
from layerwise.kinds.text.corpus import NO_LOSS
from layerwise.models.network import Network
from layerwise.tokens.training import train_bpe

T, ROWS = 32, 4000
LETTERS, WORDS, TOPICS = 128, 2048, 4


def architectures() -> list[tuple[str, Any, Any, str, int, float]]:
    """Name, Model, config, data, steps, learning rate."""
    llama, bert = models.family("llama"), models.family("bert")
    small = {"max_seq_len": T, "dim": 64, "n_layers": 3, "n_heads": 4, "mlp_dim": 128}
    attend = {"n_kv_heads": 4, "head_dim": 16, "tied_head": True}
    decoder = llama.Config(vocab_size=LETTERS, **small, **attend)
    none = {"dropout": 0.0, "attn_dropout": 0.0, "head_dropout": 0.0, "head_kind": "class"}
    encoder = bert.Config(vocab_size=WORDS, **small, **none, n_classes=TOPICS)
    return [
        ("decoder", llama.Model, decoder, "shakespeare", 150, 3e-3),
        ("encoder", bert.Model, encoder, "ag_news", 200, 2e-3),
    ]


@functools.cache
def load(name: str, folder: pathlib.Path) -> tuple[Tensor, Tensor]:
    """Tokens (n, T), and what follows each (n, T), or a topic (n,); padding is token -1."""
    if name == "shakespeare":
        text = (folder / "text" / "tinyshakespeare.txt").read_bytes()[: ROWS * T + 1]
        rows = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
        return rows[:-1].reshape(ROWS, T), rows[1:].reshape(ROWS, T)
    path = folder / "text-classification" / "ag_news" / "train10k.tsv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[: 2 * ROWS]
    texts, topics = zip(*((line[0], line[1]) for line in lines if len(line) == 2), strict=True)
    names = sorted(set(topics))
    tokenizer = train_bpe(texts, WORDS)
    x = torch.full((len(texts), T), -1)
    for i, ids in enumerate(tokenizer.encode_batch(texts, special=False)):
        ids = [tokenizer.eos_id, *ids][:T]  # the encoder answers at the first position
        x[i, : len(ids)] = torch.tensor(ids)
    return x, torch.tensor([names.index(t) for t in topics])


def batch_of(x: Tensor, y: Tensor, rows: Tensor) -> Batch:
    """Rows with their padding masked."""
    tokens = x[rows]
    mask = tokens >= 0
    extra = {} if bool(mask.all()) else {"mask": mask}
    return Batch({"tokens": tokens.clamp_min(0), "targets": y[rows], **extra}, rows.numpy())


def spoilt(y: Tensor, options: dict[str, Any], generator: torch.Generator) -> Tensor:
    """The targets shuffled, or without loss in some rows, as the fault asks."""
    if options.get("shuffled"):
        flat = y.flatten()
        y = flat[torch.randperm(len(flat), generator=generator)].view_as(y)
    if options.get("masked"):
        y = y.clone()
        y[torch.rand(len(y), generator=generator) < options["masked"]] = NO_LOSS
    return y


# ---- how to break them ---------------------------------------------------------------------------


def sharpen(network: nn.Module) -> None:
    """Queries and keys so large that a head reads one key alone."""
    for name, p in network.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            p.data *= 25.0


def collapse(network: nn.Module) -> None:
    """Token embeddings that are one vector and a trace of difference."""
    tables = [m for m in network.modules() if isinstance(m, nn.Embedding)]
    table = max(tables, key=lambda m: m.num_embeddings)
    table.weight.data = torch.randn(1, table.embedding_dim) + 1e-4 * table.weight.data


def kill_heads(network: nn.Module) -> None:
    """Heads without values and without a way out."""
    m: Any
    for m in network.modules():
        if hasattr(m, "o_proj"):
            m.v_proj.weight.data.zero_()
            m.o_proj.weight.data.zero_()


def scores(network: Network, test: Batch) -> tuple[float, float]:
    """Mean loss and accuracy over what carries loss."""
    with runtime.evaluating(network):
        logits = network(**test.select(network.READS)).float().flatten(0, -2)
    targets = test["targets"].flatten()
    loss = float(F.cross_entropy(logits, targets))
    right = logits.argmax(1) == targets
    return loss, float(right[targets >= 0].float().mean())
