"""What is to be learned: labels as people wrote them, to class numbers, sets of labels, or numbers.

The rule that tells classes from a quantity, where nobody says: text is a class; numbers with
fractions are a quantity; whole numbers are classes up to 20 different values in a table, and for
images as long as a value occurs at least twice on average. `target_kind` overrides it.

Legend: n rows, C classes.
"""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerwise.data.examples import Finding, TargetKind
from layerwise.data.listing import natural, some
from layerwise.errors import DataError

UNLABELLED = frozenset({"", "?", "nan", "na", "n/a", "#n/a", "null"})  # "none" may be a class
MOST_WHOLE_CLASSES = 20
SEVERAL = ("labels", "tags", "classes", "categories")  # columns whose name promises several


@dataclass
class Targets:
    """What `read_targets` made of a column."""

    values: np.ndarray  # of the labelled rows: (n,) int64, (n, C) uint8 or (n,) float64
    kind: TargetKind
    labels: tuple[str, ...]
    labelled: np.ndarray  # (rows,) bool: which rows of the column have a target
    said: str  # in a few words: "3 classes", "a number from 1 to 20"
    findings: list[Finding] = field(default_factory=list)


def read_targets(
    column: Sequence[Any],
    what: str,
    kind: TargetKind | None = None,
    table: bool = False,
    row_name: Callable[[int], str] = lambda row: f"row {row + 1}",
) -> Targets:
    """A column of labels to targets.

    column: (rows,) text, numbers, booleans, lists of labels, or None where there is no label.
    what: the column in a message, e.g. "column 'label' of metadata.csv"; kind: if already known.
    Errors: no row has a label; a quantity was asked for and a cell is no number.
    """
    cells = _each(_cell, column)
    labelled = np.array([cell is not None for cell in cells], bool)
    if not labelled.any():
        raise DataError(
            f"{what} is empty in all {len(cells):,} rows, so there is nothing to learn from; "
            "fill it in, or name another column with --target"
        )
    rows = np.flatnonzero(labelled)
    filled = [cells[row] for row in rows]
    separator = _separator(filled, what)
    kind = kind or _kind(filled, separator, table)
    if kind == "number":
        targets = _numbers(filled, rows, labelled, what, row_name)
    elif kind == "classes":
        sets = [_several(cell, separator) for cell in filled]
        targets = _sets(sets, labelled, separator)
    else:
        values, labels = class_targets(_each(_text, filled))
        targets = Targets(values, "class", labels, labelled, f"{len(labels):,} classes")
        targets.findings += _alike(labels)
    targets.findings += _aside(labelled, what, row_name)
    return targets


