"""SqueezeNet beside torchvision, its size, and its convolutional head."""

from dataclasses import replace

import pytest
import torch

from layerwise.models import squeezenet
from tests.oracles import import_torchvision
from tests.parity import check_against_reference, check_against_stored, images, into

FORMATS = {"squeezenet1_0": "torchvision", "squeezenet1_1": "torchvision_1_1"}
PARAMETERS = {"squeezenet1_0": 1_248_424, "squeezenet1_1": 1_235_496}  # torchvision's count
C = 11  # classes


def case(variant: str, side: int) -> dict:
    return {
        "key": f"squeezenet/torchvision/{variant}/{side}",
        "name": "squeezenet",
        "config": replace(squeezenet.VARIANTS[variant], n_classes=C),
        "source": FORMATS[variant],
        "x": images(2, 3, side, side),
    }


@pytest.mark.oracle
@pytest.mark.parametrize("variant", FORMATS)
@pytest.mark.parametrize("side", [64, 97])
def test_parity_with_torchvision(variant: str, side: int):
    build = getattr(import_torchvision().models, variant)
    load = into(build(weights=None, num_classes=C))
    check_against_reference(load=load, **case(variant, side))


@pytest.mark.parametrize("variant", FORMATS)
@pytest.mark.parametrize("side", [64, 97])
def test_stored_outputs(variant: str, side: int):
    check_against_stored(**case(variant, side))


@pytest.mark.parametrize("variant", FORMATS)
def test_size(variant: str):
    with torch.device("meta"):
        network = squeezenet.Model(squeezenet.VARIANTS[variant])
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[variant]


def test_head_on_features_is_the_network():
    network = squeezenet.Model(squeezenet.Config(n_classes=7)).eval()
    x = torch.randn(2, 3, 64, 64)
    assert network.features(x).shape == (2, 512, 3, 3)
    assert torch.equal(network.head(network.features(x)), network(x))
    network.reset_head(3)
    assert network(x).shape == (2, 3)
    assert torch.equal(network.head(network.features(x)), network(x))
    assert network.head.weight.shape == (3, 512)
    again = squeezenet.Model(network.config).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x), network(x))
    assert list(network.layers()) == ["conv1", *(f"fire{i}" for i in range(2, 10)), "head"]


def test_gradients_reach_every_layer():
    network = squeezenet.Model(squeezenet.Config(n_classes=4))
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
