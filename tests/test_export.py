"""`export` and `generate`: models as other tools read them, compared before they are given."""

import dataclasses
import importlib
import json
import pathlib
from typing import Any

import pytest
import torch

import layerwise
from layerwise import cli
from layerwise.errors import OptionError, WeightsError
from layerwise.kinds.image.processor import ImageProcessor
from layerwise.kinds.text.processor import TextProcessor
from layerwise.model.model import Model
from layerwise.models import family, resolve
from layerwise.tasks.causal import Causal
from layerwise.tasks.classify import Classify
from layerwise.tasks.task import Calibration
from layerwise.tokens.tokenizer import Tokenizer
from layerwise.tokens.training import train_bpe
from layerwise.verbs.export import LIMITS
from layerwise.weights.gguf.models import load_gguf
from layerwise.weights.published import load_published

TEXT = ["the cat sat on a mat while one dog ran over the hill", "and one ran far"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXT, 288)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Model:
    return continuing(tokenizer)


def continuing(tokenizer: Tokenizer, **fields) -> Model:
    torch.manual_seed(0)
    llama = family("llama")
    config = llama.Config(
        **{"vocab_size": tokenizer.vocab_size, "max_seq_len": 64, "dim": 64, "n_layers": 2,
           "n_heads": 2, "n_kv_heads": 1, "head_dim": 32, "mlp_dim": 96, "norm_eps": 1e-6,
           "qk_norm": True, "tied_head": True, **fields}
    )  # fmt: skip
    network = llama.Model(config).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return Model(network, "llama", {"text": TextProcessor(tokenizer, 64)}, Causal(), "small")


@pytest.mark.parametrize("kind", LIMITS)
def test_a_gguf_file_says_what_the_model_says(model: Model, tmp_path: pathlib.Path, kind: str):
    done = layerwise.export(model, str(tmp_path / "a.gguf"), quantize=kind)
    assert (done.path, done.form) == (str(tmp_path / "a.gguf"), f"gguf {kind}")
    assert done.bytes == (tmp_path / "a.gguf").stat().st_size
    assert done.difference <= LIMITS[kind]
    again = layerwise.load(tmp_path / "a.gguf")
    assert again.task.name == "causal"
    assert again.processor.max_seq_len == 64
    assert again.processor.tokenizer.encode(TEXT[0]) == model.processor.tokenizer.encode(TEXT[0])
    if kind == "f32":
        assert done.agreement == 1
        assert again.generate("the cat", 12) == model.generate("the cat", 12)


def test_a_folder_that_transformers_reads(model: Model, tmp_path: pathlib.Path):
    done = layerwise.export(model, str(tmp_path / "out"), to="huggingface")
    assert (done.difference, done.agreement) == (0, 1)
    for name in ("layerwise.json", "model.safetensors.index.json"):
        (tmp_path / "out" / name).unlink(missing_ok=True)  # as others would have written it
    again = layerwise.load(tmp_path / "out")
    assert again.generate("the cat", 12) == model.generate("the cat", 12)
    assert (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize("variant", ["resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_a_temperature_goes_along(tmp_path: pathlib.Path, variant: str):
    """What others open gives the calibrated probabilities, which are softer here."""
    name, config = resolve(variant, n_classes=3)
    torch.manual_seed(0)
    network = family(name).Model(config).eval()
    task, reader = Classify(["a", "b", "c"]), ImageProcessor()
    model = Model(network, name, {"image": reader}, task, variant, Calibration(2.5))
    layerwise.export(model, str(tmp_path / "out"), to="huggingface")
    again = layerwise.load(tmp_path / "out")
    assert again.calibration.temperature == 1
    images = torch.randn(2, 3, *reader.size)
    with torch.inference_mode():
        torch.testing.assert_close(again.network(images) * 2.5, network(images))


def test_from_the_command_line(model: Model, tmp_path: pathlib.Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model.save(tmp_path / "run" / "model")
    assert cli.main(["export", "run/model", "--to", "gguf", "--quantize", "q8_0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["path"], said["form"]) == ("run-gguf-q8_0.gguf", "gguf q8_0")
    assert load_gguf(said["path"])[2]["general.name"] == "run"
    assert cli.main(["export", "run-gguf-q8_0.gguf", "--to", "huggingface", "--output", "b"]) == 0
    assert "agrees on 100.0% of tokens" in capsys.readouterr().out
    assert cli.main(["generate", "b", "the cat", "--tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("the cat")


def test_what_cannot_be_exported(model: Model, tokenizer: Tokenizer, tmp_path: pathlib.Path):
    path = str(tmp_path / "a.gguf")
    with pytest.raises(OptionError, match="unknown form 'ggml' Known: gguf, huggingface"):
        layerwise.export(model, path, to="ggml")
    with pytest.raises(OptionError, match="--quantize q4_k is not written here, only f32, f16"):
        layerwise.export(model, path, quantize="q4_k")
    with pytest.raises(WeightsError, match="no way to compute window=8"):
        layerwise.export(continuing(tokenizer, window=8, qk_norm=False), path)
    with pytest.raises(WeightsError, match="has 288 tokens, the network 200 rows"):
        layerwise.export(continuing(tokenizer, vocab_size=200), path)
    name, config = resolve("mobilenetv2_035", n_classes=4)
    network: Any = family(name).Model(config)
    image = dataclasses.replace(
        model, network=network, family=name, processors={"image": ImageProcessor()}
    )
    with pytest.raises(OptionError, match="GGUF is for models that continue text"):
        layerwise.export(image, path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_says_something_else_is_not_handed_over(
    model: Model, tokenizer: Tokenizer, tmp_path: pathlib.Path, monkeypatch
):
    other = continuing(tokenizer, rope_theta=5.0).network
    monkeypatch.setattr(
        importlib.import_module("layerwise.verbs.export"),
        "load_gguf",
        lambda *a: (other, "llama", {}),
    )
    with pytest.raises(WeightsError, match=r"opened again, its outputs were .* off"):
        layerwise.export(model, str(tmp_path / "a.gguf"), quantize="f32")
    assert list(tmp_path.iterdir()) == []


def test_generate_stops_and_begins(model: Model, monkeypatch):
    end = model.processor.tokenizer.eos_id
    with torch.no_grad():
        model.network.head.weight[end] += 100 * model.network.norm.weight.sign()
    assert len(model.generate("", 3)) >= 0  # nothing to go on from: it begins with its own token
    model.task = None
    with pytest.raises(WeightsError, match="does not continue text"):
        model.generate("the")


@pytest.mark.parametrize("name", ["none.gguf", "a/none.gguf"])
def test_a_file_that_is_not_there(tmp_path: pathlib.Path, name: str):
    with pytest.raises(WeightsError, match="neither a file or folder here"):
        load_published(tmp_path / name)
