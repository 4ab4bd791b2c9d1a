"""Open text of any kind without being told what it is: documents, rows of tables and of JSON.

A folder of text files or source code is a set of documents, unless all of it lies in folders of
classes; files of rows (JSON, CSV, TSV, Parquet, CoNLL) are read by what their fields hold, see
`text_forms`. Rows that cannot be used are set aside and listed. Legend: n rows.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layerwise.data.examples import Examples
from layerwise.data.folders import splits_said
from layerwise.data.listing import (
    Listing,
    is_image,
    natural,
    shown,
    some,
    split_named,
    split_within,
)
from layerwise.data.table_files import SPLIT_NAMES, Reading
from layerwise.data.targets import class_targets, read_targets
from layerwise.data.text_columns import Layout
from layerwise.data.text_dialogue import Aside, Row
from layerwise.data.text_documents import (
    Parts,
    aside_findings,
    class_folders,
    labelled_files,
    open_documents,
    suffix_of,
    text_examples,
    with_others,
)
from layerwise.data.text_files import CODE, bare, read_text, sniff
from layerwise.data.text_forms import recognise, tagged_row
from layerwise.data.text_rows import RawRows, read_rows
from layerwise.errors import DataError

BESIDE = re.compile(r"(readme|licen[cs]e|copying|notice|changelog|citation|authors?)\b", re.I)
SAYS = {
    "labelled": "texts with a target",
    "tagged": "sentences with a tag for each word",
    "pairs": "pairs of texts",
    "scored_pairs": "pairs of texts with a score",
    "triples": "triples of a text, one like it and one unlike it",
    "spans": "questions with answers in their contexts",
    "messages": "conversations",
    "prompt_completion": "prompts with completions",
    "preference": "prompts with a chosen and a rejected answer",
}


def open_text_file(path: Path, reading: Reading, asked: bool = False) -> Examples | None:
    """One file of text as Examples of the kind "text"; None where it is no text but a table.

    asked: the caller said that it is text. Errors: DataError naming the file and the line or row.
    """
    kind = sniff(path)
    if kind == "binary":
        if asked:
            raise DataError(f"'{shown(path.name)}' is no text: most of its bytes are no characters")
        return None
    if kind == "document":
        return open_documents([(path, shown(path.name), "")])
    return open_rows([(path, "")], reading, asked)


def open_text_folder(listing: Listing, reading: Reading, asked: bool = False) -> Examples | None:
    """The text files of a folder; None where it holds tables, or nothing to read.

    Errors: files of rows that do not belong together.
    """
    kinds = {parts: sniff(listing.path(parts)) for parts in listing.files if _may_be_text(parts)}
    documents = [parts for parts, kind in kinds.items() if kind == "document"]
    rows = [
        parts for parts, kind in kinds.items() if kind in ("json", "table", "tagged", "parquet")
    ]
    prose = [p for p in documents if not BESIDE.match(p[-1])]
    if len([p for p in documents if suffix_of(p) in CODE]) > len(rows):
        documents, rows = sorted(documents + rows, key=lambda p: [natural(x) for x in p]), []
    opened = None
    if rows:
        opened = _rows_of_folder(listing, rows, reading, asked)
        if opened is None and (not prose or not asked):
            return None
        if opened is not None and (opened.form != "plain" or not prose):
            return with_others(opened, listing, rows)
    classes = None if opened else class_folders(documents)
    if classes and reading.learn:
        return labelled_files(listing, *classes)
    files = [(listing.path(p), shown(p), _split_of(p)) for p in (prose if rows else documents)]
    if not files:
        return opened
    found = open_documents(files)
    if opened is not None:
        found = _together([opened, found])
    return with_others(found, listing, [*documents, *rows])


def _may_be_text(parts: Parts) -> bool:
    return not is_image(Path("/".join(parts))) if "." in parts[-1] else True


def _split_of(parts: Parts) -> str:
    """The split that a folder or the name of the file tells."""
    folders = [split_named(part) for part in parts[:-1]]
    return next((s for s in folders if s), "") or split_within(bare(Path(parts[-1])).stem)


# ---- rows ----------------------------------------------------------------------------------------
def _rows_of_folder(
    listing: Listing, files: list[Parts], reading: Reading, asked: bool
) -> Examples | None:
    top = [p for p in files if len(p) == 1]
    chosen = top or files
    folders = {p[:-1] for p in chosen if not any(split_named(part) for part in p[:-1])}
    if len(folders) > 1:
        opened = [open_rows([(listing.path(chosen[0]), "")], reading, asked)]
        if opened[0] is None:
            return None
        raise DataError(
            f"'{shown(listing.root)}' holds {len(folders)} folders of rows "
            f"({some(sorted(map(shown, folders)))}); name one of them"
        )
    return open_rows([(listing.path(p), _split_of(p)) for p in chosen], reading, asked)


def open_rows(
    files: Sequence[tuple[Path, str]], reading: Reading, asked: bool = False
) -> Examples | None:
    """Files of rows of one form as Examples; None where the first is a table, not text."""
    files = sorted(files, key=lambda file: file[1] not in ("train", ""))
    read: list[tuple[RawRows, Layout]] = []
    for path, split in files:
        raw = read_rows(path, reading)
        layout = _layout(raw, reading, asked)
        if layout is None:
            if not read and len(files) == 1:
                return None
            continue
        if any(f.kind == "encoding" and "UTF-8" in f.message for f in raw.findings):
            read_text(path)  # a table may be of another encoding; of a text it is an error
        if len(files) > 1:
            raw.given = [own or split for own in raw.given]
        _read_split_column(raw, layout, reading)
        read.append((raw, layout))
    forms = {layout.form for _, layout in read}
    if not read:
        return None
    if len(forms) > 1:
        each = ", ".join(f"'{raw.file}' ({layout.form})" for raw, layout in read[:4])
        raise DataError(f"{len(read)} files of different forms: {each}; name one of them")
    return _made(read, reading)


def _layout(raw: RawRows, reading: Reading, asked: bool) -> Layout | None:
    if not len(raw):
        raise DataError(f"'{raw.file}' has no rows; was it copied whole?")
    if raw.what == "CoNLL":
        return Layout("tagged", lambda row: tagged_row(row, "tokens", "tags"), "CoNLL")
    split = reading.split_column or next((c for c in raw.columns if c.lower() in SPLIT_NAMES), None)
    names = [c for c in raw.columns if c != split]
    layout = recognise(raw.sample, names, raw.header, reading.target, asked, reading.learn)
    if layout and raw.what:
        layout.said = raw.what
    return layout


def _read_split_column(raw: RawRows, layout: Layout, reading: Reading) -> None:
    """Splits that a field of the rows says, where every value of it is one."""
    asked = reading.split_column
    for name in [asked] if asked else [c for c in raw.columns if c.lower() in SPLIT_NAMES]:
        values = [str(row.get(name) or "") for row in raw.rows]
        if name not in layout.uses and all(split_named(v) or not v.strip() for v in values):
            raw.given = [split_named(v) for v in values]
        elif asked:
            wrong = next(i for i, v in enumerate(values) if not split_named(v))
            raise DataError(
                f"{raw.names[wrong]}: '{name}' should say train, val or test, not {values[wrong]!r}"
            )


def _made(read: list[tuple[RawRows, Layout]], reading: Reading) -> Examples:
    """Rows of one form, those that cannot be used set aside; then their targets."""
    rows: list[Row] = []
    names: list[str] = []
    given: list[str] = []
    cells: list[Any] = []
    aside: list[tuple[str, Aside]] = []
    for raw, layout in read:
        for row, name, split in zip(raw.rows, raw.names, raw.given, strict=True):
            made = layout.make(row)
            if isinstance(made, Aside):
                aside.append((name, made))
                continue
            rows.append(made)
            names.append(name)
            given.append(split)
            cells.append(_cell(row, layout))
    layout = read[0][1]
    if not rows:
        name, first = aside[0]
        raise DataError(
            f"{name}: {first.reason}; and none of the other {len(aside) - 1:,} rows can be used"
        )
    marks = np.array(given, "U5")
    out = text_examples(layout.form, rows, names, marks, "")
    out.findings = [f for raw, _ in read for f in raw.findings]
    out.findings += aside_findings(aside, len(rows) + len(aside))
    said = ""
    if layout.label or layout.labels:
        out, said = _with_targets(out, cells, layout, reading, read[0][0].file)
    out.understood = _understood(out, layout, said, [raw.file for raw, _ in read])
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
    if layout.form == "scored_pairs":
        kind = "number"
    else:
        kind = "classes" if layout.labels else reading.target_kind
    what = f"column '{layout.label}' of {file}"
    targets = read_targets(cells, what, kind, True, lambda i: out.names[i])
    if targets.kind == "class" and len(targets.labels) > max(20, len(cells) // 2):
        raise DataError(
            f"{what} has {len(targets.labels):,} different values in {len(cells):,} rows, so it is "
            "no class to learn; name the column to learn with --target"
        )
    out.target_name = layout.label
    kept = out.subset(targets.labelled)
    kept.targets, kept.target_kind, kept.labels = targets.values, targets.kind, targets.labels
    kept.findings += targets.findings
    return kept, targets.said


def _understood(out: Examples, layout: Layout, said: str, files: list[str]) -> str:
    text = f"{len(out):,} {SAYS.get(layout.form, '')}"
    if layout.form == "plain":
        size = sum(len(row["text"]) for row in out.inputs)
        text = f"plain text: {len(out):,} document{'s' * (len(out) > 1)} of {size:,} characters"
    elif layout.form == "pairs" and said:
        text += " with a label"
    elif layout.form == "tagged":
        out.labels = class_targets([t for row in out.inputs for t in row["tags"]])[1]
        said = f"{len(out.labels)} tags"
    elif layout.form == "spans":
        text += f" ({len({row['context'] for row in out.inputs}):,} contexts)"
    elif layout.form == "messages":
        text += (
            f" of {np.mean([len(row['messages']) for row in out.inputs]):.1f} messages on average"
        )
    extra = [
        word
        for key, word in (("tools", "tools"), ("label", "a verdict, good or bad,"))
        if _has(out, key)
    ]
    text += f", {' and '.join(extra)} with them" if extra else ""
    return f"{text} ({some(files)}; {layout.said}){': ' * bool(said)}{said}{splits_said(out.given)}"


def _has(out: Examples, key: str) -> bool:
    return out.form in ("messages", "prompt_completion") and any(key in row for row in out.inputs)


def _together(parts: list[Examples]) -> Examples:
    """Plain text from files of rows and from files of text."""
    rows = [row for part in parts for row in part.inputs]
    names = [str(name) for part in parts for name in part.names]
    given = np.concatenate([part.given for part in parts])
    size = sum(len(row["text"]) for row in rows)
    said = f"plain text: {len(rows):,} documents of {size:,} characters{splits_said(given)}"
    out = text_examples("plain", rows, names, given, said)
    out.findings = [f for part in parts for f in part.findings]
    return out
