"""Kinds by name: an explicit table, each imported only when asked for. See `contract.py`."""

import functools
import pkgutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from layerwise.errors import unknown

if TYPE_CHECKING:  # the command line reads the names without loading torch
    from layerwise.data.examples import Examples
    from layerwise.kinds.contract import Kind

KINDS = {
    "image": "layerwise.kinds.image.kind:Image",
    "table": "layerwise.kinds.table.kind:Tables",
    "text": "layerwise.kinds.text.kind:Text",
    "audio": "layerwise.kinds.audio.kind:Audio",
}


@functools.cache
def kind(name: str) -> "Kind":
    """Errors: OptionError for an unknown name, with the nearest."""
    if name not in KINDS:
        raise unknown("kind of data", name, KINDS)
    return pkgutil.resolve_name(KINDS[name])()


def every() -> "list[Kind]":
    return [kind(name) for name in KINDS]


def of(examples: "Examples") -> "Kind":
    """The kind of the first field that is read: it speaks for rows of several."""
    return kind(next(iter(examples.kinds.values())))


def several(examples: "Examples") -> "list[Kind]":
    """Every kind that reads a field."""
    return [kind(name) for name in dict.fromkeys(examples.kinds.values())]


def read_by(reads: Sequence[str]) -> "Kind":
    """The kind whose tensors a network reads. reads: its READS."""
    return next(k for name in reads for k in every() if k.tensor == name)


def in_words(kinds: Iterable[str]) -> str:
    """Several kinds' values in a sentence: "images and texts"."""
    return " and ".join(kind(name).noun for name in dict.fromkeys(kinds))
