"""Models of text from wherever they lie: GGUF and llama2.c files, folders, shards, the hub."""

import json
import pathlib
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import layerwise
from layerwise.errors import LayerwiseError, WeightsError
from layerwise.model.model import Model
from layerwise.models import bert, family
from layerwise.tokens.tokenizer import Tokenizer
from layerwise.tokens.training import train_bpe, train_wordpiece
from layerwise.weights import hub
from layerwise.weights.configs.encoders import encoder_json
from layerwise.weights.configs.text import write_config
from layerwise.weights.files import save_tensors
from layerwise.weights.gguf.models import save_gguf
from layerwise.weights.names import publish
from layerwise.weights.published import load_published
from tests.models.test_decoders import CASES, Case

TEXT = ["the quick brown fox jumps over the lazy dog " * 3, "and one more ran far over the hill"]


MANY = [" ".join(f"{a}{b}{c}" for a in "bcdfg" for b in "aeiou" for c in "lmnpq") * 3]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_bpe(TEXT, 280)


def folder_of(case: Case, words: Tokenizer, folder: Path, n_shards: int = 1) -> torch.nn.Module:
    """A Hugging Face folder of this network, as its makers would have written it."""
    torch.manual_seed(0)
    config = replace(case.config(), vocab_size=words.vocab_size)
    network = family(case.family).Model(config).eval()
    values = write_config(case.family, config)
    form = "huggingface_mixtral" if values["model_type"] == "mixtral" else "huggingface"
    tensors = publish(network.state_dict(), family(case.family).PUBLISHED[form])
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    words.save(folder)
    if n_shards == 1:
        save_tensors(folder / "model.safetensors", tensors)
        return network
    names, places = sorted(tensors), {}
    for i in range(n_shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        part = {n: tensors[n] for n in names[i::n_shards]}
        save_tensors(folder / file, part)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return network


def same(model: Model, network: torch.nn.Module) -> bool:
    ids = torch.tensor([model.processor.tokenizer.encode(TEXT[0])[:16]])
    with torch.no_grad():
        return torch.equal(model.network(ids), network(ids))


# ---- folders and the hub -------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_family_from_a_sharded_folder(case: Case, words: Tokenizer, tmp_path: Path):
    network = folder_of(case, words, tmp_path, n_shards=3)
    model = layerwise.load(tmp_path)
    assert (model.family, model.task.name, model.kind.name) == (case.family, "causal", "text")
    assert model.processor.max_seq_len == network.config.max_seq_len
    assert same(model, network)
    assert isinstance(model.generate("the quick", 5), str)


def test_indexes_that_lie(words: Tokenizer, tmp_path: Path):
    folder_of(CASES[1], words, tmp_path, n_shards=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match=r"shard model-00002-of-00002.safetensors is missing; 2"):
        layerwise.load(tmp_path)
    (tmp_path / "elsewhere").rename(shard)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = shard.name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"no shard holds: model.layers.9.mlp.up_proj.weight"):
        layerwise.load(tmp_path)


def test_tokenizers_that_are_not_the_weights(words: Tokenizer, tmp_path: Path):
    folder_of(CASES[1], words, tmp_path)
    train_bpe(MANY, 400).save(tmp_path)
    said = r"tokenizer has 400 tokens, the network knows 280: they do not belong together"
    with pytest.raises(WeightsError, match=f"{tmp_path}: the {said}"):
        layerwise.load(tmp_path)
    train_bpe(TEXT, 257, special=("<|endoftext|>",)).save(tmp_path)
    with pytest.raises(WeightsError, match=r"257 tokens, the network knows 280: that is more than"):
        layerwise.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match="no tokenizer in this folder; expected"):
        layerwise.load(tmp_path)
    load_published(tmp_path)  # the network alone is there


def test_a_saved_model_knows_its_tokenizer(words: Tokenizer, tmp_path: Path):
    folder_of(CASES[1], words, tmp_path)
    layerwise.load(tmp_path).save(tmp_path / "mine")
    other = train_bpe([TEXT[1]], 280)
    assert other.vocab_size <= 280
    other.save(tmp_path / "mine")
    with pytest.raises(WeightsError, match="not the one the weights were trained with"):
        layerwise.load(tmp_path / "mine")


def test_a_hub_id(words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    network = folder_of(CASES[1], words, tmp_path / "there", n_shards=2)
    save_gguf(tmp_path / "there" / "a.gguf", "llama", network, "F32", words.to_gguf())
    here, asked = tmp_path / "here", []

    def fetch(hub_id: str, filename: str) -> Path:
        asked.append((hub_id, filename))
        if not (tmp_path / "there" / filename).exists():
            raise hub.MissingFileError(f"{hub_id}: no {filename}")
        here.mkdir(exist_ok=True)
        (here / filename).write_bytes((tmp_path / "there" / filename).read_bytes())
        return here / filename

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "cached", lambda *a: None)
    assert same(layerwise.load("someone/something"), network)
    asked.clear()
    assert same(layerwise.load("someone/something/a.gguf"), network)
    assert set(asked) == {("someone/something", "a.gguf")}


