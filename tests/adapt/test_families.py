"""Freezing, grouping and LoRA need nothing of a family but its layers: tried on every family."""

import pytest
import torch
from torch import nn

from layerwise.adapt import freeze, lora
from layerwise.adapt.groups import parameter_groups
from layerwise.adapt.quantize import linears_below_head
from layerwise.models import FAMILIES, family

EVERY = pytest.mark.parametrize("name", FAMILIES)


def build(name):
    """The family's first size with a head for a new task, without memory for its weights."""
    with torch.device("meta"):
        network = family(name).Model(next(iter(family(name).VARIANTS.values())))
        network.reset_head(3)
    return network


@EVERY
def test_every_parameter_has_its_layer_and_its_rate(name):
    network = build(name)
    trainable = {n for n, p in network.named_parameters() if p.requires_grad}
    groups = parameter_groups(network, 0.05, layer_decay=0.8)
    assert sorted(n for g in groups for n in g["names"]) == sorted(trainable)
    assert groups[-1]["layer"] == "head"
    assert groups[-1]["lr_scale"] == 1
    scales = [g["lr_scale"] for g in groups]
    assert scales == sorted(scales)
    for group in groups:
        if group["weight_decay"]:
            assert all(p.ndim > 1 for p in group["params"])


@EVERY
def test_only_the_head_trains_and_everything_else_is_in_eval_mode(name):
    network = build(name)
    freezing = freeze.Freezing(network, "head", 10)
    network.train()
    freezing.before(0)
    trains = {n for n, p in network.named_parameters() if p.requires_grad}
    assert trains == {n for n, _ in network.named_parameters() if n.startswith("head.")}
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    assert not any(m.training for m in norms)


@EVERY
@pytest.mark.parametrize("variant", lora.VARIANTS)
def test_lora_fits_wherever_there_are_matrices(name, variant):
    network = build(name)
    below = [n for n, _ in linears_below_head(network)]
    if not below:
        pytest.skip(f"{name} has no linear layers below its head")
    total = sum(p.numel() for p in network.parameters())
    assert lora.add_lora(network, rank=2, variant=variant) == below
    assert below == list(lora.adapters(network))
    added = sum(p.numel() for p in network.parameters()) - total
    assert 0 < added < 0.25 * total


def test_lora_of_a_vision_transformer_learns_and_merges():
    vit = family("vit")
    torch.manual_seed(0)
    config = vit.Config(
        image_size=32, patch_size=8, dim=32, n_layers=2, n_heads=2, mlp_dim=64, n_classes=3
    )
    network = vit.Model(config).eval()
    x = torch.randn(6, 3, 32, 32)
    before = network(x)
    names = lora.add_lora(network, rank=4)
    assert any(n.endswith("q_proj") for n in names)
    torch.testing.assert_close(network(x), before)
    optimizer = torch.optim.AdamW(parameter_groups(network), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), torch.arange(6) % 3).backward()
        optimizer.step()
    learned = network(x)
    assert (learned - before).abs().max() > 0.01
    unused = [n for n, m in lora.adapters(network).items() if m.lora_b.abs().max() == 0]
    assert unused == []
    assert lora.merge(network, lambda: network(x), len(x)).relative < 1e-5
    torch.testing.assert_close(network(x), learned, rtol=1e-4, atol=1e-4)
