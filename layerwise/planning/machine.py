"""What this process has and may still take: cores, memory, C library."""

import ctypes
import os
import platform
import re
import sys

from layerwise.runtime import give_back

CGROUP_FILES = (  # limit and use, in version 2 and 1
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def resident() -> int:
    """Bytes of this process that are in memory now, freed memory returned first where possible."""
    give_back()
    found = _kilobytes("/proc/self/status", "VmRSS")
    return 300 * 2**20 if found is None else found  # unread: a process that has imported PyTorch


def allocator_keeps() -> bool:
    """Whether `runtime.tune_allocator` keeps freed memory in this process."""
    return os.environ.get("LAYERWISE_ALLOCATOR") != "default" and glibc_version() > (0, 0)


def glibc_version() -> tuple[int, int]:
    """(2, 36), or (0, 0) where the C library is another."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        return 0, 0
    libc.gnu_get_libc_version.restype = ctypes.c_char_p
    major, minor = re.findall(rb"\d+", libc.gnu_get_libc_version())[:2]
    return int(major), int(minor)


def cpu_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that this process may have resident in all: what it has, and what it can still take.

    What is free or reclaimable counts, within the limits of its cgroup. A plan's peak is the
    whole process too, so the two compare.
    """
    free = _kilobytes("/proc/meminfo", "MemAvailable")
    left = [n for n in (free, *_cgroup_room()) if n is not None]
    if left:
        return max(0, min(left)) + resident()
    if platform.system() in ("Darwin", "FreeBSD"):  # no /proc: three quarters of what is built in
        return int(0.75 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return 8 * 10**9


def _kilobytes(path: str, name: str) -> int | None:
    """Bytes of the line "name: 123 kB" of a file; None where it is not there."""
    try:
        with open(path) as f:
            return next(int(x.split()[1]) * 1024 for x in f if x.startswith(name))
    except (OSError, StopIteration):
        return None


def _cgroup_room(root: str = "/sys/fs/cgroup") -> list[int]:
    """What is left under the memory limits of this process's cgroup and of those above it."""
    rooms = []
    for folder in _cgroup_folders(root):
        for limit, used in CGROUP_FILES:
            bound, now = _read_int(f"{folder}/{limit}"), _read_int(f"{folder}/{used}")
            if bound is not None and now is not None and bound < 2**60:
                rooms.append(bound - now + _reclaimable(folder))
    return rooms


def _reclaimable(folder: str) -> int:
    """File pages count as used, but the kernel drops them before it refuses memory."""
    try:
        with open(f"{folder}/memory.stat") as f:
            stat = dict(line.split() for line in f)
    except (OSError, ValueError):
        return 0
    return int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))


def _cgroup_folders(root: str) -> list[str]:
    """The folders of this process's memory cgroup and its parents, both versions."""
    try:
        with open("/proc/self/cgroup") as f:
            entries = [line.strip().split(":", 2) for line in f]
    except OSError:
        return []
    folders = []
    for _, controllers, path in entries:
        if controllers not in ("", "memory"):
            continue
        top = f"{root}/{controllers}".rstrip("/")
        parts = [p for p in path.split("/") if p]
        folders += ["/".join([top, *parts[:i]]) for i in range(len(parts) + 1)]
    return folders


def _read_int(path: str) -> int | None:
    try:
        with open(path) as f:
            return int(f.read())
    except (OSError, ValueError):  # absent, or the word "max"
        return None
