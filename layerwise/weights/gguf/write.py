"""GGUF files written as llama.cpp reads them, whole or not at all; `read.py` reads them."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from layerwise.errors import WeightsError
from layerwise.storage import replacing
from layerwise.weights.gguf.quants import Kind, kind_named, pack
from layerwise.weights.gguf.read import ALIGNMENT, ARRAY, MAGIC, MOST_DIMENSIONS, STRING

TYPES = {"B": 0, "I": 4, "i": 5, "f": 6, "?": 7, "Q": 10, "q": 11}  # the types that are written


def kind_for(name: str, shape: Sequence[int], kind: str, tied: bool = False) -> str:
    """The kind for one tensor of a file mostly of `kind`, by llama.cpp's rules.

    Vectors, norms, routers and positions stay F32; rows that are not whole blocks fall back to F16;
    at four bits the head, and a token embedding that is the head too, get eight.
    """
    wanted = kind_named(kind)
    small = name.endswith("norm.weight") or "ffn_gate_inp" in name or "position_embd" in name
    if len(shape) < 2 or small:
        return "F32"
    if shape[-1] % wanted.block:
        return "F16"
    head = name == "output.weight" or (tied and name == "token_embd.weight")
    return "Q8_0" if head and wanted.name == "Q4_0" else wanted.name


def write_gguf(
    path: Path | str, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], kind: str = "BF16"
) -> None:
    """Write a GGUF file (version 3), whole or not at all.

    metadata: keys and values, as `read_metadata` gives them; must have "general.architecture".
    Whole numbers are written as UINT32 (lists: INT32) where they fit, others as FLOAT32.
    tensors: by their names in the file. kind: F32, F16, BF16, Q8_0 or Q4_0, for most of them:
    see `kind_for`.
    Errors: WeightsError for what the format cannot hold; StorageError for the disk.
    """
    if "general.architecture" not in metadata:
        raise WeightsError("a GGUF file needs the key 'general.architecture', such as 'llama'")
    tied = "output.weight" not in tensors
    chosen = {n: kind_named(kind_for(n, t.shape, kind, tied)) for n, t in tensors.items()}
    metadata = {k: v for k, v in metadata.items() if not k.startswith("split.")}
    metadata |= {"general.file_type": kind_named(kind).file_type}
    if any(k.block > 1 for k in chosen.values()):
        metadata["general.quantization_version"] = 2
    alignment = int(metadata.get("general.alignment", ALIGNMENT))
    head = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += _packed_text(key) + _packed(value, key)
    offset = 0
    for name, tensor in tensors.items():
        head += _packed_entry(name, tuple(tensor.shape), chosen[name], offset)
        size = tensor.numel() // chosen[name].block * chosen[name].bytes
        offset += -(-size // alignment) * alignment
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(head + bytes(-len(head) % alignment))
        for name, tensor in tensors.items():
            raw = pack(tensor, chosen[name], f"'{name}'")
            file.write(raw.data)
            file.write(bytes(-len(raw) % alignment))


def _packed_text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _packed_entry(name: str, shape: tuple[int, ...], kind: Kind, offset: int) -> bytes:
    if len(shape) > MOST_DIMENSIONS or (shape and shape[-1] % kind.block):
        raise WeightsError(f"'{name}' {shape} cannot be stored as {kind.name} in a GGUF file")
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    return _packed_text(name) + dimensions + struct.pack("<IQ", kind.number, offset)


def _packed(value: object, key: str) -> bytes:
    """The type and the value."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _packed_text(value)
    if isinstance(value, bytes):
        return struct.pack("<IIQ", ARRAY, TYPES["B"], len(value)) + value
    if isinstance(value, list | tuple):
        if all(isinstance(v, str) for v in value):
            kind, items = STRING, b"".join(map(_packed_text, value))
        else:
            form = _form(value, key, "i")
            kind, items = TYPES[form], struct.pack(f"<{len(value)}{form}", *value)
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + items
    form = _form([value], key, "I")
    return struct.pack("<I" + form, TYPES[form], value)


def _form(values: Sequence[Any], key: str, whole: str) -> str:
    """The narrowest of the usual types that holds all values."""
    if all(isinstance(v, bool) for v in values):
        return "?"
    if not all(isinstance(v, int | float) for v in values):
        raise WeightsError(f"the value of '{key}' is of a type that GGUF does not have: {values!r}")
    if any(isinstance(v, float) for v in values):
        return "f"
    low, high = min(values), max(values)
    fits = {"I": (0, 2**32), "i": (-(2**31), 2**31), "q": (-(2**63), 2**63), "Q": (0, 2**64)}
    for form in (whole, "i", "q", "Q"):
        if fits[form][0] <= low and high < fits[form][1]:
            return form
    raise WeightsError(f"the value of '{key}' does not fit into 64 bits: {high}")
