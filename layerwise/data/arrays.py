"""Array files, MNIST idx and `.npz`, and what they hold as examples; the files of CIFAR: `cifar`.

Source: the idx layout of the MNIST page (a big-endian header, then the numbers).
Legend: n images of h x w pixels, c channels.
"""

import gzip
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from layerwise.data import targets
from layerwise.data.delimited import read_bytes
from layerwise.data.examples import Examples, Finding, TargetKind
from layerwise.data.listing import split_within, splits_said
from layerwise.data.naming import about, reason, shown
from layerwise.data.targets import Targets
from layerwise.errors import DataError

CLASS_FILES = ("classes.txt", "class_names.txt", "labels.txt", "label_names.txt")
IDX_KINDS = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
INPUT_WORDS = {"x", "images", "image", "img", "imgs", "data", "inputs", "input", "features", "arr"}
TARGET_WORDS = {"y", "labels", "label", "targets", "target", "class"}
ValuesOf = Callable[[np.ndarray, list[str], list[Finding]], tuple[Any, str]]
NAME_KEYS = ("classes", "class_names", "label_names", "labels_names", "names", "categories")


@dataclass
class Arrays:
    """What array files hold: per split ('' where there is none) inputs and targets."""

    inputs: dict[str, np.ndarray]  # (n, h, w), (n, h, w, c), (n, c, h, w) or (n, features)
    targets: dict[str, np.ndarray]  # (n,) or (n, C); a split may have none
    class_names: tuple[str, ...] = ()
    source: str = ""  # in words: "MNIST idx files"
    findings: list[Finding] = field(default_factory=list)


# ---- idx ---------------------------------------------------------------------------------------


