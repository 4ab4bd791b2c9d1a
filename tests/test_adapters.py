"""LoRA through the verbs: what `fit` merges is proved, its adapter travels alone and comes back."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import torch

import layerwise
from layerwise.adapt import lora, peft
from layerwise.adapt.quantize import quantize
from layerwise.errors import OptionError, WeightsError
from layerwise.fitting.ladder import reset_head
from layerwise.runtime import start
from layerwise.settings import settings
from layerwise.tokens.tokenizer import Tokenizer
from layerwise.tokens.training import train_wordpiece
from tests import test_labelled
from tests.test_labelled import FAST, rows_of

base, reviews = test_labelled.base, test_labelled.reviews  # the fixtures
TEXTS = [text for text, _ in rows_of(30, 4)]


@pytest.mark.parametrize(
    ("variant", "bits"), [("lora", "none"), ("rslora", "8"), ("dora", "none"), ("dora", "4")]
)
def test_a_merged_run_is_certified_and_its_adapter_lies_beside_it(
    variant: str,
    bits: str,
    reviews,
    base,
    tmp_path: pathlib.Path,
):
    options = {"method": "lora", "lora_variant": variant, "quantize": bits, "steps": 20, "lr": 1e-2}
    options |= {"lora_targets": "q_proj,v_proj,fc1", "lora_rank": 4, "lora_dropout": 0.1}
    result = layerwise.fit(reviews, base=str(base), output=str(tmp_path), **FAST, **options)
    merged = layerwise.load(tmp_path).card["merged"]
    assert merged == result.model.card["merged"]
    assert (merged["modules"], merged["rows"]) == (6, 16)
    assert 0 < merged["relative"] <= merged["tolerance"] == 1e-4
    values = json.loads((tmp_path / "adapter" / peft.CONFIG).read_text())
    assert values["base_model_name_or_path"] == str(base)
    assert (values["use_rslora"], values["use_dora"]) == (variant == "rslora", variant == "dora")
    assert values["modules_to_save"] == ["bert.pooler.dense", "classifier"]

    again = layerwise.load(base)
    if bits != "none":
        quantize(again.network, int(bits))
    reset_head(again.network, result.model.task)
    peft.load_adapter(again.network, result.model.published_names, tmp_path / "adapter")
    again.task, again.calibration = result.model.task, result.model.calibration
    again.processors = result.model.processors
    rows = result.model.rows(TEXTS)
    fp32 = start(dtype="fp32")
    found, want = (logits(m.predictions(rows, fp32)) for m in (again, result.model))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    if bits == "none":  # the adapter alone says which base and which head
        opened = layerwise.load(tmp_path / "adapter")
        assert opened.labels == tuple(f"LABEL_{i}" for i in range(len(result.model.labels)))
        found = logits(opened.predictions(rows, fp32)) / result.model.calibration.temperature
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def logits(predictions) -> torch.Tensor:
    return torch.tensor(np.stack([p.logits for p in predictions]))


@pytest.fixture
def adapter(base, tmp_path: pathlib.Path):
    """A folder with an adapter on the base, as PEFT's users pass it on; and the adapted model."""
    model = layerwise.load(base)
    lora.add_lora(model.network, rank=2)
    with torch.no_grad():
        for module in lora.adapters(model.network).values():
            module.lora_b.normal_(std=0.1)
    peft.save_adapter(model.network, model.published_names, tmp_path, str(base))
    return model, tmp_path


def test_an_adapter_opens_as_a_model_and_serves_as_a_base(adapter, reviews):
    model, folder = adapter
    opened = layerwise.load(folder)
    assert opened.card["adapter"] == str(folder)
    assert opened.card["merged"]["relative"] <= 1e-5
    tokens = model.processor(model.rows(TEXTS).rows())["tokens"].flatten(0, 1)[:4]
    want, plain = model.network(tokens), layerwise.load(opened.card["source"]).network(tokens)
    torch.testing.assert_close(opened.network(tokens), want, rtol=1e-4, atol=1e-5)
    assert (want - plain).abs().max() > 1e-3
    options = {"base": str(folder), "method": "probe", "output": str(folder / "run")}
    assert layerwise.fit(reviews, **FAST, **options).score > 0.5


def test_an_adapter_says_which_base_and_vocabulary_it_needs(adapter):
    _, folder = adapter
    path = folder / peft.CONFIG
    values = json.loads(path.read_text())
    words = train_wordpiece([f"{t} {i}" for i, t in enumerate(TEXTS * 40)], 4000)
    words.save(folder)
    assert words.vocab_size > Tokenizer.load(values["base_model_name_or_path"]).vocab_size
    with pytest.raises(WeightsError, match="1,441 tokens, the network knows 400"):
        layerwise.load(folder)
    (folder / "tokenizer.json").unlink()
    path.write_text(json.dumps(values | {"base_model_name_or_path": None}))
    with pytest.raises(WeightsError, match="names no base"):
        layerwise.load(folder)
    shutil.copy(pathlib.Path(values["base_model_name_or_path"]) / "config.json", folder)
    path.write_text(json.dumps(values | {"base_model_name_or_path": str(folder / "gone")}))
    with pytest.raises(WeightsError, match="gone"):
        layerwise.load(folder)


def test_settings_that_would_do_nothing_or_harm():
    with pytest.raises(OptionError, match="--quantize packs a frozen base"):
        settings(quantize="4")
    with pytest.raises(OptionError, match="unknown value of --quantize"):
        settings(quantize="3", method="lora")
    with pytest.raises(OptionError, match="--lora-dropout must be at least 0 and below 1"):
        settings(lora_dropout=1.0)
    with pytest.raises(OptionError, match="--lora-alpha must not be negative"):
        settings(lora_alpha=-1.0)
