"""`selftest` on runs of a table, of images and of texts, by the verb and by the command line."""

import json
import pathlib

import numpy as np
import pytest

import layerwise
from layerwise import cli
from layerwise.console import Console
from layerwise.errors import OptionError
from layerwise.train import ways
from tests.rows import sentences

QUIET = Console(quiet=True)
FAST = {"steps": 12, "threads": 1, "depth": False, "base": "none", "audit": False}


def run_of(path: pathlib.Path, **options) -> str:
    folder = str(path.parent / "run")
    layerwise.fit(path, console=QUIET, output=folder, **{**FAST, **options})
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("table") / "flowers.csv"
    rng = np.random.default_rng(0)
    lines = [
        f"{x:.3f},{y:.3f},{'big' if x + y > 0 else 'small'}" for x, y in rng.normal(size=(200, 2))
    ]
    path.write_text("\n".join(["wide,long,kind", *lines]))
    return run_of(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("images") / "shades.npz"
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    pixels = rng.integers(0, 60, (90, 16, 16, 3)) + 60 * labels[:, None, None, None]
    np.savez(path, images=pixels.astype(np.uint8), labels=labels)
    return run_of(path, dtype="bf16")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(sentences(600, 0))
    return run_of(path, device_batch_size=4, max_seq_len=32)


def verdicts(found) -> list[str]:
    return [p.verdict for p in found.pairs]


def test_a_run_of_a_table(table: str):
    found = layerwise.selftest(table, ranks=False)
    assert found.same
    assert verdicts(found) == ["same", "same", "skipped", "same", "skipped", "skipped"]
    assert found.rows == 8
    assert found.arithmetic == "float32"  # as tables are trained


def test_a_run_of_images_says_what_batch_statistics_do(images: str):
    found = layerwise.selftest(images, ranks=False)
    assert found.same
    assert verdicts(found) == ["same", "same", "skipped", "same", "skipped", "skipped", "by nature"]
    assert found.arithmetic == "bfloat16"


def test_a_run_of_text_is_packed_and_padded(corpus: str):
    found = layerwise.selftest(corpus, ranks=False)
    assert found.same
    assert verdicts(found) == ["same", "same", "same", "same", "skipped", "skipped"]


def test_the_command_line_says_what_differs_and_ends_with_1(table: str, capsys, monkeypatch):
    assert cli.main(["selftest", table, "--no-ranks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True

    def half(network, task, micros, count, autocast):  # the last micro-batch counts half
        return original(network, task, micros, count * (2 if len(micros) > 1 else 1), autocast)

    original = ways.accumulate
    monkeypatch.setattr(ways, "accumulate", half)
    assert cli.main(["selftest", table, "--no-ranks"]) == 1
    said = capsys.readouterr().out
    assert "accumulated or one batch: differs, first in" in said


def test_a_folder_without_a_finished_run(tmp_path: pathlib.Path, table: str):
    with pytest.raises(OptionError, match="holds none"):
        layerwise.selftest(tmp_path)
    with pytest.raises(OptionError, match="--rows must be above 3"):
        layerwise.selftest(table, rows=3)
