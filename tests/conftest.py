"""Fixtures shared by all tests: where the data is, and one thread so that tests do not fight."""

import os
import pathlib

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also in the processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data and published weights; the test is skipped where there is none."""
    folder = pathlib.Path(os.environ.get("LAYERWISE_DATA", HERE.parent / "../shared/data"))
    if not (folder / "README.md").exists():
        pytest.skip(f"no data at {folder}: set LAYERWISE_DATA to the data folder")
    return folder.resolve()


@pytest.fixture(autouse=True)
def _isolated_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LAYERWISE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _switches_as_they_were():
    """A verb sets process-wide switches of PyTorch; no test sees those of the one before.

    They are put back to what PyTorch starts with: fixtures of a wider scope call verbs, too.
    """
    import torch

    torch.set_num_threads(1)
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    yield
    torch.backends.mkldnn.matmul.fp32_precision = "none"
