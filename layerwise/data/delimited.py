"""Text files of rows and columns (CSV, TSV, UCI .data, JSON lines; also .gz) to columns of text.

Found out from the file itself: encoding, delimiter, whether the first row names the columns.
Rows are counted as in a spreadsheet: where there is a header it is row 1.
"""

import csv
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv

from layerwise.data.examples import Finding
from layerwise.data.listing import reason, shown
from layerwise.data.text_files import blocks, lines
from layerwise.errors import DataError

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
DELIMITERS = (",", "\t", ";", "|")


@dataclass
class RawTable:
    """Columns as a file has them, before anything is made of their cells."""

    data: pa.Table
    file: str  # its name, for messages
    first_row: int  # the number in the file of the first row of data
    header: bool
    delimiter: str = ""
    findings: list[Finding] = field(default_factory=list)

    def row_name(self, row: int) -> str:
        return f"{self.file} row {row + self.first_row}"


def read_delimited(path: Path) -> RawTable:
    """A CSV, TSV, `.data` or `.test` file; every cell is text.

    Errors: a damaged .gz, no rows, a row with too many or too few cells, a column name twice.
    """
    file = shown(path.name)
    text, findings = _decoded(read_bytes(path), file)
    text = _without_comments(text)
    if not text.strip():
        raise DataError(f"'{file}' has no rows; expected a table with one row per example")
    delimiter, text = _delimiter(text, path)
    sample = list(csv.reader(_first_lines(text), delimiter=delimiter, skipinitialspace=True))
    header = _has_header([row for row in sample if row])
    if delimiter == "\t" and not _quoted(text):
        text, cut = _trimmed(text, file)
        findings = findings + cut
        raw = _parse(text, delimiter, header, file, quotes=False)
    else:
        raw = _parse(text, delimiter, header, file)
    raw.findings = findings + raw.findings
    return raw


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of a .jsonl file and the line each is on. Errors name the file and the line."""
    file = shown(path.name)
    rows, numbers = [], []
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise DataError(
                f"{file} line {number} is not JSON ({reason(e)}): {line[:50]!r}; each line should "
                'be one object such as {"file_name": "a.jpg", "label": "cat"}'
            ) from e
        if not isinstance(row, dict):
            raise DataError(
                f"{file} line {number} should be an object with named fields, not {line[:60]!r}"
            )
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise DataError(f"'{file}' has no rows; expected one JSON object per line")
    return rows, numbers


def columns_of(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows to columns: every name that occurs, None where a row lacks it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def read_bytes(path: Path) -> bytes:
    """A file's bytes, decompressed where the first ones say so. Errors: it is cut off."""
    return b"".join(blocks(path))


def _decoded(content: bytes, file: str) -> tuple[str, list[Finding]]:
    """Text, and what there was to say about its encoding."""
    said: list[Finding] = []
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = content.decode("utf-16", "replace")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as e:
            text = content.decode("cp1252", "replace")
            said.append(
                Finding(
                    "encoding",
                    "note",
                    f"'{file}' is not UTF-8 (byte {e.start:,}); read as Windows-1252",
                    (file,),
                    "save it as UTF-8 if names look wrong",
                )
            )
    if text[:2] in ("b'", 'b"') and text.rstrip()[2:].endswith(text[1]):
        text = text.rstrip()[2:-1]  # bytes that Python printed, saved as if they were the text
        said.append(Finding("encoding", "note", f"'{file}' is wrapped in b'...', taken off"))
    return text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\n"), said


def _without_comments(text: str) -> str:
    """Without leading lines that start with '#' or '|' (as the UCI repository's adult.test)."""
    while text[:1] in ("#", "|"):
        _, _, text = text.partition("\n")
    return text


def _first_lines(text: str, most: int = 60) -> list[str]:
    """Enough of a long text to tell its form; the last line is left out as it may be cut."""
    lines = text[: 1 << 18].splitlines()
    return lines[: min(most, len(lines) if len(text) <= 1 << 18 else len(lines) - 1)]


def _delimiter(text: str, path: Path) -> tuple[str, str]:
    """What separates cells: the mark that gives most rows the same number (> 1) of cells.

    Columns aligned with runs of blanks are rewritten with tabs.
    """
    lines = [line for line in _first_lines(text) if line.strip()]
    if {".tsv", ".tab"} & set(path.suffixes):
        return "\t", text
    best, most = "", 0.0
    for mark in DELIMITERS:
        widths = Counter(len(row) for row in csv.reader(lines, delimiter=mark))
        width, rows = widths.most_common(1)[0]
        if width > 1 and rows / len(lines) > most:
            best, most = mark, rows / len(lines)
    if best and most > 0.5:
        return best, text
    widths = Counter(len(line.split()) for line in lines)
    if '"' not in text and widths.most_common(1)[0][0] > 1:
        return "\t", "\n".join("\t".join(line.split()) for line in text.splitlines())
    return ",", text


