"""What decoders promise beside the battery, on tiny networks; and parity with transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.data.examples import Batch
from layerwise.errors import DataError, OptionError, WeightsError
from layerwise.generation.greedy import generate
from layerwise.models import build, family, resolve
from layerwise.models.moe import Moe, balance_loss
from layerwise.models.network import Network
from layerwise.planning.step import checkpoint_layers
from layerwise.tasks.causal import Causal
from layerwise.weights.configs.text import read_config, write_config
from layerwise.weights.files import load_into, read_tensors, save_tensors
from layerwise.weights.names import publish, rename
from layerwise.weights.published import load_published
from tests import oracles, parity
from tests.models.cases import DECODERS, GEMMA, GPT, MIXTRAL, ROTARY, Case, T, V

B = 2
THEIRS = {  # the class of transformers that is the same network
    "gpt2": "GPT2LMHeadModel",
    "llama2": "LlamaForCausalLM",
    "llama3": "LlamaForCausalLM",
    "llama3_tied": "LlamaForCausalLM",
    "linear": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_yarn": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_tied": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "mixtral_window": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_moe_raw": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}


class Spread(Case):
    """The network with scores far enough apart to see every difference."""

    def network(self, **more: Any) -> Network:
        network = super().network(**more).eval()
        with torch.no_grad():
            for p in network.parameters():
                p.mul_(4) if p.ndim == 2 else p.add_(0.1 * torch.randn_like(p))
        return network


CASES = [Spread(**vars(case)) for case in DECODERS]


NAMES = [case.name for case in CASES]


@pytest.fixture(params=CASES, ids=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def some_tokens(rows: int = B, length: int = T, seed: int = 1) -> Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: Tensor) -> bool:
    return parity.relative_error(found, expected) <= 1e-5


# ---- what goes in and comes out ------------------------------------------------------------------
@torch.no_grad()
def test_a_later_token_changes_nothing_before_it(case: Case):
    network, tokens = case.network(), some_tokens()
    before = network(tokens)
    changed = tokens.clone()
    changed[:, 15] = (changed[:, 15] + 1) % V
    after = network(changed)
    assert close(after[:, :15], before[:, :15])
    assert not close(after[:, 15:], before[:, 15:])


def test_a_full_cache_says_so(case: Case):
    network = case.network()
    cache = network.make_cache(1, 8)
    network(some_tokens(1, 6), cache=cache)
    with pytest.raises(OptionError, match="made for 8 tokens; 6 are in it and 3 more"):
        network(some_tokens(1, 3), cache=cache)


@torch.no_grad()
def test_packed_documents_equal_documents_alone(case: Case):
    network, tokens = case.network(), some_tokens(1)
    lengths = (4, 13, 7)
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    alone = [network(part) for part in tokens.split(lengths, dim=1)]
    assert close(network(tokens, documents=documents), torch.cat(alone, dim=1))


@torch.no_grad()
def test_padding_on_the_left_equals_no_padding(case: Case):
    """With a mask and positions, in one pass and with a cache."""
    network, tokens = case.network(), some_tokens(1, 18)
    expected, n = network(tokens), 3
    padded = F.pad(tokens, (n, 0))
    positions = (torch.arange(18 + n) - n).clamp(min=0)[None]
    mask = (torch.arange(18 + n) >= n)[None, None, None]
    assert close(network(padded, positions=positions, mask=mask)[:, n:], expected)
    cache = network.make_cache(1, 18 + n)
    parts = []
    for start, end in ((0, 11), (11, 12), (12, 16), (16, 17), (17, 21)):
        seen = {"positions": positions[:, start:end], "mask": mask[..., :end]}
        parts.append(network(padded[:, start:end], **seen, cache=cache))
    assert close(torch.cat(parts, dim=1)[:, n:], expected)


def test_greedy_continues_as_without_a_cache(case: Case):
    network, tokens = case.network(), some_tokens(B, 6)
    found = generate(network.train(), tokens, 14)
    assert network.training
    assert torch.equal(found, greedy_without_cache(network.eval(), tokens, 14))


@torch.no_grad()
def greedy_without_cache(network: Any, tokens: Tensor, n_new: int) -> Tensor:
    for _ in range(n_new):
        scores = network(tokens)
        best = getattr(scores, "logits", scores)[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, best], dim=1)
    return tokens


def test_greedy_stops_each_row_by_itself():
    network, tokens = CASES[1].network(), some_tokens(3, 5)
    free = generate(network, tokens, 12)
    stop = int(free[0, 7])
    found = generate(network, tokens, 12, stop=(stop,))
    for row, whole in zip(found[:, 5:].tolist(), free[:, 5:].tolist(), strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(row)
        assert row[:end] == whole[:end]
        assert set(row[end:]) <= {stop}
    assert (
        generate(network, tokens[:1], 12, stop=(stop,)).shape[1]
        == free[0].tolist().index(stop, 5) + 1
    )


# ---- training ------------------------------------------------------------------------------------
def test_steps_lower_the_loss_and_bf16_is_near(case: Case):
    torch.manual_seed(0)
    network, tokens = build(case.family, case.config()), some_tokens(4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(network(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - torch.tensor(float(V)).log().item()) < 0.3  # starts without an opinion
    assert losses[-1] < losses[0] - 0.3
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = F.cross_entropy(
            network(tokens)[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()
        )
    assert abs(found.item() - losses[-1]) < 0.5


def test_gpt_drops_out_in_training_alone():
    drops = {"dropout": 0.2, "embed_dropout": 0.2, "attn_dropout": 0.2}
    for name in drops:
        network, tokens = build("gpt", family("gpt").Config(**GPT, **{name: 0.2})), some_tokens()
        assert torch.equal(network.eval()(tokens), network(tokens))
        assert not torch.equal(network.train()(tokens), network(tokens)), name


def test_gpt_starts_as_published():
    network = build("gpt", family("gpt").Config(**{**GPT, "dim": 128, "mlp_dim": 512}))
    for name, p in network.named_parameters():
        if p.ndim == 2:
            residual = name.endswith(("o_proj.weight", "fc2.weight"))
            expected = 0.02 / (6**0.5 if residual else 1)
            assert abs(p.std() / expected - 1) < 0.05, name


# ---- layers, heads, names ------------------------------------------------------------------------
def test_a_tied_head_stays_tied(case: Case):
    network = case.network()
    if getattr(network.config, "tied_head", True):
        assert "head.weight" not in network.state_dict()
        assert network.head.weight is network.token_embed.weight
        twin = build(case.family, case.config()).to("meta").to_empty(device="cpu")
        twin.load_state_dict(network.state_dict(), assign=True)
        assert twin.head.weight is twin.token_embed.weight
        assert torch.equal(twin.eval()(some_tokens()), network(some_tokens()))
    else:
        assert network.head.weight is not network.token_embed.weight


# ---- errors --------------------------------------------------------------------------------------
def test_texts_longer_than_the_learned_positions_are_an_error():
    network = CASES[0].network()
    with pytest.raises(DataError, match="129 tokens; this model has positions for 128"):
        network(some_tokens(1, 129))
    with pytest.raises(DataError, match="positions for 128"):
        generate(network, some_tokens(1, 126), 4)


@pytest.mark.parametrize(
    ("model_type", "setting"),
    [
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"tie_word_embeddings": False}),
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}),
        ("llama", {"quantization_config": {"bits": 4}}),
        ("qwen2", {"use_sliding_window": True}),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3}),
        ("mixtral", {"router_jitter_noise": 0.1}),
        ("qwen3_moe", {"mlp_only_layers": [1]}),
        ("qwen3_moe", {"decoder_sparse_step": 2}),
        ("gemma2", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("gemma2", {"hidden_activation": "gelu"}),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("gemma3_text", {"layer_types": ["full_attention", "full_attention", "sliding_attention"]}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_we_do_not_do_is_named(model_type: str, setting: dict[str, Any]):
    case = next(c for c in CASES if write_config(c.family, c.config())["model_type"] == model_type)
    values = write_config(case.family, case.config())
    assert read_config(values)[1] == case.config()
    key, value = next(iter(setting.items()))
    with pytest.raises(WeightsError) as error:
        read_config(values | setting)
    assert key in str(error.value)
    inner = list(value.values())[-1] if isinstance(value, dict) else value
    if key != "layer_types" and "dynamic" not in str(value) and model_type != "gemma2":
        assert repr(inner) in str(error.value) or repr(value) in str(error.value)


def test_a_missing_size_and_an_unknown_type_are_named():
    values = write_config("llama", CASES[1].config())
    del values["hidden_size"]
    with pytest.raises(WeightsError, match="hidden_size is missing"):
        read_config(values)
    with pytest.raises(WeightsError, match="model_type = 'mamba'"):
        read_config({"model_type": "mamba"})


def test_what_transformers_cannot_say_is_named():
    both = family("llama").Config(**ROTARY, qkv_bias=True, qk_norm=True)
    with pytest.raises(WeightsError, match="transformers has no llama with these"):
        write_config("llama", both)
    two_bases = family("gemma").Config(**GEMMA, local_rope_theta=5.0)
    with pytest.raises(WeightsError, match="gemma2 has no setting for local_rope_theta"):
        write_config("gemma", two_bases)


def test_a_multimodal_gemma_is_read_for_its_text():
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    text |= {"model_type": "gemma3_text", "sliding_window": 1024}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    name, config, naming = read_config({"model_type": "gemma3", "text_config": text})
    assert (name, naming) == ("gemma", "huggingface_multimodal")
    assert config == resolve("gemma3_4b")[1]


# ---- experts -------------------------------------------------------------------------------------
def test_experts_grouped_equal_each_token_by_itself():
    torch.manual_seed(0)
    moe = Moe(family("moe").Config(**{**MIXTRAL, "n_experts": 5, "n_active": 3}))
    x = torch.randn(2, 7, 32)
    expected = torch.zeros_like(x)
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(7)).tolist():
        token = x[tuple(place)]
        weights, chosen = moe.router(token).softmax(-1).topk(3)
        for weight, i in zip(weights / weights.sum(), chosen.tolist(), strict=True):
            expected[tuple(place)] += weight * moe.experts[i](token)
    torch.testing.assert_close(moe(x), expected)


def test_balance_is_best_when_all_experts_are_used_alike():
    even = torch.eye(4).repeat(8, 1) * 20  # each expert in turn
    same = torch.eye(4)[:1].repeat(32, 1) * 20
    assert abs(balance_loss([even], 1) - 1) < 1e-4
    assert abs(balance_loss([same], 1) - 4) < 1e-4
    keep = torch.arange(32) % 4 < 2
    assert abs(balance_loss([even, even], 1, keep) - 2) < 1e-4
    assert abs(balance_loss([even], 1, keep) - 2) < 1e-4


# ---- published names -----------------------------------------------------------------------------
def rules_of(case: Case) -> dict[str, str]:
    naming = read_config(write_config(case.family, case.config()))[2]
    return family(case.family).PUBLISHED[naming]


def published_weights(network: nn.Module, rules: dict[str, str]) -> dict[str, Tensor]:
    """Weights as after training that depend on nothing but their published names."""
    return parity.seeded_weights(publish(network.state_dict(), rules))


def ours_with(case: Case) -> tuple[nn.Module, dict[str, Tensor]]:
    with torch.device("meta"):
        network = build(case.family, case.config())
    weights = published_weights(network, rules_of(case))
    load_into(network, rename(weights, rules_of(case), network.state_dict()))
    return network.eval(), weights


def test_a_copy_of_a_tied_head_is_read_and_another_head_is_not():
    case = next(c for c in CASES if c.name == "qwen3_tied")
    network, weights = ours_with(case)
    copy = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    found = rename(copy, rules_of(case), network.state_dict())
    assert torch.equal(found["token_embed.weight"], copy["lm_head.weight"])
    copy["lm_head.weight"][0, 0] += 1
    with pytest.raises(WeightsError, match=r"lm_head\.weight"):
        rename(copy, rules_of(case), network.state_dict())


def test_gpt2_is_read_as_openai_sizes_have_it():
    """Without "transformer." in front, and with the causal triangle as a tensor."""
    network, weights = ours_with(CASES[0])
    old = {name.removeprefix("transformer."): t for name, t in weights.items()}
    old |= {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4) for i in range(3)}
    found = rename(old, rules_of(CASES[0]), network.state_dict())
    assert all(torch.equal(found[n], t) for n, t in network.state_dict().items())


@torch.no_grad()
def test_stored_outputs(case: Case):
    """The reference's own outputs, so that parity also holds where it is not installed."""
    golden = torch.tensor(parity.stored("golden.json", f"decoder/{case.name}", None))
    assert parity.relative_error(ours_with(case)[0](some_tokens())[:, -1, ::4], golden) <= 1e-5


