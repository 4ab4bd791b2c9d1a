"""Rows of text from one file of any form, before anybody knows what their fields mean.

A row is a dict: of columns, of a JSON object, of a sentence with its tags (CoNLL), of a question
with its context (SQuAD). Which of them is the text and which the label: `text_forms.py`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerwise.data.examples import Finding
from layerwise.data.listing import reason, shown, split_named
from layerwise.data.table_files import Reading
from layerwise.data.text_files import TAG, bare, lines, read_text, sniff
from layerwise.errors import DataError

Row = dict[str, Any]
SAMPLE = 1000  # rows that are looked at
NESTED = ("data", "rows", "examples", "train")


@dataclass
class RawRows:
    """What a file holds, row by row."""

    file: str
    held: list[Row] | pa.Table
    names: list[str]  # "file.csv row 17"
    given: list[str]  # the split each row came with, "" where none
    header: bool = True  # False: the names of the columns were made up
    what: str = ""  # a form known from the file alone: "CoNLL", "SQuAD"
    findings: list[Finding] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def rows(self) -> list[Row]:
        held: Any = self.held
        return held.to_pylist() if isinstance(held, pa.Table) else held

    @cached_property
    def sample(self) -> list[Row]:
        """Rows from all over the file, enough to tell its form."""
        places = range(0, len(self), max(1, len(self) // SAMPLE))
        held: Any = self.held
        if isinstance(held, pa.Table):
            return held.take(pa.array(places)).to_pylist()
        return [held[i] for i in places]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.sample for name in row))


def read_rows(path: Path, reading: Reading) -> RawRows:
    """The rows of a table, JSON, Parquet or CoNLL file. Errors name the file and the row."""
    kind = sniff(path)
    if kind == "json":
        return _read_json(path)
    if kind == "tagged":
        return _read_tagged(path)
    raw = reading.table(path)
    rows = _numbered(raw.file, raw.data, "row", raw.first_row)
    rows.header, rows.findings = raw.header, raw.findings
    return rows


def _numbered(file: str, rows: list[Row] | pa.Table, what: str, first: int) -> RawRows:
    names = [f"{file} {what} {i}" for i in range(first, first + len(rows))]
    return RawRows(file, rows, names, [""] * len(rows))


# ---- JSON ----------------------------------------------------------------------------------------
def _read_json(path: Path) -> RawRows:
    if bare(path).suffix.lower() != ".json":
        return _read_json_lines(path)
    file = shown(path.name)
    try:
        held = json.loads(read_text(path))
    except ValueError as e:
        if "Extra data" in str(e):
            return _read_json_lines(path)  # lines of JSON under the suffix of one
        raise DataError(
            f"'{file}' is not JSON ({reason(e)}); it may be cut off: copy it again"
        ) from e
    return _from_json(held, file)


def _read_json_lines(path: Path) -> RawRows:
    file = shown(path.name)
    rows: list[Row] = []
    out = RawRows(file, rows, [], [])
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise DataError(
                f"'{file}' line {number:,} is not JSON ({reason(e)}): {line[:50]!r}; each line "
                'should be one object such as {"text": "..."}'
            ) from e
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise DataError(
                f"'{file}' line {number:,} should be an object with named fields, not {line[:60]!r}"
            )
        rows.append(row)
        out.names.append(f"{file} line {number}")
    out.given = [""] * len(rows)
    return out


def _from_json(held: Any, file: str) -> RawRows:
    """A list of objects; objects of splits, of columns, or around a list; SQuAD."""
    if isinstance(held, dict):
        if _is_squad(held.get("data")):
            return _read_squad(held["data"], file)
        lists = {k: v for k, v in held.items() if isinstance(v, list)}
        splits = {k: split_named(k) for k, v in lists.items() if split_named(k) and _objects(v)}
        if splits:
            parts = [_numbered(file, lists[k], f"{k} row", 1) for k in splits]
            given = [split for k, split in splits.items() for _ in lists[k]]
            rows: list[Row] = [row for k in splits for row in lists[k]]
            return RawRows(file, rows, [name for part in parts for name in part.names], given)
        if lists and len(lists) == len(held) and len(set(map(len, lists.values()))) == 1:
            held = [
                dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)
            ]
        else:
            held = next((lists[k] for k in (*NESTED, *lists) if _objects(lists.get(k))), [held])
    if isinstance(held, list) and held and all(isinstance(row, str) for row in held):
        held = [{"text": row} for row in held]
    if not _objects(held):
        raise DataError(f"'{file}' should hold a list of objects with named fields")
    return _numbered(file, held, "row", 1)


def _objects(held: Any) -> bool:
    return isinstance(held, list) and bool(held) and all(isinstance(row, dict) for row in held)


def _is_squad(data: Any) -> bool:
    return _objects(data) and all("paragraphs" in article for article in data)


def _read_squad(data: list[Row], file: str) -> RawRows:
    rows: list[Row] = []
    out = RawRows(file, rows, [], [], what="SQuAD")
    for article, paragraph, question in _questions(data):
        answers = question.get("answers") or []
        rows.append(
            {
                "context": paragraph["context"],
                "question": question["question"],
                "answers": [{"text": a["text"], "start": a["answer_start"]} for a in answers],
                "title": article.get("title", ""),
            }
        )
        out.names.append(f"{file} question {question.get('id', len(rows))}")
    out.given = [""] * len(rows)
    return out


def _questions(data: list[Row]) -> Iterator[tuple[Row, Row, Row]]:
    for article in data:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield article, paragraph, question


# ---- CoNLL ---------------------------------------------------------------------------------------
def _read_tagged(path: Path) -> RawRows:
    """Sentences of words and tags: the last column, or the fourth of CoNLL-U's ten.

    A sentence with a line that has another number of cells keeps what it has: the form sets it
    aside, as its words and tags are not of one length.
    """
    file = shown(path.name)
    rows: list[Row] = []
    out = RawRows(file, rows, [], [], what="CoNLL")
    tokens: list[str] = []
    tags: list[str] = []
    start, width = 1, 0
    for number, line in [*lines(path), (0, "")]:
        if not line.strip() or line.startswith("-DOCSTART-"):
            if tokens:
                rows.append({"tokens": tokens, "tags": tags})
                out.names.append(f"{file} line {start}")
            tokens, tags = [], []
            continue
        cells = line.split("\t") if "\t" in line else line.split(" ")
        universal = len(cells) == 10 and not TAG.fullmatch(cells[-1])
        if line.startswith("# ") and len(cells) != width:
            continue
        start, width = (start if tokens else number), width or len(cells)
        if universal and not cells[0].isdigit():
            continue  # 3-4 and 3.1 of CoNLL-U repeat other words
        tokens.append(cells[1] if universal else cells[0])
        if len(cells) == width:
            tags.append((cells[3] if universal else cells[-1]).strip())
    out.given = [""] * len(rows)
    return out