def _has_header(rows: list[list[str]]) -> bool:
    """Whether the first row names the columns.

    It does not where it holds a number, unless those count 0, 1, 2 ... (as pandas numbers columns)
    or name pixels after a first word. All text: it does not where most of its cells recur below, or
    one is a sentence above sentences.
    """
    first, body = rows[0], rows[1:]
    is_number = [bool(NUMBER.fullmatch(cell)) for cell in first]
    if any(is_number):
        counted = [float(cell) for cell, number in zip(first, is_number, strict=True) if number]
        in_order = [counted[0] + i for i in range(len(counted))]
        return len(counted) > 2 and counted == in_order and counted[0] in (0, 1)
    if not body:
        return True
    columns = [[row[i] for row in body if i < len(row)] for i in range(len(first))]
    if any(c and any(map(NUMBER.fullmatch, c)) for c in columns):
        return True
    sentences = [len(name.split()) > 6 for name in first]
    if any(s and sum(len(c.split()) for c in column) > 6 * len(column)
           for s, column in zip(sentences, columns, strict=True)):  # fmt: skip
        return False
    recurs = [name in column for name, column in zip(first, columns, strict=True)]
    return sum(recurs) * 2 < len(first)


def _quoted(text: str) -> bool:
    """Whether quotes around the cells of a TSV are quotation marks of the format.

    They are where every cell that begins with one also ends with one, its inner ones doubled.
    """
    begun = len(re.findall(r'(?:^|\t)"', text, re.MULTILINE))
    whole = re.findall(r'(?:^|\t)"(?:[^"]|"")*"(?=\t|\n|\Z)', text, re.MULTILINE)
    return begun > 0 and len(whole) == begun


def _trimmed(text: str, file: str) -> tuple[str, list[Finding]]:
    """Without the cells that some rows of a TSV without quotes have beyond all others (as STS-B's).

    Only where the short rows are by far the most, and nothing is shorter.
    """
    rows = text.split("\n")
    widths = [row.count("\t") for row in rows if row]
    least, most = min(widths), max(widths)
    longer = sum(width > least for width in widths)
    if least == most or not least or longer > 0.5 * len(widths):
        return text, []
    rows = ["\t".join(row.split("\t")[: least + 1]) for row in rows]
    message = f"{longer:,} rows of '{file}' have more than {least + 1} cells; the rest was left out"
    return "\n".join(rows), [Finding("ragged", "note", message, (file,))]


def _parse(text: str, delimiter: str, header: bool, file: str, quotes: bool = True) -> RawTable:
    if quotes and re.search(re.escape(delimiter) + ' +"', text[: 1 << 18]):
        text = _unspaced(text, delimiter)  # a blank before a quote hides the quote
    first_row, newlines = text.partition("\n")[0], quotes and '"' in text
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader([first_row], delimiter=delimiter, skipinitialspace=True, quoting=quoting)
    names = next(reader)
    names = [name.strip() for name in names]
    if header:
        _refuse_twice(names, file)
    names = [name if header and name else f"column_{i}" for i, name in enumerate(names, 1)]
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "skip"

    try:
        data = arrow_csv.read_csv(
            io.BytesIO(text.encode("utf8", "replace")),
            arrow_csv.ReadOptions(
                use_threads=False,
                column_names=names,
                skip_rows=int(header),
                block_size=1 << 26,
            ),
            arrow_csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quotes else False,
                newlines_in_values=newlines,
                invalid_row_handler=note,
            ),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as e:
        raise DataError(f"'{file}' cannot be read as a table: {reason(e)}") from e
    if ragged:
        _refuse_ragged(ragged, file, delimiter)
    if not data.num_rows:
        raise DataError(f"'{file}' has column names but no rows below them")
    return RawTable(data, file, 1 + int(header), header, delimiter)


def _unspaced(text: str, delimiter: str) -> str:
    out = io.StringIO()
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _refuse_twice(names: list[str], file: str) -> None:
    for name, count in Counter(names).items():
        if name and count > 1:
            places = [str(i) for i, n in enumerate(names, 1) if n == name]
            raise DataError(
                f"'{file}' has {count} columns named '{name}' (columns {', '.join(places)}); "
                "give each its own name"
            )


def _refuse_ragged(ragged: list[Any], file: str, delimiter: str) -> None:
    row = ragged[0]
    more = f" ({len(ragged):,} such rows)" if len(ragged) > 1 else ""
    mark = {"\t": "a tab", ",": "a comma"}.get(delimiter, f"'{delimiter}'")
    raise DataError(
        f"{file} row {row.number} has {row.actual_columns} cells where {row.expected_columns} were "
        f"expected{more}: {row.text[:60]!r}; cells are separated by {mark}: quote a cell that "
        "holds one, or mend the row"
    )
