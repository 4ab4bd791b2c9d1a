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
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from layerwise.data.examples import Examples, Finding, TargetKind, take
from layerwise.data.listing import natural
from layerwise.data.naming import about, some
from layerwise.errors import DataError

UNLABELLED = frozenset({"", "?", "nan", "na", "n/a", "#n/a", "null"})  # "none" may be a class
MOST_WHOLE_CLASSES = 20
Labelled = tuple[np.ndarray, tuple[str, ...]]  # class numbers or sets of them, and the labels
SEVERAL = ("labels", "tags", "classes", "categories")  # columns whose name promises several


@dataclass
class Targets:
    """What was made of a column of labels."""

    values: np.ndarray  # of the labelled rows: (n,) int64, (n, C) uint8 or (n,) float64
    kind: TargetKind
    labels: tuple[str, ...]
    labelled: np.ndarray  # (rows,) bool: which rows of the column have a target
    said: str  # in a few words: "3 classes", "a number from 1 to 20"
    findings: list[Finding] = field(default_factory=list)


def with_targets(examples: Examples, targets: Targets) -> Examples:
    """The labelled rows, with their targets."""
    found = examples if targets.labelled.all() else examples.subset(targets.labelled)
    return replace(
        found, targets=targets.values, target_kind=targets.kind, labels=targets.labels,
        findings=found.findings + targets.findings,
    )  # fmt: skip


def read_targets(
    column: Sequence[Any],
    what: str,
    names: Sequence[str],
    kind: TargetKind | None = None,
    table: bool = False,
) -> Targets:
    """A column of labels to targets.

    column: (rows,) text, numbers, booleans, lists of labels, or None where there is no label.
    what: the column in a message, e.g. "column 'label' of metadata.csv"; names: of the rows there;
    kind: if already known.
    Errors: no row has a label; a quantity was asked for and a cell is not a number.
    """
    cells = _each(_cell, column)
    labelled = np.array([cell is not None for cell in cells], bool)
    if not labelled.any():
        raise DataError(
            f"{what} is empty in all {len(cells):,} rows, so there is nothing to learn from; "
            "fill it in, or name another column with --target"
        )
    unlabelled = take(names, np.flatnonzero(~labelled))
    aside = about(
        "unlabelled", "error", unlabelled, f"of {len(cells):,} rows have no target in {what}",
        "they are set aside: label them, or remove them",
    )  # fmt: skip
    filled = [cell for cell in cells if cell is not None]
    if strange := [cell for cell in filled if isinstance(cell, dict)]:
        raise DataError(f"{what} holds objects, not labels: {strange[0]!r:.60}; name its field")
    separator = _separator(filled, what)
    kind = kind or _kind(filled, separator, table)
    if kind == "number":
        return _numbers(cells, labelled, what, names, aside)
    if kind == "classes":
        values, labels = _sets([_several(cell, separator) for cell in filled])
        said = f"{len(labels):,} labels, any number of them per row"
        said += f", separated by '{separator}'" if separator in ("|", ";", ",") else ""
        return Targets(values, "classes", labels, labelled, said, aside)
    values, labels = class_targets(_each(_text, filled))
    findings = _alike(labels) + aside
    return Targets(values, "class", labels, labelled, f"{len(labels):,} classes", findings)


def check_few_classes(targets: Targets, what: str) -> None:
    """Errors: nearly every row has a class of its own, so it is a name or an id."""
    labels, n = targets.labels, len(targets.values)
    if targets.kind == "class" and len(labels) > max(20, n // 2):
        raise DataError(
            f"{what} has {len(labels):,} different values in {n:,} rows (such as {some(labels)}), "
            "so they are not classes to learn; name the column to learn with --target"
        )


def class_targets(names: Sequence[str], known: Sequence[str] = ()) -> Labelled:
    """Class names (n,) to (n,) int64 and the labels, `known` ones too, in their natural order."""
    labels = tuple(sorted({*names, *known}, key=natural))
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


def _cell(value: object) -> Any:
    """None where there is no label; text trimmed; whole floats as they are."""
    if isinstance(value, str):
        text = label_text(value)
        return None if text.lower() in UNLABELLED else text
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(cell: object) -> str:
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, list):
        return ", ".join(map(_text, cell))
    return label_text(str(cell))


def _number(cell: float | str) -> float | None:
    with suppress(TypeError, ValueError):
        return None if isinstance(cell, bool) else float(cell)