# ---- encoders ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "change", "task"),
    [
        ("class", {}, "classify"),
        ("class", {"problem_type": "single_label_classification"}, "classify"),
        ("class", {"problem_type": "multi_label_classification"}, "tag"),
        ("class", {"problem_type": "regression"}, "regress"),
        ("class", {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}, "regress"),
        ("masked", {}, "masked"),
        ("tag", {}, "words"),
        ("span", {}, "span"),
        ("embed", {}, "embed"),
    ],
)
def test_what_an_encoder_was_trained_for(kind: str, change: dict, task: str, tmp_path: Path):
    words = train_wordpiece(TEXT, 60)
    config = bert.Config(
        dim=24, n_layers=1, n_heads=2, mlp_dim=32, vocab_size=words.vocab_size, max_seq_len=20,
        n_classes=len(change.get("id2label", "ab")), head_kind=kind,
    )  # fmt: skip
    network = bert.Model(config).eval()
    rules = bert.PUBLISHED[f"bert-{kind}"]
    save_tensors(tmp_path / "model.safetensors", publish(network.state_dict(), rules))
    values = encoder_json(config, ("x", "y")[: config.n_classes]) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    words.save(tmp_path)
    model = layerwise.load(tmp_path)
    assert model.task is None or model.task.name == task
    assert model.processor.max_seq_len == 20
    assert model.processor.token_types
    if task in ("classify", "tag", "words") and model.task:
        assert model.task.labels == ("x", "y")


# ---- llama2.c ------------------------------------------------------------------------------------
@pytest.mark.data
def test_stories260k_from_its_file(shared_data: pathlib.Path):
    folder = shared_data / "weights/stories260k"
    model = layerwise.load(folder / "stories260K.bin")
    reference = json.loads((folder / "greedy_reference.json").read_text("utf-8"))
    prompt = model.processor.tokenizer.decode(reference["prompt_ids"])
    new = len(reference["greedy_ids"]) - len(reference["prompt_ids"])
    assert (prompt + model.generate(prompt, new)).strip() == reference["text"].strip()


@pytest.mark.data
def test_stories260k_as_gguf(shared_data: pathlib.Path, tmp_path: pathlib.Path):
    model = layerwise.load(shared_data / "weights/stories260k/stories260K.bin")
    layerwise.export(model, str(tmp_path / "s.gguf"), quantize="f32")
    again = layerwise.load(tmp_path / "s.gguf")
    text = "Once upon a time, there was a little girl"
    assert again.processor.tokenizer.encode(text) == model.processor.tokenizer.encode(text)
    assert again.generate(text, 20) == model.generate(text, 20)


def test_a_checkpoint_without_its_tokens(tmp_path: Path):
    header = struct.pack("<7i", 8, 16, 1, 2, 2, 6, 4)
    size = 6 * 8 + 8 + 4 * 64 + 8 + 3 * 128 + 8 + 2 * 4 * 2
    (tmp_path / "a.bin").write_bytes(header + bytes(4 * size))
    assert load_published(tmp_path / "a.bin")[1].format == "llama2c"
    with pytest.raises(WeightsError, match=r"a.bin: neither tok6.bin nor tokenizer.bin beside it"):
        layerwise.load(tmp_path / "a.bin")
    tokens = [b"u", b"s", b"e", b" a"]
    raw = b"".join(struct.pack("<fi", 0, len(t)) + t for t in tokens)
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<i", 4) + raw)
    with pytest.raises(WeightsError, match=r"tokenizer.bin: 4 tokens where the weights have 6"):
        layerwise.load(tmp_path / "a.bin")


# ---- GGUF ----------------------------------------------------------------------------------------
def test_a_gguf_file_whose_tokens_are_others(words: Tokenizer, tmp_path: Path):
    network = folder_of(CASES[1], words, tmp_path / "a")
    path = tmp_path / "a.gguf"
    save_gguf(path, "llama", network, "F32")
    with pytest.raises(WeightsError, match=r"tokenizer.ggml.model = None is not supported"):
        layerwise.load(path)
    more = train_bpe(MANY, 400).to_gguf()
    with pytest.raises(LayerwiseError, match="has 400 tokens, the network 280 rows"):
        save_gguf(path, "llama", network, "F32", more)
