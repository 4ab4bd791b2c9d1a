"""What is wrong with the data, before any time is spent on it.

Every finding names the files or rows it is about. What cannot be read is set aside; everything else
is kept and said. Rows that occur twice are followed across the splits: a test row of which a copy
was trained on tells nothing, so the score is also given without them (`clean_test`).

Legend: n rows, C classes, g groups of copies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from layerwise.data import audit_images, audit_tables, audit_text
from layerwise.data.duplicates import groups_of, near_duplicates
from layerwise.data.examples import Examples, Finding
from layerwise.data.label_errors import (
    out_of_fold,
    pixel_features,
    stratified_groups,
    suspect_labels,
)
from layerwise.data.listing import some
from layerwise.data.splits import DIGEST, content_hashes
from layerwise.errors import DataError

IMBALANCE = 10  # largest class over smallest, from which on it is said
FOLDS = 5  # for predictions of rows that were not learned from
NEARLY = {"image": "show the same picture as another", "text": "say nearly the same as another"}
FEW = 10  # training rows of a class, below which it is said


@dataclass
class AuditReport:
    """What the audit found.

    keep: (n,) bool, rows that can be used. clean_test: the test rows of which no copy, exact or
    near, lies in train or val. groups: (n,) the smallest row each row is a copy of (itself: none).
    looks: thumbnails, for images.
    """

    findings: list[Finding]
    keep: np.ndarray
    clean_test: np.ndarray
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    looks: audit_images.Looks | None = None

    def lines(self) -> list[str]:
        """The findings as sentences for a terminal, the gravest first."""
        order = {"error": 0, "warning": 1, "note": 2}
        found = sorted(self.findings, key=lambda f: order[f.severity])
        return [f"{f.severity}: {f.message}" + f" -> {f.cure}" * bool(f.cure) for f in found]


def audit(examples: Examples, splits: Mapping[str, np.ndarray] | None = None) -> AuditReport:
    """Look at every row.

    splits: {"train": rows, "val": rows, "test": rows}; what the data gave when left out.
    Errors: DataError when no row can be used, with the reason.
    """
    n = len(examples)
    if not n:
        raise DataError(f"'{examples.source}' has no rows; was the right folder or file given?")
    part, looks = parts_of(examples, splits), None
    if examples.kind == "image":
        looks = audit_images.look_at_all(examples.inputs, examples.names)
        keep, findings = looks.usable, looks.findings
        require_some(keep, findings, examples.source)
        exact = exact_groups(looks.digests)
        first = np.flatnonzero(keep & (exact == np.arange(n)))  # one of each content
        pairs = first[near_duplicates(looks.grey[first], looks.colour[first])]
        copies = np.stack([exact, np.arange(n)], 1)
        groups = groups_of(n, np.concatenate([pairs, copies]))
    elif examples.kind == "text":
        read = audit_text.look_at_texts(examples)
        keep, exact, groups, findings = read.keep, read.exact, read.groups, read.findings
        require_some(keep, findings, examples.source)
    else:
        keep, findings = np.ones(n, bool), audit_tables.audit_columns(examples)
        groups = exact = exact_groups(content_hashes(examples))
    findings = (
        findings + audit_copies(examples, exact, groups, part) + balance(examples, keep, part)
    )
    return AuditReport(findings, keep, clean_rows(groups, part), groups, looks)


def audit_labels(
    examples: Examples, report: AuditReport, features: np.ndarray | None = None, seed: int = 0
) -> Finding | None:
    """Rows whose label looks wrong, by confident learning on out-of-fold predictions.

    features: (n, D) of a pre-trained base; small pixels when left out (images only). Copies stay
    in one fold. None when nothing is suspected, or where there are not two classes to tell apart.
    """
    if examples.targets is None or examples.target_kind != "class":
        return None
    if features is None and report.looks is None:
        return None
    sizes = np.bincount(examples.targets[report.keep], minlength=len(examples.labels))
    rows = np.flatnonzero(report.keep & (sizes >= FOLDS)[examples.targets])
    if len(np.unique(examples.targets[rows])) < 2:
        return None
    if features is None and report.looks is not None:
        features = pixel_features(report.looks.grey[rows], report.looks.colour[rows], seed)
    else:
        features = np.asarray(features)[rows]
    classes, y = np.unique(examples.targets[rows], return_inverse=True)
    fold = stratified_groups(y, report.groups[rows], FOLDS, seed)
    probabilities = out_of_fold(features, y, fold, seed)
    names = [str(examples.names[i]) for i in rows.tolist()]
    return suspect_labels(probabilities, y, names, [examples.labels[c] for c in classes])


def parts_of(examples: Examples, splits: Mapping[str, np.ndarray] | None) -> np.ndarray:
    """The split of each row: (n,) of "train", "val", "test" or ""."""
    if splits is None:
        return np.asarray(examples.given)
    part = np.full(len(examples), "", "U5")
    for name, rows in splits.items():
        part[rows] = name
    return part


def require_some(keep: np.ndarray, findings: list[Finding], source: str) -> None:
    """Errors: DataError when every row was set aside, with what was wrong."""
    if not keep.any():
        reasons = "; ".join(f.message for f in findings if f.severity == "error")
        raise DataError(f"'{source}': nothing is left to work with. {reasons}")


# ---- copies ----------------------------------------------------------------------------------


def exact_groups(digests: Sequence[bytes]) -> np.ndarray:
    """The first row with the same content, for each row: (n,)."""
    content = np.frombuffer(b"".join(digests), f"S{DIGEST}")
    _, first, of = np.unique(content, return_index=True, return_inverse=True)
    return first[of]


def clean_rows(groups: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Test rows whose group has no row in train or val, ascending."""
    tainted = np.isin(groups, groups[np.isin(part, ("train", "val"))])
    return np.flatnonzero((part == "test") & ~tainted)


