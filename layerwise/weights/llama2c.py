"""Checkpoints of llama2.c (github.com/karpathy/llama2.c): one file of weights, one of tokens.

Read: the first form (a header of seven numbers; stories15M.bin and its siblings) and version 1
("ak42", a header of 256 bytes), both float32. The tensors come under Meta's own names, as the
family's PUBLISHED would have them, apart from query and key, whose rows are brought from pairs
(2i, 2i+1) to pairs (i, i + Dh/2).

Shapes: V vocabulary, L layers, D width, K kv heads, Dh head width, F mlp width.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.errors import WeightsError
from layerwise.weights.names import permute_rope

NORM_EPS, ROPE_THETA = 1e-5, 10000.0  # constants of its run.c
MAGIC, HEADER_1 = b"24ka", 256
FIELDS = ("dim", "mlp_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
BLOCK = {  # the order of a file's blocks, and what each holds per layer
    "attn_norm": "D", "attn.q_proj": "HD", "attn.k_proj": "KD", "attn.v_proj": "KD",
    "attn.o_proj": "DH", "mlp_norm": "D", "mlp.gate_proj": "FD", "mlp.down_proj": "DF",
    "mlp.up_proj": "FD",
}  # fmt: skip
NORMS = ("attn_norm", "mlp_norm")
CONTROL, UNKNOWN, BYTE, NORMAL = 3, 2, 6, 1  # GGUF's types of tokens


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
    if len(raw) < (HEADER_1 if modern else 28):
        raise WeightsError(f"{path}: ends within its header, {len(raw)} bytes long; copy it again")
    fields: dict[str, int] = dict(
        zip(FIELDS, struct.unpack_from("<7i", raw, 8 if modern else 0), strict=True)
    )
    tied = bool(raw[36]) if modern else fields["vocab_size"] > 0
    fields["vocab_size"] = abs(fields["vocab_size"])
    _check_fields(fields, path)
    layout = _modern_layout(fields, tied) if modern else _first_layout(fields, tied)
    start = HEADER_1 if modern else 28
    wanted = start + 4 * sum(int(np.prod(shape)) for _, shape in layout)
    if wanted != len(raw):
        raise WeightsError(
            f"{path}: should be {wanted:,} bytes long by its header and is {len(raw):,}; "
            f"it is cut off, or no llama2.c checkpoint"
        )
    numbers = torch.from_numpy(np.frombuffer(raw, "<f4", offset=start).copy())
    config = {**fields, "head_dim": fields["dim"] // fields["n_heads"], "tied_head": tied}
    config |= {"norm_eps": NORM_EPS, "rope_theta": ROPE_THETA}
    return config, _tensors(numbers, layout, config)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror})") from e


def _check_fields(fields: dict[str, int], path: Path) -> None:
    D, H, K = fields["dim"], fields["n_heads"], fields["n_kv_heads"]
    if min(fields.values()) < 1 or D % H or H % K or fields["n_layers"] > 10_000:
        raise WeightsError(f"{path}: no llama2.c checkpoint: its header would mean {fields}")


def _shape(letters: str, fields: dict[str, int]) -> tuple[int, ...]:
    D, H = fields["dim"], fields["n_heads"]
    sizes = {"D": D, "H": D, "K": D // H * fields["n_kv_heads"], "F": fields["mlp_dim"]}
    return tuple(sizes[letter] for letter in letters)


def _first_layout(fields: dict[str, int], tied: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Names (with {} for all layers, stacked) and shapes, in the order of the file."""
    D, V, L = fields["dim"], fields["vocab_size"], fields["n_layers"]
    blocks = [(f"blocks.{{}}.{n}.weight", (L, *_shape(s, fields))) for n, s in BLOCK.items()]
    turns = ("", (2, fields["max_seq_len"], D // fields["n_heads"] // 2))  # cosines and sines
    head = [] if tied else [("head.weight", (V, D))]
    return [("token_embed.weight", (V, D)), *blocks, ("norm.weight", (D,)), turns, *head]


def _modern_layout(fields: dict[str, int], tied: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Norms first, as they stay float32 when the rest is quantised; no turns."""
    first = dict(_first_layout(fields, tied))
    del first[""]
    norms = [f"blocks.{{}}.{name}.weight" for name in NORMS]
    order = [*norms, "norm.weight", "token_embed.weight"]
    return [(n, first[n]) for n in order + [n for n in first if n not in order]]


def _tensors(
    numbers: Tensor, layout: list[tuple[str, tuple[int, ...]]], config: dict[str, Any]
) -> dict[str, Tensor]:
    tensors, at = {}, 0
    for name, shape in layout:
        size = int(np.prod(shape))
        piece, at = numbers[at : at + size].reshape(shape), at + size
        if "{}" not in name:
            tensors |= {name: piece} if name else {}
            continue
        turned = "q_proj" in name or "k_proj" in name
        for i, layer in enumerate(piece):
            own = permute_rope(layer, config["head_dim"]) if turned else layer
            tensors[name.format(i)] = own
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
    raw, at = _read(path), 4
    pieces, scores = [], []
    while at < len(raw):
        if at + 8 > len(raw):
            raise WeightsError(f"{path}: ends within token {len(pieces)}; copy it again")
        score, size = struct.unpack_from("<fi", raw, at)
        if size < 0 or at + 8 + size > len(raw):
            raise WeightsError(
                f"{path}: token {len(pieces)} is said to be {size:,} bytes long, more than there "
                f"are; it is cut off, or no tokenizer.bin"
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
    byte = [len(p) == 6 and p.startswith("<0x") and p.endswith(">") for p in pieces]
    types = [UNKNOWN, CONTROL, CONTROL, *(BYTE if is_byte else NORMAL for is_byte in byte[3:])]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [p.replace(" ", "\u2581") for p in pieces],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
    }
