"""Readers of array files: MNIST idx and `.npz`. Those of CIFAR are in `cifar`.

Source: the idx layout of the MNIST page (a big-endian header, then the numbers).
Every reader returns `Arrays`: pixels or rows, labels and label names per split.

Legend: n images of h x w pixels, c channels.
"""

import gzip
import math
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from layerwise.data.delimited import read_bytes
from layerwise.data.examples import Finding
from layerwise.data.listing import reason, shown, split_within
from layerwise.errors import DataError

IDX_KINDS = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
INPUT_WORDS = {"x", "images", "image", "img", "imgs", "data", "inputs", "input", "features", "arr"}
TARGET_WORDS = {"y", "labels", "label", "targets", "target", "class"}
NAME_KEYS = ("classes", "class_names", "label_names", "labels_names", "names", "categories")


@dataclass
class Arrays:
    """What array files hold: per split ('' where there is none) inputs and targets."""

    inputs: dict[str, np.ndarray]  # (n, h, w), (n, h, w, c), (n, c, h, w) or (n, features)
    targets: dict[str, np.ndarray]  # (n,) or (n, C); a split may have none
    class_names: tuple[str, ...] = ()
    source: str = ""  # in words: "MNIST idx files"
    findings: list[Finding] = field(default_factory=list)


def read_idx(path: Path) -> np.ndarray:
    """One idx file, plain or .gz. Errors: no idx file, or shorter than its header says."""
    content = read_bytes(path)
    file = shown(path.name)
    if not is_idx(content[:4]):
        raise DataError(f"'{file}' is no idx file: it should start with two zero bytes and a kind")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"'{file}' ends within its header; download it again")
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
        with open(path, "rb") as f:
            start = f.read(4)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(path) as f:
                start = f.read(4)
    except (OSError, EOFError, zlib.error):
        return True  # by its name; reading it will say what is wrong
    return is_idx(start) or start[:2] == b"\x1f\x8b"


def read_idx_files(paths: list[Path]) -> Arrays:
    """idx files, images with their labels by name: train-images-idx3-ubyte, train-labels-..."""
    arrays = Arrays({}, {}, source="idx files")
    labels = {_idx_part(p.name): p for p in paths if "label" in p.name.lower()}
    images = {_idx_part(p.name): p for p in paths if "label" not in p.name.lower()}
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
            _same_length(arrays.inputs[split], arrays.targets[split], path, labels[part].name)
    return arrays


def _idx_part(name: str) -> str:
    """What images and their labels have in common in their names: 'train' or 't10k'."""
    return re.split(r"[-_.]?(?:images|labels|imgs|data)", name.lower())[0]


def _same_length(x: np.ndarray, y: np.ndarray, path: Path, other: str) -> None:
    if len(x) != len(y):
        raise DataError(
            f"'{shown(path.name)}' has {len(x):,} inputs but '{other}' {len(y):,} targets; each "
            "input needs one: are the files of the same set?"
        )


def read_npz(path: Path) -> Arrays:
    """x_train y_train x_test y_test, x y, images labels, train_images ... and class names.

    Errors: damaged, pickled objects inside, no inputs, different lengths.
    """
    file = shown(path.name)
    arrays = Arrays({}, {}, source=f"'{file}'")
    stray = []
    for key, value in _npz_items(path, file):
        role, split = _npz_role(key)
        if key.lower() in NAME_KEYS:
            arrays.class_names = tuple(str(v) for v in value.ravel())
        elif role == "x":
            arrays.inputs[split] = value
        elif role == "y":
            arrays.targets[split] = value
        else:
            stray.append(key)
    if not arrays.inputs:
        raise DataError(
            f"'{file}' should have arrays such as x_train and y_train, x and y, or images and "
            f"labels; it has {', '.join(stray + sorted(arrays.targets)) or 'none'}"
        )
    for split, x in arrays.inputs.items():
        if split in arrays.targets:
            suffix = f"_{split}" if split else ""
            _same_npz_length(file, suffix, x, arrays.targets[split])
    if stray:
        message = f"arrays of '{file}' that were not used: {', '.join(stray)}"
        arrays.findings.append(Finding("unused", "note", message, tuple(stray)))
    return arrays


def _npz_items(path: Path, file: str) -> list[tuple[str, np.ndarray]]:
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as held:
            return [(key, held[key]) for key in held.files]
    except Exception as e:  # zip, zlib and numpy's headers can fail in any way at all
        if "Object arrays" in str(e):
            raise DataError(
                f"'{file}' holds pickled Python objects, which are not read; save text with "
                "np.array(names, dtype=str) and numbers with a number type"
            ) from e
        raise DataError(
            f"'{file}' is a damaged .npz ({_npz_reason(e)}); save or copy it again"
        ) from e


def _npz_reason(error: Exception) -> str:
    """numpy takes any file that is no zip for a pickle, and says so: no help here."""
    return "it is no zip file" if "allow_pickle" in str(error) else reason(error)


def _npz_role(key: str) -> tuple[str, str]:
    """x or y, and the split, by the words of a name: images_train, y_test, X, train_labels."""
    words = [w for w in re.split(r"[^a-z]+", key.lower()) if w]
    if len(words) == 1 and words[0][0] in "xy" and split_within(words[0][1:]):
        words = [words[0][0], words[0][1:]]  # xtrain
    role = "x" if INPUT_WORDS & set(words) else "y" if TARGET_WORDS & set(words) else ""
    split = split_within(" ".join(word for word in words if word != "data"))
    return ("y" if key == "arr_1" else role), split


def _same_npz_length(file: str, suffix: str, x: np.ndarray, y: np.ndarray) -> None:
    if not x.ndim or not y.ndim or len(x) != len(y):
        raise DataError(
            f"'{file}' has {len(x) if x.ndim else 0:,} inputs (x{suffix}) but "
            f"{len(y) if y.ndim else 0:,} targets (y{suffix}); each input needs one target: save "
            "arrays of the same length"
        )