def read_idx(path: Path) -> np.ndarray:
    """One idx file, plain or .gz. Errors: not an idx file, or shorter than its header says."""
    content, file = read_bytes(path), shown(path.name)
    start = 4 + 4 * content[3] if is_idx(content[:4]) else 0
    if not start or len(content) < start:
        raise DataError(f"'{file}' is not an idx file, or ends in its header; download it again")
    shape = np.frombuffer(content, ">u4", content[3], offset=4).tolist()
    kind = np.dtype(IDX_KINDS[content[2]])
    wanted, came = math.prod(shape) * kind.itemsize, len(content) - start
    if came != wanted:
        raise DataError(
            f"'{file}' is cut off or changed: its header promises {wanted:,} bytes for "
            f"{' x '.join(map(str, shape))} numbers, {came:,} came; download it again"
        )
    return np.frombuffer(content, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def is_idx(start: bytes) -> bool:
    return len(start) == 4 and start[:2] == b"\0\0" and start[2] in IDX_KINDS and 1 <= start[3] <= 4


def looks_like_idx(path: Path) -> bool:
    """By the first bytes, within gzip too; the names as published vary."""
    if not re.search(r"idx\d|ubyte", path.name):
        return False
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as f:
            return is_idx(f.read(4))
    except (OSError, EOFError, zlib.error):
        return True  # by its name; reading it will say what is wrong


def idx_set(path: Path) -> list[Path]:
    """An idx file of images and the one with its labels beside it, whichever was named."""
    part = _idx_part(path)
    return [p for p in path.parent.iterdir() if looks_like_idx(p) and _idx_part(p) == part]


def read_idx_files(paths: list[Path]) -> Arrays:
    """idx files, images with their labels by name: train-images-idx3-ubyte, train-labels-..."""
    arrays = Arrays({}, {}, source="idx files")
    paths = sorted(paths, reverse=True)  # of a file and its .gz the unpacked one comes last
    labels = {_idx_part(p): p for p in paths if "label" in p.name.lower()}
    images = {_idx_part(p): p for p in paths if "label" not in p.name.lower()}
    if not images:
        raise DataError(
            f"'{shown(paths[0].name)}' holds labels without images; put the file with '-images-' "
            "in its name beside it"
        )
    for part, path in sorted(images.items()):
        split = split_within(path.name) if len(images) > 1 else ""
        if split in arrays.inputs:
            raise DataError(
                f"several idx sets lie together ({', '.join(sorted(images))}); put the images and "
                "labels of one set in a folder of their own, or name one file"
            )
        arrays.inputs[split] = read_idx(path)
        if part in labels:
            arrays.targets[split] = read_idx(labels[part])
            files = (f"'{shown(p.name)}'" for p in (path, labels[part]))
            _check_lengths(arrays.inputs[split], arrays.targets[split], *files)
    return arrays


def _idx_part(path: Path) -> str:
    """What images and their labels have in common in their names: 'train' or 't10k'."""
    return re.split(r"[-_.]?(?:images|labels|imgs|data)", path.name.lower())[0]


def _check_lengths(x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> None:
    n, m = (len(array) if array.ndim else 0 for array in (x, y))
    if not n or n != m:
        raise DataError(
            f"{x_name} has {n:,} inputs but {y_name} {m:,} targets; each input needs one target: "
            "save both with the same length"
        )


# ---- npz ---------------------------------------------------------------------------------------


def read_npz(paths: list[Path]) -> Arrays:
    """x_train y_train x_test y_test, x y, images labels, train_images ... and class names.

    Several files are one for each split: train.npz and test.npz.
    Errors: damaged, pickled objects inside, no inputs, different lengths.
    """
    arrays = Arrays({}, {}, source=" and ".join(f"'{shown(path.name)}'" for path in paths))
    stray = []
    for path in paths:
        file_split = split_within(path.stem) if len(paths) > 1 else ""
        for key, value in _npz_items(path):
            role, split = _npz_role(key)
            found = {"x": arrays.inputs, "y": arrays.targets}.get(role)
            if key.lower() in NAME_KEYS:
                arrays.class_names = tuple(str(v) for v in value.ravel())
            elif found is None:
                stray.append(key)
            elif (split or file_split) in found:
                raise DataError(f"{arrays.source} hold '{key}' twice; name one file, or array")
            else:
                found[split or file_split] = value
    if not arrays.inputs:
        raise DataError(
            f"{arrays.source} should have arrays such as x_train and y_train, x and y, or images "
            f"and labels; it has {', '.join(stray + sorted(arrays.targets)) or 'none'}"
        )
    for split in arrays.inputs.keys() & arrays.targets.keys():
        ends = f"_{split}" if split else ""
        x, y = arrays.inputs[split], arrays.targets[split]
        _check_lengths(x, y, f"x{ends} of {arrays.source}", f"y{ends}")
    arrays.findings += about("unused", "note", stray, f"arrays of {arrays.source} are not used")
    return arrays


def _npz_items(path: Path) -> list[tuple[str, np.ndarray]]:
    file = shown(path.name)
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as held:
            return [(key, held[key]) for key in held.files]
    except Exception as e:  # zip, zlib and numpy's headers can fail in any way at all
        if "Object arrays" in str(e):
            raise DataError(
                f"'{file}' holds pickled Python objects, which are not read; save text with "
                "np.array(names, dtype=str) and numbers with a number type"
            ) from e
        # numpy takes any file that is not a zip for a pickle, and says so: no help here
        why = "it is not a zip file" if "allow_pickle" in str(e) else reason(e)
        raise DataError(f"'{file}' is a damaged .npz ({why}); save or copy it again") from e


def _npz_role(key: str) -> tuple[str, str]:
    """x or y, and the split, by the words of a name: images_train, y_test, X, train_labels."""
    words = [w for w in re.split(r"[^a-z]+", key.lower()) if w]
    if len(words) == 1 and words[0][0] in "xy" and split_within(words[0][1:]):
        words = [words[0][0], words[0][1:]]  # xtrain
    role = "x" if INPUT_WORDS & set(words) else "y" if TARGET_WORDS & set(words) else ""
    split = split_within(" ".join(word for word in words if word != "data"))
    return ("y" if key == "arr_1" else role), split


# ---- to examples -------------------------------------------------------------------------------


def open_arrays(
    arrays: Arrays, folder: Path, target_kind: TargetKind | None, kind: str, values_of: ValuesOf
) -> Examples:
    """Examples of what a reader found; names of classes from a classes.txt in `folder` too.

    values_of: the kind's own values of the inputs (n, ...), and what they are in words; given the
    names of the rows and the list of findings. Errors: shapes that differ between splits.
    """
    source, findings = arrays.source, list(arrays.findings)
    order = [split for split in ("", "train", "val", "test") if split in arrays.inputs]
    if labelled := [split for split in order if split in arrays.targets]:
        without = [split for split in order if split not in labelled]
        findings += about("unlabelled", "note", without, "splits have no targets and are left out")
        order = labelled
    parts = [arrays.inputs[split] for split in order]
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = " and ".join(str(part.shape) for part in parts)
        raise DataError(f"{source}: the splits have inputs of different shapes, {shapes}")
    x = parts[0] if len(parts) == 1 else np.concatenate(parts)
    given = np.repeat(np.array(order, "U5"), [len(part) for part in parts])
    rows = zip(given.tolist(), (i for part in parts for i in range(len(part))), strict=True)
    names = [f"{split or 'row'}[{i}]" for split, i in rows]
    values, what = values_of(x, names, findings)
    examples = Examples.of(kind, values, names, given)
    examples.findings = findings
    if labelled:
        y = np.concatenate([arrays.targets[split] for split in order])
        found = _targets(y, arrays.class_names or class_file(folder), source, names, target_kind)
        examples = targets.with_targets(examples, found)
        what += f", {found.said},"
    examples.understood = f"{what} from {source}{splits_said(given)}"
    return examples


def class_file(folder: Path) -> tuple[str, ...]:
    """The class names of a classes.txt, one on each line, in the order of their numbers."""
    for path in (folder / name for name in CLASS_FILES):
        if path.is_file():
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            return tuple(targets.label_text(line) for line in lines if line.strip())
    return ()


def _targets(
    y: np.ndarray, labels: tuple[str, ...], source: str, names: list[str], kind: TargetKind | None
) -> Targets:
    """Class numbers, one-hot or several-hot rows, quantities or names, to targets."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim == 2 and np.isin(y, (0, 1)).all():
        if kind == "classes" or (kind is None and (y.sum(1) != 1).any()):
            labels = targets.enough_names(labels, y.shape[1], source)
            labels = labels or tuple(map(str, range(y.shape[1])))
            said = f"{len(labels):,} labels, any number of them per row"
            return Targets(y.astype(np.uint8), "classes", labels, np.ones(len(y), bool), said)
        y = y.argmax(1)
    if y.ndim != 1:
        raise DataError(
            f"{source}: targets should be one per row (n,) or rows of 0 and 1 (n, classes); the "
            f"shape is {y.shape}"
        )
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf8")
    if y.dtype.kind in "iub" and kind in (None, "class"):
        return targets.numbered_targets(y.astype(np.int64), labels, source)
    return targets.read_targets(y.tolist(), f"the targets of {source}", names, kind)