def test_a_folder_is_loaded_whatever_else_it_is_called(case: Case, tmp_path: Path):
    network, weights = ours_with(case)
    save_tensors(tmp_path / "model.safetensors", weights)
    config = write_config(case.family, case.config())
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded, card = load_published(tmp_path)
    assert (card.family, loaded.config) == (case.family, case.config())
    with torch.no_grad():
        assert torch.equal(loaded(some_tokens()), network(some_tokens()))


# ---- transformers --------------------------------------------------------------------------------
@pytest.mark.oracle
@torch.no_grad()
def test_parity_with_transformers(case: Case, tmp_path: Path):
    transformers = oracles.import_transformers()
    kind = getattr(transformers, THEIRS[case.name])
    network, weights = ours_with(case)
    folder = tmp_path / "ours"
    save_tensors(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(write_config(case.family, case.config())))
    theirs, report = kind.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), f"transformers and we disagree on names: {report}"
    theirs = theirs.eval()

    tokens = some_tokens(B, 40)
    expected = theirs(tokens).logits
    error = parity.relative_error(network(tokens), expected)
    print(f"{case.name}: largest relative error of logits {error:.1e}")
    assert error <= 1e-5
    found = generate(network, tokens[:, :10], 30)
    assert torch.equal(found, greedy_without_cache(theirs, tokens[:, :10], 30))
    golden = [
        [float(f"{v:.8g}") for v in row]
        for row in theirs(some_tokens()).logits[:, -1, ::4].tolist()
    ]
    assert close(
        torch.tensor(parity.stored("golden.json", f"decoder/{case.name}", golden)),
        torch.tensor(golden),
    )

    theirs.save_pretrained(tmp_path / "theirs")
    values = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert read_config(values)[:2] == (case.family, case.config())
    back = rename(read_tensors(tmp_path / "theirs"), rules_of(case), network.state_dict())
    assert all(torch.equal(back[name], t) for name, t in network.state_dict().items())


