"""SqueezeNet beside torchvision, the paper's parameter counts, and its convolutional head."""

import pytest
import torch

from layerwise.models import squeezenet
from layerwise.weights.names import publish, rename
from tests.oracles import import_torchvision

FORMATS = {"squeezenet1_0": "torchvision", "squeezenet1_1": "torchvision_1_1"}
PARAMETERS = {"squeezenet1_0": 1_248_424, "squeezenet1_1": 1_235_496}


@pytest.mark.oracle
@pytest.mark.parametrize("variant", FORMATS)
@pytest.mark.parametrize("size", [64, 97, 224])
def test_parity_with_torchvision(variant: str, size: int):
    torchvision = import_torchvision()
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, variant)(weights=None).eval()
    ours = squeezenet.Model(squeezenet.VARIANTS[variant]).eval()
    rules = squeezenet.PUBLISHED[FORMATS[variant]]
    ours.load_state_dict(rename(theirs.state_dict(), rules, ours.state_dict()))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    back = publish(ours.state_dict(), rules)
    assert list(back) == list(theirs.state_dict())


@pytest.mark.parametrize("variant", FORMATS)
def test_size_is_the_papers(variant: str):
    with torch.device("meta"):
        network = squeezenet.Model(squeezenet.VARIANTS[variant])
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[variant]


def test_head_on_features_is_the_network():
    network = squeezenet.Model(squeezenet.Config(n_classes=7)).eval()
    images = torch.randn(2, 3, 64, 64)
    assert network.features(images).shape == (2, 512, 3, 3)
    assert torch.equal(network.head(network.features(images)), network(images))
    network.reset_head(3)
    assert network(images).shape == (2, 3)
    assert list(network.layers()) == ["conv1", *(f"fire{i}" for i in range(2, 10)), "head"]


def test_gradients_reach_every_layer():
    network = squeezenet.Model(squeezenet.Config(n_classes=4))
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
