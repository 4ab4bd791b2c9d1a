"""LoRA starts as the base, trains little, merges to the same function, and can be taken back."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerwise.adapt import lora
from layerwise.errors import OptionError, WeightsError


@pytest.fixture
def trained(network, images):
    """An adapted network after a few steps, and the base's state before."""
    base = copy.deepcopy(network.state_dict())
    lora.add_lora(network, rank=4, convs=True)
    network.eval()
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(network(images), torch.arange(6) % 3).backward()
        optimizer.step()
    return network, base


def test_an_adapted_network_starts_as_its_base(network, images):
    network.eval()
    before = network(images)
    names = lora.add_lora(network, rank=4)
    assert names == [f"blocks.{i}.fc{j}" for i in range(3) for j in (1, 2)]
    assert torch.equal(network(images), before)
    assert isinstance(network.blocks[0].fc1, nn.Linear)
    assert type(network.blocks[0].fc1).__name__ == "LoRALinear"


def test_only_updates_and_head_train_and_base_names_stay(network):
    base_names = set(network.state_dict())
    lora.add_lora(network, rank=2)
    trains = {n for n, p in network.named_parameters() if p.requires_grad}
    assert trains == set(lora.adapter_tensors(network))
    assert base_names < set(network.state_dict())
    assert set(network.state_dict()) - base_names == {n for n in trains if "lora_" in n}


def test_the_update_is_the_papers_formula():
    torch.manual_seed(0)
    module = nn.Linear(5, 7)
    weight, bias = module.weight.clone(), module.bias.clone()
    lora.adapt(module, 3, 12.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        module.lora_b.normal_()
    x = torch.randn(4, 5)
    expected = x @ (weight + 12 / 3 * module.lora_b @ module.lora_a).T + bias
    torch.testing.assert_close(module(x), expected)


def test_training_moves_every_update_and_nothing_of_the_base(trained):
    network, base = trained
    state = network.state_dict()
    for name, tensor in base.items():
        if not name.startswith("head"):
            assert torch.equal(state[name], tensor), name
    for name, module in lora.adapters(network).items():
        assert module.lora_b.abs().max() > 0, name


def test_merging_keeps_the_function_and_leaves_a_plain_network(trained, images):
    network, base = trained
    before = network(images)
    got = lora.merge(network, images)
    assert got.largest <= got.tolerance == 1e-5
    assert len(got.modules) == 9
    assert set(network.state_dict()) == set(base)
    assert type(network.blocks[0].fc1) is nn.Linear
    assert type(network.blocks[0].conv) is nn.Conv2d
    torch.testing.assert_close(network(images), before, rtol=1e-4, atol=1e-5)
    assert not torch.equal(network.blocks[0].conv.weight, base["blocks.0.conv.weight"])


def test_merging_without_inputs_proves_each_module(trained, images):
    network, _ = trained
    before = network(images)
    got = lora.merge_all(network)
    assert 0 < got.largest <= 1e-5
    torch.testing.assert_close(network(images), before, rtol=1e-4, atol=1e-5)
    with pytest.raises(OptionError, match="no LoRA updates to merge"):
        lora.merge_all(network)


def test_a_merge_beyond_the_tolerance_is_undone(trained, images):
    network, _ = trained
    before = {n: t.clone() for n, t in network.state_dict().items()}
    outputs = network(images)
    with pytest.raises(WeightsError, match=r"more than 1e-15: the network was left unmerged"):
        lora.merge(network, images, tolerance=1e-15)
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert torch.equal(network(images), outputs)


def test_a_module_whose_update_is_passed_by_is_found(network, images):
    """A network that uses a weight directly would silently lose its LoRA update."""
    block = network.blocks[0]
    block.fc1.forward = lambda x: F.linear(x, block.fc1.weight, block.fc1.bias)
    lora.add_lora(network, rank=2)
    with torch.no_grad():
        block.fc1.lora_b.normal_()
    with pytest.raises(WeightsError, match="left unmerged"):
        lora.merge(network, images)


def test_adapters_are_saved_and_loaded_alone(trained, images):
    network, base = trained
    saved = lora.adapter_tensors(network)
    total = sum(t.numel() for t in network.state_dict().values())
    assert sum(t.numel() for t in saved.values()) < total
    other = type(network)()
    other.load_state_dict(base)
    lora.add_lora(other, rank=4, convs=True, seed=7)
    lora.load_adapter(other, saved)
    torch.testing.assert_close(other.eval()(images), network(images), rtol=0, atol=0)


def test_an_adapter_of_another_set_up_is_refused(trained):
    network, _ = trained
    saved = lora.adapter_tensors(network)
    other = type(network)()
    lora.add_lora(other, rank=2)
    with pytest.raises(WeightsError, match=r"left over .*conv.lora_a.*another shape .*\(4, 8\)"):
        lora.load_adapter(other, saved)


def test_removing_gives_the_base_back(trained):
    network, base = trained
    lora.remove_lora(network)
    state = network.state_dict()
    assert set(state) == set(base)
    assert all(torch.equal(state[n], base[n]) for n in base if not n.startswith("head"))


def test_a_copy_is_independent(trained, images):
    network, _ = trained
    before = network(images)
    twin = copy.deepcopy(network)
    lora.merge_all(twin)
    assert lora.adapters(network)
    assert torch.equal(network(images), before)


def test_own_forward_of_a_subclass_is_kept_and_strides_too():
    class Doubled(nn.Conv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    module = Doubled(4, 6, 1, stride=2)
    x = torch.randn(2, 4, 5, 5)
    before = module(x)
    lora.adapt(module, 2, 4.0, torch.Generator().manual_seed(0))
    assert torch.equal(module(x), before)


def test_convolutions_that_do_not_fit_are_left_alone():
    assert lora.is_pointwise(nn.Conv2d(4, 4, 1, stride=2))
    assert not lora.is_pointwise(nn.Conv2d(4, 4, 1, groups=4))
    assert not lora.is_pointwise(nn.Conv2d(4, 4, 1, padding=1))
    assert not lora.is_pointwise(nn.Conv2d(4, 4, 3))


def test_the_same_seed_gives_the_same_updates(network):
    twin, other = copy.deepcopy(network), copy.deepcopy(network)
    for net, seed in ((network, 0), (twin, 0), (other, 1)):
        lora.add_lora(net, rank=2, seed=seed)
    assert torch.equal(network.blocks[0].fc1.lora_a, twin.blocks[0].fc1.lora_a)
    assert not torch.equal(network.blocks[0].fc1.lora_a, other.blocks[0].fc1.lora_a)
    assert not torch.equal(network.blocks[0].fc1.lora_a, network.blocks[1].fc1.lora_a)


def test_errors_leave_the_network_as_it_was(network):
    with pytest.raises(OptionError, match=r"called '\*.q_proj'.*--method full"):
        lora.add_lora(network, where="*.q_proj")
    with pytest.raises(OptionError, match="--lora-rank must be 1 or more; 0 was given"):
        lora.add_lora(network, rank=0)
    assert all(p.requires_grad for p in network.parameters())
    lora.add_lora(network, where="*.fc2")
    with pytest.raises(OptionError, match="has LoRA updates already"):
        lora.add_lora(network)
