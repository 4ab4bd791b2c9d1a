"""The errors a user can act on: what was expected, what came, what to do.

Every one is a `ValueError`; the command line prints its sentence alone (no traceback without
`--debug`) and ends with `exit_code`. Our own invariants are `assert`s and never of these types.
"""

import difflib
from collections.abc import Iterable


class LayerwiseError(ValueError):
    """Base of all errors a user can act on."""

    exit_code = 2


class OptionError(LayerwiseError):
    """An option, key, column or name that is not known, or a value outside its range."""


class DataError(LayerwiseError):
    """The data cannot be used as it is; the message names the file and the row."""

    exit_code = 3


class WeightsError(LayerwiseError):
    """Weights that are damaged, incomplete, unsafe or of another network."""

    exit_code = 4


class DoesNotFit(LayerwiseError):
    """The plan says that this run exceeds the memory at hand; the message says what would fit."""

    exit_code = 5


class TrainingStopped(LayerwiseError):
    """The run stopped itself; the last good checkpoint is kept and named."""

    exit_code = 6


class StorageError(LayerwiseError):
    """A folder that cannot be written to or a disk that is full; nothing saved before is lost."""

    exit_code = 7


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean 'resnet50'?`, empty when nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.55)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def unknown(what: str, name: str, known: Iterable[str]) -> OptionError:
    """The error for an unknown name: `what` says of which kind, `known` lists the valid ones."""
    known = sorted(known)
    shown = ", ".join(known[:12]) + (f" ... ({len(known)} in all)" if len(known) > 12 else "")
    return OptionError(f"unknown {what} '{name}'{nearest(name, known)} Known: {shown}.")