@pytest.mark.oracle
@torch.no_grad()
def test_balance_is_as_in_transformers():
    transformers = oracles.import_transformers()
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    assert transformers
    case = next(c for c in CASES if c.name == "qwen3_moe")
    routed: list[Tensor] = []
    case.network()(some_tokens(), routed=routed)
    assert len(routed) == 3
    expected = load_balancing_loss_func(tuple(routed), num_experts=8, top_k=3)
    assert abs(balance_loss(routed, 3) / expected - 1) < 1e-6


@pytest.mark.oracle
@pytest.mark.parametrize("recomputed", [False, True])
def test_training_balances_experts_as_in_transformers(recomputed: bool, tmp_path: Path):
    transformers = oracles.import_transformers()
    case = next(c for c in CASES if c.name == "mixtral")
    case = replace(case, fields={**case.fields, "balance_weight": 0.3})
    network, weights = ours_with(case)
    save_tensors(tmp_path / "model.safetensors", weights)
    (tmp_path / "config.json").write_text(json.dumps(write_config(case.family, case.config())))
    theirs = transformers.MixtralForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).train()
    tokens = some_tokens(B, 41)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    said = theirs(inputs, output_router_logits=True)
    expected = F.cross_entropy(said.logits.flatten(0, 1), targets.flatten()) + 0.3 * said.aux_loss
    expected.backward()
    if recomputed:
        checkpoint_layers({n: m for n, m in network.layers().items() if n.startswith("blocks")})
    batch = Batch({"tokens": inputs, "targets": targets}, np.arange(B))
    loss = Causal().loss(network.train(), batch)[0] / targets.numel()
    loss.backward()
    assert close(loss.detach(), expected.detach())
    gates = [
        (b.moe.router, t.mlp.gate) for b, t in zip(network.blocks, theirs.model.layers, strict=True)
    ]
    assert all(close(ours.weight.grad, t.weight.grad) for ours, t in gates)
    assert Causal().loss(network.eval(), batch)[0] / targets.numel() < loss - 0.3
