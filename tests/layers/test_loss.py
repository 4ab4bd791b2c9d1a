"""The chunked loss against PyTorch's own on whole scores."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerwise.layers import loss as module
from layerwise.layers.loss import token_loss, token_losses


def reference(hidden, head, targets, cap):
    scores = head(hidden).float()
    scores = cap * torch.tanh(scores / cap) if cap else scores
    return F.cross_entropy(
        scores.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=-100
    )


@pytest.fixture(params=[1 << 22, 100], ids=["one chunk", "many chunks"], autouse=True)
def chunk(request, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_SCORES", request.param)
    monkeypatch.setattr(module, "CACHED_SCORES", request.param)
    monkeypatch.setattr(module, "GROUP_BYTES", request.param * 10)
    monkeypatch.setattr(module, "COLUMNS", request.param // 10)


@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients(bias, cap):
    torch.manual_seed(0)
    head = nn.Linear(16, 37, bias=bias)
    head.softcap = cap
    hidden = torch.randn(3, 7, 16, requires_grad=True)
    targets = torch.randint(37, (3, 7))
    targets[0, 2:] = -100
    want = reference(hidden, head, targets, cap).sum()
    wanted = torch.autograd.grad(want * 0.25, [hidden, *head.parameters()])
    got = token_loss(hidden, head, targets)
    grads = torch.autograd.grad(got * 0.25, [hidden, *head.parameters()])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for g, w in zip(grads, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)
    each = token_losses(hidden, head, targets)
    torch.testing.assert_close(
        each.flatten(), reference(hidden, head, targets, cap).detach(), rtol=1e-4, atol=1e-5
    )


def test_in_autocast_it_computes_in_bf16_and_keeps_the_weights_dtype():
    torch.manual_seed(0)
    head, targets = nn.Linear(32, 50, bias=False), torch.randint(50, (64,))
    hidden = torch.randn(64, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = token_loss(hidden.bfloat16(), head, targets)
    got.backward()
    assert got.dtype == torch.float32
    assert head.weight.grad.dtype == torch.float32
    exact = torch.autograd.grad(reference(hidden, head, targets, 0.0).sum(), head.weight)[0]
    assert (head.weight.grad - exact).norm() < 0.02 * exact.norm()


def test_nothing_to_learn_is_zero():
    head, hidden = nn.Linear(4, 9), torch.randn(2, 3, 4, requires_grad=True)
    got = token_loss(hidden, head, torch.full((2, 3), -100))
    got.backward()
    assert float(got.detach()) == 0
    assert not hidden.grad.any()


def test_a_frozen_head_gets_no_gradient():
    head = nn.Linear(4, 9).requires_grad_(False)
    hidden = torch.randn(5, 4, requires_grad=True)
    token_loss(hidden, head, torch.arange(5)).backward()
    assert hidden.grad.abs().sum() > 0
    assert head.weight.grad is None
