"""MobileNet v1, v2, v3 beside timm and torchvision; sizes; TensorFlow's padding."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from layerwise.layers.conv import SameConv2d, round_channels, same_padding
from layerwise.models import family, mobilenet, mobilenetv3
from layerwise.weights.names import publish, rename
from tests.oracles import import_timm, import_torchvision

TIMM = [  # variant, family, format
    ("mobilenetv1_100", "mobilenet", "timm_v1"),
    ("mobilenetv1_125", "mobilenet", "timm_v1"),
    ("mobilenetv2_035", "mobilenet", "timm"),
    ("mobilenetv2_100", "mobilenet", "timm"),
    ("mobilenetv2_140", "mobilenet", "timm"),
    ("mobilenetv3_large_100", "mobilenetv3", "timm"),
    ("mobilenetv3_small_100", "mobilenetv3", "timm_small"),
]
TORCHVISION = [  # their name, variant, family, format, norm_eps
    ("mobilenet_v2", "mobilenetv2_100", "mobilenet", "torchvision", 1e-5),
    ("mobilenet_v3_large", "mobilenetv3_large_100", "mobilenetv3", "torchvision", 1e-3),
    ("mobilenet_v3_small", "mobilenetv3_small_100", "mobilenetv3", "torchvision_small", 1e-3),
]


def randomise(network: nn.Module) -> nn.Module:
    """Statistics and scales as after training, so that no part hides behind its initial value."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.num_batches_tracked.fill_(5)  # type: ignore[operator]
    return network.eval()


def compare(theirs: nn.Module, ours: nn.Module, rules: dict[str, str]) -> None:
    published = randomise(theirs).state_dict()
    ours.load_state_dict(rename(published, rules, ours.state_dict()))
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected, found = theirs(images), ours.eval()(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    back = publish(ours.state_dict(), rules)
    assert set(back) == set(published)
    assert all(torch.equal(back[name], tensor) for name, tensor in published.items())


@pytest.mark.oracle
@pytest.mark.parametrize(("variant", "name", "source"), TIMM)
def test_parity_with_timm(variant: str, name: str, source: str):
    timm, module = import_timm(), family(name)
    theirs = timm.create_model(variant, pretrained=False)
    compare(theirs, module.Model(module.VARIANTS[variant]), module.PUBLISHED[source])


@pytest.mark.oracle
@pytest.mark.parametrize(("theirs", "variant", "name", "source", "eps"), TORCHVISION)
def test_parity_with_torchvision(theirs: str, variant: str, name: str, source: str, eps: float):
    torchvision, module = import_torchvision(), family(name)
    network = module.Model(replace(module.VARIANTS[variant], norm_eps=eps))
    compare(getattr(torchvision.models, theirs)(weights=None), network, module.PUBLISHED[source])


@pytest.mark.parametrize(
    ("variant", "millions"),
    [
        ("mobilenet_v1_025", 0.47),
        ("mobilenet_v1_050", 1.33),
        ("mobilenet_v1_075", 2.59),
        ("mobilenet_v1_100", 4.23),
        ("mobilenetv2_100", 3.50),
        ("mobilenetv2_140", 6.11),
        ("mobilenetv3_large_100", 5.48),
        ("mobilenetv3_small_100", 2.54),
    ],
)
def test_sizes(variant: str, millions: float):
    module = mobilenetv3 if "v3" in variant else mobilenet
    with torch.device("meta"):
        network = module.Model(module.VARIANTS[variant])
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("size", [6, 7, 8, 224])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int):
    before, after = same_padding(size, kernel, stride)
    assert after - before in (0, 1)
    conv = SameConv2d(1, 1, kernel, stride)
    assert conv(torch.zeros(1, 1, size, size)).shape[-1] == -(-size // stride)


def test_same_padding_of_a_photograph():
    assert same_padding(224, 3, 2) == (0, 1)  # a symmetric padding would be (1, 1)


@pytest.mark.parametrize(
    ("channels", "rounded"), [(24, 24), (25, 24), (30, 32), (11.2, 16), (5, 8), (44.8, 48)]
)
def test_round_channels(channels: float, rounded: int):
    assert round_channels(channels) == rounded


@pytest.mark.parametrize(
    "variant", ["mobilenet_v1_025", "mobilenetv2_035", "mobilenetv3_small_100"]
)
def test_contract(variant: str):
    module = mobilenetv3 if "v3" in variant else mobilenet
    network = randomise(module.Model(module.VARIANTS[variant]))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.head(network.features(images)), network(images))
    x = images
    for name, layer in network.layers().items():
        if name in ("fc", "head"):
            break
        x = layer(x)
    assert x.shape[-2:] == (2, 2)
    network.reset_head(5)
    network.train()
    network(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert network(images).shape == (2, 5)
