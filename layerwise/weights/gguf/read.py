"""GGUF files, llama.cpp's format, read lazily from a mapped file.

A file is a header of typed keys (the config, the tokenizer, the chat template), a table of tensors
and their bytes. Nothing in it is believed: every count, length and offset is held against the size
of the file before anything is read or allocated. Versions 2 and 3, little-endian.
Source: docs/gguf.md of github.com/ggml-org/ggml.
"""

import itertools
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.errors import WeightsError
from layerwise.weights.files import foreign
from layerwise.weights.gguf.quants import Kind, kind_numbered, unpack

MAGIC = b"GGUF"
ALIGNMENT = 32
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MOST_DIMENSIONS, MOST_NESTED = 4, 4


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies. shape is torch's: GGUF counts dimensions from the innermost."""

    kind: Kind
    shape: tuple[int, ...]
    start: int  # in the file
    size: int  # bytes


class GgufTensors(Mapping[str, Tensor]):
    """The tensors of a file by their names there; each is unpacked when it is asked for.

    F32, F16 and BF16 share memory with the file and cost none until touched; writing into one
    changes a private copy, never the file. dtype: what to convert every tensor to.
    """

    def __init__(self, entries: Mapping[str, Entry], data: np.ndarray, dtype: torch.dtype | None):
        self.entries, self._data, self._dtype = entries, data, dtype

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        raw = self._data[entry.start : entry.start + entry.size]
        tensor = unpack(raw, entry.kind, entry.shape)
        return tensor if self._dtype is None else tensor.to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


# ---- reading -----------------------------------------------------------------------------------
def read_metadata(path: Path | str) -> dict[str, Any]:
    """The keys of a GGUF file: numbers, texts, lists; lists of bytes as `bytes`."""
    return _header(_Cursor(path))[0]


def read_gguf(
    path: Path | str, dtype: torch.dtype | None = None
) -> tuple[dict[str, Any], GgufTensors]:
    """The keys and the tensors of a GGUF file; no tensor is read before it is asked for.

    dtype: what to convert tensors to; by default the unpacked kinds come as float32.
    Errors: WeightsError for a file that is not GGUF, is truncated, lies about its contents, or
    holds a kind of tensor that is not read here, by its name.
    """
    cursor = _Cursor(path)
    metadata, n_tensors = _header(cursor)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.lie(f"general.alignment is {alignment!r}, not a power of two")
    entries = _entries(cursor, n_tensors, alignment)
    if metadata.get("split.count", 1) > 1:
        raise WeightsError(
            f"{cursor.path}: part {metadata.get('split.no', 0) + 1} of {metadata['split.count']}; "
            f"join them first (llama-gguf-split --merge)"
        )
    return metadata, GgufTensors(entries, cursor.data, dtype)


class _Cursor:
    """A place in a mapped file that never leaves it."""

    def __init__(self, path: Path | str):
        self.path, self.at = Path(path), 0
        try:
            with self.path.open("rb") as file:
                start = file.read(32)
                if len(start) < 8 or not start.startswith(MAGIC):
                    raise _not_gguf(self.path, start)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise WeightsError(f"{self.path}: there is no such file") from None
        except OSError as e:
            raise WeightsError(f"{self.path}: cannot be read ({e.strerror})") from e
        self.data = np.frombuffer(mapped, np.uint8)  # keeps the map alive
        self._bytes = memoryview(mapped)

    @property
    def left(self) -> int:
        return len(self._bytes) - self.at

    def take(self, size: int, what: str) -> memoryview:
        if size > self.left:
            raise self.lie(f"{what} needs {size:,} bytes where {self.left:,} are left")
        self.at += size
        return self._bytes[self.at - size : self.at]

    def number(self, form: str, what: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form), what))[0]

    def count(self, least_bytes: int, what: str) -> int:
        """A number of things to come, each of at least so many bytes."""
        count = self.number("Q", what)
        if count * least_bytes > self.left:
            raise self.lie(f"{what} is said to be {count:,}, more than the file has room for")
        return count

    def text(self, what: str) -> str:
        raw = self.take(self.count(1, f"the length of {what}"), what)
        return bytes(raw).decode("utf-8", "surrogateescape")  # vocabularies hold broken UTF-8

    def lie(self, reason: str) -> WeightsError:
        return WeightsError(
            f"{self.path}: damaged or truncated, {len(self._bytes):,} bytes long ({reason}, at "
            f"byte {self.at:,}); download or copy it again"
        )


