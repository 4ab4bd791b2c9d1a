"""LoRA starts as the base, trains little, merges to the same function, and can be taken back."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerwise.adapt import lora
from layerwise.adapt.lora import Update
from layerwise.errors import OptionError, WeightsError

EVERY = pytest.mark.parametrize("variant", lora.VARIANTS)
SEED = torch.Generator().manual_seed(0)


def train(network, images, steps=5):
    """A few steps of everything that trains."""
    network.eval()
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(images), torch.arange(6) % 3).backward()
        optimizer.step()


@pytest.fixture(params=lora.VARIANTS)
def trained(request, network, images):
    """An adapted network after a few steps, and the base's state before."""
    base = copy.deepcopy(network.state_dict())
    lora.add_lora(network, rank=4, variant=request.param)
    train(network, images)
    return network, base


def on(network, images):
    return lambda: network(images)


@EVERY
def test_an_adapted_network_starts_as_its_base(network, images, variant):
    network.eval()
    before = network(images)
    names = lora.add_lora(network, rank=4, variant=variant)
    assert names == [f"blocks.{i}.fc{j}" for i in range(3) for j in (1, 2)]
    torch.testing.assert_close(network(images), before, rtol=1e-6, atol=1e-6)
    assert isinstance(network.blocks[0].fc1, nn.Linear)
    assert type(network.blocks[0].fc1).__name__ == "LoRALinear"


@EVERY
def test_only_updates_and_head_train_and_base_names_stay(network, variant):
    base_names = set(network.state_dict())
    lora.add_lora(network, rank=2, variant=variant)
    trains = {n for n, p in network.named_parameters() if p.requires_grad}
    added = set(network.state_dict()) - base_names
    assert base_names < set(network.state_dict())
    assert trains == added | {"head.weight", "head.bias"}
    leaves = {"lora_a", "lora_b"} | ({"lora_m"} if variant == "dora" else set())
    assert {n.rsplit(".", 1)[-1] for n in added} == leaves


