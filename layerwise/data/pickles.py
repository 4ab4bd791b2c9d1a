"""Old pickles of plain data, such as CIFAR's python batches, read without running what is in them.

A pickle is a program that may call anything. Here the instructions that make objects in other ways
than by name are taken out, and the only names it may use are those that rebuild a numpy array or a
byte string: they are given stand-ins of ours, so neither numpy nor any other module runs at the
pickle's word. Python's own unpickler, not the one in C: whatever a damaged pickle asks for, it
takes no more memory than the file has bytes.
"""

# pyright: reportAttributeAccessIssue=false

import io
import pickle
from typing import Any, ClassVar

import numpy as np

from layerwise.data.naming import reason
from layerwise.errors import DataError

_FORBIDDEN = """PERSID BINPERSID EXT1 EXT2 EXT4 INST OBJ NEWOBJ NEWOBJ_EX BYTEARRAY8 NEXT_BUFFER
READONLY_BUFFER"""
FORBIDDEN = frozenset(getattr(pickle, name)[0] for name in _FORBIDDEN.split())
NUMBER_KINDS = "biuf"  # truth values, whole numbers, fractions


def read_pickle(content: bytes, file: str) -> Any:
    """Dicts, lists, text, bytes, numbers and numpy arrays of numbers from a pickle's bytes.

    Text of Python 2 comes as bytes. file: its name for messages.
    Errors: the pickle uses any other name, any other instruction, or is cut off.
    """
    try:
        return _finished(_Unpickler(content, file).load())
    except DataError:
        raise
    except Exception as e:  # a damaged pickle can fail in any way at all
        raise DataError(
            f"'{file}' is a pickle that is damaged or does more than hold data ({reason(e)}); "
            "nothing in it was run: download or copy it again, or save the data as .npz"
        ) from e


class _Array:
    """Stands in for numpy.ndarray until its shape, kind and bytes are known."""

    value: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_column, raw = state
        if not isinstance(kind, _Kind) or not isinstance(raw, bytes):
            raise ValueError("an array of something else than numbers")
        flat = np.frombuffer(raw, kind.dtype())
        self.value = flat.reshape(tuple(map(int, shape)), order="F" if by_column else "C")


class _Kind:
    """Stands in for numpy.dtype: numbers of at most 8 bytes."""

    def __init__(self, name: str | bytes, *_: object):
        self.name, self.order = _ascii(name), "="

    def __setstate__(self, state: tuple) -> None:
        self.order = _ascii(state[1])

    def dtype(self) -> np.dtype:
        letter, size = self.name[:1], self.name[1:]
        if letter not in NUMBER_KINDS or size not in ("1", "2", "4", "8"):
            raise ValueError(f"an array of kind '{self.name}', expected numbers")
        return np.dtype(f"{self.order if self.order in '<>' else '='}{letter}{size}")


def _ascii(text: str | bytes) -> str:
    return text.decode("ascii") if isinstance(text, bytes) else str(text)


def _bytes(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes for Python 2: as text in latin-1."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise ValueError(f"bytes written as {encoding}")
    return text.encode("latin1")


class _Unpickler(pickle._Unpickler):
    """Knows five names, as stand-ins that are made anew for each file."""

    dispatch: ClassVar = {k: f for k, f in pickle._Unpickler.dispatch.items() if k not in FORBIDDEN}

    def __init__(self, content: bytes, file: str):
        super().__init__(io.BytesIO(content), encoding="bytes", fix_imports=False)
        self.file = file
        array = type("Array", (_Array,), {})
        self.known = {
            "numpy.ndarray": array,
            "numpy.dtype": type("Kind", (_Kind,), {}),
            "numpy.core.multiarray._reconstruct": lambda *_: array(),
            "numpy._core.multiarray._reconstruct": lambda *_: array(),
            "_codecs.encode": lambda *text: _bytes(*text),
        }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.known:
            raise DataError(
                f"'{self.file}' is a pickle that asks for '{module}.{name}'; only plain data and "
                "numpy arrays are read, and nothing in it was run. If you trust its source, load "
                "it yourself and save the arrays as .npz"
            )
        return self.known[f"{module}.{name}"]


def _finished(value: object) -> Any:
    """The stand-ins replaced by the arrays they hold."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {_finished(k): _finished(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(v) for v in value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ValueError("something else than plain data")