def _not_gguf(path: Path, start: bytes) -> WeightsError:
    if not start:
        return WeightsError(f"{path}: the file is empty (an interrupted download?)")
    if start.startswith(MAGIC):
        return WeightsError(f"{path}: truncated, {len(start)} bytes long; download it again")
    return WeightsError(f"{path}: {foreign(start) or 'not a GGUF file'}; expected a .gguf")


def _header(cursor: _Cursor) -> tuple[dict[str, Any], int]:
    """The keys, and how many tensors the table has; the cursor is then before the table."""
    cursor.take(4, "the magic")
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "big-endian" if swapped in (2, 3) else f"of version {version}"
        raise WeightsError(
            f"{cursor.path}: a GGUF file {what}; versions 2 and 3, little-endian, are read here: "
            f"convert it with llama.cpp's scripts"
        )
    n_tensors = cursor.number("Q", "the number of tensors")
    n_keys = cursor.count(13, "the number of keys")
    if n_tensors * 24 > cursor.left:
        raise cursor.lie(f"{n_tensors:,} tensors are said to come, more than there is room for")
    metadata: dict[str, Any] = {}
    for i in range(n_keys):
        key = cursor.text(f"key {i + 1} of {n_keys}")
        if key in metadata:
            raise cursor.lie(f"the key '{key}' occurs twice")
        metadata[key] = _value(cursor, cursor.number("I", f"the type of '{key}'"), key)
    return metadata, n_tensors


def _value(cursor: _Cursor, kind: int, key: str, depth: int = 0) -> Any:
    what = f"the value of '{key}'"
    if kind in SCALARS:
        return cursor.number(SCALARS[kind], what)
    if kind == STRING:
        return cursor.text(what)
    if kind != ARRAY:
        raise cursor.lie(f"'{key}' has the unknown type {kind}")
    if depth >= MOST_NESTED:
        raise cursor.lie(f"'{key}' has lists nested deeper than {MOST_NESTED}")
    kind = cursor.number("I", what)
    if kind in SCALARS:
        form, size = SCALARS[kind], struct.calcsize(SCALARS[kind])
        count = cursor.count(size, f"the length of '{key}'")
        raw = cursor.take(count * size, what)
        return bytes(raw) if form in "Bb" else list(struct.unpack(f"<{count}{form}", raw))
    count = cursor.count(8, f"the length of '{key}'")
    return [_value(cursor, kind, key, depth + 1) for _ in range(count)]


def _entries(cursor: _Cursor, n_tensors: int, alignment: int) -> dict[str, Entry]:
    """The table of tensors, with each tensor's bytes found inside the file and its own."""
    table = [_entry(cursor, i, n_tensors) for i in range(n_tensors)]
    first = -(-cursor.at // alignment) * alignment
    entries: dict[str, Entry] = {}
    for name, kind, shape, offset in table:
        size = math.prod(shape) // kind.block * kind.bytes
        if offset % alignment:
            raise cursor.lie(f"'{name}' starts at {offset:,}, not a multiple of {alignment}")
        if first + offset + size > len(cursor.data):
            raise cursor.lie(f"'{name}' is said to end at byte {first + offset + size:,}")
        if name in entries:
            raise cursor.lie(f"the tensor '{name}' occurs twice")
        entries[name] = Entry(kind, shape, first + offset, size)
    placed = sorted(entries.items(), key=lambda item: (item[1].start, item[1].size))
    for (name, entry), (other, after) in itertools.pairwise(placed):
        if entry.start + entry.size > after.start:
            raise cursor.lie(f"'{name}' and '{other}' lie on the same bytes")
    return entries


def _entry(cursor: _Cursor, index: int, count: int) -> tuple[str, Kind, tuple[int, ...], int]:
    name = cursor.text(f"the name of tensor {index + 1} of {count}")
    n_dimensions = cursor.number("I", f"the dimensions of '{name}'")
    if n_dimensions > MOST_DIMENSIONS:
        raise cursor.lie(f"'{name}' has {n_dimensions:,} dimensions")
    shape = tuple(cursor.number("Q", f"the shape of '{name}'") for _ in range(n_dimensions))[::-1]
    number = cursor.number("I", f"the kind of '{name}'")
    kind = kind_numbered(number, f"{cursor.path}: '{name}'")
    if shape and shape[-1] % kind.block:
        raise cursor.lie(f"'{name}' has rows of {shape[-1]:,}, not a multiple of {kind.block}")
    return name, kind, shape, cursor.number("Q", f"the offset of '{name}'")
