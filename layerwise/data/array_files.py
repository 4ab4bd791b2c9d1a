"""Which files of a place hold arrays, and what: MNIST idx, CIFAR as published, `.npz`."""

from pathlib import Path

from layerwise.data.arrays import Arrays, idx_set, looks_like_idx, read_idx_files, read_npz
from layerwise.data.cifar import cifar_members, is_tar, read_cifar
from layerwise.data.listing import Place
from layerwise.data.records import Reading


def arrays_of(place: Place, reading: Reading) -> Arrays | None:
    """What the array files of a place hold, read once; None where there are none."""
    if place.path not in reading.arrays:
        reading.arrays[place.path] = _read(*_candidates(place), reading)
    return reading.arrays[place.path]


def _candidates(place: Place) -> tuple[list[Path], list[list[Path]]]:
    """Files that may hold arrays; and where CIFAR may be: here, in the one folder, or archive."""
    path, listing = place.path, place.listing
    if listing is None:
        batch = is_tar(path) or path.suffix.lower() in (".bin", "") or "batch" in path.name
        return idx_set(path) if looks_like_idx(path) else [path], [[path]] if batch else []
    top = [listing.path(parts) for parts in listing.folders if len(parts) == 1]
    return listing.here, [[path], top, [p for p in listing.here if is_tar(p)]]


def _read(files: list[Path], cifar: list[list[Path]], reading: Reading) -> Arrays | None:
    if idx := [p for p in files if looks_like_idx(p)]:
        return read_idx_files(idx)
    for place in cifar:
        if len(place) == 1 and (members := cifar_members(place[0])):
            return read_cifar(members, reading.target)
    npz = [p for p in files if p.suffix.lower() == ".npz"]
    return read_npz(npz) if npz else None
