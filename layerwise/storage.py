"""Files that are written whole or not at all, whatever the disk does meanwhile; where what can be
made again is kept, and by what it is known again.

Write to a temporary file beside the target, wait until it is on the disk, rename. A full disk, a
missing permission or a kill leave the earlier file as it was.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from layerwise.errors import DataError, StorageError, WeightsError

CURE = "Free some space, or save to another folder"
DIGEST = 16  # bytes: two of a billion rows are confused with a chance of 1e-21
UNREADABLE = b"unreadable "  # before the name of what cannot be read: equal to no other
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(path: Path | str, cure: str = CURE) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place once it is written and on the disk.

    cure: what to do where that fails.
    Errors: StorageError, with the earlier file as it was and the temporary one gone.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(_usual_mode(path))
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, SafetensorError) as e:
        raise storage_error(e, path, cure) from e
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _usual_mode(path: Path) -> int:
    """The permissions of the file to be replaced, or those that a new file gets."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk; Windows cannot do that for folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def storage_error(e: Exception, path: Path, cure: str) -> StorageError:
    """The sentence for a disk that is full, a folder without permission, or another such error."""
    found = re.search(r"os error (\d+)", str(e))  # safetensors keeps the system's number in words
    number = getattr(e, "errno", None) or (int(found[1]) if found else 0)
    why = f"cannot be written ({os.strerror(number) if number else e})"
    if number in FULL:
        why = "the disk is full, or a limit on the size of files is reached"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        why = f"no permission to write to {path.parent}"
    return StorageError(f"{path}: {why}. {cure}. Everything saved before it is untouched")


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON file that holds a table of keys, or a list. Errors: WeightsError naming the file."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as e:
        raise WeightsError(f"{path}: not readable JSON ({e}); fetch it again") from e
    if not isinstance(values, kind):
        came = type(values).__name__
        raise WeightsError(f"{path}: a {kind.__name__} was expected, a {came} came")
    return values


def write_json(path: Path, values: object) -> None:
    """Errors: StorageError, with the earlier file as it was."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=1, ensure_ascii=False), "utf-8")


def cache_folder(folder: str | Path | None = None) -> Path:
    """The folder asked for, else $LAYERWISE_CACHE, else ~/.cache/layerwise."""
    return Path(folder or os.environ.get("LAYERWISE_CACHE") or Path.home() / ".cache/layerwise")


def content_hash(value: Any) -> bytes:
    """DIGEST bytes of one file, of bytes, or of an array of pixels."""
    if isinstance(value, Path):
        try:
            value = value.read_bytes()
        except OSError:
            value = UNREADABLE + os.fsencode(value)
    if isinstance(value, np.ndarray):
        shape = str(value.shape).encode()[:16]  # equal bytes of another shape are another picture
        pixels = np.ascontiguousarray(value).data
        return hashlib.blake2b(pixels, digest_size=DIGEST, person=shape).digest()
    if isinstance(value, dict | list):
        value = json.dumps(value, sort_keys=True).encode()
    return hashlib.blake2b(value, digest_size=DIGEST).digest()


def fingerprint(raw: object, name: str) -> str:
    """32 hexadecimal digits, equal for equal content: of a file by its path, size and times."""
    if not isinstance(raw, str | os.PathLike):
        return content_hash(raw).hex()
    try:
        s = os.stat(raw)
    except OSError as e:
        raise DataError(f"{name}: cannot be opened ({e.strerror}); was it moved?") from e
    times = f" {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}"
    return content_hash(os.fsencode(os.path.abspath(raw)) + times.encode()).hex()
