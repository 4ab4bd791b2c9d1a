"""Checkpoints of llama2.c (github.com/karpathy/llama2.c): one file of weights, one of tokens.

Read: the first form (a header of seven numbers; stories15M.bin and its siblings) and version 1
("ak42", a header of 256 bytes), both float32. The tensors come under Meta's own names, as the
family's PUBLISHED would have them, apart from query and key, whose rows are brought from pairs
(2i, 2i+1) to pairs (i, i + Dh/2).

Shapes: V vocabulary, L layers, D width, K kv heads, Dh head width, F mlp width.
"""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.errors import WeightsError
from layerwise.tokens.gguf_vocabulary import KEY
from layerwise.tokens.sentencepieces import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, is_byte
from layerwise.weights.names import permute_rope

MAGIC, HEADER_1 = b"24ka", 256
FIELDS = ("dim", "mlp_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
BLOCK = {  # the order of a file's blocks, and what each holds per layer
    "attn_norm": "D", "attn.q_proj": "HD", "attn.k_proj": "KD", "attn.v_proj": "KD",
    "attn.o_proj": "DH", "mlp_norm": "D", "mlp.gate_proj": "FD", "mlp.down_proj": "DF",
    "mlp.up_proj": "FD",
}  # fmt: skip


def is_llama2c(path: Path) -> bool:
    """By its suffix, and by what PyTorch's files of the same suffix do not begin with."""
    with path.open("rb") as file:
        start = file.read(4)
    return path.suffix == ".bin" and (start == MAGIC or start[2:] == b"\0\0")


def read_llama2c(path: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields of the llama family's Config, and its tensors under our names.

    Errors: WeightsError for a file that is truncated, too long, quantised, or no checkpoint.
    """
    path = Path(path)
    raw = _read(path)
    modern = raw[:4] == MAGIC
    if modern and (version := struct.unpack_from("<i", raw, 4)[0]) != 1:
        raise WeightsError(
            f"{path}: a llama2.c checkpoint of version {version} (quantised); export it again with "
            f"--version 0 or 1"
        )
    start, first = (HEADER_1, 8) if modern else (28, 0)
    if len(raw) < start:
        raise WeightsError(f"{path}: ends within its header, {len(raw)} bytes long; copy it again")
    fields: dict[str, int] = dict(zip(FIELDS, struct.unpack_from("<7i", raw, first), strict=True))
    tied = bool(raw[36]) if modern else fields["vocab_size"] > 0
    fields["vocab_size"] = abs(fields["vocab_size"])
    D, H, K = fields["dim"], fields["n_heads"], fields["n_kv_heads"]
    if min(fields.values()) < 1 or D % H or H % K or fields["n_layers"] > 10_000:
        raise WeightsError(f"{path}: not a llama2.c checkpoint: its header would mean {fields}")
    layout = _layout(fields, tied, modern)
    wanted = start + 4 * sum(map(math.prod, layout.values()))
    if wanted != len(raw):
        raise WeightsError(
            f"{path}: should be {wanted:,} bytes long by its header and is {len(raw):,}; "
            f"it is cut off, or not a llama2.c checkpoint"
        )
    numbers = torch.from_numpy(np.frombuffer(raw, "<f4", offset=start).copy())
    config = {**fields, "head_dim": D // H, "tied_head": tied}
    config |= {"norm_eps": 1e-5, "rope_theta": 10000.0}  # constants of its run.c
    return config, _tensors(numbers, layout, D // H)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror})") from e


def _layout(fields: dict[str, int], tied: bool, modern: bool) -> dict[str, tuple[int, ...]]:
    """Shapes by name, in the order of the file: {} stands for all layers, stacked; "" for the
    cosines and sines of the first form. Version 1 has norms first, as they stay float32 when the
    rest is quantised."""
    D, V, L = fields["dim"], fields["vocab_size"], fields["n_layers"]
    head_dim = D // fields["n_heads"]
    sizes = {"D": D, "H": D, "K": head_dim * fields["n_kv_heads"], "F": fields["mlp_dim"]}
    blocks = {f"blocks.{{}}.{n}.weight": (L, *(sizes[k] for k in s)) for n, s in BLOCK.items()}
    layout = {"token_embed.weight": (V, D), **blocks, "norm.weight": (D,)}
    head = {} if tied else {"head.weight": (V, D)}
    if not modern:
        return layout | {"": (2, fields["max_seq_len"], head_dim // 2)} | head
    norms = {name: shape for name, shape in layout.items() if name.endswith("norm.weight")}
    return norms | layout | head


def _tensors(
    numbers: Tensor, layout: dict[str, tuple[int, ...]], head_dim: int
) -> dict[str, Tensor]:
    tensors, at = {}, 0
    for name, shape in layout.items():
        piece, at = numbers[at : at + math.prod(shape)].reshape(shape), at + math.prod(shape)
        if "{}" not in name:
            tensors |= {name: piece} if name else {}
            continue
        turned = "q_proj" in name or "k_proj" in name
        for i, layer in enumerate(piece):
            tensors[name.format(i)] = permute_rope(layer, head_dim) if turned else layer
    return tensors


def tokenizer_beside(path: Path, vocab_size: int) -> Path:
    """The file of tokens that goes with a checkpoint: tok512.bin for 512 of them, or tokenizer.bin.

    Errors: WeightsError where neither is there.
    """
    for name in (f"tok{vocab_size}.bin", "tokenizer.bin"):
        if path.with_name(name).is_file():
            return path.with_name(name)
    raise WeightsError(
        f"{path}: neither tok{vocab_size}.bin nor tokenizer.bin beside it; copy the tokenizer that "
        f"came with these weights there"
    )


def read_llama2c_tokenizer(path: Path | str, vocab_size: int | None = None) -> dict[str, Any]:
    """tokenizer.bin as the keys a GGUF file has for a sentencepiece vocabulary.

    vocab_size: how many tokens there must be, where the weights say it.
    Returns tokens (with U+2581 for a blank), scores, types and the numbers of the control tokens:
    all that building a tokenizer takes. Errors: WeightsError for a file that is damaged, or of
    other weights.
    """
    path = Path(path)
    raw, at, pieces, scores = _read(path), 4, [], []
    while at < len(raw):
        if at + 8 > len(raw):
            raise WeightsError(f"{path}: ends within token {len(pieces)}; copy it again")
        score, size = struct.unpack_from("<fi", raw, at)
        if size < 0 or at + 8 + size > len(raw):
            raise WeightsError(
                f"{path}: token {len(pieces)} is said to be {size:,} bytes long, more than there "
                f"are; it is cut off, or not a tokenizer.bin"
            )
        pieces.append(raw[at + 8 : at + 8 + size].decode("utf-8", "surrogateescape"))
        scores.append(score)
        at += 8 + size
    if len(pieces) < 3 or (vocab_size or len(pieces)) != len(pieces):
        raise WeightsError(
            f"{path}: {len(pieces)} tokens where the weights have {vocab_size or '3 and more'}; "
            f"it belongs to other weights"
        )
    pieces[:3] = ["<unk>", "<s>", "</s>"]  # the file has them with line breaks around
    types = [UNKNOWN, CONTROL, CONTROL, *(BYTE if is_byte(p) else NORMAL for p in pieces[3:])]
    keys = {
        "model": "llama", "tokens": [p.replace(" ", SPACE) for p in pieces], "scores": scores,
        "token_type": types, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
        "add_bos_token": True, "add_space_prefix": True,
    }  # fmt: skip
    return {KEY + key: value for key, value in keys.items()}
