"""Masked pre-training through `fit`: learned, opened elsewhere, continued, and used as a base."""

import json
import pathlib

import numpy as np
import pytest
import torch

import layerwise
from layerwise.console import Console
from layerwise.errors import LayerwiseError
from layerwise.train import loop
from tests.oracles import import_transformers
from tests.rows import WORDS, sentences

QUIET = Console(quiet=True)
FAST = {"device_batch_size": 8, "threads": 1, "dtype": "fp32", "max_seq_len": 32}
FILLED = "the [MASK] ran over one [MASK]"


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    starts = np.random.default_rng(0).integers(len(WORDS), size=900)
    path.write_text("\n".join(" ".join((WORDS * 2)[i:][:9]) + "." for i in starts))  # in a circle
    return path


@pytest.fixture(scope="module")
def fitted(book: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
    folder = str(tmp_path_factory.mktemp("run") / "run")
    options = {"task": "masked", "model": "bert-tiny", "steps": 80, **FAST}
    return layerwise.fit(book, console=QUIET, output=folder, **options)


def test_it_learns_to_fill_in_words(fitted):
    page = json.loads((pathlib.Path(fitted.folder) / "result.json").read_text())
    assert fitted.score_name == "bits_per_masked_token"
    assert fitted.low <= fitted.score <= fitted.high
    assert fitted.score < page["score"]["baseline"]["value"]  # the frequencies of words alone
    assert 0 < fitted.metrics["masked_accuracy"] < 1


@pytest.mark.oracle
def test_transformers_opens_it_and_gives_the_same_scores(fitted):
    transformers = import_transformers()
    folder = str(pathlib.Path(fitted.folder) / "model")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ours = layerwise.load(folder)
    given = words(FILLED, return_tensors="pt")
    assert ours.processor.tokenizer.encode(FILLED) == given["input_ids"][0].tolist()
    assert words.mask_token_id == ours.processor.tokenizer.mask_id
    with torch.inference_mode():
        want, got = theirs(**given).logits, ours.network(given["input_ids"])
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_a_base_is_continued_by_its_own_tokenizer(fitted, book, tmp_path: pathlib.Path):
    options = {"task": "masked", "base": fitted.folder, "steps": 5, **FAST}
    again = layerwise.fit(book, console=QUIET, output=str(tmp_path / "more"), **options)
    before = fitted.model.processor.tokenizer
    assert again.model.processor.tokenizer.fingerprint == before.fingerprint
    assert abs(again.score - fitted.score) < 0.5  # its head was kept
    assert [rung["name"] for rung in again.ladder] == ["full"]


def test_it_is_a_base_for_classes(fitted, tmp_path: pathlib.Path):
    rows = [
        f"{sentences(1, i)}\t{'cat' if 'cat' in sentences(1, i) else 'none'}" for i in range(160)
    ]
    path = tmp_path / "pets.tsv"
    path.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    options = {"base": fitted.folder, "method": "full", "steps": 5, "audit": False, **FAST}
    result = layerwise.fit(path, console=QUIET, output=str(tmp_path / "run"), **options)
    assert result.score_name == "accuracy"
    assert result.model.labels == ("cat", "none")
    old = fitted.model.network.blocks[0].fc1.weight
    assert (result.model.network.blocks[0].fc1.weight - old).abs().max() < 0.1 * old.abs().max()


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("task", "model"), [("masked", "bert-tiny"), ("causal", "auto")])
def test_a_run_that_died_ends_in_the_same_bits(book, tmp_path, monkeypatch, task, model):
    options = {"task": task, "model": model, "steps": 8, "checkpoint_every": 2, "audit": False}
    options |= {**FAST, "device_batch_size": 4}
    whole = layerwise.fit(book, console=QUIET, output=str(tmp_path / "whole"), **options)

    def until_five(step: int, *rest) -> float:
        if step == 5:
            raise Killed
        return lr_factor(step, *rest)

    lr_factor = loop.lr_factor
    monkeypatch.setattr(loop, "lr_factor", until_five)
    with pytest.raises(Killed):
        layerwise.fit(book, console=QUIET, output=str(tmp_path / "dead"), **options)
    monkeypatch.undo()
    again = layerwise.fit(console=QUIET, resume=str(tmp_path / "dead"))
    want, got = whole.model.network.state_dict(), again.model.network.state_dict()
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert (again.score, again.low) == (whole.score, whole.low)


@pytest.mark.parametrize("model", ["gpt2", "resnet20"])
def test_networks_that_do_not_fill_in(book, tmp_path: pathlib.Path, model: str):
    options = {"task": "masked", "model": model, "steps": 2}
    with pytest.raises(LayerwiseError, match="bert-mini"):
        layerwise.fit(book, console=QUIET, output=str(tmp_path / "a"), **options)
