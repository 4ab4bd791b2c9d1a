"""Open text of any kind without being told what it is: documents, rows of tables and of JSON.

A folder of text files or source code is a set of documents, unless all of it lies in folders of
classes; files of rows (JSON, CSV, TSV, Parquet, CoNLL) are read by what their fields hold, see
`forms`. Rows that cannot be used are set aside and listed. Legend: n rows.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from layerwise.data.delimited import RawTable, Row
from layerwise.data.examples import Examples, listed
from layerwise.data.file_tables import with_class_names
from layerwise.data.listing import (
    Listing,
    Parts,
    is_image,
    natural,
    split_named,
    split_of,
    splits_said,
)
from layerwise.data.naming import about, shown, some
from layerwise.data.records import Reading, read_splits
from layerwise.data.targets import check_few_classes, class_targets, read_targets, with_targets
from layerwise.data.text_files import CODE, PROSE, read_text, sniff
from layerwise.errors import DataError
from layerwise.kinds.text import documents
from layerwise.kinds.text.forms import recognise
from layerwise.kinds.text.layouts import CALLED, Aside, Layout, Mended

SAMPLE = 1000  # rows that are looked at to tell their form
BESIDE = re.compile(r"(?i)(readme|licen[cs]e|copying|notice|changelog|citation|authors?)\b")
_ABOUT = "dataset_infos? dataset_dict state config metadata package tokenizer\\w*"
ABOUT = re.compile(rf"(?i)({_ABOUT.replace(' ', '|')})\.json$")


def open_text_file(path: Path, reading: Reading, asked: bool = False) -> Examples | None:
    """One file of text as Examples of the kind "text"; None where it is a table.

    asked: the caller said that it is text. Errors: DataError naming the file and the line or row.
    """
    kind = sniff(path)
    if kind == "binary" and asked:
        raise DataError(f"'{shown(path.name)}' is not text: most of its bytes are not characters")
    if kind == "document":
        return documents.open_documents([(path, shown(path.name), "")])
    return None if kind == "binary" else open_rows([(path, "")], reading, asked)


def open_text_folder(listing: Listing, reading: Reading, asked: bool = False) -> Examples | None:
    """The text files of a folder; None where it holds tables, or nothing to read.

    Errors: files of rows that do not belong together.
    """
    readable = [p for p in listing.files if "." not in p[-1] or not is_image(Path(p[-1]))]
    kinds = {p: sniff(listing.path(p)) for p in readable}
    texts = [p for p, kind in kinds.items() if kind == "document"]
    rows = [p for p, kind in kinds.items() if kind not in ("document", "binary")]
    rows = [p for p in rows if not ABOUT.match(p[-1])] or rows
    few = rows if sum(documents.suffix_of(p) in CODE for p in texts) > len(rows) else []
    few = few or [p for p in rows if documents.suffix_of(p) in PROSE]
    if len(few) < len(texts):  # they only look like rows
        texts = sorted(texts + few, key=lambda p: [natural(x) for x in p])
        rows = [p for p in rows if p not in few]
    prose = [p for p in texts if not BESIDE.match(p[-1])]
    opened = _rows_of_folder(listing, rows, reading, asked) if rows else None
    if rows and opened is None and not (prose and asked):
        return None
    if opened is not None and not (prose and opened.has("text") and opened.targets is None):
        return documents.with_others(opened, listing, rows)
    labelled = opened is None and (reading.learn or reading.target_kind == "class")
    if labelled and (classes := documents.class_folders(texts)):
        return documents.labelled_files(listing, *classes)
    files = prose if rows else texts
    if not files:
        return None
    found = documents.open_documents([(listing.path(p), shown(p), split_of(p)) for p in files])
    if opened is not None:  # plain text from files of rows and from files of text
        both = [text for part in (opened, found) for text in listed(part["text"])]
        given = np.concatenate([opened.given, found.given])
        out = documents.plain_examples(both, [*opened.names, *found.names], given)
        findings = opened.findings + found.findings
        found = replace(out, understood=documents.plain_said(out), findings=findings)
    return documents.with_others(found, listing, texts + rows)


# ---- rows ----------------------------------------------------------------------------------------
def _rows_of_folder(
    listing: Listing, files: list[Parts], reading: Reading, asked: bool
) -> Examples | None:
    chosen = [p for p in files if len(p) == 1] or files
    folders = {p[:-1] for p in chosen if not any(split_named(part) for part in p[:-1])}
    if len(folders) < 2:
        return open_rows([(listing.path(p), split_of(p)) for p in chosen], reading, asked)
    if open_rows([(listing.path(chosen[0]), "")], reading, asked) is None:
        return None
    named = some(sorted(map(shown, folders)))
    said = f"'{shown(listing.root)}' holds {len(folders)} folders of rows ({named})"
    raise DataError(f"{said}; name one of them")


def open_rows(files: Sequence[tuple[Path, str]], reading: Reading, asked: bool) -> Examples | None:
    """Files of rows of one form as Examples; None where they are tables, not text."""
    read: list[tuple[RawTable, Layout, list[str]]] = []
    unused: dict[str, None] = {}  # columns
    for path, split in sorted(files, key=lambda file: file[1] not in ("train", "")):
        raw = with_class_names(reading.table(path))
        sample = raw.sample(SAMPLE)
        columns = list(dict.fromkeys(name for row in sample for name in row))
        layout = recognise(raw, sample, columns, reading, asked)
        if layout is None:
            continue
        if read and set(raw.sample(1)[0]) == set(read[0][0].sample(1)[0]):
            layout = read[0][1]  # where a file without a label looks otherwise
        if any(f.kind == "encoding" and "UTF-8" in f.message for f in raw.findings):
            read_text(path)  # a table may be of another encoding; of a text it is an error
        names, asked_for = raw.row_names(), reading.split_column
        column, given = read_splits(columns, raw.cells, names, raw.file, asked_for)
        given = given or raw.given or [""] * len(raw)
        unused |= dict.fromkeys(c for c in columns if c not in (*layout.uses, column))
        read.append((raw, layout, [own or split * (len(files) > 1) for own in given]))
    if not read:
        return None
    if len({layout.form for _, layout, _ in read}) > 1:
        each = ", ".join(f"'{raw.file}' ({layout.form})" for raw, layout, _ in read[:4])
        raise DataError(f"{len(read)} files of different forms: {each}; name one of them")
    out = _made(read, reading)
    out.findings += about("unused", "note", unused, "columns are not used")
    return out


def _made(read: list[tuple[RawTable, Layout, list[str]]], reading: Reading) -> Examples:
    """Rows of one form, those that cannot be used set aside; then their targets."""
    kept: list[tuple[Row, str, str, Any]] = []  # with their names, splits and targets
    aside, mended = [], []
    for raw, layout, given in read:
        for row, name, split in zip(raw.rows, raw.row_names(), given, strict=True):
            made = layout.make(row)
            if isinstance(made, Aside):
                aside.append((name, made))
                continue
            if isinstance(made, Mended):
                mended.append(f"{name}: {made.reason}")
                made = made.row
            kept.append((made, name, split, _cell(row, layout)))
    if not kept:
        (name, first), n = aside[0], len(aside) - 1
        raise DataError(f"{name}: {first.reason}; and none of the other {n:,} rows can be used")
    layout, n = read[0][1], len(kept) + len(aside)
    rows, names, splits, cells = map(list, zip(*kept, strict=True))
    out = documents.text_examples(layout.form, rows, names, splits)
    out.findings = [f for raw, _, _ in read for f in raw.findings]
    out.findings += documents.aside_findings(aside, n)
    what = f"of {n:,} rows have an answer a little beside where they say; the nearest is taken"
    out.findings += about("span", "note", mended, what, "correct answer_start")
    if out.has("tags"):  # labels that rows bring with them
        out.labels = class_targets([tag for tags in out["tags"] for tag in tags])[1]
    said = f"{len(out.labels)} tags" if out.has("tags") else ""
    if layout.label or layout.labels:
        out, said = _with_targets(out, cells, layout, reading, read[0][0].file)
    out.understood = _understood(out, layout, said, [raw.file for raw, _, _ in read])
    return out


def _cell(row: Row, layout: Layout) -> Any:
    """The target of a row as it stands there; "-" and -1 mean that annotators did not agree."""
    if layout.labels:
        return [name for name in layout.labels if str(row.get(name)) == "1"]
    cell = row.get(layout.label) if layout.label else None
    return None if layout.form == "pairs" and cell in ("-", -1, "-1") else cell


def _with_targets(
    out: Examples, cells: list[Any], layout: Layout, reading: Reading, file: str
) -> tuple[Examples, str]:
    scored = layout.form == "scored_pairs"
    kind = "classes" if layout.labels else "number" if scored else reading.target_kind
    what = f"column '{layout.label}' of {file}"
    targets = read_targets(cells, what, out.names, kind, table=True)
    check_few_classes(targets, what)
    out = with_targets(out, targets)
    out.target_name = layout.label
    if scored:
        out.fields["score"] = np.asarray(out.targets).tolist()
    return out, targets.said


def _understood(out: Examples, layout: Layout, said: str, files: list[str]) -> str:
    """In one line: how many of what, from which file and fields, with which targets."""
    text = f"{len(out):,} {CALLED[layout.form]}"
    if layout.form == "plain":
        return f"{documents.plain_said(out)} ({some(files)}; {layout.said})"
    if layout.form == "pairs" and said:
        text += " with a label"
    if layout.form == "spans":
        text += f" ({len(set(out['context'])):,} contexts)"
    if layout.form == "messages":
        text += f" of {np.mean(list(map(len, out['messages']))):.1f} messages on average"
    besides = {"tools": "tools", "label": "a verdict, good or bad,"}
    extra = [words for name, words in besides.items() if out.has(name)]
    text += f", {' and '.join(extra)} with them" if extra else ""
    return f"{text} ({some(files)}; {layout.said}){': ' * bool(said)}{said}{splits_said(out.given)}"
