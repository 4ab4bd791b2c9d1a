"""Checkpoints: whole or absent, kept when the disk is full, clear when damaged."""

import errno
import json
import pathlib
import resource

import pytest
import torch

from layerwise import runtime
from layerwise.errors import OptionError, StorageError, WeightsError
from layerwise.train import checkpoint
from layerwise.train.checkpoint import State

TENSORS = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"w:step": torch.ones(())}}


def test_what_is_saved_comes_back(tmp_path: pathlib.Path):
    state = State(step=7, seed=3, best_score=0.5, best_step=6, lr_scale=0.1)
    path = checkpoint.save_checkpoint(tmp_path, state, TENSORS)
    loaded, tensors = checkpoint.load_checkpoint(path)
    assert loaded == state
    assert torch.equal(tensors["model"]["w"], TENSORS["model"]["w"])
    assert tensors["optimizer"]["w:step"].shape == ()


def test_retention_keeps_the_newest_and_the_best(tmp_path: pathlib.Path):
    for step in range(6):
        checkpoint.save_checkpoint(tmp_path, State(step=step), TENSORS)
        checkpoint.clean(tmp_path, 2, best_step=1)
    kept = [int(p.name.removeprefix("step-")) for p in checkpoint.complete(tmp_path)]
    assert kept == [1, 4, 5]
    assert not list(tmp_path.glob(".writing-*"))


def test_a_full_disk_loses_nothing(tmp_path: pathlib.Path):
    checkpoint.save_checkpoint(tmp_path, State(step=1), TENSORS)
    large = TENSORS | {"optimizer": {"w:exp_avg": torch.zeros(1 << 16)}}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(StorageError, match=r"disk is full.*--resume"):
            checkpoint.save_checkpoint(tmp_path, State(step=2), large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load_checkpoint(tmp_path / "step-00000001")[0].step == 1


def test_saving_makes_no_copy_of_the_weights(tmp_path: pathlib.Path):
    """A copy would be memory that no plan has seen."""
    tensors = {"model": {str(i): torch.zeros(1 << 20) for i in range(32)}}
    runtime.forget_peak()
    before = runtime.peak_memory_mb()
    checkpoint.save_checkpoint(tmp_path, State(), tensors)
    assert runtime.peak_memory_mb() - before < 20  # of 134 MB


def test_no_permission_says_what_to_do(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "mkdir", denied)
    with pytest.raises(StorageError, match=r"no permission.*--output"):
        checkpoint.save_checkpoint(tmp_path / "x", State(), TENSORS)


def test_a_truncated_file_is_named(tmp_path: pathlib.Path):
    path = checkpoint.save_checkpoint(tmp_path, State(step=3), TENSORS)
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged.*resume from"):
        checkpoint.load_checkpoint(path)


def test_an_unknown_key_names_the_nearest(tmp_path: pathlib.Path):
    path = checkpoint.save_checkpoint(tmp_path, State(), TENSORS)
    values = json.loads((path / "state.json").read_text()) | {"stepp": 1}
    (path / "state.json").write_text(json.dumps(values))
    with pytest.raises(OptionError, match="did you mean 'step'"):
        checkpoint.load_checkpoint(path)
