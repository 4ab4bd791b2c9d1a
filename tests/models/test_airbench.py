"""Airbench: shapes at any size, whitening, parameter counts, what is frozen."""

import importlib.util
import pathlib
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from layerwise import runtime
from layerwise.models import airbench
from layerwise.models.airbench import Config, Model, components, whiten

TINY = Config(n_classes=5, channels=(8, 12, 16))


def images(n=8, size=32, seed=0):
    """Smooth images, whose neighbouring pixels are as correlated as those of photographs."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 3, size, size, generator=generator)
    return torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1) * 3


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (33, 47), (64, 64)])
@pytest.mark.parametrize("n_convs", [2, 3])
def test_shapes_at_any_size(size, n_convs):
    network = Model(Config(n_classes=5, channels=(8, 12, 16), n_convs=n_convs))
    x = torch.randn(2, 3, *size)
    assert network(x).shape == (2, 5)
    assert network.features(x).shape == (2, 16)


def test_head_of_features_is_the_network():
    network = Model(TINY).eval()
    x = images()
    assert torch.equal(network.head(network.features(x)), network(x))


@pytest.mark.parametrize("variant", airbench.VARIANTS)
def test_parameter_counts(variant):
    config = airbench.VARIANTS[variant]
    with torch.device("meta"):
        network = Model(config)
    widths, n = (24, *config.channels), config.n_convs
    pairs = list(pairwise(widths))
    filters = sum(9 * i * o + (n - 1) * 9 * o * o for i, o in pairs)
    norms = sum(2 * n * o for _, o in pairs)
    whitening, head = 24 * 3 * 2 * 2 + 24, 10 * widths[-1]
    assert sum(p.numel() for p in network.parameters()) == filters + norms + whitening + head


def test_pooling_at_32_is_that_of_the_paper():
    network = Model(TINY).eval()
    seen = []
    network.group3.register_forward_hook(lambda module, args, out: seen.append(out))
    features = network.features(images())
    pooled = torch.nn.functional.max_pool2d(seen[0], 3).flatten(1) / 16
    assert torch.equal(features, pooled)


def test_whitened_patches_are_uncorrelated():
    network, x = Model(TINY), images(64)
    whiten(network, x)
    conv = network.whiten.conv
    responses = torch.nn.functional.conv2d(x, conv.weight[:12]).transpose(0, 1).flatten(1)
    covariance = responses.double() @ responses.T.double() / responses.shape[1]
    assert torch.allclose(covariance, torch.eye(12).double(), atol=0.05)
    assert torch.equal(conv.weight[12:], -conv.weight[:12])


def test_whitening_bounds_directions_without_signal():
    grey = images(32).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    found = components(grey, 2)
    assert found.isfinite().all()
    assert found.abs().max() < 1 / 5e-4**0.5 + 1


def test_first_layer_and_scales_do_not_learn_but_all_else_does():
    network = Model(TINY)
    network(images()).square().sum().backward()
    fixed = {n for n, p in network.named_parameters() if not p.requires_grad}
    scales = {f"group{g}.norms.{i}.weight" for g in (1, 2, 3) for i in (0, 1)}
    assert fixed == {"whiten.conv.weight"} | scales
    for name, p in network.named_parameters():
        assert not p.requires_grad or p.grad.abs().sum() > 0, name


def test_filters_start_as_identities():
    network = Model(TINY)
    x = torch.randn(1, 8, 9, 9)
    out = network.group2.convs[0](x)
    assert torch.allclose(out[:, :8], x, atol=1e-6)


def test_layers_and_new_head():
    network = Model(TINY)
    assert list(network.layers()) == ["whiten", "group1", "group2", "group3", "head"]
    network.reset_head(3)
    assert network(images()).shape == (8, 3)
    assert network.head.weight.detach().square().mean().item() == pytest.approx(1.0, abs=0.35)


def test_bf16_agrees_with_fp32():
    network = Model(TINY).eval()
    whiten(network, images(64))
    x = images()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(x).float()
    whole = network(x)
    assert (half - whole).norm() < 0.03 * whole.norm()


def load_recipe():
    path = pathlib.Path(__file__).parents[2] / "recipes" / "cifar10_94.py"
    spec = importlib.util.spec_from_file_location("cifar10_94", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny_cifar(tmp_path):
    """Two classes that differ in their colour, in the layout of CIFAR-10 as .npz."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, n in (("train", 96), ("test", 32)):
        labels = np.arange(n) % 2
        pixels = rng.integers(0, 160, (n, 32, 32, 3))
        pixels[..., 0] += 90 * labels[:, None, None]
        arrays |= {f"x_{name}": pixels.astype(np.uint8), f"y_{name}": labels}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    return tmp_path / "cifar10.npz"


@pytest.mark.slow
def test_the_recipe_learns(tiny_cifar):
    recipe = load_recipe()
    rows, test = recipe.open_cifar(str(tiny_cifar))
    machine = runtime.Runtime("cpu", torch.float32, 1)
    choices = recipe.Choices(epochs=4, small_epochs=1, batch_size=32)
    score = recipe.train_once(rows, test, 0, machine, choices)
    assert score.accuracy > 0.9


def test_views_of_a_symmetric_image_are_one_view():
    recipe, network = load_recipe(), Model(TINY).eval()
    flat = torch.ones(2, 3, 32, 32) * torch.randn(2, 3, 1, 1)
    assert torch.allclose(recipe.Views(network)(flat), network(flat), atol=1e-5)
