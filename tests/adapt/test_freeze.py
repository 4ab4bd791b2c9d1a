"""What is frozen does not move: not its weights, not its statistics, not its noise."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from layerwise.adapt import freeze
from layerwise.adapt.lora import add_lora
from layerwise.errors import OptionError

NAMES = ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]


def training(network):
    """The layers of which something trains."""
    groups = freeze.parameters_by_layer(network)
    return [n for n, ps in groups.items() if any(p.requires_grad for p in ps.values())]


def train(network, images, freezing, steps, lr=0.05):
    """Plain SGD as the loop does it: train mode, `before`, backward, step."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr)
    network.train()
    for step in range(steps):
        freezing.before(step)
        optimizer.zero_grad()
        F.cross_entropy(network(images), torch.arange(len(images)) % 3).backward()
        optimizer.step()


def test_every_parameter_belongs_to_one_layer_and_strays_to_the_first(network):
    groups = freeze.parameters_by_layer(network)
    assert list(groups) == NAMES
    assert "pos_embed" in groups["stem"]
    names = [n for group in groups.values() for n in group]
    assert sorted(names) == sorted(n for n, _ in network.named_parameters())


def test_a_tied_parameter_is_listed_once(network):
    network.blocks[2].fc1.weight = network.blocks[0].fc1.weight
    names = [n for g in freeze.parameters_by_layer(network).values() for n in g]
    assert len(names) == len(set(names)) == len(list(network.parameters()))


def test_top_layers_end_with_the_head(network):
    assert freeze.top_layers(network, 2) == ["blocks.2", "head"]
    assert freeze.top_layers(network, 5) == NAMES
    with pytest.raises(OptionError, match="has 5 layers"):
        freeze.top_layers(network, 6)


@pytest.mark.parametrize("mode", ["head", "top2"])
def test_frozen_layers_keep_every_bit_of_their_state(network, images, mode):
    before = copy.deepcopy(network.state_dict())
    train(network, images, freeze.Freezing(network, mode, 5), 5)
    moved = {n for n, t in network.state_dict().items() if not torch.equal(t, before[n])}
    allowed = ("head.",) if mode == "head" else ("head.", "blocks.2.")
    assert moved
    assert all(n.startswith(allowed) for n in moved)
    assert mode == "head" or "blocks.2.norm.running_mean" in moved


def test_a_frozen_network_gives_the_same_features_while_training(network, images):
    freezing = freeze.Freezing(network, "head", 5)
    network.train()
    freezing.before(0)
    with torch.no_grad():
        a, b = network.features(images), network.features(images)
        network.eval()
        assert torch.equal(a, b)
        assert torch.equal(a, network.features(images))


def test_modes_are_held_after_an_evaluation_in_between(network):
    freezing = freeze.Freezing(network, "top2", 5)
    network.train()
    freezing.before(0)
    network.eval()
    network.train()  # as the loop does after evaluating
    freezing.before(1)
    modes = [network.blocks[i].norm.training for i in range(3)]
    assert modes == [False, False, True]
    assert network.blocks[2].dropout.training
    network.train()
    freezing.before(2)
    assert [network.blocks[i].dropout.training for i in range(3)] == [False, False, True]


def test_progressive_goes_from_the_head_down_and_is_a_pure_function():
    shown = [freeze.progressive(s, 20, NAMES) for s in range(20)]
    assert shown[0] == ["head"]
    assert shown[1] == ["head"]
    assert shown[2] == ["blocks.2", "head"]
    assert shown[8] == NAMES == shown[19]
    assert all(len(b) - len(a) in (0, 1) for a, b in itertools.pairwise(shown))
    assert freeze.progressive(0, 1, NAMES) == ["head"]
    assert freeze.progressive(7, 20, NAMES) == shown[7]


def test_progressive_training_and_resuming_show_the_same_layers(network, images):
    steps = 20
    freezing = freeze.Freezing(network, "progressive", steps)
    assert training(network) == NAMES  # what the optimiser must hold
    network.train()
    seen = []
    for step in range(steps):
        freezing.before(step)
        seen.append(training(network))
        assert network.blocks[0].norm.training == ("blocks.0" in seen[-1])
    resumed = copy.deepcopy(network)
    freezing.release()
    assert training(network) == NAMES
    resumed.requires_grad_(True)
    late = freeze.Freezing(resumed, "progressive", steps)
    late.before(5)
    assert training(resumed) == seen[5]


def test_all_leaves_lora_as_it_was_set_up(network):
    add_lora(network, rank=2)
    before = {n: p.requires_grad for n, p in network.named_parameters()}
    freezing = freeze.Freezing(network, "all", 10)
    network.train()
    freezing.before(0)
    assert {n: p.requires_grad for n, p in network.named_parameters()} == before
    # the base's norm within a layer that trains through its adapters keeps its statistics
    assert not network.blocks[1].norm.training
    assert network.blocks[1].dropout.training
    assert not network.stem.training


def test_an_unknown_mode_is_an_error(network):
    with pytest.raises(OptionError, match="did you mean 'progressive'"):
        freeze.Freezing(network, "progresive", 10)
