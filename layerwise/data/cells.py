"""What the cells of a column are: numbers, dates, truth values or text; and which are missing.

A table keeps numbers as float64, dates as timestamps, the rest as text; a missing cell is null.
The words for "missing" are below. Infinite numbers are taken as missing and reported.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions on import, where no type checker sees them)

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.types import is_date, is_dictionary, is_floating, is_integer, is_timestamp

MISSING = ("", "?", "-", "--", "na", "n/a", "#n/a", "nan", "null", "none", "<na>", "nat")
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
DAYS = ("%Y/%m/%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m/%d/%y", "%d-%m-%Y", "%d-%b-%Y")
TIMES = ("", " %H:%M", " %H:%M:%S")
DATE = pa.timestamp("us")
NO_TEXT = pa.nulls(1, pa.string())[0]  # pa.scalar would import pandas


@dataclass
class Typed:
    """A typed column: float64, timestamp or string, null where missing."""

    values: pa.Array
    infinite: Sequence[int] | np.ndarray = ()  # rows whose cell was infinite
    note: str = ""  # what was assumed, in words
    note_row: int = 0  # the first row it is about


def typed(column: pa.ChunkedArray | pa.Array, decimal_comma: bool = False) -> Typed | None:
    """A column as read from a file to what it means; None for cells that no table can hold."""
    array = as_array(column)
    if array.type == pa.string():
        return _from_text(without_missing(array), decimal_comma)
    if is_date(array.type) or is_timestamp(array.type):
        return Typed(array.cast(DATE, safe=False))
    if pa.types.is_boolean(array.type):
        return Typed(array.cast(pa.string()))
    if is_number(array.type):
        return _finite(array.cast(pa.float64(), safe=False))
    return None


def is_number(kind: pa.DataType) -> bool:
    return is_integer(kind) or is_floating(kind) or pa.types.is_decimal(kind)


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One piece of memory instead of several."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    joined = column.combine_chunks()
    return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def without_missing(text: pa.Array) -> pa.Array:
    """Trimmed text, null where the cell says that it is missing."""
    text = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.is_in(pc.utf8_lower(text), pa.array(MISSING)), NO_TEXT, text)


def _from_text(text: pa.Array, decimal_comma: bool) -> Typed:
    if text.null_count == len(text):
        return Typed(text)
    if decimal_comma and _all(pc.match_substring_regex(text, r"^[+-]?\d+(,\d+)?$")):
        text = pc.replace_substring(text, ",", ".")
    lower = pc.utf8_lower(text)
    if _all(pc.match_substring_regex(lower, "^(true|false)$")):
        return Typed(lower)
    return _numbers(text) or _dates(text) or Typed(text)


def _all(mask: pa.Array) -> bool:
    return bool(pc.all(mask).as_py())


def _numbers(text: pa.Array) -> Typed | None:
    """Numbers, also where at most 5 different words stand among them in at most 5 % of the cells.

    Codes such as 00501 are text: their zeros would be lost.
    """
    if pc.any(pc.match_substring_regex(text, r"^0\d")).as_py():
        return None
    try:
        return _finite(pc.cast(text, pa.float64()))
    except pa.ArrowInvalid:
        word = pc.invert(pc.match_substring_regex(text, NUMBER))
    words, n_words = pc.unique(pc.filter(text, word)).to_pylist(), pc.sum(word).as_py()
    if len(words) > 5 or n_words > 0.05 * (len(text) - text.null_count):
        return None
    column = _finite(pc.cast(pc.if_else(word, NO_TEXT, text), pa.float64()))
    column.note = f"{', '.join(map(repr, words))} among numbers, taken as missing"
    column.note_row = pc.index(word, True).as_py()
    return column


def _finite(numbers: pa.Array) -> Typed:
    """NaN and infinite cells to null; the infinite ones are remembered."""
    x = numbers.to_numpy(zero_copy_only=False)  # null as NaN
    if np.isfinite(x).all():
        return Typed(numbers)
    return Typed(pa.array(x, mask=~np.isfinite(x)), np.flatnonzero(np.isinf(x)))


def _dates(text: pa.Array) -> Typed | None:
    """Dates where every filled cell is one, in one form; with day and month in doubt, it says."""
    first = next((cell for cell in text.to_pylist() if cell), "")
    if not (first[:1].isdigit() and any(mark in first for mark in "-/.:")):
        return None
    for kind in (DATE, pa.timestamp("us", "UTC")):
        try:
            return Typed(pc.cast(text, kind).cast(DATE))
        except pa.ArrowInvalid:
            continue
    read = [
        (form, pc.strptime(text, format=form, unit="us", error_is_null=True))
        for form in (day + time for day in DAYS for time in TIMES)
    ]
    fitting = [(form, dates) for form, dates in read if dates.null_count == text.null_count]
    if not fitting:
        return None
    form, dates = fitting[0]
    return Typed(dates, note=f"read as {form}, month before day" if len(fitting) > 1 else "")


def numbers_of(values: object) -> np.ndarray:
    """Any column to float64 (n,), NaN where a cell is missing, infinite or no number."""
    array = as_array(values)
    if array.type == pa.string():
        text = without_missing(array)
        array = pc.if_else(pc.match_substring_regex(text, NUMBER), text, NO_TEXT)
    try:
        numbers = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.full(len(array), np.nan)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def texts_of(values: object) -> pa.Array:
    """Any column to trimmed text, null where missing; 3.0 is written '3', True 'true'."""
    array = as_array(values)
    if array.type == pa.string():
        return without_missing(array)
    if is_floating(array.type):
        array = pc.if_else(pc.is_finite(array), array, pa.scalar(None, array.type))
    return pc.cast(array, pa.string())


def dates_of(values: object) -> np.ndarray:
    """Any column to datetime64[us] (n,), NaT where a cell is missing or no date."""
    array = as_array(values)
    dates = pa.nulls(len(array), DATE)
    if array.type == pa.string():
        found = _dates(without_missing(array))
        dates = found.values if found else dates
    elif is_date(array.type) or is_timestamp(array.type):
        dates = array.cast(DATE, safe=False)
    return dates.to_numpy(zero_copy_only=False).astype("datetime64[us]")


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
    if is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_large_string(array.type) or pa.types.is_null(array.type):
        array = array.cast(pa.string())
    return array
