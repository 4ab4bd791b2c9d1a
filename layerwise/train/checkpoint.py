"""Checkpoints: written whole or not at all, and enough to go on to the bit.

A checkpoint is a folder `step-00000120/` with `model.safetensors`, `optimizer.safetensors`,
`ema.safetensors` (when there is one) and `state.json`. It is written beside its final place,
flushed to the disk (fsync), and renamed: whatever kills the process, every folder of the final
name is complete. Retention never drops the best, the last good one, or the newest.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from layerwise import storage
from layerwise.errors import StorageError, WeightsError, unknown

PREFIX = "step-"
GO_ON = "go on with `layerwise fit --resume RUN`"
CURE = f"Free some space, or choose another folder with --output; {GO_ON}"


@dataclass
class State:
    """What resumes a run besides the tensors: everything else follows from (seed, step)."""

    step: int = 0
    seed: int = 0
    lr_scale: float = 1.0  # lowered by the guardian
    recoveries: int = 0  # times the guardian went back
    best_score: float | None = None
    best_step: int = -1
    seconds: float = 0.0  # of training so far
    finished: bool = False


def save_checkpoint(folder: Path, state: State, tensors: dict[str, dict[str, Tensor]]) -> Path:
    """Write `folder/step-XXXXXXXX`; `tensors` maps "model", "optimizer", "ema" to named tensors.

    Errors: StorageError when the disk is full or the folder cannot be written; what was saved
    before stays.
    """
    final = folder / f"{PREFIX}{state.step:08d}"
    partial = folder / f".writing-{final.name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, part in tensors.items():
            path = partial / f"{name}.safetensors"
            save_file({k: v.detach().contiguous() for k, v in part.items()}, path)
            storage.sync(path)
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=1))
        storage.sync(partial / "state.json")
        storage.sync(partial)
        if final.exists():  # the same step again, after the guardian went back
            shutil.rmtree(final)
        os.replace(partial, final)
        storage.sync(folder)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(partial, ignore_errors=True)
        raise storage_error(e, final) from e
    return final


def storage_error(e: Exception, path: Path) -> StorageError:
    """The sentence for what a run cannot write: full disk, no permission, or another such error."""
    return storage.storage_error(e, path, CURE)


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob(f"{PREFIX}*") if p.is_dir()) if folder.exists() else []


def load_checkpoint(path: Path) -> tuple[State, dict[str, dict[str, Tensor]]]:
    """State and tensors of one checkpoint. Errors: a damaged file, an unknown key in its state."""
    values = json.loads((path / "state.json").read_text())
    known = {f.name for f in fields(State)}
    for key in values.keys() - known:
        raise unknown("key in state.json", key, known)
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            tensors[file.stem] = load_file(file)
        except (SafetensorError, OSError) as e:
            cure = f"remove {path} and resume from the checkpoint before it"
            raise WeightsError(f"{file} is damaged ({e}); {cure}") from e
    return State(**values), tensors


def clean(folder: Path, keep: int, best_step: int) -> None:
    """Remove half-written folders of dead runs and all but the newest `keep` and the best."""
    for partial in folder.glob(".writing-*"):
        shutil.rmtree(partial, ignore_errors=True)
    spare = [p for p in complete(folder)[:-keep] if p != folder / f"{PREFIX}{best_step:08d}"]
    for path in spare:
        doomed = path.with_name(f".writing-old-{path.name}")  # a kill in here leaves no half folder
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = complete(folder)
    return found[-1] if found else None
