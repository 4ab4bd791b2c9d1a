"""What is wrong with the data, before any time is spent on it.

Every finding names the files or rows it is about. What cannot be read is set aside; everything else
is kept and said. Rows that occur twice are followed across the splits: a test row of which a copy
was trained on tells nothing, so the score is also given without them (`clean_test`).

Legend: n rows, C classes, g groups of copies.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from layerwise import kinds
from layerwise.data.examples import Examples, Finding, Severity
from layerwise.data.groups import first_alike
from layerwise.data.naming import about
from layerwise.errors import DataError
from layerwise.kinds.contract import Looks
from layerwise.kinds.label_errors import out_of_fold, stratified_groups, suspect_labels

IMBALANCE = 10  # largest class over smallest, from which on it is said
FOLDS = 5  # for predictions of rows that were not learned from
MANY = 20_000  # rows whose labels are looked at by their pixels alone
FEW = 10  # training rows of a class, below which it is said


@dataclass
class AuditReport:
    """What the audit found.

    keep: (n,) bool, rows that can be used. clean_test: the test rows of which no copy, exact or
    near, lies in train or val. looks: what the kinds saw.
    """

    findings: list[Finding]
    keep: np.ndarray
    clean_test: np.ndarray
    looks: Looks

    def lines(self) -> list[str]:
        """The findings as sentences for a terminal, the most severe first."""
        order = {"error": 0, "warning": 1, "note": 2}
        found = sorted(self.findings, key=lambda f: order[f.severity])
        return [f"{f.severity}: {f.message}" + f" -> {f.cure}" * bool(f.cure) for f in found]


def audit(examples: Examples, splits: Mapping[str, np.ndarray] | None = None) -> AuditReport:
    """Look at every row.

    splits: {"train": rows, "val": rows, "test": rows}; what the data gave when left out.
    Errors: DataError when no row can be used, with the reason.
    """
    if not len(examples):
        raise DataError(f"'{examples.source}' has no rows; was the right folder or file given?")
    part, looks = parts_of(examples, splits), look_at(examples)
    if not looks.keep.any():
        reasons = "; ".join(f.message for f in looks.findings if f.severity == "error")
        raise DataError(f"'{examples.source}': nothing is left to work with. {reasons}")
    findings = looks.findings + audit_copies(examples, looks, part)
    findings += balance(examples, looks.keep, part)
    return AuditReport(findings, looks.keep, clean_rows(looks.groups, part), looks)


def look_at(examples: Examples) -> Looks:
    """A look at every field by its kind; rows are alike where all their fields are."""
    looks = [kind.look(examples) for kind in kinds.several(examples)]
    if len(looks) == 1:
        return looks[0]
    keep = np.logical_and.reduce([found.keep for found in looks])
    exact = first_alike(zip(*(found.exact.tolist() for found in looks), strict=True))
    groups = first_alike(zip(*(found.groups.tolist() for found in looks), strict=True))
    return Looks(keep, exact, groups, [f for found in looks for f in found.findings])


def audit_labels(
    examples: Examples,
    report: AuditReport,
    rows: np.ndarray | None = None,
    features: np.ndarray | None = None,
    seed: int = 0,
) -> Finding | None:
    """Rows whose label looks wrong, by confident learning on out-of-fold predictions.

    rows: the rows looked at, all usable ones when left out. features: (len(rows), D), a pre-trained
    base's; what the kind has when left out (pixels of images), of at most MANY rows at random.
    Copies stay in one fold. None when nothing is suspected, or where there are not two classes of
    at least FOLDS rows to tell apart.
    """
    own = report.looks.features
    if examples.target_kind != "class" or (features is None and own is None):
        return None
    targets = np.asarray(examples.targets)
    rows = np.flatnonzero(report.keep) if rows is None else rows
    if features is None:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MANY])
    sizes = np.bincount(targets[rows], minlength=len(examples.labels))
    enough = (sizes >= FOLDS)[targets[rows]] & report.keep[rows]
    rows = rows[enough]
    classes, y = np.unique(targets[rows], return_inverse=True)
    if len(classes) < 2:
        return None
    known = features[enough] if features is not None else own(rows, seed) if own else rows
    fold = stratified_groups(y, report.looks.groups[rows], FOLDS, seed)
    probabilities = out_of_fold(known, y, fold, seed)
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


# ---- copies ----------------------------------------------------------------------------------


def clean_rows(groups: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Test rows whose group has no row in train or val, ascending."""
    tainted = np.isin(groups, groups[np.isin(part, ("train", "val"))])
    return np.flatnonzero((part == "test") & ~tainted)


