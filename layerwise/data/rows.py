"""Rows of one file of JSON or CoNLL, before anybody knows what their fields mean.

A row is a dict: of a JSON object, of a sentence with its tags (CoNLL), of a question with its
context (SQuAD). Which fields are the text and which the label: `kinds/text/forms.py`.
"""

import json
from pathlib import Path
from typing import Any

from layerwise.data.delimited import RawTable, Row
from layerwise.data.listing import split_named
from layerwise.data.naming import reason, shown
from layerwise.data.text_files import TAG, bare, lines, read_text
from layerwise.errors import DataError

NESTED = ("data", "rows", "examples", "train")


def read_json_rows(path: Path) -> RawTable:
    """The objects of a .json file, or of one with an object on each line.

    Errors name the file and the line: damaged, no rows, something else than objects.
    """
    if bare(path).suffix.lower() == ".json":
        file, text = shown(path.name), read_text(path)
        try:
            return _from_json(json.loads(text), file)
        except json.JSONDecodeError as e:
            if not e.msg.startswith("Extra data"):  # lines of JSON under the suffix of one
                raise DataError(
                    f"'{file}' is not JSON ({reason(e)}); it may be cut off: copy it again"
                ) from e
    return _json_lines(path)


def _json_lines(path: Path) -> RawTable:
    file = shown(path.name)
    rows: dict[str, Row] = {}  # by their names
    for number, line in lines(path):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        row = {"text": row} if isinstance(row, str) else row
        if not isinstance(row, dict):
            raise DataError(
                f"{file} line {number} is not a JSON object: {line[:50]!r}; each line should be "
                'one with named fields, such as {"label": "cat"}'
            )
        if row:
            rows[f"{file} line {number}"] = row
    if not rows:
        raise DataError(f"'{file}' has no rows; expected one JSON object per line")
    return RawTable(list(rows.values()), file, names=list(rows))


def _from_json(held: Any, file: str) -> RawTable:
    """A list of objects; objects of splits, of columns, or around a list; SQuAD."""
    if isinstance(held, dict):
        data: Any = held.get("data")
        if _objects(data) and all("paragraphs" in article for article in data):
            return _squad(data, file)
        lists = {k: v for k, v in held.items() if isinstance(v, list)}
        parts = [k for k in lists if split_named(k) and _objects(lists[k])]
        if parts:
            rows = [(k, i, row) for k in parts for i, row in enumerate(lists[k], 1)]
            names = [f"{file} {k} row {i}" for k, i, _ in rows]
            given = [split_named(k) for k, _, _ in rows]
            return RawTable([row for _, _, row in rows], file, names=names, given=given)
        if lists and len(lists) == len(held) and len(set(map(len, lists.values()))) == 1:
            cells = zip(*lists.values(), strict=True)
            held = [dict(zip(lists, row, strict=True)) for row in cells]
        else:
            held = next((lists[k] for k in (*NESTED, *lists) if _objects(lists.get(k))), [held])
    if isinstance(held, list) and held and all(isinstance(row, str) for row in held):
        held = [{"text": row} for row in held]
    if not _objects(held):
        raise DataError(f"'{file}' should hold a list of objects with named fields")
    return RawTable(held, file, first_row=1)


def _objects(held: object) -> bool:
    return isinstance(held, list) and bool(held) and all(isinstance(row, dict) for row in held)


def _squad(articles: list[Row], file: str) -> RawTable:
    rows: list[Row] = []
    names: list[str] = []
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    for context, question in [(p["context"], q) for p in paragraphs for q in p["qas"]]:
        answers = question.get("answers") or []
        spans = [{"text": a["text"], "start": a["answer_start"]} for a in answers]
        rows.append({"context": context, "question": question["question"], "answers": spans})
        names.append(f"{file} question {question.get('id', len(rows))}")
    return RawTable(rows, file, names=names, what="SQuAD")


def read_tagged(path: Path) -> RawTable:
    """Sentences of words and tags: the last column, or the fourth of CoNLL-U's ten.

    A sentence with a line that has another number of cells keeps what it has: the form sets it
    aside, as its words and tags are not of one length.
    """
    file = shown(path.name)
    rows: dict[str, Row] = {}  # by their names
    sentence: Row = {}
    width = 0
    for number, line in lines(path):
        if not line.strip() or line.startswith("-DOCSTART-"):
            sentence = {}
            continue
        cells = line.split("\t") if "\t" in line else line.rstrip(" ").split(" ")
        comment = line.startswith("# ") and not TAG.fullmatch(cells[-1])
        if not sentence and (comment or (line[0] == "#" and len(cells) == 1)):
            continue
        width = width or len(cells)
        universal = len(cells) == 10 and not TAG.fullmatch(cells[-1])
        if universal and not cells[0].isdigit():
            continue  # 3-4 and 3.1 of CoNLL-U repeat other words
        if not sentence:
            sentence = rows[f"{file} line {number}"] = {"tokens": [], "tags": []}
        sentence["tokens"].append(cells[1] if universal else cells[0])
        if len(cells) == width:
            sentence["tags"].append((cells[3] if universal else cells[-1]).strip())
    if not rows:
        raise DataError(f"'{file}' has no rows; expected a word and its tag on each line")
    return RawTable(list(rows.values()), file, names=list(rows), what="CoNLL")
