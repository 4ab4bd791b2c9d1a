"""Text files of rows and columns (CSV, TSV, UCI .data; also compressed) to columns of text.

Found out from the file itself: encoding, delimiter, whether the first row names the columns.
Rows are counted as in a spreadsheet: where there is a header it is row 1.
"""

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv

from layerwise.data.cells import as_array
from layerwise.data.examples import Finding
from layerwise.data.naming import reason, shown
from layerwise.data.text_files import blocks
from layerwise.errors import DataError

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
SAMPLE = 1 << 18  # characters that tell the form of a file


Row = dict[str, Any]


@dataclass
class RawTable:
    """Rows as a file has them, before anything is made of their cells: columns, or objects."""

    held: Any  # pa.Table or list[Row]
    file: str  # its name, for messages
    first_row: int = 0  # the number in the file of the first row of data
    header: bool = True  # False: the names of the columns were made up
    delimiter: str = ""
    findings: list[Finding] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the rows, where they are not counted
    given: list[str] = field(default_factory=list)  # the split of each row, where the file says it
    what: str = ""  # a form known from the file alone: "CoNLL", "SQuAD"

    def __len__(self) -> int:
        return len(self.held)

    def row_names(self) -> list[str]:
        return self.names or [f"{self.file} row {self.first_row + i}" for i in range(len(self))]

    @cached_property
    def data(self) -> pa.Table:
        """The columns."""
        if isinstance(self.held, pa.Table):
            return self.held
        names = dict.fromkeys(name for row in self.held for name in row)
        return pa.table({name: as_array([row.get(name) for row in self.held]) for name in names})

    @cached_property
    def rows(self) -> list[Row]:
        return self.held.to_pylist() if isinstance(self.held, pa.Table) else self.held

    def cells(self, name: str) -> list[Any]:
        if isinstance(self.held, pa.Table):
            return self.held.column(name).to_pylist()
        return [row.get(name) for row in self.held]

    def sample(self, most: int) -> list[Row]:
        """Rows from all over the file."""
        places = range(0, len(self), max(1, len(self) // most))
        if isinstance(self.held, pa.Table):
            return self.held.take(pa.array(places)).to_pylist()
        return [self.held[i] for i in places]


def read_delimited(path: Path) -> RawTable:
    """A CSV, TSV, `.data` or `.test` file; every cell is text.

    Errors: a damaged archive, no rows, a row with too many or too few cells, a column name twice.
    """
    file = shown(path.name)
    text, findings = _decoded(read_bytes(path), file)
    text = _below_comments(text)
    csv.field_size_limit(1 << 30)  # characters of a cell
    if not text.strip():
        raise DataError(f"'{file}' has no rows; expected a table with one row per example")
    delimiter, text = _delimiter(text, path)
    quotes = delimiter != "\t" or _quoted(text)
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    if not quotes:
        text = _trimmed(text, file, findings)
    form = {"delimiter": delimiter, "skipinitialspace": True, "quoting": quoting}
    sample = list(csv.reader(_first_lines(text), **form))
    header = _has_header(sample)
    names = [name.strip() for name in sample[0]]
    names = [name if header and name else f"column_{i}" for i, name in enumerate(names, 1)]
    common, n = Counter(names).most_common(1)[0]
    if n > 1:
        places = ", ".join(str(i) for i, name in enumerate(names, 1) if name == common)
        said = f"'{file}' has {n} columns named '{common}' (columns {places})"
        raise DataError(f"{said}; give each its own name")
    data = _parse(text, delimiter, header, names, file, quotes)
    return RawTable(data, file, 1 + header, header, delimiter, findings)


def read_bytes(path: Path) -> bytes:
    """A file's bytes, decompressed where the first ones say so. Errors: it is cut off."""
    return b"".join(blocks(path))


def _decoded(content: bytes, file: str) -> tuple[str, list[Finding]]:
    """Text, and what there was to say about its encoding."""
    said = ""
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as e:
        text = content.decode("cp1252", "replace")
        said = f"'{file}' is not UTF-8 (byte {e.start:,}); read as Windows-1252"
    if text[:2] in ("b'", 'b"') and text.rstrip()[2:].endswith(text[1]):
        text = text.rstrip()[2:-1]  # bytes that Python printed, saved as if they were the text
        said = f"'{file}' is wrapped in b'...', taken off"
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")
    return text, [Finding("encoding", "note", said, (file,))] if said else []


def _below_comments(text: str) -> str:
    """Without lines in front that begin with # or |, as in the UCI repository's adult.test.

    A line with as many cells as the first that does not begin so is a row; one that begins with
    "# " only where these are parted by tabs.
    """
    row = next((line for line in text.splitlines() if line.strip() and line[0] not in "#|"), "")
    while row and text[:1] in ("#", "|"):
        line, _, rest = text.partition("\n")
        alike = {mark for mark in DELIMITERS if line.count(mark) == row.count(mark) > 0}
        if "\t" in alike or (alike and not line.startswith("# ")):
            break
        text = rest
    return text


def _first_lines(text: str, most: int = 60) -> list[str]:
    """Enough of a long text to tell its form; the last line is left out as it may be cut."""
    end = len(text) if len(text) <= SAMPLE else text.rfind("\n", 0, SAMPLE) + 1 or SAMPLE
    return [line for line in text[:end].splitlines()[:most] if line.strip()]


def _delimiter(text: str, path: Path) -> tuple[str, str]:
    """What separates cells: the mark that gives most rows the same number (> 1) of cells.

    Columns aligned with runs of blanks are rewritten with tabs, a blank before a quote, which would
    hide the quote, is taken off.
    """
    lines = _first_lines(text)
    best, most = ",", 0.5
    for mark in DELIMITERS:
        counts = Counter(len(row) for row in csv.reader(lines, delimiter=mark))
        width, rows = counts.most_common(1)[0]
        if width > 1 and rows / len(lines) > most:
            best, most = mark, rows / len(lines)
    if {".tsv", ".tab"} & set(path.suffixes):
        best = "\t"
    elif most == 0.5 and '"' not in text and len(lines[0].split()) > 1:
        return "\t", "\n".join("\t".join(line.split()) for line in text.splitlines())
    if best != "\t" and re.search(re.escape(best) + ' +"', text[:SAMPLE]):
        out = io.StringIO()
        rows = csv.reader(io.StringIO(text), delimiter=best, skipinitialspace=True)
        csv.writer(out, delimiter=best, lineterminator="\n").writerows(rows)
        text = out.getvalue()
    return best, text


def _has_header(rows: list[list[str]]) -> bool:
    """Whether the first row names the columns.

    It does not where it holds a number, unless those count 0, 1, 2 ... (as pandas numbers columns)
    or name pixels after a first word. All text: it does not where most of its cells recur below, or
    one is a sentence above sentences.
    """
    first, body = rows[0], rows[1:]
    counted = [float(cell) for cell in first if NUMBER.fullmatch(cell)]
    if counted:
        in_order = [counted[0] + i for i in range(len(counted))]
        return len(counted) > 2 and counted == in_order and counted[0] in (0, 1)
    columns = [[row[i] for row in body if i < len(row)] for i in range(len(first))]
    if not body or any(c and any(map(NUMBER.fullmatch, c)) for c in columns):
        return True
    for name, column in zip(first, columns, strict=True):
        if len(name.split()) > 6 and sum(len(c.split()) for c in column) > 6 * len(column):
            return False
    recurs = [name in column for name, column in zip(first, columns, strict=True)]
    return sum(recurs) * 2 < len(first)


def _quoted(text: str) -> bool:
    """Whether quotes around the cells of a TSV are quotation marks of the format.

    They are where every cell that begins with one also ends with one, its inner ones doubled.
    """
    begun = len(re.findall(r'(?:^|\t)"', text, re.MULTILINE))
    whole = re.findall(r'(?:^|\t)"(?:[^"]|"")*"(?=\t|\n|\Z)', text, re.MULTILINE)
    return len(whole) == begun > 0


def _trimmed(text: str, file: str, findings: list[Finding]) -> str:
    """Without the cells that some rows of a TSV without quotes have beyond all others (as STS-B's).

    Only where the short rows are by far the most, and nothing is shorter.
    """
    rows = text.split("\n")
    widths = [row.count("\t") for row in rows if row]
    least = min(widths)
    longer = len(widths) - widths.count(least)
    if not least or not 0 < longer <= 0.5 * len(widths):
        return text
    message = f"{longer:,} rows of '{file}' have more than {least + 1} cells; the rest was left out"
    findings.append(Finding("ragged", "note", message, (file,)))
    return "\n".join("\t".join(row.split("\t")[: least + 1]) for row in rows)


def _parse(text: str, mark: str, header: bool, names: list[str], file: str, quotes: bool) -> Any:
    """An Arrow table; every cell is text."""
    ragged: list[Any] = []
    types = dict.fromkeys(names, pa.string())
    read = arrow_csv.ReadOptions(
        use_threads=False, block_size=1 << 26, skip_rows=int(header), column_names=names
    )
    parse = arrow_csv.ParseOptions(
        delimiter=mark, quote_char='"' if quotes else False,
        newlines_in_values=quotes and '"' in text,
        invalid_row_handler=lambda row: ragged.append(row) or "skip",
    )  # fmt: skip
    convert = arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    try:
        content = io.BytesIO(text.encode("utf8", "replace"))
        data = arrow_csv.read_csv(content, read, parse, convert)
    except pa.ArrowInvalid as e:
        raise DataError(f"'{file}' cannot be read as a table: {reason(e)}") from e
    if ragged:
        row = ragged[0]
        raise DataError(
            f"{file} row {row.number} has {row.actual_columns} cells where {row.expected_columns} "
            f"were expected ({len(ragged):,} such rows): {row.text[:60]!r}; cells are separated by "
            f"{DELIMITERS[mark]}: quote a cell that holds one, or fix the row"
        )
    if not data.num_rows:
        raise DataError(f"'{file}' has column names but no rows below them")
    return data
