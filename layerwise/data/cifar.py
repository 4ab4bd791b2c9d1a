"""CIFAR-10 and CIFAR-100 as published: binary or python batches, in a folder or an archive.

Source: the CIFAR page. Binary: records of one label byte (CIFAR-100: the coarse and the fine one)
and 3 x 32 x 32 pixels, one colour after the other. Python: pickled dicts, which are read without
running what is in them (`pickles`).
"""

import re
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from layerwise.data.arrays import Arrays
from layerwise.data.listing import natural
from layerwise.data.naming import reason, shown
from layerwise.data.pickles import read_pickle
from layerwise.errors import DataError

PIXELS = 3 * 32 * 32
CIFAR_FILE = re.compile(r"data_batch(_\d+)?(\.bin)?|test_batch(\.bin)?|(train|test)(\.bin)?")
CIFAR_NAMES = re.compile(r"batches\.meta(\.txt)?|meta|(fine|coarse)_label_names\.txt")


def cifar_members(path: Path) -> dict[str, bytes]:
    """CIFAR files of a folder, a tar archive or one file, by name; empty where there are none."""
    if is_tar(path):
        found = _tar_members(path)
        return found if _make_a_set(found) else {}
    files = list(path.iterdir()) if path.is_dir() else [path]
    if not path.is_dir():
        files += [p for p in path.parent.iterdir() if CIFAR_NAMES.fullmatch(p.name)]
    names = {p.name: p for p in files if p.is_file() and _is_cifar(p.name)}
    return {name: p.read_bytes() for name, p in names.items()} if _make_a_set(names) else {}


def _make_a_set(names: Collection[str]) -> bool:
    """Files called train and test alone prove nothing; those of CIFAR-100 come with 'meta'."""
    batches = filter(CIFAR_FILE.fullmatch, names)
    return any(n.endswith(".bin") or "batch" in n or "meta" in names for n in batches)


def is_tar(path: Path) -> bool:
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def _is_cifar(name: str) -> bool:
    return bool(CIFAR_FILE.fullmatch(name) or CIFAR_NAMES.fullmatch(name))


def _tar_members(path: Path) -> dict[str, bytes]:
    """The CIFAR files of an archive, read into memory; nothing is written anywhere."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if member.isfile() and _is_cifar(name) and (file := archive.extractfile(member)):
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as e:
        raise DataError(
            f"'{shown(path.name)}' is a damaged archive ({reason(e)}); download it again"
        ) from e
    return found


def read_cifar(members: dict[str, bytes], target: str | None = None) -> Arrays:
    """CIFAR-10 or CIFAR-100, binary or python; of CIFAR-100 the fine classes unless
    target="coarse". Errors: a batch that is cut off, or a pickle with anything but data in it."""
    batches = sorted((name for name in members if CIFAR_FILE.fullmatch(name)), key=natural)
    binary = any(name.endswith(".bin") for name in batches)
    batches = [name for name in batches if name.endswith(".bin") == binary]
    coarse = target is not None and "coarse" in target
    hundred = not any("batch" in name for name in batches)
    key = ("coarse_labels" if coarse else "fine_labels") if hundred else "labels"
    read = _binary_batch if binary else _python_batch
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name in batches:
        split = "" if len(batches) == 1 else "test" if name.startswith("test") else "train"
        parts.setdefault(split, []).append(read(members[name], name, key))
    which = f" with {'coarse' if coarse else 'fine'} classes" if hundred else ""
    form = "binary files" if binary else "python batches"
    inputs = {split: _pixels([x for x, _ in pieces]) for split, pieces in parts.items()}
    y = {split: np.concatenate([y for _, y in pieces]) for split, pieces in parts.items()}
    source = f"CIFAR-{100 if hundred else 10} {form}{which}"
    return Arrays(inputs, y, _cifar_names(members, key), source)


def _binary_batch(content: bytes, file: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """key: "labels" of CIFAR-10, "coarse_labels" or "fine_labels" of CIFAR-100."""
    record = PIXELS + (1 if key == "labels" else 2)
    if not content or len(content) % record:
        raise DataError(
            f"'{file}' is cut off: {len(content):,} bytes are not a whole number of records of "
            f"{record:,}; download it again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    return rows[:, -PIXELS:], rows[:, int(key == "fine_labels")].astype(np.int64)


def _python_batch(content: bytes, file: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    batch = _text_keys(read_pickle(content, file))
    data, y = np.asarray(batch.get("data", ())), np.asarray(batch.get(key, ()), np.int64)
    if data.dtype != np.uint8 or data.shape != (len(y), PIXELS):
        raise DataError(
            f"'{file}' should hold 'data', uint8 (n, {PIXELS}), and as many '{key}'; it has "
            f"{sorted(batch)}, {data.shape} and {len(y):,}: download it again"
        )
    return data, y


def _pixels(batches: list[np.ndarray]) -> np.ndarray:
    """Rows (n, 3072), one colour after the other, to (n, 32, 32, 3)."""
    rows = np.concatenate(batches).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(rows.transpose(0, 2, 3, 1))


def _cifar_names(members: dict[str, bytes], key: str) -> tuple[str, ...]:
    key = key.replace("labels", "label_names")
    for text in ("batches.meta.txt", f"{key}.txt"):
        if text in members:
            return tuple(members[text].decode("utf8", "replace").split())
    for meta in ("batches.meta", "meta"):
        if meta in members:
            names = _text_keys(read_pickle(members[meta], meta)).get(key, [])
            return tuple(n.decode("utf8", "replace") if isinstance(n, bytes) else n for n in names)
    return ()


def _text_keys(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError("a CIFAR batch should be a pickled dict; download it again")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in value.items()}
