"""What the cells of a column are: numbers, dates, truth values or text; and which are missing.

A table keeps numbers as float64, dates as timestamps, the rest as text; a missing cell is null.
The words for "missing" are below. Infinite numbers are taken as missing and reported.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions on import, where no type checker sees them)

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MISSING = ("", "?", "-", "--", "na", "n/a", "#n/a", "nan", "null", "none", "<na>", "nat")
DAYS = ("%Y/%m/%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m/%d/%y", "%d-%m-%Y", "%d-%b-%Y")
TIMES = ("", " %H:%M", " %H:%M:%S")
DATE = pa.timestamp("us")


@dataclass
class Column:
    """A typed column: float64, timestamp or string, null where missing."""

    values: pa.Array
    infinite: np.ndarray  # rows whose cell was infinite
    note: str = ""  # what was assumed, in words
    note_row: int = 0  # the first row it is about


def typed(column: pa.ChunkedArray | pa.Array, decimal_comma: bool = False) -> Column | None:
    """A column as read from a file to what it means; None for cells that no table can hold."""
    array = flat(column)
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.cast(kind.value_type)
        kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _from_text(array.cast(pa.string()), decimal_comma)
    if pa.types.is_boolean(kind):
        return Column(array.cast(pa.string()), _NO_ROWS)
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return Column(array.cast(DATE, safe=False), _NO_ROWS)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _finite(array.cast(pa.float64(), safe=False))
    if pa.types.is_null(kind):
        return Column(array.cast(pa.string()), _NO_ROWS)
    return None


_NO_ROWS = np.zeros(0, np.int64)


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One piece of memory instead of several."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    joined = column.combine_chunks()
    return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def without_missing(text: pa.Array) -> pa.Array:
    """Trimmed text, null where the cell says that it is missing."""
    text = pc.utf8_trim_whitespace(text)
    missing = pc.is_in(pc.utf8_lower(text), pa.array(MISSING))
    return pc.if_else(missing, pa.scalar(None, pa.string()), text)


def _from_text(array: pa.Array, decimal_comma: bool) -> Column:
    text = without_missing(array)
    if text.null_count == len(text):
        return Column(text, _NO_ROWS)
    if decimal_comma:
        plain = _all(pc.match_substring_regex(text, r"^[+-]?\d+(,\d+)?$"))
        text = pc.replace_substring(text, ",", ".") if plain else text
    numbers = _numbers(text)
    if numbers is not None:
        return numbers
    dates, how = _dates(text)
    if dates is not None:
        return Column(dates, _NO_ROWS, how)
    lower = pc.utf8_lower(text)
    if _all(pc.is_in(lower, pa.array(["true", "false"]))):
        return Column(lower, _NO_ROWS)
    return Column(text, _NO_ROWS)


def _all(mask: pa.Array) -> bool:
    return bool(pc.all(mask, skip_nulls=True).as_py())


def _numbers(text: pa.Array) -> Column | None:
    """Numbers, also where at most 5 different words stand among them in at most 5 % of the cells.

    Codes such as 00501 are text: their zeros would be lost.
    """
    if _any(pc.match_substring_regex(text, r"^0\d")):
        return None
    try:
        return _finite(pc.cast(text, pa.float64()))
    except pa.ArrowInvalid:
        pass
    number = pc.match_substring_regex(text, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
    filled = len(text) - text.null_count
    others = pc.unique(pc.filter(text, pc.invert(number)))
    n_others = filled - (pc.sum(number).as_py() or 0)
    if len(others) > 5 or n_others > 0.05 * filled:
        return None
    column = _finite(pc.cast(pc.if_else(number, text, pa.scalar(None, pa.string())), pa.float64()))
    words = ", ".join(repr(word) for word in others.to_pylist())
    first = int(np.flatnonzero(pc.fill_null(pc.invert(number), False).to_numpy(False))[0])
    column.note, column.note_row = f"{words} among numbers, taken as missing", first
    return column


def _any(mask: pa.Array) -> bool:
    return bool(pc.any(mask, skip_nulls=True).as_py())


def _finite(numbers: pa.Array) -> Column:
    """NaN and infinite cells to null; the infinite ones are remembered."""
    known = pc.fill_null(pc.is_finite(numbers), True)
    if _all(known):
        return Column(numbers, _NO_ROWS)
    infinite = pc.fill_null(pc.is_inf(numbers), False)
    cleaned = pc.if_else(known, numbers, pa.scalar(None, pa.float64()))
    return Column(cleaned, np.flatnonzero(infinite.to_numpy(zero_copy_only=False)))


def _dates(text: pa.Array) -> tuple[pa.Array | None, str]:
    """Dates where every filled cell is one, in one form; with day and month in doubt, it says."""
    first = text.drop_null()[0].as_py()
    if not (first[:1].isdigit() and any(mark in first for mark in "-/.:")):
        return None, ""
    for kind in (DATE, pa.timestamp("us", "UTC")):
        try:
            return pc.cast(text, kind).cast(DATE), ""
        except pa.ArrowInvalid:
            continue
    fitting = [
        (form, dates)
        for form in (day + time for day in DAYS for time in TIMES)
        if (dates := pc.strptime(text, format=form, unit="us", error_is_null=True)).null_count
        == text.null_count
    ]
    if not fitting:
        return None, ""
    said = "month before day" if len(fitting) > 1 else ""
    return fitting[0][1], f"read as {fitting[0][0]}, {said}" if said else ""


def numbers_of(values: Any) -> np.ndarray:
    """Any column to float64 (n,), NaN where a cell is missing, infinite or no number."""
    array = as_array(values)
    if pa.types.is_string(array.type):
        found = [_float(cell) for cell in array.to_pylist()]
        return np.array(found, np.float64)
    try:
        numbers = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.full(len(array), np.nan)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _float(cell: str | None) -> float:
    try:
        number = float(cell) if cell is not None else math.nan
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def texts_of(values: Any) -> pa.Array:
    """Any column to trimmed text, null where missing; 3.0 is written '3', True 'true'."""
    array = as_array(values)
    if pa.types.is_string(array.type):
        return without_missing(array)
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_finite(array), array, pa.scalar(None, array.type))
    return pc.cast(array, pa.string())


def dates_of(values: Any) -> np.ndarray:
    """Any column to datetime64[us] (n,), NaT where a cell is missing or no date."""
    array = as_array(values)
    if pa.types.is_string(array.type):
        found, _ = _dates(text) if (text := without_missing(array)).drop_null() else (None, "")
        array = pa.nulls(len(array), DATE) if found is None else found
    elif pa.types.is_date(array.type) or pa.types.is_timestamp(array.type):
        array = array.cast(DATE, safe=False)
    else:
        array = pa.nulls(len(array), DATE)
    return array.to_numpy(zero_copy_only=False).astype("datetime64[us]")


def as_array(values: Sequence[Any] | pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column of any origin as Arrow; cells of mixed types become text."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        array = flat(values)
    else:
        values = [v.item() if isinstance(v, np.generic) else v for v in values]
        try:
            array = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            array = pa.array([None if v is None else str(v) for v in values])
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_large_string(array.type) or pa.types.is_null(array.type):
        array = array.cast(pa.string())
    return array