def test_a_head_that_is_not_fresh_can_stay_frozen(network):
    lora.add_lora(network, rank=2, train_head=False)
    assert all("lora_" in n for n, p in network.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(("rs", "scale"), [(False, 12 / 4), (True, 12 / 2)])
def test_the_update_is_the_papers_formula(rs, scale):
    torch.manual_seed(0)
    module = nn.Linear(5, 7)
    weight, bias = module.weight.clone(), module.bias.clone()
    lora.adapt(module, Update(4, 12.0, rs), SEED)
    with torch.no_grad():
        module.lora_b.normal_()
    x = torch.randn(4, 5)
    expected = x @ (weight + scale * module.lora_b @ module.lora_a).T + bias
    torch.testing.assert_close(module(x), expected)


def test_dora_learns_directions_and_lengths_apart():
    """Equation 5 of the paper, with its columns as our rows; the length is constant in backward."""
    torch.manual_seed(0)
    module = nn.Linear(5, 7)
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    lora.adapt(module, Update(3, 6.0, dora=True), SEED)
    torch.testing.assert_close(module.lora_m.detach(), weight.norm(dim=1))
    with torch.no_grad():
        module.lora_b.normal_()
        module.lora_m.mul_(1.5)
    x = torch.randn(4, 5)
    turned = weight + 2 * module.lora_b @ module.lora_a
    lengths = turned.detach().norm(dim=1, keepdim=True)
    expected = x @ (module.lora_m[:, None] * turned / lengths).T + bias
    torch.testing.assert_close(module(x), expected)
    learned = [module.lora_a, module.lora_b, module.lora_m]
    found = torch.autograd.grad(module(x).square().sum(), learned)
    wanted = torch.autograd.grad(expected.square().sum(), learned)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_dropout_is_of_the_update_in_training_alone():
    module = nn.Linear(5, 7)
    lora.adapt(module, Update(2, 2.0, dropout=0.5), SEED)
    with torch.no_grad():
        module.lora_b.normal_()
    x = torch.randn(64, 5)
    assert torch.equal(module.eval()(x), module(x))
    assert not torch.equal(module.train()(x), module(x))
    plain = F.linear(x, module.weight, module.bias)
    with torch.no_grad():
        module.lora_b.zero_()
    assert torch.equal(module(x), plain)


def test_training_moves_every_update_and_nothing_of_the_base(trained):
    network, base = trained
    state = network.state_dict()
    for name, tensor in base.items():
        if not name.startswith("head"):
            assert torch.equal(state[name], tensor), name
    for name, module in lora.adapters(network).items():
        assert module.lora_b.abs().max() > 0, name
        if module.lora_m is not None:
            assert not torch.equal(module.lora_m, base[f"{name}.weight"].norm(dim=1)), name


def test_merging_keeps_the_function_and_leaves_a_plain_network(trained, images):
    network, base = trained
    before = network(images)
    got = lora.merge(network, on(network, images), rows=6)
    assert got.relative <= got.tolerance == 1e-5
    assert (got.modules, got.rows) == (6, 6)
    assert 0 < got.largest <= 1e-5 * before.abs().max()
    assert set(network.state_dict()) == set(base)
    assert type(network.blocks[0].fc1) is nn.Linear
    torch.testing.assert_close(network(images), before, rtol=1e-4, atol=1e-5)
    assert not torch.equal(network.blocks[0].fc1.weight, base["blocks.0.fc1.weight"])
    network.requires_grad_(True)
    network(images).sum().backward()  # merged weights are ordinary ones


def test_merging_without_inputs_proves_each_module(trained, images):
    network, _ = trained
    before = network(images)
    got = lora.merge(network)
    assert 0 < got.relative <= 1e-5
    torch.testing.assert_close(network(images), before, rtol=1e-4, atol=1e-5)
    with pytest.raises(OptionError, match="no LoRA updates to merge"):
        lora.merge(network)


def test_a_merge_beyond_the_tolerance_is_undone(trained, images):
    network, _ = trained
    before = {n: t.clone() for n, t in network.state_dict().items()}
    outputs = network(images)
    network.train()
    with pytest.raises(WeightsError, match=r"more than 1e-15: the network was left unmerged"):
        lora.merge(network, on(network, images), tolerance=1e-15)
    assert network.blocks[0].fc1.training
    after = network.eval().state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert torch.equal(network(images), outputs)


def test_weights_that_round_the_update_away_are_not_merged_into(network, images):
    """bf16 keeps 8 bits: an update far below a weight's own is lost in it."""
    lora.add_lora(network.bfloat16(), rank=4)
    with torch.no_grad():
        for module in lora.adapters(network).values():
            module.lora_b.normal_(std=0.02)
    with pytest.raises(WeightsError, match="rounds the update away; merge in fp32"):
        lora.merge(network, on(network, images.bfloat16()), tolerance=1e-4)
    assert lora.adapters(network)


def test_a_module_whose_update_is_passed_by_is_found(network, images):
    """A network that uses a weight directly would silently lose its LoRA update."""
    block = network.blocks[0]
    block.fc1.forward = lambda x: F.linear(x, block.fc1.weight, block.fc1.bias)
    lora.add_lora(network, rank=2)
    with torch.no_grad():
        block.fc1.lora_b.normal_()
    with pytest.raises(WeightsError, match="left unmerged"):
        lora.merge(network, on(network, images))


def test_a_copy_is_independent(trained, images):
    network, _ = trained
    before = network(images)
    twin = copy.deepcopy(network)
    lora.merge(twin)
    assert lora.adapters(network)
    assert torch.equal(network(images), before)


def test_own_forward_of_a_subclass_is_kept():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    module = Doubled(4, 6)
    x = torch.randn(2, 4)
    before = module(x)
    lora.adapt(module, Update(2, 4.0), SEED)
    assert torch.equal(module(x), before)


def test_the_same_seed_gives_the_same_updates(network):
    twin, other = copy.deepcopy(network), copy.deepcopy(network)
    for net, seed in ((network, 0), (twin, 0), (other, 1)):
        lora.add_lora(net, rank=2, seed=seed)
    assert torch.equal(network.blocks[0].fc1.lora_a, twin.blocks[0].fc1.lora_a)
    assert not torch.equal(network.blocks[0].fc1.lora_a, other.blocks[0].fc1.lora_a)
    assert not torch.equal(network.blocks[0].fc1.lora_a, network.blocks[1].fc1.lora_a)


def test_targets_are_whole_names_or_last_parts(network):
    twin = copy.deepcopy(network)
    assert lora.add_lora(network, where="fc2") == [f"blocks.{i}.fc2" for i in range(3)]
    assert lora.add_lora(twin, where="blocks.1.*, fc2")[1:3] == ["blocks.1.fc1", "blocks.1.fc2"]


def test_alpha_left_out_and_a_rank_too_large(network):
    lora.add_lora(network, rank=64)
    assert network.blocks[0].fc1.lora == Update(8, 128.0)
    lora.merge(network)
    lora.add_lora(network, rank=4, variant="rslora")
    assert network.blocks[0].fc1.lora.scale == 8.0


def test_errors_leave_the_network_as_it_was(network):
    with pytest.raises(OptionError, match=r"called 'q_proj'.*--method full"):
        lora.add_lora(network, where="q_proj")
    with pytest.raises(OptionError, match="--lora-rank must be 1 or more; 0 was given"):
        lora.add_lora(network, rank=0)
    with pytest.raises(OptionError, match=r"unknown value of --lora-variant 'rslorra'.*'rslora'"):
        lora.add_lora(network, variant="rslorra")
    assert all(p.requires_grad for p in network.parameters())
    lora.add_lora(network, where="fc2")
    with pytest.raises(OptionError, match="has LoRA updates already"):
        lora.add_lora(network)
