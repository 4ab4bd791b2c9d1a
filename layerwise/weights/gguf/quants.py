"""GGUF's block formats: 32 or 256 numbers of a row share a scale, packed as llama.cpp packs them.

Read: F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q6_K. Written: all of these but the last two, rounded as
llama.cpp's reference does, bit for bit. Source of the layouts: ggml-common.h and ggml-quants.c of
github.com/ggml-org/llama.cpp; the operations keep its order, so that the numbers are the same.

Legend: n blocks of k numbers.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from layerwise.errors import WeightsError, nearest

PIECE = 4096  # blocks unpacked at once: they stay in the processor's cache


@dataclass(frozen=True)
class Kind:
    """How a tensor's numbers are stored: `block` of them in the bytes of one `layout`."""

    name: str
    number: int  # GGUF's own
    block: int
    layout: str | np.dtype  # of one block
    file_type: int  # general.file_type of a file mostly of this kind

    @property
    def bytes(self) -> int:
        return np.dtype(self.layout).itemsize


_D = ("d", "<f2")  # the scale of a block
_Q4_K = np.dtype([_D, ("dmin", "<f2"), ("scales", "u1", (3, 4)), ("q", "u1", (4, 32))])
_Q6_K = np.dtype([("low", "u1", (2, 64)), ("high", "u1", (2, 32)), ("scales", "i1", 16), _D])
KINDS = {
    "F32": Kind("F32", 0, 1, "<f4", 0),
    "F16": Kind("F16", 1, 1, "<f2", 1),
    "BF16": Kind("BF16", 30, 1, "<u2", 32),
    "Q8_0": Kind("Q8_0", 8, 32, np.dtype([_D, ("q", "i1", 32)]), 7),
    "Q4_0": Kind("Q4_0", 2, 32, np.dtype([_D, ("q", "u1", 16)]), 2),
    "Q4_K": Kind("Q4_K", 12, 256, _Q4_K, 15),
    "Q6_K": Kind("Q6_K", 14, 256, _Q6_K, 18),
}
WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
_NAMES = """F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS
IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 Q4_0_4_4 Q4_0_4_8
Q4_0_8_8 TQ1_0 TQ2_0 IQ4_NL_4_4 IQ4_NL_4_8 IQ4_NL_8_8 MXFP4 NVFP4 Q1_0"""
NAMES = tuple(_NAMES.split())  # of all kinds, in GGUF's numbering
BY_NUMBER = {kind.number: kind for kind in KINDS.values()}


def kind_numbered(number: int, where: str) -> Kind:
    """The kind with GGUF's number. Error: one that is not read here, by its name."""
    if number in BY_NUMBER:
        return BY_NUMBER[number]
    name = NAMES[number] if number < len(NAMES) else f"number {number}"
    raise WeightsError(
        f"{where} is stored as {name}, which is not read here (only {', '.join(KINDS)}); "
        f"take the file in one of these, or convert it with llama-quantize"
    )


def kind_named(name: str) -> Kind:
    """A kind that can be written, by its name in any case."""
    if name.upper() not in WRITTEN:
        raise WeightsError(
            f"unknown kind of GGUF tensor '{name}'{nearest(name.upper(), WRITTEN)} "
            f"Written here: {', '.join(WRITTEN)}."
        )
    return KINDS[name.upper()]


# ---- unpacking ---------------------------------------------------------------------------------
def unpack(raw: np.ndarray, kind: Kind, shape: tuple[int, ...]) -> Tensor:
    """The numbers of a tensor: F32, F16 and BF16 as they are (no copy), the rest as float32.

    raw: its bytes, uint8; shape: of the result.
    """
    blocks = raw.view(kind.layout) if raw.ctypes.data % 4 == 0 else raw.copy().view(kind.layout)
    if kind.block == 1:
        numbers = torch.from_numpy(blocks)
        return (numbers.view(torch.bfloat16) if kind.name == "BF16" else numbers).reshape(shape)
    out = np.empty((len(blocks), kind.block), np.float32)
    for i in range(0, len(blocks), PIECE):
        out[i : i + PIECE] = UNPACK[kind.name](blocks[i : i + PIECE])
    return torch.from_numpy(out).reshape(shape)


def _nibbles(q: np.ndarray) -> np.ndarray:
    """(n, ..., k) bytes to (n, ..., 2, k): first all low halves, then all high ones."""
    return np.stack([q & 15, q >> 4], axis=-2)


def _scale(d: np.ndarray) -> np.ndarray:
    return d.astype(np.float32)[:, None]  # (n, 1)


