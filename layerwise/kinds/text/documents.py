"""Files of text as documents: loose ones, those in folders of classes; and what is said of them.

Legend: n documents.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layerwise.data.delimited import Row
from layerwise.data.examples import Column, Examples, Finding, listed
from layerwise.data.listing import Listing, Parts, split_named, splits_said
from layerwise.data.naming import about, shown, some
from layerwise.data.targets import class_targets, label_text
from layerwise.data.text_files import bare, pieces
from layerwise.errors import DataError
from layerwise.kinds.text.layouts import FIELDS, LEARNED, Aside

Given = Sequence[str] | np.ndarray  # the split of each row
WHOLE = ("plain", "labelled", "pairs", "scored_pairs", "triples")  # forms of texts alone
ENDS = "<|endoftext|>"  # stands between the documents of one file
UNLABELLED = ("unsup", "unlabeled", "unlabelled", "unsupervised")  # class folders without a class


def open_documents(files: Sequence[tuple[Path, str, str]]) -> Examples:
    """Each file one document, or several with <|endoftext|> between them; with names and splits."""
    rows: list[tuple[str, str, str]] = []
    empty: list[tuple[str, Aside]] = []
    for path, name, split in files:
        found = [t for t in "".join(pieces(path)).split(ENDS) if t.strip()]
        several = [f"{name} document {i + 1}" for i in range(len(found))]
        called = several if len(found) > 1 else [name]
        rows += [(text, name, split) for text, name in zip(found, called, strict=False)]
        empty += [] if found else [(name, Aside("empty", "only blanks"))]
    if not rows:
        said = some(name for name, _ in empty)
        raise DataError(f"{said} holds no text, only blanks; was it copied whole?")
    texts, names, given = map(list, zip(*rows, strict=True))
    named = sum(map(bool, given)) > len(given) / 2  # else it is what these few files are called
    given = given if named and len(set(given)) > 1 else [""] * len(given)
    out = plain_examples(texts, names, given)
    out.understood = plain_said(out)
    out.findings = aside_findings(empty, len(files))
    return out


def lines_of(examples: Examples) -> Examples:
    """Each line that says something as a text of its own."""
    named = zip(examples.names, listed(examples["text"]), strict=True)
    lines = [
        (line, f"{name} line {i}")
        for name, text in named
        for i, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]
    out = plain_examples(*map(list, zip(*lines, strict=True)))
    return replace(out, source=examples.source, understood=f"{len(lines):,} lines of text")


def plain_said(examples: Examples) -> str:
    n, size = len(examples), sum(map(len, texts_of(examples)))
    said = f"plain text: {n:,} document{'s' * (n > 1)} of {size:,} characters"
    return said + splits_said(examples.given)


def class_folders(documents: list[Parts]) -> tuple[list[Parts], int] | None:
    """The files where all lie in folders of classes (below folders of splits), and how deep."""
    if any(suffix_of(p) != ".txt" for p in documents if len(p) > 1):
        return None
    depth = max(map(len, documents), default=0) - 1
    files = [p for p in documents if len(p) == depth + 1]
    if depth not in (1, 2) or (depth == 2 and not all(split_named(p[0]) for p in files)):
        return None
    sizes = Counter(p[depth - 1] for p in files)
    several = len(sizes) > 1 and min(sizes.values()) > 1 and not all(map(split_named, sizes))
    return (files, depth) if several else None


def labelled_files(listing: Listing, files: list[Parts], depth: int) -> Examples:
    kept = {shown(p): p for p in files if p[depth - 1].lower() not in UNLABELLED}
    read = open_documents([(listing.path(p), name, "") for name, p in kept.items()])
    places = [kept.get(name) or kept[name.rpartition(" document ")[0]] for name in read.names]
    read.targets, read.labels = class_targets([label_text(shown(p[depth - 1])) for p in places])
    read.given = np.array([split_named(p[0]) if depth == 2 else "" for p in places], "U5")
    read.target_kind = "class"
    read.understood = f"{len(read):,} texts in {len(read.labels)} class folders"
    read.understood += splits_said(read.given)
    aside = [name for name in map(shown, files) if name not in kept]
    what = "files lie in folders without a class and are left out"
    read.findings += about("unlabelled", "note", aside, what)
    return with_others(read, listing, files)


def suffix_of(parts: Parts) -> str:
    return bare(Path(parts[-1])).suffix.lower()


# ---- examples and what is said of them ----------------------------------------------------------
def text_examples(form: str, rows: list[Row], names: Sequence[str], given: Given = ()) -> Examples:
    """Rows of a form of text by their fields; texts in Arrow, others as they are.

    given: the split of each row; none by default.
    """
    own, whole = FIELDS[form], form in WHOLE
    every = dict.fromkeys((*own, *(name for row in rows for name in row)))
    values: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in every}
    fields: dict[str, Any] = {n: Column(arrow_texts(v)) if whole else v for n, v in values.items()}
    marks = np.array(given, "U5") if len(given) else np.full(len(rows), "", "U5")
    together = "context" * (form == "spans")  # questions on one context are one content
    kinds = {name: "text" for name in own if name not in LEARNED}
    return Examples(fields, kinds, names, marks, together=together)


def plain_examples(texts: list[str], names: Sequence[str], given: Given = ()) -> Examples:
    return text_examples("plain", [{"text": t} for t in texts], names, given)


def arrow_texts(texts: list[str]) -> pa.Array:
    """Half a character, as JSON may hold where a text was cut, becomes a question mark."""
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        return arrow_texts([t.encode("utf-8", "replace").decode() for t in texts])


FAULTS = {  # why rows cannot be used: what they are, and what to do
    "empty": ("are empty", "fill them in, or remove them"),
    "unequal_tags": ("have words and tags of unequal number", "correct the rows"),
    "span": ("have an answer that is not where they say", "correct answer_start"),
    "role": ("have a role that is not known", "rename it"),
    "same_answers": ("choose between two equal answers", "remove them"),
}


def aside_findings(aside: list[tuple[str, Aside]], n: int) -> list[Finding]:
    """What was set aside of n rows."""
    found = []
    for kind, (what, cure) in FAULTS.items():
        rows = [f"{row}: {fault.reason}" for row, fault in aside if fault.kind == kind]
        found += about(kind, "error", rows, f"of {n:,} rows {what} and are set aside", cure)
    return found


def with_others(opened: Examples, listing: Listing, used: list[Parts]) -> Examples:
    """And what of the folder was left out."""
    known = set(used)
    others = [shown(p) for p in listing.files if p not in known]
    unused = about("unused", "note", others, "files were left out")
    opened.findings = [*listing.findings(), *opened.findings, *unused]
    return opened


def texts_of(examples: Examples) -> list[str]:
    """All that each row says, as one text: what the audit reads. (n,)"""
    beside = {"score", "tools", "label", examples.together} - examples.kinds.keys()
    of = {k: examples.kinds.get(k, "text") for k in examples.fields if k not in beside}
    fields = [examples[name] for name, kind in of.items() if kind == "text"]
    if all(isinstance(values, Column) for values in fields):
        columns = [listed(values) for values in fields]
        return columns[0] if len(columns) == 1 else list(map("\n".join, zip(*columns, strict=True)))
    return ["\n".join(map(_said, row)) for row in zip(*fields, strict=True)]


def _said(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        separator = " " if value and isinstance(value[0], str) else "\n"
        return separator.join(map(_said, value))
    return value if isinstance(value, str) else str(value.get("content") or value.get("text") or "")
