"""Images and rows of a table made in code, as Examples; texts: `rows.py`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from layerwise.data.examples import Examples, TargetKind
from layerwise.data.table import Table


def images(
    values: Sequence[Any],
    targets: Any = None,
    kind: TargetKind | None = None,
    labels: Sequence[str] = ("a", "b"),
    names: Sequence[str] | None = None,
    given: Sequence[str] | None = None,
    source: str = "",
) -> Examples:
    """Paths, bytes or arrays. kind: of the targets, classes unless they are left out."""
    return _examples("image", values, targets, kind, labels, names, given, source)


def table(
    columns: Any,
    targets: Any = None,
    kind: TargetKind | None = None,
    labels: Sequence[str] = (),
    names: Sequence[str] | None = None,
    given: Sequence[str] | None = None,
    source: str = "",
) -> Examples:
    """A dict of columns, or anything else that a Table is made of."""
    return _examples("table", Table.of(columns), targets, kind, labels, names, given, source)


def _examples(
    field: str,
    values: Sequence[Any],
    targets: Any,
    kind: TargetKind | None,
    labels: Sequence[str],
    names: Sequence[str] | None,
    given: Sequence[str] | None,
    source: str,
) -> Examples:
    n = len(values)
    return Examples(
        {field: values},
        {field: field},
        [f"row {i}" for i in range(n)] if names is None else names,
        np.full(n, "", "U5") if given is None else np.array(given, "U5"),
        targets=None if targets is None else np.asarray(targets),
        target_kind=kind or ("none" if targets is None else "class"),
        labels=tuple(labels),
        source=source,
    )