def _kind(cells: list[Any], separator: str, table: bool) -> TargetKind:
    if separator or any(isinstance(cell, list) for cell in cells):
        return "classes"
    numbers = {_number(cell) for cell in set(cells)}
    if None in numbers:
        return "class"
    if not all(math.isfinite(n) and n.is_integer() for n in numbers if n is not None):
        return "number"
    most = MOST_WHOLE_CLASSES if table else max(MOST_WHOLE_CLASSES, len(cells) // 2)
    return "class" if len(numbers) <= most else "number"


def _separator(cells: list[Any], what: str) -> str:
    """What stands between several labels in one cell, '' where a cell is one label.

    '|' always separates. ';' and ',' do where the column's name promises several labels, or where
    the parts recur so that there are fewer of them than of whole cells ("Smith, John" stays one).
    """
    texts = {cell for cell in cells if isinstance(cell, str)}
    if any(_json_list(text) is not None for text in texts):
        return "["
    if any("|" in text for text in texts):
        return "|"
    promised = any(f"'{name}'" in what.lower() for name in SEVERAL)
    for mark in (";", ","):
        parts = {part for text in texts for part in _several(text, mark)}
        if any(mark in text for text in texts) and (promised or len(parts) < len(texts)):
            return mark
    return ""


def _several(cell: object, separator: str) -> list[str]:
    read = cell if isinstance(cell, list) else _json_list(str(cell)) if separator == "[" else None
    if read is None:
        read = _text(cell).split(separator) if separator not in ("", "[") else [cell]
    parts = [_text(part).strip() for part in read if part is not None]
    return list(filter(None, parts))


def _json_list(text: str) -> list[Any] | None:
    for quoted in (text, text.replace("'", '"')) if text.startswith("[") else ():
        with suppress(ValueError):
            return list(json.loads(quoted))
    return None


def _sets(sets: list[list[str]]) -> Labelled:
    """Sets of labels to (n, C) uint8 and the labels in their natural order."""
    labels = class_targets([label for labels in sets for label in labels])[1]
    place = {label: i for i, label in enumerate(labels)}
    values = np.zeros((len(sets), len(labels)), np.uint8)  # (n, C)
    for row, names in enumerate(sets):
        values[row, [place[name] for name in names]] = 1
    return values, labels


def _numbers(
    cells: list[Any], labelled: np.ndarray, what: str, names: Sequence[str], aside: list[Finding]
) -> Targets:
    numbers = [_number(cell) for cell in cells]
    odd = [row for row, number in enumerate(numbers) if number is None and labelled[row]]
    if odd:
        raise DataError(
            f"{what} should be a number in every row, but {names[odd[0]]} has {cells[odd[0]]!r}; "
            "fix the cell, or learn classes"
        )
    values = np.array(numbers, np.float64)  # NaN where there is none
    finite = np.isfinite(values)
    infinite = take(names, np.flatnonzero(labelled & ~finite))
    cure = "they are set aside: fix the cells"
    aside += about("infinite_target", "error", infinite, f"rows have an infinite {what}", cure)
    if not finite.any():
        raise DataError(f"{what} has no finite number in any row; name another with --target")
    values = values[finite]
    said = f"a number from {values.min():g} to {values.max():g}"
    return Targets(values, "number", (), finite, said, aside)


def _alike(labels: Sequence[str]) -> list[Finding]:
    """Labels that differ in nothing but case, which is mostly a slip."""
    counts = Counter(label.casefold() for label in labels)
    twice = [label for label in labels if counts[label.casefold()] > 1]
    what = "labels differ only in case and are taken as different"
    return about("similar_labels", "warning", twice, what, "rename them if they mean the same")


def numbered_targets(y: np.ndarray, names: tuple[str, ...], source: str) -> Targets:
    """Class numbers (n,) to targets; a negative number means no label, as Hugging Face writes -1.

    names: of all classes in the order of their numbers, or () where the numbers are the names.
    """
    labelled = y >= 0
    if not labelled.any():
        raise DataError(f"{source}: no row has a label; there is nothing to learn from")
    numbers = y[labelled].tolist()
    names = enough_names(names, max(numbers) + 1, source)
    values, labels = class_targets([names[i] if names else str(i) for i in numbers], names)
    message = f"{int((~labelled).sum()):,} rows have no label (a negative number): set aside"
    findings = [] if labelled.all() else [Finding("unlabelled", "error", message)]
    return Targets(values, "class", labels, labelled, f"{len(labels):,} classes", findings)


def enough_names(names: tuple[str, ...], wanted: int, source: str) -> tuple[str, ...]:
    """The names, where there is one for each class. Errors: there are fewer."""
    if names and len(names) < wanted:
        raise DataError(
            f"{source}: the targets name class {wanted - 1} (counted from 0), but there are only "
            f"{len(names)} class names; complete classes.txt, one name on each line"
        )
    return names
