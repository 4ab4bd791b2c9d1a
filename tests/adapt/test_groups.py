"""Groups hold each trainable parameter once, with the rate and decay of its place."""

import pytest
import torch

from layerwise.adapt.freeze import Freezing
from layerwise.adapt.groups import parameter_groups
from layerwise.adapt.lora import add_lora
from layerwise.errors import OptionError


def names(groups):
    return [n for g in groups for n in g["names"]]


def test_rates_fall_from_the_head_down(network):
    groups = parameter_groups(network, 0.1, layer_decay=0.5)
    scales = {g["layer"]: g["lr_scale"] for g in groups}
    assert scales == {
        "stem": 1 / 16,
        "blocks.0": 1 / 8,
        "blocks.1": 0.25,
        "blocks.2": 0.5,
        "head": 1,
    }
    assert sorted(names(groups)) == sorted(n for n, _ in network.named_parameters())
    assert sum(len(g["params"]) for g in groups) == len(list(network.parameters()))


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_scales_biases_and_embeddings_are_not_decayed(network, layer_decay):
    groups = parameter_groups(network, 0.1, layer_decay)
    decayed = {n for g in groups if g["weight_decay"] == 0.1 for n in g["names"]}
    spared = {n for g in groups if g["weight_decay"] == 0 for n in g["names"]}
    assert "blocks.0.fc1.weight" in decayed
    assert "stem.weight" in decayed
    assert {"pos_embed", "blocks.0.norm.weight", "head.bias"} <= spared


def test_without_layer_decay_two_groups_are_enough(network):
    groups = parameter_groups(network, 0.1)
    assert [(g["lr_scale"], g["weight_decay"]) for g in groups] == [(1.0, 0.1), (1.0, 0.0)]
    torch.optim.AdamW(groups, lr=1e-3)
    assert len(names(groups)) == len(list(network.named_parameters()))


def test_only_what_trains_is_grouped(network):
    Freezing(network, "head", 10)
    assert names(parameter_groups(network)) == ["head.weight", "head.bias"]
    network.requires_grad_(True)
    add_lora(network, rank=2)
    assert all("lora_" in n or n.startswith("head") for n in names(parameter_groups(network)))


def test_errors(network):
    with pytest.raises(OptionError, match=r"at most 1; 1.5 was given"):
        parameter_groups(network, layer_decay=1.5)
    network.requires_grad_(False)
    with pytest.raises(OptionError, match="unfreeze"):
        parameter_groups(network)
