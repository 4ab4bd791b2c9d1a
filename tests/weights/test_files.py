"""Reading what is damaged or dangerous, loading strictly, saving whole or not at all."""

import argparse
import errno
import json
import os
import pickle
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from layerwise.errors import StorageError, WeightsError
from layerwise.storage import replacing
from layerwise.weights.files import load_into, read_tensors, save_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.ones(3).bfloat16()}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return set(found) == set(expected) and all(
        torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in expected.items()
    )


# ---- reading -----------------------------------------------------------------------------------
def test_safetensors_there_and_back(tmp_path: Path):
    save_tensors(tmp_path / "w.safetensors", TENSORS, {"note": "hello"})
    assert same(read_tensors(tmp_path / "w.safetensors"), TENSORS)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".th", ".bin", ".pt"])
def test_torch_files(tmp_path: Path, suffix: str, zipped: bool):
    path = tmp_path / f"w{suffix}"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(path), TENSORS)


def test_checkpoints_with_more_than_weights(tmp_path: Path):
    path = tmp_path / "w.th"
    torch.save({"state_dict": TENSORS, "best": 91.7, "epoch": 3}, path)
    assert same(read_tensors(path), TENSORS)
    torch.save({"net": TENSORS, "teacher": {"z": torch.ones(1)}}, path)
    with pytest.raises(WeightsError, match=r"\['net', 'teacher'\]; name one as `key`"):
        read_tensors(path)
    assert same(read_tensors(path, key="net"), TENSORS)
    with pytest.raises(WeightsError, match="no tensors under 'nets'"):
        read_tensors(path, key="nets")
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match=r"w\.th: holds a list"):
        read_tensors(path)


