"""Dropout by 16 random bits, against what the equation says."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerwise.layers.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_many_are_left_out_and_the_mean_stays(p, dtype):
    torch.manual_seed(0)
    n = 400_000
    found = dropout(torch.ones(n, dtype=dtype), p)
    sigma = (p * (1 - p) / n) ** 0.5
    assert abs(float((found == 0).float().mean()) - p) < 4 * sigma
    precision = 1e-4 if dtype == torch.float32 else 4e-3
    assert found.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=precision)
    assert found.dtype == dtype


def test_each_number_by_itself():
    """Four share an integer, and so do their neighbours in the next draw."""
    torch.manual_seed(0)
    a, b = (dropout(torch.ones(100_000, 4), 0.5).sub(1) for _ in range(2))
    among = (a.T @ a / len(a)).fill_diagonal_(0).abs().max()
    between = (a.T @ b / len(a)).abs().max()
    assert max(among, between) < 5 / len(a) ** 0.5


def test_the_gradient_goes_where_the_numbers_went():
    x = torch.rand(6, 5, 7).transpose(0, 2).requires_grad_()  # 210 numbers: not a multiple of 4
    y = dropout(x, 0.3)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)
    torch.testing.assert_close(x.grad * x.detach(), y.detach())


def test_a_seed_repeats_it_and_evaluation_leaves_everything():
    x, layer = torch.rand(33, 9), Dropout(0.4)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert layer.eval()(x) is x
    assert dropout(x, 0.0) is x
    assert not dropout(x, 1.0).any()
    assert isinstance(layer, nn.Dropout)


def test_compiled_it_is_torchs(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = torch.rand(50)
    torch.manual_seed(0)
    found = dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(found, F.dropout(x, 0.5))