def audit_copies(
    examples: Examples, exact: np.ndarray, groups: np.ndarray, part: np.ndarray
) -> list[Finding]:
    """Copies within a split, across splits, and with different labels."""
    counts = np.bincount(groups, minlength=len(groups))
    rows = np.flatnonzero(counts[groups] > 1)
    rows = rows[np.argsort(groups[rows], kind="stable")]  # group after group
    if not len(rows):
        return []
    sets = np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1)
    same = [s for s in sets if len(np.unique(exact[s])) == 1]
    near = [s for s in sets if len(np.unique(exact[s])) > 1]
    found = [
        *describe("duplicate", same, examples, "have exactly the same content as another"),
        *describe("near_duplicate", near, examples, NEARLY.get(examples.kind, "")),
        *leaks(examples, groups, part),
    ]
    return found + conflicts(examples, sets)


def describe(kind: str, sets: list[np.ndarray], examples: Examples, what: str) -> list[Finding]:
    if not sets:
        return []
    n_rows = sum(map(len, sets))
    example = " = ".join(str(examples.names[i]) for i in sets[0][:3].tolist())
    table = examples.kind == "table"  # equal rows of a table can be different cases
    return [
        Finding(
            kind,
            "note" if table else "warning",
            f"{n_rows:,} of {len(examples):,} rows {what}, in {len(sets):,} groups ({example})",
            tuple(str(examples.names[i]) for s in sets for i in s.tolist()),
            "look whether they are separate cases" if table else "keep one of each",
        )
    ]


def leaks(examples: Examples, groups: np.ndarray, part: np.ndarray) -> list[Finding]:
    """Held-out rows that were also trained on, each with one of its copies."""
    found = []
    training = np.flatnonzero(part == "train")
    known, where = np.unique(groups[training], return_index=True)
    for held in ("val", "test"):
        rows = np.flatnonzero((part == held) & np.isin(groups, known))
        if not len(rows):
            continue
        twins = training[where[np.searchsorted(known, groups[rows])]]
        both = zip(rows.tolist(), twins.tolist(), strict=True)
        names = tuple(f"{examples.names[i]} = {examples.names[j]}" for i, j in both)
        found.append(
            Finding(
                "leak",
                "warning",
                f"{len(rows):,} of {(part == held).sum():,} {held} rows are also in train "
                f"({some(names, 1)})",
                names,
                "the score is also given without them; remove them from train for good",
            )
        )
    return found


def conflicts(examples: Examples, sets: list[np.ndarray]) -> list[Finding]:
    """Copies that carry different labels: one of them is wrong."""
    if examples.targets is None or examples.target_kind == "number":
        return []
    y = examples.targets
    bad = [s for s in sets if len(np.unique(y[s], axis=0)) > 1]
    if not bad:
        return []
    said = {i: label_of(examples, i) for s in bad for i in s.tolist()}
    example = " but ".join(f"{examples.names[i]} is '{said[i]}'" for i in bad[0][:3].tolist())
    table = examples.kind == "table"
    return [
        Finding(
            "label_conflict",
            "note" if table else "warning",
            f"{len(bad):,} groups of copies carry different labels ({example})",
            tuple(f"{examples.names[i]} ({label})" for i, label in said.items()),
            "no model can tell such rows apart" if table else "correct the labels",
        )
    ]


def label_of(examples: Examples, row: int) -> str:
    assert examples.targets is not None
    y = examples.targets[row]
    if np.ndim(y) == 0:
        return examples.labels[int(y)]
    return ", ".join(examples.labels[c] for c in np.flatnonzero(y))


# ---- classes ---------------------------------------------------------------------------------


def balance(examples: Examples, keep: np.ndarray, part: np.ndarray) -> list[Finding]:
    """Classes that are rare, or that the test never asks for."""
    if examples.targets is None or examples.target_kind not in ("class", "classes"):
        return []
    training = keep & ~np.isin(part, ("val", "test"))
    counts = class_counts(examples, training)
    labels, found = examples.labels, []
    occurs = np.flatnonzero(counts)
    if not len(occurs):
        return []
    most, least = occurs[counts[occurs].argmax()], occurs[counts[occurs].argmin()]
    ratio = counts[most] / counts[least]
    if ratio >= IMBALANCE:
        message = (
            f"classes are uneven: {counts[most]:,} rows of '{labels[most]}' in train, "
            f"{counts[least]:,} of '{labels[least]}' ({ratio:.0f} to 1); accuracy hides the rare "
            "ones, so look at balanced accuracy"
        )
        rare = [labels[c] for c in occurs if counts[most] >= IMBALANCE * counts[c]]
        cure = "add rows of the rare classes"
        found.append(Finding("imbalance", "warning", message, tuple(rare), cure))
    few = [labels[c] for c in occurs if counts[c] < FEW]
    if few:
        message = f"{len(few):,} classes have fewer than {FEW} training rows: {some(few)}"
        found.append(Finding("few_rows", "warning", message, tuple(few), "add rows"))
    if (part == "test").any():
        tested = class_counts(examples, keep & (part == "test"))
        never = [labels[c] for c in occurs if not tested[c]]
        if never:
            message = f"{len(never):,} classes have no test row, so they go unscored: {some(never)}"
            found.append(Finding("untested_class", "warning", message, tuple(never)))
    return found


def class_counts(examples: Examples, rows: np.ndarray) -> np.ndarray:
    """Rows of each class (C,) among the chosen ones."""
    assert examples.targets is not None
    y = examples.targets[rows]
    if examples.target_kind == "classes":
        return y.sum(0).astype(np.int64)
    return np.bincount(y, minlength=len(examples.labels))
