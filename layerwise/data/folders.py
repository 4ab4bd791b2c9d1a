"""Folders of image files: one folder per class, with or without train/val/test; loose images.

    root/cat/1.jpg, root/dog/2.PNG                      class folders (any depth within a class)
    root/train/cat/1.jpg, root/test/cat/2.jpg           with given splits
    root/1.jpg, root/2.jpg                              loose images: no labels

A single folder that only wraps these is passed through.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from layerwise.data.examples import Examples, Finding
from layerwise.data.listing import Listing, Parts, split_named
from layerwise.data.naming import about, shown, some
from layerwise.data.targets import class_targets, label_text
from layerwise.errors import DataError


def open_folder(listing: Listing, images: list[Parts], learn: bool = True) -> Examples:
    """Images by their folders. learn=False: a mixture is no error, its images have no labels.

    Errors: class folders mixed with loose images, or with folders that name splits.
    """
    try:
        return _by_folders(listing, images)
    except DataError:
        if learn:
            raise
        findings = listing.findings() + other_files(listing, images)
        return _examples(listing, images, None, [""] * len(images), findings)


def _by_folders(listing: Listing, images: list[Parts]) -> Examples:
    top = _wrappers(images)  # the place of the topmost folders that mean something
    tops = {parts[top] for parts in images if len(parts) > top + 1}
    findings = [*listing.findings(), *other_files(listing, images)]
    split = bool(tops) and _are_splits(tops, images, top)
    splits = [split_named(parts[top]) if split else "" for parts in images]
    at = top + split  # the place of the class folders
    labelled = [parts for parts in images if len(parts) > at + 1]
    if not labelled:
        return _examples(listing, images, None, splits, findings)
    without = {p[:at] for p in images if len(p) > at} - {p[:at] for p in labelled}
    loose = [p for p in images if len(p) <= at + 1 and p[:at] not in without]
    if loose:
        raise DataError(
            f"{len(loose):,} images lie loose beside class folders (such as "
            f"{some(map(shown, loose), 1)} beside '{shown(labelled[0][: at + 1])}'); move each "
            "image into the folder of its class, or out of the way"
        )
    for above in sorted(without):
        left = [shown(parts) for parts in images if parts[:at] == above]
        what = f"images in '{shown(above)}' have no class folders and are left out"
        findings += about("unlabelled", "note", left, what)
    findings += _empty_classes(listing, {parts[: at + 1] for parts in labelled})
    given = [s for s, parts in zip(splits, images, strict=True) if len(parts) > at + 1]
    names = [label_text(shown(parts[at])) for parts in labelled]
    return _examples(listing, labelled, names, given, findings)


def _wrappers(images: list[Parts]) -> int:
    """How many folders only wrap the rest: data/photos/cat/... has its classes at place 1."""
    depth = 0
    while all(len(parts) > depth + 2 for parts in images):
        here = {parts[depth] for parts in images}
        if len(here) > 1 or split_named(next(iter(here))):
            break
        depth += 1
    return depth


def _are_splits(tops: set[str], images: list[Parts], top: int) -> bool:
    """Whether the folders are train, val, test. A class may be called 'train' beside others."""
    named = {name for name in tops if split_named(name)}
    if named == tops:
        return True
    nested = {parts[top] for parts in images if parts[top] in named and len(parts) > top + 2}
    if nested:
        raise DataError(
            f"{some(sorted(nested))} look like given splits with class folders in them, but "
            f"{some(sorted(tops - named))} beside them do not; move these out of the folder, or "
            "rename them to train, val or test"
        )
    return False


def _examples(
    listing: Listing,
    images: list[Parts],
    names: list[str] | None,
    splits: list[str],
    findings: list[Finding],
) -> Examples:
    targets, labels = class_targets(names) if names is not None else (None, ())
    kind, given = "none" if names is None else "class", np.array(splits, "U5")
    said = f"{len(images):,} image{'s' if len(images) > 1 else ''} "
    said += "without labels" if names is None else f"in {len(labels):,} class folders"
    said += splits_said(given)
    paths, rows = [listing.path(p) for p in images], [shown(p) for p in images]
    return Examples("image", paths, targets, kind, labels, rows, given, said, findings=findings)


def one_image(path: Path) -> Examples:
    return _examples(Listing(path.parent), [(path.name,)], None, [""], [])


def splits_said(given: np.ndarray) -> str:
    """The given splits in words: ', train (900) and test (100) given'."""
    counts = Counter(given.tolist())
    named = [f"{part} ({counts[part]:,})" for part in ("train", "val", "test") if counts[part]]
    if not named:
        return ""
    return f", {' and '.join([', '.join(named[:-1]), named[-1]] if named[1:] else named)} given"


def other_files(listing: Listing, images: list[Parts]) -> list[Finding]:
    known = set(images)
    others = [shown(parts) for parts in listing.files if parts not in known]
    suffixes = Counter(Path(name).suffix.lower() or "no suffix" for name in others)
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common(4))
    return about("not_an_image", "note", others, f"files are no images ({kinds}), left out")


def _empty_classes(listing: Listing, filled: set[Parts]) -> list[Finding]:
    """Class folders without any image, beside those that have some: classes not learned."""
    above = {parts[:-1] for parts in filled}
    empty = [shown(p) for p in listing.folders if p[:-1] in above and p not in filled]
    what = "class folders hold no image and are left out"
    return about("empty_class", "warning", empty, what, "add images, or remove them")
