"""Folders of files of one kind: one folder per class, with or without train/val/test; loose ones.

    root/cat/1.jpg, root/dog/2.PNG                      class folders (any depth within a class)
    root/train/cat/1.jpg, root/test/cat/2.jpg           with given splits
    root/1.jpg, root/2.jpg                              loose files: no labels

A single folder that only wraps these is passed through.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from layerwise.data.examples import Examples, Finding
from layerwise.data.listing import FileKind, Listing, Parts, split_named, splits_said
from layerwise.data.naming import about, shown, some
from layerwise.data.targets import class_targets, label_text
from layerwise.errors import DataError


def open_folder(listing: Listing, what: FileKind, learn: bool = True) -> Examples | None:
    """Files by their folders; None where there are none.

    learn=False: a mixture is not an error; its files get no labels.
    Errors: class folders mixed with loose files, or with folders that name splits.
    """
    files = [parts for parts in listing.files if what.mine(listing.path(parts))]
    if not files:
        return None
    try:
        found = _by_folders(listing, files, what)
    except DataError:
        if learn:
            raise
        found = _examples(listing, files, what, None, [""] * len(files))
    found.findings = listing.findings() + _other_files(listing, files, what) + found.findings
    return found


def _by_folders(listing: Listing, files: list[Parts], what: FileKind) -> Examples:
    top = _wrappers(files)  # the place of the topmost folders that mean something
    tops = {parts[top] for parts in files if len(parts) > top + 1}
    split = bool(tops) and _are_splits(tops, files, top)
    splits = [split_named(parts[top]) if split else "" for parts in files]
    at = top + split  # the place of the class folders
    labelled = [parts for parts in files if len(parts) > at + 1]
    if not labelled:
        return _examples(listing, files, what, None, splits)
    without = {p[:at] for p in files if len(p) > at} - {p[:at] for p in labelled}
    loose = [p for p in files if len(p) <= at + 1 and p[:at] not in without]
    if loose:
        raise DataError(
            f"{len(loose):,} {what.noun} lie loose beside class folders (such as "
            f"{some(map(shown, loose), 1)} beside '{shown(labelled[0][: at + 1])}'); move each "
            f"{what.noun[:-1]} into the folder of its class, or out of the way"
        )
    given = [s for s, parts in zip(splits, files, strict=True) if len(parts) > at + 1]
    names = [label_text(shown(parts[at])) for parts in labelled]
    found = _examples(listing, labelled, what, names, given)
    for above in sorted(without):
        left = [shown(parts) for parts in files if parts[:at] == above]
        said = f"{what.noun} in '{shown(above)}' have no class folders and are left out"
        found.findings += about("unlabelled", "note", left, said)
    found.findings += _empty_classes(listing, {parts[: at + 1] for parts in labelled}, what)
    return found


def _wrappers(files: list[Parts]) -> int:
    """How many folders only wrap the rest: data/photos/cat/... has its classes at place 1."""
    depth = 0
    while all(len(parts) > depth + 2 for parts in files):
        here = {parts[depth] for parts in files}
        if len(here) > 1 or split_named(next(iter(here))):
            break
        depth += 1
    return depth


def _are_splits(tops: set[str], files: list[Parts], top: int) -> bool:
    """Whether the folders are train, val, test. A class may be called 'train' beside others."""
    named = {name for name in tops if split_named(name)}
    if named == tops:
        return True
    nested = {parts[top] for parts in files if parts[top] in named and len(parts) > top + 2}
    if nested:
        raise DataError(
            f"{some(sorted(nested))} look like given splits with class folders in them, but "
            f"{some(sorted(tops - named))} beside them do not; move these out of the folder, or "
            "rename them to train, val or test"
        )
    return False


def _examples(
    listing: Listing, files: list[Parts], what: FileKind, names: list[str] | None, splits: list[str]
) -> Examples:
    """names: of the classes, where folders are."""
    targets, labels = class_targets(names) if names is not None else (None, ())
    given = np.array(splits, "U5")
    said = f"{len(files):,} {what.noun if len(files) > 1 else what.noun[:-1]} "
    said += "without labels" if names is None else f"in {len(labels):,} class folders"
    said += splits_said(given)
    paths, rows = [listing.path(p) for p in files], [shown(p) for p in files]
    kind = "none" if names is None else "class"
    found = Examples.of(what.kind, paths, rows, given, said)
    return replace(found, targets=targets, target_kind=kind, labels=labels)


def one_file(path: Path, what: FileKind) -> Examples:
    return _examples(Listing(path.parent), [(path.name,)], what, None, [""])


def _other_files(listing: Listing, files: list[Parts], what: FileKind) -> list[Finding]:
    known = set(files)
    others = [shown(parts) for parts in listing.files if parts not in known]
    suffixes = Counter(Path(name).suffix.lower() or "no suffix" for name in others)
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common(4))
    said = f"files are not {what.noun} ({kinds}), left out"
    return about("unused", "note", others, said)


def _empty_classes(listing: Listing, filled: set[Parts], what: FileKind) -> list[Finding]:
    """Class folders without any file, beside those that have some: classes not learned."""
    above = {parts[:-1] for parts in filled}
    empty = [shown(p) for p in listing.folders if p[:-1] in above and p not in filled]
    said = f"class folders hold no {what.noun} and are left out"
    return about("empty_class", "warning", empty, said, f"add {what.noun}, or remove them")
