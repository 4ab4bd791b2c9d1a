"""The structure is read from what the forward pass did, not from what modules are called."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise import models
from layerwise.inspection.structure import structure


class Chain(nn.Module):
    def __init__(self, depth: int, residual: bool, activation=F.relu, cut: int = -1):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))
        self.residual, self.activation, self.cut = residual, activation, cut

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            y = self.activation(block(x))
            x = x + y if self.residual else y
            x = x.detach() if i == self.cut else x
        return x


def test_a_plain_chain_has_one_way():
    found = structure(Chain(7, residual=False), torch.randn(2, 6))
    assert (found.longest, found.shortest, found.residual) == (7, 7, False)
    assert found.nonlinear == {"relu": 7}


def test_shortcuts_make_a_short_way():
    found = structure(Chain(7, residual=True), torch.randn(2, 6))
    assert (found.longest, found.shortest, found.residual) == (7, 0, True)


def test_what_is_cut_off_has_no_way():
    found = structure(Chain(4, residual=False, cut=1), torch.randn(2, 6))
    assert found.longest == found.shortest == 0


@pytest.mark.parametrize(
    ("activation", "name"), [(torch.sigmoid, "sigmoid"), (torch.tanh, "tanh"), (F.gelu, "")]
)
def test_squashing_activations_are_recognised(activation, name):
    assert structure(Chain(3, False, activation), torch.randn(2, 6)).squashing == name


@pytest.mark.parametrize(("family", "variant", "side", "longest", "shortest"), [
    ("resnet", "resnet20", 32, 20, 2),
    ("vit", "vit_tiny_patch4_32", 32, 26, 2),
    ("alexnet", "alexnet_owt", 64, 8, 8),
])  # fmt: skip
def test_known_families(family, variant, side, longest, shortest):
    network = models.build(family, models.family(family).VARIANTS[variant])
    before = {k: v.clone() for k, v in network.state_dict().items()}
    found = structure(network, torch.randn(2, 3, side, side))
    assert (found.longest, found.shortest) == (longest, shortest)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert network.training


def test_frozen_weights_count_and_stay_frozen():
    network = Chain(3, residual=False).requires_grad_(False)
    assert structure(network, torch.randn(2, 6)).longest == 3
    assert not any(p.requires_grad for p in network.parameters())
