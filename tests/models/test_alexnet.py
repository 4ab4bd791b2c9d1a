"""AlexNet beside torchvision, and the shapes of the paper."""

from dataclasses import replace

import pytest
import torch

from layerwise.models import alexnet
from tests import oracles, parity

ONE_TOWER = replace(alexnet.VARIANTS["alexnet_owt"], n_classes=10)


@pytest.mark.oracle
def test_parity_with_torchvision():
    theirs = oracles.import_torchvision().models.alexnet(num_classes=10)
    x = parity.images(2, 3, 95, 95)
    key = "alexnet/torchvision"
    load = parity.into(theirs)
    parity.check_against_reference(key, load, "alexnet", ONE_TOWER, "torchvision", x)


def test_parity_with_stored_outputs_of_torchvision():
    x = parity.images(2, 3, 95, 95)
    parity.check_against_stored("alexnet/torchvision", "alexnet", ONE_TOWER, "torchvision", x)


def test_maps_have_the_sizes_of_the_paper():
    with torch.device("meta"):
        network = alexnet.Model(alexnet.Config())
        images = torch.empty(1, 3, 227, 227)
    assert network.conv1.conv(images).shape == (1, 96, 55, 55)
    x = network.conv1(images)
    assert x.shape == (1, 96, 27, 27)
    x = network.conv2(x)
    assert x.shape == (1, 256, 13, 13)
    assert network.conv5(network.conv4(network.conv3(x))).shape == (1, 256, 6, 6)


def test_towers_of_the_paper_do_not_see_each_other():
    conv = alexnet.Model(alexnet.Config(channels=(8, 8, 8, 8, 8))).conv2.conv
    x = torch.randn(1, 8, 5, 5)
    y = x.clone()
    y[:, 4:] = 0
    assert torch.equal(conv(x)[:, :4], conv(y)[:, :4])
    assert not torch.equal(conv(x)[:, 4:], conv(y)[:, 4:])
