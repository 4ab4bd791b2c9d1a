"""CIFAR-10 and CIFAR-100 as published: binary or python batches, in a folder or an archive.

Source: the CIFAR page. Binary: records of one label byte (CIFAR-100: the coarse and the fine one)
and 3 x 32 x 32 pixels, one colour after the other. Python: pickled dicts, which are read without
running what is in them (`pickles`).
"""

import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from layerwise.data.formats import Arrays
from layerwise.data.listing import natural, reason, shown
from layerwise.data.pickles import read_pickle
from layerwise.errors import DataError

PIXELS = 3 * 32 * 32
Member = Callable[[], bytes]
CIFAR_FILE = re.compile(r"data_batch(_\d+)?(\.bin)?|test_batch(\.bin)?|(train|test)(\.bin)?")
CIFAR_NAMES = re.compile(r"batches\.meta(\.txt)?|meta|(fine|coarse)_label_names\.txt")


def cifar_members(path: Path) -> dict[str, Member]:
    """CIFAR files of a folder, a tar archive or one file, by name; empty where there are none."""
    if path.is_dir():
        inside = [p for p in path.iterdir() if p.is_file() and _is_cifar(p.name)]
        found = {p.name: p.read_bytes for p in inside}
    elif is_tar(path):
        found = _tar_members(path)
    else:
        beside = [p for p in path.parent.iterdir() if CIFAR_NAMES.fullmatch(p.name)]
        found = {p.name: p.read_bytes for p in (path, *beside) if _is_cifar(p.name)}
    batches = [name for name in found if CIFAR_FILE.fullmatch(name)]
    binary = any(name.endswith(".bin") for name in batches)
    # files called train and test alone prove nothing; those of CIFAR-100 come with 'meta'
    python = "meta" in found or any("batch" in name for name in batches)
    return found if batches and (binary or python) else {}


def is_tar(path: Path) -> bool:
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def _is_cifar(name: str) -> bool:
    return bool(CIFAR_FILE.fullmatch(name) or CIFAR_NAMES.fullmatch(name))


def _tar_members(path: Path) -> dict[str, Member]:
    """The CIFAR files of an archive, read into memory; nothing is written anywhere."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if member.isfile() and _is_cifar(name):
                    found[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, zlib.error, OSError) as e:
        raise DataError(
            f"'{shown(path.name)}' is a damaged archive ({reason(e)}); download it again"
        ) from e
    return {name: (lambda content=content: content) for name, content in found.items()}


def read_cifar(members: dict[str, Member], target: str | None = None) -> Arrays:
    """CIFAR-10 or CIFAR-100, binary or python; of CIFAR-100 the fine classes unless
    target="coarse". Errors: a batch that is cut off, or a pickle with anything but data in it."""
    batches = sorted((name for name in members if CIFAR_FILE.fullmatch(name)), key=natural)
    binary = any(name.endswith(".bin") for name in batches)
    batches = [name for name in batches if name.endswith(".bin") == binary]
    coarse = target is not None and "coarse" in target
    hundred = not any("batch" in name for name in batches)
    read = _binary_batch if binary else _python_batch
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name in batches:
        split = "" if len(batches) == 1 else "test" if name.startswith("test") else "train"
        parts.setdefault(split, []).append(read(members[name](), name, hundred, coarse))
    arrays = Arrays(
        {split: np.concatenate([x for x, _ in pieces]) for split, pieces in parts.items()},
        {split: np.concatenate([y for _, y in pieces]) for split, pieces in parts.items()},
        _cifar_names(members, hundred, coarse),
    )
    which = (" with coarse classes" if coarse else " with fine classes") if hundred else ""
    form = "binary files" if binary else "python batches"
    arrays.source = f"CIFAR-{100 if hundred else 10} {form}{which}"
    return arrays


def _binary_batch(
    content: bytes, file: str, hundred: bool, coarse: bool
) -> tuple[np.ndarray, np.ndarray]:
    record = PIXELS + 1 + hundred
    if not content or len(content) % record:
        raise DataError(
            f"'{file}' is cut off: {len(content):,} bytes are no whole number of records of "
            f"{record:,}; download it again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    place = 0 if coarse or not hundred else 1
    return _cifar_pixels(rows[:, record - PIXELS :]), rows[:, place].astype(np.int64)


def _python_batch(
    content: bytes, file: str, hundred: bool, coarse: bool
) -> tuple[np.ndarray, np.ndarray]:
    batch = _text_keys(read_pickle(content, file))
    key = ("coarse_labels" if coarse else "fine_labels") if hundred else "labels"
    data = batch.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or key not in batch:
        raise DataError(f"'{file}' should hold 'data' (uint8) and '{key}'; it has {sorted(batch)}")
    y = np.asarray(batch[key], np.int64)
    if data.ndim != 2 or data.shape[1] != PIXELS or len(y) != len(data):
        raise DataError(
            f"'{file}' has pixels of shape {data.shape} and {len(y):,} labels; expected (n, "
            f"{PIXELS}) and n: download it again"
        )
    return _cifar_pixels(data), y


def _cifar_pixels(rows: np.ndarray) -> np.ndarray:
    """(n, 3072), one colour after the other, to (n, 32, 32, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _cifar_names(members: dict[str, Member], hundred: bool, coarse: bool) -> tuple[str, ...]:
    kind = ("coarse" if coarse else "fine") if hundred else ""
    for text in ("batches.meta.txt", f"{kind}_label_names.txt"):
        if text in members:
            return tuple(members[text]().decode("utf8", "replace").split())
    for meta in ("batches.meta", "meta"):
        if meta in members:
            found = _text_keys(read_pickle(members[meta](), meta))
            names = found.get(f"{kind}_label_names" if hundred else "label_names", [])
            return tuple(
                n.decode("utf8", "replace") if isinstance(n, bytes) else str(n) for n in names
            )
    return ()


def _text_keys(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError("a CIFAR batch should be a pickled dict; download it again")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in value.items()}
