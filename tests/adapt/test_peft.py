"""PEFT's adapters both ways, against PEFT itself on transformers' networks; and what is refused."""

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from layerwise.adapt import lora, peft
from layerwise.errors import OptionError, WeightsError
from layerwise.models import family
from layerwise.weights.published import load_published
from tests import oracles
from tests.parity import relative_error

T, V = 12, 61
SHARED = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "gpt2": {"vocab_size": V, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "qwen2": {**SHARED, "num_key_value_heads": 2, "intermediate_size": 48},
    "bert": {**SHARED, "intermediate_size": 48, "max_position_embeddings": 32, "num_labels": 3},
    "mixtral": {
        **SHARED, "num_key_value_heads": 2, "intermediate_size": 24, "num_local_experts": 4,
        "sliding_window": None,
    },
}  # fmt: skip
CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "qwen2": "Qwen2ForCausalLM",
    "bert": "BertForSequenceClassification",
    "mixtral": "MixtralForCausalLM",
}
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "qwen2": ["q_proj", "v_proj", "down_proj"],
    "bert": ["query", "value", "intermediate.dense"],
    "mixtral": ["q_proj", "o_proj"],
}
EVERY = pytest.mark.parametrize("base", ["gpt2", "qwen2", "bert", "mixtral"], indirect=True)
VARIANTS = pytest.mark.parametrize("variant", lora.VARIANTS)


@dataclass
class Base:
    """A small random model folder as transformers wrote it; opened by transformers and by us."""

    kind: str
    folder: Path
    transformers: Any
    peft: Any

    def theirs(self) -> Any:
        return getattr(self.transformers, CLASSES[self.kind]).from_pretrained(self.folder).eval()

    def ours(self) -> tuple[nn.Module, dict[str, str]]:
        network, card = load_published(self.folder)
        return network, family(card.family).PUBLISHED[card.format]

    def config(self, **options: Any) -> Any:
        task = "SEQ_CLS" if self.kind == "bert" else "CAUSAL_LM"
        given = {"r": 4, "lora_alpha": 10, "target_modules": TARGETS[self.kind]}
        return self.peft.LoraConfig(task_type=task, **(given | options))

    def adapter(self, folder: Path, **options: Any) -> Tensor:
        """A PEFT adapter of random weights, as if trained, in `folder`; the logits it gives."""
        model = self.peft.get_peft_model(self.theirs(), self.config(**options))
        randomize(p for p in model.parameters() if p.requires_grad)
        model.save_pretrained(str(folder))
        return logits(model.eval())


@pytest.fixture
def base(request, tmp_path) -> Base:
    transformers = oracles.import_transformers()
    theirs = oracles._import_quietly("peft")
    warnings.simplefilter("ignore")  # of PEFT's own
    torch.manual_seed(0)
    config = getattr(transformers, CLASSES[request.param]).config_class(**CONFIGS[request.param])
    folder = tmp_path / "base"
    model = getattr(transformers, CLASSES[request.param])(config)
    randomize(model.parameters(), 0.3)
    model.save_pretrained(folder)
    return Base(request.param, folder, transformers, theirs)


@torch.no_grad()
def randomize(parameters: Any, std: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(5)
    for p in parameters:
        p.add_(std * torch.randn(p.shape, generator=generator))


@torch.no_grad()
def logits(network: nn.Module) -> Tensor:
    tokens = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(1))
    found = network(tokens)
    return getattr(found, "logits", found)


def same(found: Tensor, expected: Tensor) -> bool:
    return relative_error(found, expected) <= 1e-5


# ---- both ways ---------------------------------------------------------------------------------
@EVERY
@VARIANTS
@pytest.mark.oracle
def test_an_adapter_of_ours_loads_in_peft(base, variant, tmp_path):
    network, rules = base.ours()
    plain = logits(network)
    if base.kind == "mixtral":  # transformers 5 has the experts in one tensor
        lora.add_lora(network, 3, 7.0, variant, where="q_proj,k_proj,v_proj,o_proj")
    else:
        lora.add_lora(network, 3, 7.0, variant)
    randomize(p for p in network.parameters() if p.requires_grad)
    peft.save_adapter(network, rules, tmp_path / "ours", str(base.folder))
    expected = logits(network)
    assert relative_error(plain, expected) > 0.01
    model, loaded = base.theirs(), tmp_path / "ours"
    model = base.peft.PeftModel.from_pretrained(model, str(loaded))
    assert same(logits(model.eval()), expected)
    assert same(logits(model.merge_and_unload()), expected)


