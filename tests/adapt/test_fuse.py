"""The network rewritten for inference gives the same outputs, in every family it can follow."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from layerwise import models, runtime
from layerwise.adapt.fuse import fused
from layerwise.data.examples import Examples
from layerwise.kinds.image.processor import ImageProcessor
from layerwise.model import model as bundle
from layerwise.tasks.classify import Classify
from tests.networks import Stack

SMALL = {
    "resnet20": ({}, 16),
    "resnet18": ({"depths": (1, 1, 1, 1)}, 64),
    "resnet50": ({"depths": (1, 1, 1, 1)}, 64),
    "mobilenet_v1_075": ({}, 64),
    "squeezenet1_0": ({}, 64),
    "alexnet_owt": ({}, 64),
}


def trained_like(network: nn.Module) -> nn.Module:
    """Statistics and scales that are not those of a fresh network."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


@pytest.mark.parametrize("name", [n for n in SMALL if n in models.variants()])
def test_same_outputs_in_fp32_and_near_in_bf16(name: str):
    overrides, side = SMALL[name]
    torch.manual_seed(0)
    network = trained_like(models.build(*models.resolve(name, n_classes=7, **overrides)))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    for rows in (1, 5):
        x = torch.randn(rows, 3, side, side)
        with torch.inference_mode():
            want = network(x)
            got = fused(network, x, torch.float32)(x)
            near = fused(network, x, torch.bfloat16)(x)
        scale = want.abs().max()
        assert (got - want).abs().max() < 2e-5 * scale
        assert (near - want).abs().max() < 0.05 * scale
        assert got.dtype == near.dtype == torch.float32
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_everything_after_a_convolution_goes_into_it():
    network = trained_like(models.build(*models.resolve("resnet20")))
    x = torch.randn(2, 3, 16, 16)
    compiled = fused(network, x, torch.float32)
    left = str(compiled.inner.func.graph_for(compiled.cast(x))).split("\nwith ")[
        0
    ]  # kernels follow
    for kind in ("batch_norm", "conv", "relu", "add"):
        assert not re.search(rf"= aten::_?{kind}", left), kind
    assert len(re.findall(r"= prim::oneDNNFusionGroup_\d", left)) >= 19  # convolutions of resnet20


def test_switches_of_torch_are_left_as_they_were():
    before = torch.jit.onednn_fusion_enabled()
    casting = torch._C._jit_set_autocast_mode(True)
    fused(Stack(nn.Conv2d(3, 3, 1)), torch.randn(1, 3, 8, 8), torch.float32)
    assert torch.jit.onednn_fusion_enabled() == before
    assert torch._C._jit_set_autocast_mode(casting)


def test_a_sum_whose_other_side_is_read_again_is_not_overwritten():
    class Twice(nn.Module):
        READS = ("image",)

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.a(x)
            y = self.b(x) + x
            return y * x  # x must still be what it was

    network = Twice().eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(fused(network, x, torch.float32)(x), network(x))
        kept = x.clone()
        fused(Stack(nn.Conv2d(3, 3, 1)), x, torch.float32)(x)
        assert torch.equal(x, kept)


def test_a_model_scores_many_images_by_its_compiled_network(monkeypatch: pytest.MonkeyPatch):
    made = []
    monkeypatch.setattr(bundle, "WORTH_FUSING", 8)
    monkeypatch.setattr(bundle, "fused", lambda *args: made.append(fused(*args)) or made[-1])
    network = trained_like(models.build(*models.resolve("resnet20", n_classes=3)))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    names, given = [str(i) for i in range(20)], np.full(20, "")
    rows = Examples({"image": pixels}, {"image": "image"}, names, given)
    processor = ImageProcessor(size=(32, 32))
    model = bundle.Model(network, "resnet", {"image": processor}, Classify(("a", "b", "c")))
    said = model.predictions(rows, runtime.start(dtype="fp32"), batch_size=16)  # a last batch of 4
    found = np.stack([prediction.logits for prediction in said])
    with torch.no_grad():
        want = network.eval()(processor(pixels)).numpy()
    assert len(made) == 1
    assert np.abs(found - want).max() < 1e-4 * np.abs(want).max()
