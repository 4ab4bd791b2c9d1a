"""The packed encoder says what the network says, whatever the lengths, the head and the dtype."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from layerwise import runtime
from layerwise.adapt import packed
from layerwise.adapt.lora import add_lora
from layerwise.adapt.packed import PackedBert, Unpadded, without_padding
from layerwise.models import bert

SMALL = bert.Config(
    dim=32, n_layers=3, n_heads=4, mlp_dim=64, vocab_size=50, max_seq_len=40, head_kind="embed"
)
CONFIGS = {
    "mean": SMALL,
    "cls": replace(SMALL, pooling="cls"),
    "roberta": replace(SMALL, style="roberta", n_token_types=1, norm_eps=1e-5),
    "distilbert": replace(SMALL, style="distilbert", n_token_types=0),
    "class": replace(SMALL, head_kind="class"),
}


def texts(n: int = 30, longest: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 50, size) for size in rng.integers(1, longest + 1, n)]


def one_by_one(network: bert.Bert, rows: list[np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        alone = [network.features(torch.from_numpy(row)[None]) for row in rows]
        first = network.config.pooling == "cls"
        return torch.cat([x[:, 0] if first else x.mean(1) for x in alone]).numpy()


def made(config: bert.Config) -> bert.Bert:
    torch.manual_seed(0)
    network = bert.Model(config).eval()
    with torch.no_grad():  # far from where it starts: every part has its effect
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return network


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_is_as_each_text_alone(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "TOKENS", 100)  # several packs
    network, rows = made(CONFIGS[name]), texts()
    want = one_by_one(network, rows)
    found = PackedBert(network, torch.float32)(rows)
    assert found.dtype == np.float32
    assert np.abs(found - want).max() <= 2e-5 * np.abs(want).max()


def test_bf16_stays_near():
    """Also where it is asked for and the processor has no kernels of it, and fp32 is computed in.

    Many at once, and each text alone: short ones attend in one operation, long ones in two."""
    network = made(replace(SMALL, max_seq_len=packed.FUSED + 20))
    rows = texts(30, packed.FUSED + 20)
    assert min(map(len, rows)) <= packed.FUSED < max(map(len, rows))
    want, quick = one_by_one(network, rows), PackedBert(network, torch.bfloat16)
    alone = np.concatenate([quick([row]) for row in rows])
    for found in (quick(rows), alone):
        lengths = np.linalg.norm(want, axis=1) * np.linalg.norm(found, axis=1)
        away = 1 - (want * found).sum(1) / lengths
        assert away.max() < 2e-3
        if runtime.multiplies_in(torch.bfloat16):
            assert away.max() > 1e-6  # it was computed in


def test_a_text_longer_than_a_pack_and_one_of_one_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "TOKENS", 16)
    network = made(SMALL)
    rows = [np.array([7]), np.arange(3, 43), np.array([7, 9])]
    want = one_by_one(network, rows)
    np.testing.assert_allclose(PackedBert(network, torch.float32)(rows), want, atol=1e-4)


def test_the_network_may_change_afterwards():
    network, rows = made(SMALL), texts(5)
    quick = PackedBert(network, torch.float32)
    before = quick(rows)
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    np.testing.assert_array_equal(quick(rows), before)


@pytest.mark.parametrize("kind", ["class", "pooled", "tag", "span", "masked", "embed"])
def test_without_padding_is_as_with_it(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "TOKENS", 100)
    network, rows = made(replace(SMALL, head_kind=kind, n_token_types=2)), texts()
    tokens, mask = torch.zeros(30, 40, dtype=torch.long), torch.zeros(30, 40, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = torch.from_numpy(row), True
    tokens, mask = tokens.repeat(3, 1), mask.repeat(3, 1)  # enough to be worth it
    mask[7] = False  # a window without a token
    types = torch.randint(0, 2, tokens.shape)
    machine = runtime.Runtime("cpu", torch.float32, 1)
    with torch.inference_mode():
        quick = without_padding(network, machine, len(tokens))
        assert isinstance(quick, Unpadded)
        for given in ({}, {"token_types": types}):
            want, found = network(tokens, mask, **given), quick(tokens, mask, **given)
            seen = mask if want.shape[:2] == mask.shape else mask.any(1)
            assert (want[seen] - found[seen]).abs().max() <= 2e-5 * want.abs().max()
        places = {"documents": torch.zeros_like(tokens)}  # packed rows: the network itself
        assert torch.equal(network.features(tokens, **places), quick.features(tokens, **places))


def test_adapters_and_few_texts_stay_with_the_network():
    machine = runtime.Runtime("cpu", torch.float32, 1)
    network = made(SMALL)
    assert without_padding(network, machine, packed.WORTH - 1) is network
    add_lora(network, rank=2)
    assert without_padding(network, machine, 1000) is network