def audit_copies(examples: Examples, looks: Looks, part: np.ndarray) -> list[Finding]:
    """Copies within a split, across splits, and with different labels."""
    exact, groups = looks.exact, looks.groups
    rows = np.flatnonzero(np.bincount(groups, minlength=len(groups))[groups] > 1)
    rows = rows[np.argsort(groups[rows], kind="stable")]  # group after group
    sets = np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1) if len(rows) else []
    kind = kinds.of(examples)
    severity = kind.copies
    cure = "keep one of each" if severity == "warning" else "look whether they are separate cases"
    found: list[Finding] = []
    alike = {"duplicate": "have exactly the same content as another", "near_duplicate": kind.alike}
    for name, what in alike.items():
        chosen = [s for s in sets if (len(np.unique(exact[s])) == 1) == (name == "duplicate")]
        rows = [str(examples.names[i]) for s in chosen for i in s.tolist()]
        what = f"of {len(examples):,} rows {what}, in {len(chosen):,} groups"
        found += about(name, severity, rows, what, cure)
    return found + leaks(examples, groups, part) + conflicts(examples, sets, severity)


def leaks(examples: Examples, groups: np.ndarray, part: np.ndarray) -> list[Finding]:
    """Held-out rows that were also trained on, each with one of its copies."""
    found = []
    training = np.flatnonzero(part == "train")
    known, where = np.unique(groups[training], return_index=True)
    for held in ("val", "test"):
        rows = np.flatnonzero((part == held) & np.isin(groups, known))
        twins = training[where[np.searchsorted(known, groups[rows])]]
        both = zip(rows.tolist(), twins.tolist(), strict=True)
        names = [f"{examples.names[i]} = {examples.names[j]}" for i, j in both]
        what = f"of {(part == held).sum():,} {held} rows are also in train"
        cure = "the score is also given without them; remove them from train for good"
        found += about("leak", "warning", names, what, cure)
    return found


def conflicts(examples: Examples, sets: list[np.ndarray], severity: Severity) -> list[Finding]:
    """Copies that carry different labels: one of them is wrong."""
    y = examples.targets
    if y is None or examples.target_kind not in ("class", "classes"):
        return []
    bad = [s for s in sets if len(np.unique(y[s], axis=0)) > 1]
    names = [f"{examples.names[i]} ({label_of(examples, i)})" for s in bad for i in s.tolist()]
    what = f"rows, in {len(bad):,} groups of copies, carry different labels"
    return about("label_conflict", severity, names, what, "correct the labels, or tell them apart")


def label_of(examples: Examples, row: int) -> str:
    assert examples.targets is not None
    y = examples.targets[row]
    chosen = np.flatnonzero(y) if np.ndim(y) else [int(y)]
    return ", ".join(examples.labels[c] for c in chosen)


# ---- classes ---------------------------------------------------------------------------------


def balance(examples: Examples, keep: np.ndarray, part: np.ndarray) -> list[Finding]:
    """Classes that are rare, or that the test never asks for."""
    if examples.has("tags"):
        return untaught_tags(examples, keep, part)
    if examples.targets is None or examples.target_kind not in ("class", "classes"):
        return []
    counts = class_counts(examples, keep & ~np.isin(part, ("val", "test")))
    labels, occurs = np.array(examples.labels), counts > 0
    if not occurs.any():
        return []
    most, least = counts.argmax(), np.where(occurs, counts, counts.max() + 1).argmin()
    rare = labels[occurs & (IMBALANCE * counts <= counts[most])].tolist()
    ratio = f"{counts[most] / counts[least]:.0f} to 1"
    uneven = f"classes are rare beside '{labels[most]}' ({counts[most]:,} train rows, "
    uneven += f"{counts[least]:,} of '{labels[least]}': {ratio}), see balanced accuracy"
    few = labels[occurs & (counts < FEW)].tolist()
    tested = class_counts(examples, keep & (part == "test"))
    never = labels[occurs & (tested == 0)].tolist() if tested.any() else []
    return [
        *about("imbalance", "warning", rare, uneven, "add rows of the rare classes"),
        *about("few_rows", "warning", few, f"classes have under {FEW} training rows", "add rows"),
        *about("untested_class", "warning", never, "classes have no test row: they go unscored"),
    ]


def untaught_tags(examples: Examples, keep: np.ndarray, part: np.ndarray) -> list[Finding]:
    """Tags that held-out sentences ask for and no training sentence has."""
    held, tags = np.isin(part, ("val", "test")), examples["tags"]
    asked, known = (
        {tag for i in np.flatnonzero(keep & rows).tolist() for tag in tags[i]}
        for rows in (held, ~held)
    )
    names = [label for label in examples.labels if label in asked - known]
    what = "tags never occur in train, so they cannot be learned"
    return about("untaught_tag", "warning", names, what, "add sentences with them")


def class_counts(examples: Examples, rows: np.ndarray) -> np.ndarray:
    """Rows of each class (C,) among the chosen ones."""
    assert examples.targets is not None
    y = examples.targets[rows]
    if examples.target_kind == "classes":
        return y.sum(0).astype(np.int64)
    return np.bincount(y, minlength=len(examples.labels))
