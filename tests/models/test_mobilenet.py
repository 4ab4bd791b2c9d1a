"""MobileNet v1, v2, v3 beside timm and torchvision; sizes; TensorFlow's padding."""

from dataclasses import replace

import pytest
import torch

from layerwise.layers.conv import SameConv2d, round_channels, same_padding
from layerwise.models import family, mobilenet, mobilenetv3
from tests.oracles import import_timm, import_torchvision
from tests.parity import check_against_reference, check_against_stored, images, into

C = 11  # classes
TIMM = {
    "mobilenetv1_100": "mobilenet",
    "mobilenetv1_125": "mobilenet",
    "mobilenetv2_035": "mobilenet",
    "mobilenetv2_100": "mobilenet",
    "mobilenetv2_140": "mobilenet",
    "mobilenetv3_large_100": "mobilenetv3",
    "mobilenetv3_small_100": "mobilenetv3",
}
TORCHVISION = [  # their name, variant, family, format, norm_eps
    ("mobilenet_v2", "mobilenetv2_100", "mobilenet", "torchvision", 1e-5),
    ("mobilenet_v3_large", "mobilenetv3_large_100", "mobilenetv3", "torchvision", 1e-3),
    ("mobilenet_v3_small", "mobilenetv3_small_100", "mobilenetv3", "torchvision_small", 1e-3),
]


def case(key: str, variant: str, name: str, source: str, **fields) -> dict:
    return {
        "key": key,
        "name": name,
        "config": replace(family(name).VARIANTS[variant], n_classes=C, **fields),
        "source": source,
        "x": images(2, 3, 64, 64),
    }


@pytest.mark.oracle
@pytest.mark.parametrize("variant", TIMM)
def test_parity_with_timm(variant: str):
    theirs = import_timm().create_model(variant, pretrained=False, num_classes=C)
    key = f"{TIMM[variant]}/timm/{variant}"
    check_against_reference(load=into(theirs), **case(key, variant, TIMM[variant], "timm"))


@pytest.mark.parametrize("variant", TIMM)
def test_stored_outputs_of_timm(variant: str):
    key = f"{TIMM[variant]}/timm/{variant}"
    check_against_stored(**case(key, variant, TIMM[variant], "timm"))


@pytest.mark.oracle
@pytest.mark.parametrize(("theirs", "variant", "name", "source", "eps"), TORCHVISION)
def test_parity_with_torchvision(theirs: str, variant: str, name: str, source: str, eps: float):
    network = getattr(import_torchvision().models, theirs)(weights=None, num_classes=C)
    check_against_reference(
        load=into(network),
        **case(f"{name}/torchvision/{theirs}", variant, name, source, norm_eps=eps),
    )


@pytest.mark.parametrize(("theirs", "variant", "name", "source", "eps"), TORCHVISION)
def test_stored_outputs_of_torchvision(
    theirs: str, variant: str, name: str, source: str, eps: float
):
    check_against_stored(
        **case(f"{name}/torchvision/{theirs}", variant, name, source, norm_eps=eps)
    )


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
    network = module.Model(module.VARIANTS[variant]).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.head(network.features(x)), network(x))
    y = x
    for name, layer in network.layers().items():
        if name in ("fc", "head"):
            break
        y = layer(y)
    assert y.shape[-2:] == (2, 2)
    network.reset_head(5)
    network.train()
    network(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert network(x).shape == (2, 5)
