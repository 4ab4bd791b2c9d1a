"""Files of text as documents: loose ones, those in folders of classes; and what is said of them.

Legend: n documents.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layerwise.data.examples import Examples, Finding
from layerwise.data.folders import splits_said
from layerwise.data.listing import Listing, shown, some, split_named
from layerwise.data.table import Table
from layerwise.data.targets import class_targets, label_text
from layerwise.data.text_columns import FIELDS
from layerwise.data.text_dialogue import Aside, Row
from layerwise.data.text_files import bare, pieces
from layerwise.errors import DataError

Parts = tuple[str, ...]
ENDS = "<|endoftext|>"  # stands between the documents of one file
UNLABELLED = ("unsup", "unlabeled", "unlabelled", "unsupervised")  # class folders without a class


def open_documents(files: Sequence[tuple[Path, str, str]]) -> Examples:
    """Each file one document, or several with <|endoftext|> between them; with names and splits."""
    texts: list[str] = []
    names: list[str] = []
    given: list[str] = []
    empty: list[str] = []
    for path, name, split in files:
        found = [t for t in "".join(pieces(path)).split(ENDS) if t.strip()]
        empty += [] if found else [name]
        texts += found
        given += [split] * len(found)
        names += (
            [name] if len(found) == 1 else [f"{name} document {i + 1}" for i in range(len(found))]
        )
    if not texts:
        raise DataError(f"{some(empty)} holds no text, only blanks; was it copied whole?")
    given = given if len(set(given)) > 1 else [""] * len(given)
    size, many = sum(map(len, texts)), "s" * (len(texts) > 1)
    marks = np.array(given, "U5")
    said = f"plain text: {len(texts):,} document{many} of {size:,} characters"
    out = text_examples(
        "plain", [{"text": t} for t in texts], names, marks, said + splits_said(marks)
    )
    out.findings = aside_findings(
        [(name, Aside("empty", "only blanks")) for name in empty], len(files)
    )
    return out


def class_folders(documents: list[Parts]) -> tuple[list[Parts], int] | None:
    """The files where all lie in folders of classes (below folders of splits), and how deep."""
    if any(suffix_of(p) != ".txt" for p in documents if len(p) > 1):
        return None
    for depth in (1, 2):
        files = [p for p in documents if len(p) == depth + 1]
        loose = [p for p in documents if len(p) > 1 and p not in files]
        above = {p[0] for p in files} if depth == 2 else {"train"}
        sizes = Counter(p[depth - 1] for p in files)
        splits = {split_named(name) for name in sizes}
        deeper = [p for p in loose if len(p) > depth]
        several = len(sizes) > 1 and min(sizes.values()) > 1 and "" in splits
        if files and not deeper and several and all(map(split_named, above)):
            return files, depth
    return None


def labelled_files(listing: Listing, files: list[Parts], depth: int) -> Examples:
    aside = [p for p in files if p[depth - 1].lower() in UNLABELLED]
    files = [p for p in files if p not in aside]
    read = open_documents([(listing.path(p), shown(p), "") for p in files])
    label = {shown(p): label_text(shown(p[depth - 1])) for p in files}
    split = {shown(p): split_named(p[0]) if depth == 2 else "" for p in files}
    places = [name.split(" document ")[0] for name in read.names]
    read.targets, read.labels = class_targets([label[name] for name in places])
    read.given = np.array([split[name] for name in places], "U5")
    read.form, read.target_kind = "labelled", "class"
    read.understood = f"{len(read):,} texts in {len(read.labels)} class folders" + splits_said(
        read.given
    )
    if aside:
        message = f"{len(aside):,} files lie in folders without a class: left out"
        read.findings.append(Finding("unlabelled", "note", message, tuple(map(shown, aside))))
    return with_others(read, listing, files + aside)


def suffix_of(parts: Parts) -> str:
    return bare(Path(parts[-1])).suffix.lower()


# ---- examples and what is said of them ----------------------------------------------------------
def text_examples(
    form: str, rows: list[Row], names: list[str], given: np.ndarray, said: str
) -> Examples:
    """Rows of plain fields in Arrow, others as they are."""
    flat = set(FIELDS[form]) <= {"text", "text_a", "text_b", "anchor", "positive", "negative"}
    inputs: Sequence[Any] = rows
    if flat:
        columns = {f: pa.array([row[f] for row in rows], pa.large_string()) for f in FIELDS[form]}
        inputs = Table(pa.table(columns))
    return Examples("text", inputs, None, "none", (), names, given, said, form=form)


CURES = {
    "empty": ("empty", "are empty", "fill them in, or remove them"),
    "unequal": ("unequal_tags", "have words and tags of unequal number", "mend the rows"),
    "span": ("span", "have an answer that is not where they say", "correct answer_start"),
    "role": ("role", "have a role that is not known", "rename it"),
    "same": ("same_answers", "choose between two equal answers", "remove them"),
}


def aside_findings(aside: list[tuple[str, Aside]], n: int) -> list[Finding]:
    found = []
    for kind, (name, what, cure) in CURES.items():
        rows = [(row, a.reason) for row, a in aside if a.kind == kind]
        if rows:
            message = (
                f"{len(rows):,} of {n:,} rows {what} and are set aside ({rows[0][0]}: {rows[0][1]})"
            )
            listed = tuple(f"{row}: {reason}" for row, reason in rows)
            found.append(Finding(name, "error", message, listed, cure))
    return found


def with_others(opened: Examples, listing: Listing, used: list[Parts]) -> Examples:
    known = set(used)
    others = [shown(p) for p in listing.files if p not in known]
    if others:
        message = f"{len(others):,} other files were left out: {some(others)}"
        opened.findings = [*opened.findings, Finding("unused", "note", message, tuple(others))]
    opened.findings = [*listing.findings(), *opened.findings]
    return opened


def texts_of(examples: Examples) -> list[str]:
    """All that each row says, as one text: what the audit reads. (n,)"""
    rows = examples.inputs
    if isinstance(rows, Table):
        columns = [rows.column(name).to_pylist() for name in rows.columns]
        return (
            columns[0] if len(columns) == 1 else ["\n".join(c) for c in zip(*columns, strict=True)]
        )
    fields = FIELDS[examples.form]
    return ["\n".join(_said(row[f]) for f in fields) for row in rows]


def _said(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        separator = " " if value and isinstance(value[0], str) else "\n"
        return separator.join(map(_said, value))
    return str(value.get("content") or value.get("text") or "")
