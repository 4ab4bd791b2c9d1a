"""Packed weights are small, near to what they were, and LoRA learns on them as on whole ones."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerwise.adapt import lora
from layerwise.adapt.quantize import NF4, Packed, pack, quantize, unpack
from layerwise.data.examples import Batch
from layerwise.errors import OptionError, WeightsError
from layerwise.models import llama
from layerwise.planning.rehearsal import rehearse
from layerwise.planning.step import Setting

BITS = pytest.mark.parametrize("bits", [8, 4])
LLAMA = llama.Config(
    vocab_size=64, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, mlp_dim=192
)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    network = llama.Model(LLAMA)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(4) if p.ndim == 2 else None
    return network


def nbytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def texts(rows=16, length=24):
    """Sequences that count upwards from a random start: to be learned."""
    start = torch.randint(64, (rows, 1), generator=torch.Generator().manual_seed(3))
    return (start + torch.arange(length)) % 64


def test_eight_bits_are_within_half_a_step_of_each_row():
    weight = torch.randn(50, 70) * torch.logspace(-3, 2, 50)[:, None]
    again = unpack(pack(weight, 8), weight.shape, torch.float32)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((again - weight).abs() <= 0.5001 * step).all()
    zero = torch.zeros(3, 5)
    assert torch.equal(unpack(pack(zero, 8), zero.shape, torch.float32), zero)


def test_four_bits_are_the_nearest_of_the_papers_numbers():
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    weight[0] *= 100  # blocks of very different scale
    again = unpack(pack(weight, 4), weight.shape, torch.float32)
    blocks = weight.view(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    table = torch.tensor(NF4)
    nearest = table[(blocks[..., None] / scale[..., None] - table).abs().argmin(-1)] * scale
    error = (again.view(-1, 64) - nearest).abs()
    assert (error <= scale.max() / 127).all()  # double quantisation: half a step of its group
    plain = torch.randn(40, 96, generator=torch.Generator().manual_seed(1))
    found = unpack(pack(plain, 4), plain.shape, torch.float32)
    assert 0.05 < (found - plain).norm() / plain.norm() < 0.12  # 0.09 for normal numbers


def test_numbers_are_those_of_appendix_e():
    """Quantiles of the normal distribution, 8 on the right and 7 on the left of an exact zero."""
    normal = torch.distributions.Normal(0.0, 1.0)
    offset = 0.9677083
    right = normal.icdf(torch.linspace(offset, 0.5, 9))[:-1]
    left = -normal.icdf(torch.linspace(offset, 0.5, 8))[:-1]
    values = torch.cat([right, left, torch.zeros(1)]).sort().values
    torch.testing.assert_close(torch.tensor(NF4), values / values.max(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5), (64, 64), (7, 129)])
def test_any_shape_goes_in_and_comes_back(shape):
    weight = torch.randn(shape)
    again = unpack(pack(weight, 4), weight.shape, torch.bfloat16)
    assert (again.shape, again.dtype) == (weight.shape, torch.bfloat16)


@pytest.mark.parametrize(("bits", "most"), [(8, 8.3), (4, 4.2)])
def test_the_module_is_as_small_as_its_bits(bits, most):
    network = nn.Sequential(nn.Linear(512, 1024, bias=False), nn.Linear(1024, 512, bias=False))
    weights = sum(p.numel() for p in network.parameters())
    assert quantize(network, bits) == 2
    assert bits < 8 * nbytes(network) / weights < most
    assert not list(network.parameters())


@BITS
def test_forward_and_backward_are_those_of_the_unpacked_weight(bits):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(48, 32))
    quantize(network, bits)
    module = network[0]
    x = torch.randn(2, 3, 48, requires_grad=True)
    expected = F.linear(x, module.weight, module.bias)
    torch.testing.assert_close(module(x), expected)
    grad = torch.randn(2, 3, 32)
    (found,) = torch.autograd.grad(module(x), x, grad)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(found, wanted)


def test_backward_keeps_the_packed_weight_alone():
    network = nn.Sequential(nn.Linear(256, 256, bias=False))
    quantize(network, 4)
    kept = []
    x = torch.randn(1, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        network(x).sum().backward()
    assert {t.data_ptr() for t in kept} <= {t.data_ptr() for t in network[0].packed}
    assert 0 < sum(t.nbytes for t in kept) < 256 * 256


@BITS
def test_autocast_computes_in_its_dtype(bits, decoder):
    quantize(decoder, bits)
    lora.add_lora(decoder, rank=4)
    with torch.autocast("cpu", torch.bfloat16):
        found = decoder(texts())
        loss = F.cross_entropy(found[:, :-1].flatten(0, 1), texts()[:, 1:].flatten())
    loss.backward()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), decoder(texts()), rtol=0.1, atol=0.3)
    assert all(m.lora_b.grad.isfinite().all() for m in lora.adapters(decoder).values())


@BITS
def test_the_network_says_nearly_the_same(bits, decoder):
    before = decoder(texts()).detach()
    whole = nbytes(decoder)
    quantize(decoder, bits)
    error = float((decoder(texts()).detach() - before).norm() / before.norm())
    assert 0 < error < {8: 0.03, 4: 0.35}[bits]  # of random weights, which average nothing out
    assert nbytes(decoder) < {8: 0.35, 4: 0.25}[bits] * whole  # embedding and head stay whole
    assert type(decoder.head) is nn.Linear


@pytest.mark.parametrize("variant", lora.VARIANTS)
def test_lora_learns_on_packed_weights_as_on_whole_ones(variant, decoder):
    losses = {}
    for bits in (0, 8, 4):
        network = copy.deepcopy(decoder)
        if bits:
            quantize(network, bits)
        lora.add_lora(network, rank=8, variant=variant)
        packed = {n: t.clone() for n, t in network.named_buffers()}
        losses[bits] = fit_texts(network)
        assert all(torch.equal(t, packed[n]) for n, t in network.named_buffers())
    with torch.no_grad():
        first = float(loss_of(decoder))
    assert losses[0] < 0.1 * first
    assert losses[8] < losses[0] + 0.02 * first
    assert losses[4] < losses[0] + 0.05 * first


def fit_texts(network: nn.Module, steps: int = 60) -> float:
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(network)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def loss_of(network: nn.Module) -> torch.Tensor:
    return F.cross_entropy(network(texts())[:, :-1].flatten(0, 1), texts()[:, 1:].flatten())


@BITS
def test_merging_unpacks_and_keeps_what_was_trained(bits, decoder):
    """Onto the packed weights the update could not go: they would round it away."""
    names = set(decoder.state_dict())
    quantize(decoder, bits)
    lora.add_lora(decoder, rank=4, variant="dora", where="q_proj,up_proj")
    fit_texts(decoder, 3)
    trained = decoder(texts()).detach()
    with pytest.raises(WeightsError, match="left unmerged"):
        lora.merge(decoder, lambda: decoder(texts()), tolerance=0.0)
    assert torch.equal(decoder(texts()), trained)
    assert isinstance(decoder.blocks[0].attn.q_proj, Packed)
    certificate = lora.merge(decoder, lambda: decoder(texts()))
    assert certificate.relative <= 1e-5
    torch.testing.assert_close(decoder(texts()), trained, rtol=1e-4, atol=1e-4)
    assert set(decoder.state_dict()) == names
    assert not any(isinstance(m, Packed | lora.LowRank) for m in decoder.modules())


@BITS
def test_packed_networks_are_saved_loaded_and_copied(bits, decoder):
    other = copy.deepcopy(decoder)
    quantize(decoder, bits)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    quantize(other, bits)
    other.load_state_dict(decoder.state_dict())
    assert torch.equal(other(texts()), decoder(texts()))
    assert torch.equal(copy.deepcopy(decoder)(texts()), decoder(texts()))


def test_what_cannot_be_packed_is_an_error(decoder):
    with pytest.raises(OptionError, match="8 or 4 bits; 3 was given"):
        quantize(decoder, 3)
    with pytest.raises(OptionError, match="no plain linear layer"):
        quantize(nn.Sequential(nn.Conv2d(3, 4, 1)), 8)
    with torch.no_grad():
        decoder.blocks[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"blocks.1.mlp.up_proj.weight is not finite"):
        quantize(decoder, 4)
    assert not any(isinstance(m, Packed) for m in decoder.modules())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_plan_counts_the_smaller_weights(dtype, decoder):
    setting = Setting(8, dtype=dtype)
    batch = Batch({"tokens": texts(2)}, np.arange(2))
    plans = {}
    for bits in (0, 8, 4):
        network = copy.deepcopy(decoder)
        if bits:
            quantize(network, bits)
        lora.add_lora(network, rank=2, train_head=False)
        plan = plans[bits] = rehearse(network, batch, Next(), setting)
        assert plan.parts["weights"] + plan.parts.get("buffers", 0) == nbytes(network)
        assert plan.params == plans[0].params
        assert plan.trainable == plans[0].trainable
    assert plans[4].parts["buffers"] < 0.6 * plans[8].parts["buffers"]
    assert plans[4].peak < plans[8].peak < plans[0].peak
    assert plans[4].saved <= plans[0].saved  # nothing unpacked is kept for backward


class Next:
    """The next token, as a plan's rehearsal asks a task."""

    joint = False

    def loss(self, network, batch):
        found = network(batch["tokens"])[:, :-1].flatten(0, 1)
        return F.cross_entropy(found, batch["tokens"][:, 1:].flatten(), reduction="sum"), {}

    def count(self, batch):
        return batch["tokens"].numel()
