"""Which columns of a table are worth learning from, and as what; what is odd about them."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions on import, where no type checker sees them)

import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layerwise.data.cells import DATE, typed
from layerwise.data.examples import Examples, Finding
from layerwise.data.listing import some
from layerwise.data.table import Table

ID_NAME = re.compile(r"(.*[_\s-])?(id|uid|uuid|guid|index|key)|unnamed: ?\d*", re.IGNORECASE)
FEWEST_FOR_ID = 20  # rows: among fewer, all different is no evidence


def typed_columns(
    data: pa.Table,
    names: Sequence[str],
    row_name: Callable[[int], str],
    decimal_comma: bool,
    learn: bool = True,
) -> tuple[dict[str, pa.Array], dict[str, np.ndarray], list[Finding]]:
    """The columns that say something, typed; the rows with infinite cells; what was assumed.

    learn=False: every column is kept, also one that is empty or the same in these few rows, because
    the model that reads them knows which ones it needs.
    """
    columns: dict[str, pa.Array] = {}
    infinite: dict[str, np.ndarray] = {}
    findings: list[Finding] = []
    for name in names:
        column = typed(data.column(name), decimal_comma)
        why = "its cells are no numbers, text or dates" if column is None else ""
        if column is not None:
            why = _why_dropped(name, column.values) if learn else ""
            if column.note:
                where = row_name(column.note_row)
                message = f"column '{name}': {column.note} (first: {where})"
                findings.append(Finding("assumed", "note", message, (where,)))
            if len(column.infinite):
                infinite[name] = column.infinite
                findings.append(_infinite(name, column.infinite, row_name))
        if why or column is None:
            message = f"column '{name}' was dropped: {why}"
            findings.append(Finding("dropped_column", "note", message, (name,)))
        else:
            columns[name] = column.values
    return columns, infinite, findings


def _why_dropped(name: str, cells: pa.Array) -> str:
    """Why a column cannot help: nothing in it, one value, or a name for each row."""
    known = cells.drop_null()
    n_values = len(pc.unique(known))
    if n_values == 0:
        return "it is empty"
    if n_values == 1 and not cells.null_count:
        return f"it has the one value {known[0].as_py()!r} in every row"
    if n_values < len(cells) or len(cells) < FEWEST_FOR_ID:
        return ""
    if pa.types.is_string(cells.type):
        return "each row has its own text, so it is a name or id, not a category"
    if cells.type == DATE:
        return ""
    x = known.to_numpy(zero_copy_only=False)
    counts = bool((x == np.round(x)).all())
    in_order = x[0] in (0, 1) and bool((np.diff(x) == 1).all())
    if counts and (in_order or ID_NAME.fullmatch(name)):
        return "it numbers the rows"
    return ""


def _infinite(name: str, rows: np.ndarray, row_name: Callable[[int], str]) -> Finding:
    names = tuple(row_name(int(row)) for row in rows)
    return Finding(
        "infinite",
        "warning",
        f"column '{name}' is infinite in {len(rows):,} rows (first: {names[0]}); the cells are "
        "taken as missing",
        names,
        "mend the cells, or leave them empty",
    )


def giveaways(examples: Examples, target: str) -> list[Finding]:
    """Categories that name the class by themselves, as a second copy of the target would."""
    if examples.targets is None or examples.target_kind != "class" or len(examples) < 50:
        return []
    found = []
    table = Table.of(examples.inputs)
    for name in table.columns:
        cells = table.column(name)
        codes = cells.dictionary_encode()
        if len(codes.dictionary) > 50 or cells.null_count:
            continue
        pairs = codes.indices.to_numpy().astype(np.int64) * len(examples.labels) + examples.targets
        if len(codes.dictionary) > 1 and len(np.unique(pairs)) == len(codes.dictionary):
            found.append(name)
    if not found:
        return []
    return [
        Finding(
            "giveaway",
            "warning",
            f"{some(found)} alone tells the target '{target}' in every row: is it known before "
            "the target is?",
            tuple(found),
            "remove such a column, or the score says nothing",
        )
    ]
