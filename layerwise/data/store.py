"""Stores of decoded pixels on disk: found again by content, written whole or not at all.

A store is `<geometry>-<rows>.pixels`, all images one after the other as uint8 RGB, and beside it a
`.json` that says what is inside. The index is renamed into place last: a store is whole or absent.

Rows are recognised by content: arrays and bytes by their hash, files by path, size, and the times
of last change of content and of inode, of which the last cannot be set back. So a store also serves
any subset of its rows, and equal rows are stored once.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layerwise.data.image import ImageProcessor, Raw, describe
from layerwise.errors import DataError, StorageError

FORMAT = 1
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_folder(folder: str | Path | None = None) -> Path:
    """The folder asked for, else $LAYERWISE_CACHE, else ~/.cache/layerwise."""
    return Path(folder or os.environ.get("LAYERWISE_CACHE") or Path.home() / ".cache/layerwise")


def cache_bytes(folder: str | Path | None = None) -> int:
    """What all stores in the folder take."""
    return sum(p.stat().st_size for p in cache_folder(folder).glob("*.pixels"))


def clear_cache(folder: str | Path | None = None) -> int:
    """Delete all stores in the folder; returns the bytes freed. They are built again on demand."""
    freed = cache_bytes(folder)
    for pixels in cache_folder(folder).glob("*.pixels"):
        pixels.with_suffix(".json").unlink(missing_ok=True)  # first: an index promises its pixels
        pixels.unlink(missing_ok=True)
    for path in cache_folder(folder).glob(".*.partial"):
        path.unlink(missing_ok=True)
    return freed


def fingerprints(inputs: Sequence[Any], names: Sequence[str]) -> list[str]:
    """16 hexadecimal digits per row, equal for equal content."""
    return [fingerprint(inputs[i], names[i]) for i in range(len(names))]


def fingerprint(raw: Raw, name: str) -> str:
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(raw, np.ndarray):
        digest.update(f"{raw.dtype} {raw.shape}".encode())
        digest.update(np.ascontiguousarray(raw).tobytes())
    elif isinstance(raw, bytes | bytearray | memoryview):
        digest.update(raw)
    else:
        try:
            s = os.stat(raw)
        except OSError as e:
            raise DataError(
                f"{name or describe(raw)}: cannot be opened ({e.strerror}); was it moved?"
            ) from e
        times = f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}"
        digest.update(os.fsencode(os.path.abspath(raw)) + times.encode())
    return digest.hexdigest()


def describe_geometry(processor: ImageProcessor, short_side: int) -> dict[str, Any]:
    """All that decides what pixels are stored; mean and std do not."""
    shared = {"format": FORMAT, "interpolation": processor.interpolation}
    if short_side:
        return {**shared, "short_side": short_side}
    resize = processor.resize
    return {
        **shared,
        "size": list(processor.size),
        "resize": list(resize) if isinstance(resize, tuple) else resize,
    }


def stem(geometry: dict[str, Any], keys: list[str] | None = None) -> str:
    parts = [json.dumps(geometry, sort_keys=True)] + ([] if keys is None else ["".join(keys)])
    return "-".join(hashlib.blake2b(p.encode(), digest_size=6).hexdigest() for p in parts)


def find_store(
    folder: Path, geometry: dict[str, Any], keys: list[str]
) -> tuple[Path, dict[str, Any]] | None:
    """A whole store of this geometry that has all these rows, and its index; the smallest one."""
    wanted = set(keys)
    found = []
    for path in folder.glob(stem(geometry) + "-*.json"):
        index = read_index(path)
        if index and index["geometry"] == geometry and wanted <= set(index["rows"]):
            found.append((index["bytes"], path.with_suffix(".pixels"), index))
    return min(found, key=lambda f: f[0])[1:] if found else None


def read_index(path: Path) -> dict[str, Any] | None:
    """None for an index that is damaged or whose pixels are not all there: built anew then."""
    try:
        index = json.loads(path.read_text())
        whole = path.with_suffix(".pixels").stat().st_size == index["bytes"]
        whole = whole and {"geometry", "rows", "sizes"} <= index.keys()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if whole else None


# ---- writing -------------------------------------------------------------------------------------


def expected_bytes(n: int, processor: ImageProcessor, short_side: int) -> int:
    """Exact where all images get one size, else as for photographs of 4 : 3."""
    h, w = (short_side, short_side * 4 // 3) if short_side else processor.size
    return n * h * w * 3


def write_store(
    folder: Path,
    geometry: dict[str, Any],
    keys: list[str],
    images: Iterator[np.ndarray],
    expected: int,
) -> None:
    """Write pixels and index under temporary names, then rename; nothing is left on an error."""
    name = stem(geometry, keys)
    partial = {end: folder / f".{name}.{os.getpid()}{end}.partial" for end in (".pixels", ".json")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < expected:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with open(partial[".pixels"], "wb") as file:
            sizes, total = write_pixels(file, images)
        same = len(set(sizes)) == 1
        index = {
            "geometry": geometry,
            "bytes": total,
            "sizes": sizes[:1] if same else sizes,  # one size stands for all
            "rows": keys,
        }
        partial[".json"].write_text(json.dumps(index))
        for end, path in partial.items():
            os.replace(path, folder / (name + end))
    except OSError as e:
        raise storage_error(e, folder, expected) from e
    finally:
        for path in partial.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def write_pixels(file: Any, images: Iterator[np.ndarray]) -> tuple[list[tuple[int, int]], int]:
    """The sizes (h, w) of the images, and the bytes written."""
    sizes, total = [], 0
    for image in images:
        file.write(np.ascontiguousarray(image).data)
        sizes.append(image.shape[:2])
        total += image.size
    file.flush()
    os.fsync(file.fileno())
    return sizes, total


def storage_error(error: OSError, folder: Path, expected: int) -> StorageError:
    size = f"{expected / 1e6:,.0f} MB"
    if error.errno in FULL:
        return StorageError(
            f"the disk of {folder} is full: the decoded images need about {size}. Free some space, "
            "or set LAYERWISE_CACHE to a folder on another disk; nothing saved before is lost"
        )
    return StorageError(
        f"{folder}: decoded images (about {size}) cannot be stored there ({error.strerror}); "
        "set LAYERWISE_CACHE to a folder that can be written to"
    )