@EVERY
@VARIANTS
@pytest.mark.oracle
def test_an_adapter_of_peft_loads_in_ours(base, variant, tmp_path):
    options = {"use_rslora": variant == "rslora", "use_dora": variant == "dora"}
    expected = base.adapter(tmp_path / "theirs", **options)
    network, rules = base.ours()
    assert relative_error(logits(network), expected) > 0.01
    names = peft.load_adapter(network, rules, tmp_path / "theirs")
    assert all(name.endswith(tuple(TARGETS[base.kind])) for name in names)
    assert same(logits(network), expected)
    trains = {n for n, p in network.named_parameters() if p.requires_grad}
    assert {n for n in trains if "lora_" not in n} == (
        {"head.weight", "head.bias"} if base.kind == "bert" else set()
    )
    peft.save_adapter(network, rules, tmp_path / "again", str(base.folder))
    again, first = (load_file(tmp_path / d / peft.WEIGHTS[0]) for d in ("again", "theirs"))
    assert again.keys() == first.keys()  # a joined module's A is written once, as it came
    assert all(torch.equal(again[n], first[n]) for n in first)
    assert lora.merge(network, lambda: network(torch.arange(T)[None])).relative <= 1e-5
    assert same(logits(network), expected)


@EVERY
@pytest.mark.oracle
def test_ranks_and_alphas_of_single_modules(base, tmp_path):
    one, other = TARGETS[base.kind][:2]
    patterns = {"rank_pattern": {one: 2}, "alpha_pattern": {rf".*\.1\..*{other}": 3, one: 5}}
    expected = base.adapter(tmp_path / "theirs", use_rslora=True, **patterns)
    network, rules = base.ours()
    peft.load_adapter(network, rules, tmp_path / "theirs")
    assert same(logits(network), expected)
    peft.save_adapter(network, rules, tmp_path / "again", str(base.folder))
    model = base.peft.PeftModel.from_pretrained(base.theirs(), str(tmp_path / "again"))
    assert same(logits(model.eval()), expected)


@pytest.mark.parametrize("base", ["gpt2", "bert"], indirect=True)
@VARIANTS
@pytest.mark.oracle
def test_some_modules_alone_are_written_without_their_neighbours(base, variant, tmp_path):
    """GPT-2's query is a third of one of theirs; BERT's fc2 ends in the name of o_proj's."""
    network, rules = base.ours()
    lora.add_lora(network, 3, 7.0, variant, where="q_proj,fc2")
    randomize(p for n, p in network.named_parameters() if "lora_" in n)
    peft.save_adapter(network, rules, tmp_path / "ours", str(base.folder))
    model = base.peft.PeftModel.from_pretrained(base.theirs(), str(tmp_path / "ours"))
    assert same(logits(model.eval()), logits(network))
    assert not any(
        "attention.output" in n or "c_fc" in n for n in model.state_dict() if "lora_" in n
    )


@pytest.mark.parametrize("base", ["qwen2"], indirect=True)
@pytest.mark.oracle
def test_layers_saved_whole_come_with_the_adapter(base, tmp_path):
    whole = {"modules_to_save": ["lm_head", "embed_tokens"]}
    expected = base.adapter(tmp_path / "theirs", **whole)
    network, rules = base.ours()
    peft.load_adapter(network, rules, tmp_path / "theirs")
    assert same(logits(network), expected)
    peft.save_adapter(network, rules, tmp_path / "again", str(base.folder))
    values = json.loads((tmp_path / "again" / peft.CONFIG).read_text())
    assert values["modules_to_save"] == ["lm_head", "model.embed_tokens"]


@pytest.mark.parametrize("base", ["qwen2"], indirect=True)
@pytest.mark.oracle
def test_packed_weights_take_and_give_adapters(base, tmp_path):
    from layerwise.adapt.quantize import quantize

    base.adapter(tmp_path / "theirs")
    network, rules = base.ours()
    quantize(network, 8)
    peft.load_adapter(network, rules, tmp_path / "theirs")
    found = logits(network)
    peft.save_adapter(network, rules, tmp_path / "again")
    whole, _ = base.ours()
    peft.load_adapter(whole, rules, tmp_path / "again")
    assert 0 < relative_error(found, logits(whole)) < 0.05


