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
from layerwise.data.listing import Listing, is_image, shown, some, split_named
from layerwise.data.targets import class_targets, label_text
from layerwise.errors import DataError

Parts = tuple[str, ...]


def open_folder(listing: Listing, images: list[Parts], learn: bool = True) -> Examples:
    """Images by their folders. learn=False: a mixture is no error, its images have no labels.

    Errors: class folders mixed with loose images, or with folders that name splits.
    """
    try:
        return _by_folders(listing, images)
    except DataError:
        if learn:
            raise
        return _loose(listing, images, listing.findings() + _other_files(listing, images))


def _by_folders(listing: Listing, images: list[Parts]) -> Examples:
    depth, images = _unwrapped(images)
    here = [parts[depth:] for parts in images]
    tops = {parts[0] for parts in here if len(parts) > 1}
    loose = [parts for parts in here if len(parts) == 1]
    findings = [*listing.findings(), *_other_files(listing, images)]
    if not tops:
        return _loose(listing, images, findings)
    if loose:
        raise DataError(
            f"{len(loose):,} images lie loose beside {len(tops):,} class folders (such as "
            f"{some(map(shown, loose), 1)} beside {some(sorted(tops), 2)}); move each image into "
            "the folder of its class, or out of the way"
        )
    if _are_splits(tops, here):
        return _with_splits(listing, images, depth, findings)
    labels = [label_text(shown(parts[0])) for parts in here]
    findings += _empty_classes(listing, images[0][:depth], {parts[0] for parts in here})
    return _examples(listing, images, labels, np.full(len(images), "", "U5"), findings)


def _unwrapped(images: list[Parts]) -> tuple[int, list[Parts]]:
    """How many folders only wrap the rest: data/photos/cat/... has one class folder level at 1."""
    depth = 0
    while True:
        here = {parts[depth] for parts in images if len(parts) > depth + 1}
        inner = {parts[depth + 1] for parts in images if len(parts) > depth + 2}
        only = len(here) == 1 and all(len(parts) > depth + 2 for parts in images)
        if not only or not inner or split_named(next(iter(here))):
            return depth, images
        depth += 1


def _are_splits(tops: set[str], here: list[Parts]) -> bool:
    """Whether the folders are train, val, test. A class may be called 'train' beside others."""
    named = {top for top in tops if split_named(top)}
    if named == tops:
        return True
    nested = {parts[0] for parts in here if parts[0] in named and len(parts) > 2}
    if nested:
        raise DataError(
            f"{some(sorted(nested))} look like given splits with class folders in them, but "
            f"{some(sorted(tops - named))} beside them do not; move these out of the folder, or "
            "rename them to train, val or test"
        )
    return False


def _with_splits(
    listing: Listing, images: list[Parts], depth: int, findings: list[Finding]
) -> Examples:
    in_class = [parts for parts in images if len(parts) > depth + 2]
    if not in_class:
        return _loose(listing, images, findings, depth)
    loose = [parts for parts in images if len(parts) == depth + 2]
    for split in sorted({parts[depth] for parts in loose}):
        files = [parts for parts in loose if parts[depth] == split]
        if any(parts[depth] == split for parts in in_class):
            raise DataError(
                f"{len(files):,} images lie loose in '{split}' beside its class folders (such as "
                f"'{shown(files[0])}'); move each into the folder of its class"
            )
        message = f"the {len(files):,} images in '{split}' have no class folders: left out"
        findings.append(Finding("unlabelled", "note", message, tuple(map(shown, files))))
    labels = [label_text(shown(parts[depth + 1])) for parts in in_class]
    given = np.array([split_named(parts[depth]) for parts in in_class], "U5")
    for split in sorted({parts[depth] for parts in in_class}):
        classes = {parts[depth + 1] for parts in in_class if parts[depth] == split}
        findings += _empty_classes(listing, (*images[0][:depth], split), classes)
    return _examples(listing, in_class, labels, given, findings)


def _examples(
    listing: Listing,
    images: list[Parts],
    names: list[str],
    given: np.ndarray,
    findings: list[Finding],
) -> Examples:
    targets, labels = class_targets(names)
    said = f"{len(images):,} images in {len(labels):,} class folders{splits_said(given)}"
    paths = [listing.path(parts) for parts in images]
    shown_names = [shown(parts) for parts in images]
    return Examples(
        "image", paths, targets, "class", labels, shown_names, given, said, findings=findings
    )


def _loose(
    listing: Listing, images: list[Parts], findings: list[Finding], split_at: int | None = None
) -> Examples:
    given = [split_named(parts[split_at]) if split_at is not None else "" for parts in images]
    paths = [listing.path(parts) for parts in images]
    names = [shown(parts) for parts in images]
    said = f"{len(images):,} image{'s' if len(images) > 1 else ''} without labels"
    return Examples(
        "image", paths, None, "none", (), names, np.array(given, "U5"), said, findings=findings
    )


def one_image(path: Path) -> Examples:
    said = "1 image without a label"
    name = [shown(path.name)]
    return Examples("image", [path], None, "none", (), name, np.array([""], "U5"), said)


def find_images(listing: Listing) -> list[Parts]:
    """The image files of a folder, by suffix or first bytes."""
    return [parts for parts in listing.files if is_image(listing.path(parts))]


def splits_said(given: np.ndarray) -> str:
    """The given splits in words: ', train (900) and test (100) given'."""
    counts = Counter(given.tolist())
    named = [f"{part} ({counts[part]:,})" for part in ("train", "val", "test") if counts[part]]
    if not named:
        return ""
    return f", {' and '.join([', '.join(named[:-1]), named[-1]] if named[1:] else named)} given"


def _other_files(listing: Listing, images: list[Parts]) -> list[Finding]:
    known = set(images)
    others = [shown(parts) for parts in listing.files if parts not in known]
    if not others:
        return []
    suffixes = Counter(Path(name).suffix.lower() or "no suffix" for name in others)
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common(4))
    message = f"{len(others):,} files are no images ({kinds}), left out: {some(others)}"
    return [Finding("not_an_image", "note", message, tuple(others))]


def _empty_classes(listing: Listing, above: Parts, filled: set[str]) -> list[Finding]:
    """Class folders without any image: a class that cannot be learned."""
    at = [p for p in listing.folders if p[:-1] == above]
    empty = [shown(parts) for parts in at if parts[-1] not in filled]
    if not empty:
        return []
    message = f"{len(empty):,} class folders hold no image and are left out: {some(empty)}"
    return [Finding("empty_class", "warning", message, tuple(empty), "add images, or remove them")]
