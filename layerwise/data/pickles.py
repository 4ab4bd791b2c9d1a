"""Old pickles of plain data, such as CIFAR's python batches, read without running what is in them.

A pickle is a program that may call anything. Here its instructions are checked one by one before
any runs, and the only names it may use are those that rebuild a numpy array or a byte string: they
are given stand-ins of ours, so neither numpy nor any other module runs at the pickle's word.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from layerwise.data.listing import reason
from layerwise.errors import DataError

# Instructions that only build numbers, text, bytes, lists, tuples and dicts, keep them aside, or
# call one of the names below. Left out: extensions, persistent ids, NEWOBJ, INST, OBJ, buffers.
_BUILDING = """
PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE
SHORT_BINUNICODE BINUNICODE BINUNICODE8 EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1
TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE
GLOBAL STACK_GLOBAL REDUCE BUILD
"""
BUILDING = frozenset(_BUILDING.split())
ALLOWED = frozenset(
    {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }
)
NUMBER_KINDS = "biuf"  # truth values, whole numbers, fractions


def read_pickle(content: bytes, file: str) -> Any:
    """Dicts, lists, text, bytes, numbers and numpy arrays of numbers from a pickle's bytes.

    Text of Python 2 comes as bytes. file: its name for messages.
    Errors: the pickle uses any other name, any other instruction, or is cut off.
    """
    try:
        _check(content, file)
        return _finished(_Unpickler(content, file).load(), file)
    except DataError:
        raise
    except Exception as e:  # a damaged pickle can fail in any way at all
        raise DataError(
            f"'{file}' is a damaged pickle ({reason(e)}); download or copy it again"
        ) from e


def _check(content: bytes, file: str) -> None:
    """Every instruction is one that builds plain data, every place it keeps is within reason."""
    for instruction, argument, _ in pickletools.genops(content):
        if instruction.name not in BUILDING:
            raise DataError(
                f"'{file}' is a pickle that does more than hold data (instruction "
                f"{instruction.name}); it was not run. Save the data as .npz instead"
            )
        if instruction.name == "GLOBAL":
            _allowed(*str(argument).split(" ", 1), file=file)
        if instruction.name.endswith("PUT") and int(argument or 0) > len(content):
            raise DataError(f"'{file}' is a damaged pickle: it keeps more places than it has bytes")


def _allowed(module: str, name: str, file: str) -> None:
    if (module, name) not in ALLOWED:
        raise DataError(
            f"'{file}' is a pickle that asks for '{module}.{name}'; only plain data and numpy "
            "arrays are read, and nothing in it was run. If you trust its source, load it yourself "
            "and save the arrays as .npz"
        )


class _Array:
    """Stands in for numpy.ndarray until its shape, kind and bytes are known."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_column, raw = state
        if not isinstance(kind, _Kind) or not isinstance(raw, bytes):
            raise ValueError("an array of something else than numbers")
        flat = np.frombuffer(raw, kind.dtype())
        self.value = flat.reshape(tuple(map(int, shape)), order="F" if by_column else "C")


class _Kind:
    """Stands in for numpy.dtype: numbers of at most 8 bytes."""

    def __init__(self, name: str | bytes, *_: Any):
        self.name = name.decode("ascii") if isinstance(name, bytes) else str(name)
        self.order = "="

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else str(order)

    def dtype(self) -> np.dtype:
        letter, size = self.name[:1], self.name[1:]
        if letter not in NUMBER_KINDS or size not in ("1", "2", "4", "8"):
            raise ValueError(f"an array of kind '{self.name}', expected numbers")
        return np.dtype(f"{self.order if self.order in '<>' else '='}{letter}{size}")


def _bytes(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes for Python 2: as text in latin-1."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise ValueError(f"bytes written as {encoding}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Knows the five allowed names, as stand-ins that are made anew for each file."""

    def __init__(self, content: bytes, file: str):
        super().__init__(io.BytesIO(content), encoding="bytes", fix_imports=False)
        self.file = file
        array = type("Array", (_Array,), {})
        self.known: dict[str, Callable[..., Any]] = {
            "ndarray": array,
            "dtype": type("Kind", (_Kind,), {}),
            "_reconstruct": lambda *_: array(),
            "encode": lambda *text: _bytes(*text),
        }

    def find_class(self, module: str, name: str) -> Any:
        _allowed(module, name, self.file)
        return self.known[name]


def _finished(value: Any, file: str) -> Any:
    """The stand-ins replaced by the arrays they hold."""
    if isinstance(value, _Array):
        if value.value is None:
            raise DataError(f"'{file}' is a damaged pickle: an array without its numbers")
        return value.value
    if isinstance(value, dict):
        return {_finished(k, file): _finished(v, file) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(v, file) for v in value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise DataError(f"'{file}' is a pickle of something else than plain data")