def class_targets(names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class names (n,) to (n,) int64 and the labels in their natural order."""
    labels = tuple(sorted(set(names), key=natural))
    place = {label: i for i, label in enumerate(labels)}
    return np.array([place[name] for name in names], np.int64), labels


def label_text(name: str) -> str:
    """A label as it is kept: composed as NFC (two systems may write the same name differently)."""
    return unicodedata.normalize("NFC", name).strip()


def _each(function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
    """`function` of each value, computed once for equal ones."""
    try:
        results = {value: function(value) for value in set(values)}
    except TypeError:  # lists have no hash
        return [function(value) for value in values]
    return [results[value] for value in values]


def _cell(value: Any) -> Any:
    """None where there is no label; text trimmed; whole floats as they are."""
    if isinstance(value, str):
        text = label_text(value)
        return None if text.lower() in UNLABELLED else text
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, tuple | np.ndarray):
        return list(value)
    return value


def _text(cell: Any) -> str:
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, list):
        return ", ".join(map(_text, cell))
    return label_text(str(cell))


def _number(cell: Any) -> float | None:
    if isinstance(cell, list | bool):
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _kind(cells: list[Any], separator: str, table: bool) -> TargetKind:
    if separator or any(isinstance(cell, list) for cell in cells):
        return "classes"
    numbers = {_number(cell) for cell in set(cells)}
    if None in numbers:
        return "class"
    if not all(math.isfinite(n) and n.is_integer() for n in numbers if n is not None):
        return "number"
    n_values = len(numbers)
    most = MOST_WHOLE_CLASSES if table else max(MOST_WHOLE_CLASSES, len(cells) // 2)
    return "class" if n_values <= most else "number"


def _separator(cells: list[Any], what: str) -> str:
    """What stands between several labels in one cell, '' where a cell is one label.

    '|' always separates. ';' and ',' do where the column's name promises several labels, or where
    the parts recur so that there are fewer of them than of whole cells ("Smith, John" stays one).
    """
    texts = {cell for cell in cells if isinstance(cell, str)}
    if any(text.startswith("[") and _json_list(text) is not None for text in texts):
        return "["
    if any("|" in text for text in texts):
        return "|"
    promised = any(f"'{name}'" in what.lower() for name in SEVERAL)
    for mark in (";", ","):
        together = [text for text in texts if mark in text]
        parts = {part for text in texts for part in _several(text, mark)}
        if together and (promised or len(parts) < len(texts)):
            return mark
    return ""


def _several(cell: Any, separator: str) -> list[str]:
    if isinstance(cell, list):
        parts = [_text(part) for part in cell if part is not None]
    elif separator == "[":
        read = _json_list(str(cell))
        parts = [_text(part) for part in read] if read is not None else [_text(cell)]
    else:
        parts = _text(cell).split(separator) if separator else [_text(cell)]
    return [part.strip() for part in parts if part.strip()]


def _json_list(text: str) -> list[Any] | None:
    for quoted in (text, text.replace("'", '"')):
        try:
            read = json.loads(quoted)
        except ValueError:
            continue
        if isinstance(read, list):
            return read
    return None


def _sets(sets: list[list[str]], labelled: np.ndarray, separator: str) -> Targets:
    labels = tuple(sorted({label for labels in sets for label in labels}, key=natural))
    place = {label: i for i, label in enumerate(labels)}
    values = np.zeros((len(sets), len(labels)), np.uint8)  # (n, C)
    for row, names in enumerate(sets):
        values[row, [place[name] for name in names]] = 1
    how = f", separated by '{separator}'" if separator in ("|", ";", ",") and separator else ""
    said = f"{len(labels):,} labels, any number of them per row{how}"
    return Targets(values, "classes", labels, labelled, said)


def _numbers(
    cells: list[Any],
    rows: np.ndarray,
    labelled: np.ndarray,
    what: str,
    row_name: Callable[[int], str],
) -> Targets:
    numbers = [_number(cell) for cell in cells]
    for row, number in zip(rows, numbers, strict=True):
        if number is None:
            raise DataError(
                f"{what} should be a number in every row, but {row_name(int(row))} has "
                f"{cells[int(np.searchsorted(rows, row))]!r}; mend the cell, or learn classes"
            )
    values = np.array(numbers, np.float64)
    finite = np.isfinite(values)
    findings = []
    if not finite.all():
        names = tuple(row_name(int(row)) for row in rows[~finite])
        labelled = labelled.copy()
        labelled[rows[~finite]] = False
        findings = [
            Finding(
                "infinite_target",
                "error",
                f"{what} is infinite in {len(names):,} rows (first: {names[0]}); they are set "
                "aside",
                names,
                "mend the cells",
            )
        ]
    values = values[finite]
    if not len(values):
        raise DataError(f"{what} has no finite number in any row; name another with --target")
    said = f"a number from {values.min():g} to {values.max():g}"
    return Targets(values, "number", (), labelled, said, findings)


def _alike(labels: Sequence[str]) -> list[Finding]:
    """Labels that differ in nothing but case, which is mostly a slip."""
    counts = Counter(label.casefold() for label in labels)
    twice = [label for label in labels if counts[label.casefold()] > 1]
    if not twice:
        return []
    return [
        Finding(
            "similar_labels",
            "warning",
            f"labels that differ only in case are taken as different: {some(twice, 6)}",
            tuple(twice),
            "rename them if they mean the same",
        )
    ]


def _aside(labelled: np.ndarray, what: str, row_name: Callable[[int], str]) -> list[Finding]:
    rows = np.flatnonzero(~labelled)
    if not len(rows):
        return []
    names = tuple(row_name(int(row)) for row in rows)
    return [
        Finding(
            "unlabelled",
            "error",
            f"{len(rows):,} of {len(labelled):,} rows have no target in {what} (first: {names[0]});"
            " they are set aside",
            names,
            "label them, or remove them",
        )
    ]