def _q8_0(b: np.ndarray) -> np.ndarray:
    return b["q"].astype(np.float32) * _scale(b["d"])


def _q4_0(b: np.ndarray) -> np.ndarray:
    q = _nibbles(b["q"]).reshape(len(b), 32).astype(np.int8) - np.int8(8)
    return q.astype(np.float32) * _scale(b["d"])


def _q4_k(b: np.ndarray) -> np.ndarray:
    """8 parts of 32, each with a scale and a minimum of 6 bits; the last 4 are in pieces."""
    low, mid, rest = (b["scales"][:, i] for i in range(3))  # (n, 4) each
    scales = np.concatenate([low & 63, (rest & 15) | ((low >> 2) & 48)], axis=1)  # (n, 8)
    minima = np.concatenate([mid & 63, (rest >> 4) | ((mid >> 2) & 48)], axis=1)
    d = (_scale(b["d"]) * scales.astype(np.float32))[:, :, None]
    least = (_scale(b["dmin"]) * minima.astype(np.float32))[:, :, None]
    q = _nibbles(b["q"]).reshape(len(b), 8, 32).astype(np.float32)
    return (d * q - least).reshape(len(b), 256)


def _q6_k(b: np.ndarray) -> np.ndarray:
    """16 parts of 16 with a scale each; 4 low bits and 2 high bits lie apart, in halves of 128."""
    low = _nibbles(b["low"]).reshape(len(b), 2, 4, 32)
    high = np.stack([(b["high"] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=2)  # (n, 2, 4, 32)
    q = (low | (high << 4)).astype(np.int8) - np.int8(32)
    d = (_scale(b["d"]) * b["scales"].astype(np.float32))[:, :, None]  # (n, 16, 1)
    return (d * q.reshape(len(b), 16, 16).astype(np.float32)).reshape(len(b), 256)


UNPACK = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_K": _q4_k, "Q6_K": _q6_k}


# ---- packing -----------------------------------------------------------------------------------
def pack(tensor: Tensor, kind: Kind, name: str = "the tensor") -> np.ndarray:
    """The bytes (uint8) of a tensor in one of WRITTEN; its rows must be whole blocks.

    Errors: numbers that the kind cannot hold (not finite; too large for F16), named.
    """
    numbers = tensor.detach().cpu().contiguous()
    if kind.name == "BF16":
        return _bytes(numbers.to(torch.bfloat16).view(torch.int16).numpy())
    if kind.name == "F16":
        half = numbers.to(torch.float16)
        if (half.isinf() & numbers.isfinite()).any():
            largest = f"{numbers.abs().max().item():.3g}, beyond the 65,504 of F16"
            raise WeightsError(f"{name} reaches {largest}: write BF16 or Q8_0")
        return _bytes(half.numpy())
    numbers = numbers.float().numpy().reshape(-1, kind.block)
    if kind.name == "F32":
        return _bytes(numbers)
    if not np.isfinite(numbers).all():
        raise WeightsError(
            f"{name} holds numbers that are not finite, which {kind.name} cannot hold; "
            f"the training that made it went wrong"
        )
    packed = np.empty(len(numbers), kind.layout)
    for i in range(0, len(numbers), PIECE):
        PACK[kind.name](numbers[i : i + PIECE], packed[i : i + PIECE])
    return _bytes(packed)


def _bytes(numbers: np.ndarray) -> np.ndarray:
    return numbers.reshape(-1).view(np.uint8)


def _inverse(d: np.ndarray) -> np.ndarray:
    """1 / d, and 0 where a whole block is zero (or so near to it that 1 / d overflows)."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _to_q8_0(x: np.ndarray, out: np.ndarray) -> None:
    d = np.abs(x).max(1) / np.float32(127)
    y = x * _inverse(d)[:, None]
    size = np.abs(y)
    whole = np.floor(size)
    out["q"] = np.sign(y) * (whole + np.floor(2 * (size - whole)))  # halves away from zero
    out["d"] = d


def _to_q4_0(x: np.ndarray, out: np.ndarray) -> None:
    largest = np.take_along_axis(x, np.abs(x).argmax(1, keepdims=True), 1)[:, 0]
    d = largest / np.float32(-8)
    q = np.trunc(x * _inverse(d)[:, None] + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    out["q"] = q[:, :16] | (q[:, 16:] << 4)
    with np.errstate(over="ignore"):
        out["d"] = d


PACK = {"Q8_0": _to_q8_0, "Q4_0": _to_q4_0}
