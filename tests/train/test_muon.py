"""Muon against its definition: singular values, sizes of updates, what goes where, exact state."""

import copy

import pytest
import torch
from torch import nn

from layerwise.adapt.groups import parameter_groups
from layerwise.errors import OptionError
from layerwise.optim.muon import Muon, orthogonal


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

    def layers(self):
        return {"conv": self.conv, "norm": self.norm, "head": self.head}


def learn(network, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 3, 8, 8, generator=generator)
    targets = (x.mean((1, 2, 3)) > 0).long()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), targets)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (12, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one(shape, dtype):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    result = orthogonal(matrix, steps=5, dtype=dtype)
    assert result.dtype == matrix.dtype
    values = torch.linalg.svdvals(result)
    if shape[0] != shape[1]:  # a square Gaussian matrix has singular values down to nearly 0
        assert values.min() > 0.5
    assert values.max() < 1.4


def test_singular_vectors_are_kept():
    torch.manual_seed(0)
    matrix = torch.randn(5, 9)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    result = u.T @ orthogonal(matrix, steps=5) @ vh.T  # diagonal, if the vectors were kept
    assert (result - result.diag().diag()).abs().max() < 1e-4
    a, b, c = 3.4445, -4.7750, 2.0315
    x = s.double() / s.double().norm()
    for _ in range(5):
        x = a * x + b * x**3 + c * x**5
    assert torch.allclose(result.diag().double(), x, atol=1e-4)


def test_size_of_an_update_is_that_of_adamw():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(48, 96))
    before = weight.detach().clone()
    optimizer = Muon([weight], lr=0.01, weight_decay=0.0)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    rms = (weight - before).square().mean().sqrt()
    assert 0.6 * 0.2 * 0.01 < rms < 1.3 * 0.2 * 0.01


def test_weight_decay_is_decoupled():
    weight = nn.Parameter(torch.ones(4, 6))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(weight, torch.full((4, 6), 0.95))


def test_renormalised_weights_keep_their_norm_and_turn_by_lr():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(16, 4, 3, 3))
    norm = weight.detach().norm()
    optimizer = Muon([weight], lr=0.1, renormalise=True)
    for _ in range(5):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    step = weight.detach() - before * norm / before.norm()
    assert 0.05 < step.norm() / norm < 0.15  # orthogonal rows: the share is about lr


def test_renormalised_updates_do_not_depend_on_the_scale_of_the_weights():
    torch.manual_seed(0)
    weight, gradients = torch.randn(8, 12), torch.randn(3, 8, 12)
    small, large = nn.Parameter(weight.clone()), nn.Parameter(weight * 100)
    for p, scale in ((small, 1.0), (large, 0.01)):
        optimizer = Muon([p], lr=0.2, renormalise=True)
        for g in gradients:
            p.grad = g * scale
            optimizer.step()
    assert torch.allclose(small * 100, large, rtol=2e-2, atol=1e-1)


def test_what_is_orthogonalised_and_what_is_not():
    network = Small()
    optimizer = Muon(parameter_groups(network, weight_decay=0.1), lr=1.0)
    names = {id(p): n for n, p in network.named_parameters()}
    kinds = {names[id(p)]: g["matrices"] for g in optimizer.param_groups for p in g["params"]}
    assert kinds.pop("conv.weight") is True
    assert len(kinds) == 5
    assert not any(kinds.values())
    assert {(g["lr"], g["lr_scale"]) for g in optimizer.param_groups} == {(1.0, 1.0)}


PEERS = {
    "adamw": lambda p: torch.optim.AdamW(
        p, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), fused=True
    ),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("rest", PEERS)
def test_the_rest_is_what_torch_has(rest):
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(7))
    theirs = nn.Parameter(ours.detach().clone())
    a, b = Muon([ours], lr=0.01, weight_decay=0.1, rest=rest), PEERS[rest]([theirs])
    for _ in range(4):
        ours.grad = torch.randn(7)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("renormalise", [False, True])
def test_it_learns_and_resumes_to_the_bit(renormalise):
    torch.manual_seed(0)
    network = Small()
    options = dict(lr=0.05, renormalise=renormalise)
    optimizer = Muon(parameter_groups(network), **options)
    first = learn(network, optimizer, 1)
    assert learn(network, optimizer, 30) < 0.5 * first
    twin = copy.deepcopy(network)
    other = Muon(parameter_groups(twin), **options)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    learn(network, optimizer, 10, seed=1)
    learn(twin, other, 10, seed=1)
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_parameters_without_gradient_and_closures():
    weight, frozen = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = Muon([weight, frozen], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 9.0
    assert not torch.equal(weight, torch.ones(3, 3))
    assert torch.equal(frozen, torch.ones(3, 3))


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"momentum": 1.0}, {"ns_steps": 0}])
def test_options_out_of_range(options):
    with pytest.raises(OptionError, match="Muon takes"):
        Muon([nn.Parameter(torch.ones(2, 2))], **options)