class Code:
    """What a malicious checkpoint does: unpickling it runs a command."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, how: str):
    path, mark = tmp_path / "evil.pth", tmp_path / "it_ran"
    content = {"state_dict": TENSORS, "extra": Code(mark)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"a": Code(mark)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(WeightsError, match=r"evil\.pth: a pickle with code") as e:
        read_tensors(path)
    assert not mark.exists()
    assert "safetensors" in str(e.value)
    assert how == "pickle" or ".system)" in str(e.value)  # says what it would have run


def test_python_objects_are_refused(tmp_path: Path):
    torch.save({"args": argparse.Namespace(lr=1), "state_dict": TENSORS}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"argparse\.Namespace"):
        read_tensors(tmp_path / "w.pth")


@pytest.mark.data
def test_torchscript_is_refused(shared_data: Path):
    with pytest.raises(WeightsError, match="TorchScript"):
        read_tensors(shared_data / "weights/silero-vad/silero_vad.jit")


@pytest.mark.parametrize("left", [0, 4, 30, -5])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated(tmp_path: Path, kind: str, left: int):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_tensors(path, TENSORS)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(WeightsError, match=r"truncated|empty") as e:
        read_tensors(path)
    assert str(path) in str(e.value)


@pytest.mark.parametrize(
    ("content", "meaning"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"<!doctype html><html>", "web page"),
        (b"\x89HDF\r\n", "Keras"),
        (b"some notes about my model and how good it is", "not a weights file"),
    ],
)
def test_what_people_take_for_weights(tmp_path: Path, content: bytes, meaning: str):
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(WeightsError, match=meaning):
        read_tensors(tmp_path / "w.bin")


def test_no_such_file(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"nowhere\.pth: there is no such file"):
        read_tensors(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="no weights in this folder"):
        read_tensors(tmp_path)


# ---- shards ------------------------------------------------------------------------------------
@pytest.fixture
def shards(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "1.safetensors", {"a": TENSORS["a"], "b": TENSORS["b"]})
    save_tensors(tmp_path / "2.safetensors", {"c": TENSORS["c"]})
    write_index(tmp_path, {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})
    return tmp_path / "model.safetensors.index.json"


def write_index(folder: Path, places: dict[str, str]) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")


def test_shards(shards: Path):
    assert same(read_tensors(shards), TENSORS)
    assert same(read_tensors(shards.parent), TENSORS)  # the folder will do


def test_shard_missing(shards: Path):
    (shards.parent / "2.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"shard 2\.safetensors is missing"):
        read_tensors(shards)


def test_index_that_lies(shards: Path):
    write_index(shards.parent, {"a": "1.safetensors", "z": "2.safetensors"})
    with pytest.raises(WeightsError, match="no shard holds: z"):
        read_tensors(shards)
    write_index(shards.parent, {"a": "../../etc/passwd"})
    with pytest.raises(WeightsError, match="outside its own folder"):
        read_tensors(shards)
    shards.write_text("[]", encoding="utf-8")
    with pytest.raises(WeightsError, match="not the index"):
        read_tensors(shards)


# ---- loading -----------------------------------------------------------------------------------
def test_load_into_takes_over_from_meta_and_copies_otherwise():
    tensors = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    with torch.device("meta"):
        network = nn.Linear(3, 2)
    load_into(network, tensors)
    assert network.weight.data_ptr() == tensors["weight"].data_ptr()
    assert isinstance(network.weight, nn.Parameter)
    assert network.weight.requires_grad
    other = nn.Linear(3, 2)
    before = other.weight.data_ptr()
    load_into(other, tensors)
    assert other.weight.data_ptr() == before
    assert torch.equal(other.weight, tensors["weight"])


def test_load_into_takes_the_networks_precision():
    network = nn.Linear(3, 2)
    load_into(network, {"weight": torch.ones(2, 3).half(), "bias": torch.ones(2).half()})
    assert network.weight.dtype == torch.float32


def test_load_into_lists_both_sides():
    with pytest.raises(WeightsError) as e:
        load_into(nn.Linear(3, 2), {"weight": torch.ones(5, 3), "gamma": torch.ones(1)}, "x.pth")
    text = str(e.value)
    assert text.startswith("x.pth: ")
    assert "gamma (1,)" in text
    assert "bias (2,)" in text
    assert "weight (2, 3): the file's is (5, 3)" in text


# ---- saving ------------------------------------------------------------------------------------
def test_save_replaces_and_leaves_nothing_behind(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "w.safetensors"
    save_tensors(path, TENSORS)
    save_tensors(path, {"a": torch.zeros(1)})
    assert set(read_tensors(path)) == {"a"}
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_saved_files_have_the_usual_permissions(tmp_path: Path):
    plain = tmp_path / "plain"
    plain.write_text("", encoding="utf-8")
    save_tensors(tmp_path / "w.safetensors", TENSORS)
    assert (tmp_path / "w.safetensors").stat().st_mode == plain.stat().st_mode


def test_tied_and_strided_tensors_are_saved_whole(tmp_path: Path):
    x = torch.arange(12.0).view(3, 4)
    tensors = {"x": x, "tied": x, "part": x[:2], "turned": x.T}
    save_tensors(tmp_path / "w.safetensors", tensors)
    assert same(read_tensors(tmp_path / "w.safetensors"), tensors)


def interrupted(number: int):
    def save_file(tensors, filename, metadata):
        Path(filename).write_bytes(b"half of it")
        raise OSError(number, os.strerror(number))

    return save_file


@pytest.mark.parametrize(
    ("number", "meaning"),
    [
        (errno.ENOSPC, "disk is full.* Free some space"),
        (errno.EACCES, "no permission to write"),
        (errno.EROFS, "no permission to write"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_failed_save_keeps_the_earlier_file(tmp_path: Path, monkeypatch, number: int, meaning: str):
    path = tmp_path / "w.safetensors"
    save_tensors(path, TENSORS)
    before = path.read_bytes()
    monkeypatch.setattr(safetensors.torch, "save_file", interrupted(number))
    with pytest.raises(StorageError, match=meaning) as e:
        save_tensors(path, {"a": torch.zeros(1)})
    assert "saved before it is untouched" in str(e.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_really_full(tmp_path: Path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    try:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small disk")
    except FileNotFoundError:
        pytest.skip("no mount on this system")
    try:
        save_tensors(tmp_path / "w.safetensors", TENSORS)
        with pytest.raises(StorageError, match="disk is full"):
            save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(100_000)})
        assert same(read_tensors(tmp_path / "w.safetensors"), TENSORS)
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_file_too_large_for_the_system(tmp_path: Path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(StorageError, match="disk is full"):
            save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "here").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="save to another folder"):
        save_tensors(tmp_path / "here" / "w.safetensors", TENSORS)


def test_no_permission(tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission to write"):
        save_tensors(tmp_path / "w.safetensors", TENSORS)


def test_replacing_lets_other_errors_through(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "x") as temporary:
        temporary.write_text(str(1 / 0), encoding="utf-8")
    assert list(tmp_path.iterdir()) == []