# ---- what is refused ---------------------------------------------------------------------------
@pytest.fixture
def made(tmp_path):
    """An adapter for a small network of ours, the network's builder and its rules."""
    from layerwise.models import llama

    config = llama.Config(
        vocab_size=V, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, mlp_dim=48
    )

    def build(**fields: Any) -> nn.Module:
        torch.manual_seed(0)
        return llama.Model(replace(config, **fields)).eval()

    network, rules = build(), llama.PUBLISHED["huggingface"]
    lora.add_lora(network, 3, train_head=False, where="q_proj,down_proj")
    peft.save_adapter(network, rules, tmp_path, "someone/base")
    return build, rules, tmp_path


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / peft.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder: Path, change: Any) -> None:
    path = folder / peft.WEIGHTS[0]
    save_file(change(load_file(path)), path)


def refused(made: Any, match: str, **fields: Any) -> None:
    """Loading is an error that matches, and the network stays as it was."""
    build, rules, folder = made
    network = build(**fields)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    with pytest.raises(WeightsError, match=match):
        peft.load_adapter(network, rules, folder)
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"peft_type": "LOHA"}, r"adapter_config.json: peft_type = 'LOHA'.*only 'LORA'"),
        ({"bias": "lora_only"}, r"bias = 'lora_only' is not supported here; only 'none'"),
        ({"lora_bias": True}, "lora_bias = True is not supported here"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'.*merge_and_unload"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"invented_next_year": 1}, "invented_next_year = 1 is not supported here"),
    ],
)
def test_what_a_config_asks_for_and_is_not_done_is_named(made, fields, match):
    change_config(made[2], **fields)
    refused(made, match)


def test_an_adapter_for_another_base_says_so(made):
    refused(
        made, r"(?s)an adapter for someone/base: these are not.*q_proj.lora_A.*\(3, 64\)", dim=64
    )
    refused(made, r"(?s)used by nothing:.*update of model.layers.1.mlp.down_proj", n_layers=1)


def test_a_rank_that_is_not_the_files_is_found(made):
    """It would scale the update silently by another number."""
    change_config(made[2], r=4)
    refused(made, r"q_proj.lora_A.weight \(4, 32\): the adapter's is \(3, 32\)")
    change_config(made[2], r=3, use_dora=True)
    refused(made, r"lora_magnitude_vector \(32,\): the adapter's is missing")


def test_an_update_of_a_layer_that_cannot_have_one_is_found(made):
    name = f"{peft.FRONT}model.embed_tokens.lora_embedding_A"
    change_tensors(made[2], lambda t: t | {name: torch.zeros(3, V)})
    refused(made, "used by nothing:\n.*embed_tokens.lora_embedding_A")


def test_tokens_added_before_the_adapter_was_trained_are_named(made):
    """Ask 27: an adapter with a larger vocabulary than its base."""
    name = f"{peft.FRONT}model.embed_tokens.weight"
    change_tensors(made[2], lambda t: t | {name: torch.zeros(V + 2, 32)})
    refused(made, f"brings embeddings of {V + 2} tokens, this base has {V}: tokens were added")


def test_files_that_are_no_adapters(made, tmp_path):
    _, _, folder = made
    change_tensors(folder, lambda t: {n.removeprefix("base_model."): v for n, v in t.items()})
    refused(made, "was expected to begin with base_model.model.")
    (folder / peft.WEIGHTS[0]).write_bytes(b"\0" * 40)
    refused(made, "damaged or truncated")
    (folder / peft.WEIGHTS[0]).unlink()
    refused(made, "there is no such file")
    (folder / peft.CONFIG).write_text("{")
    refused(made, "not readable JSON")
    (folder / peft.CONFIG).unlink()
    refused(made, "no adapter_config.json")


def test_a_second_adapter_and_one_without_updates(made):
    build, rules, folder = made
    network = build()
    with pytest.raises(WeightsError, match="without updates"):
        peft.save_adapter(network, rules, folder / "none")
    peft.load_adapter(network, rules, folder)
    with pytest.raises(OptionError, match="merge them first"):
        peft.load_adapter(network, rules, folder)
    with pytest.raises(WeightsError, match=r"no name for blocks\.0"):
        peft.save_adapter(network, {"head": "lm_head"}, folder / "none")
    assert not (folder / "none").exists()
