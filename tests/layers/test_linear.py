"""The linear layer with its bias inside the product: as PyTorch's own, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.layers import linear as linear_file
from layerwise.layers.linear import Biased, Linear, linear
from layerwise.runtime import multiplies_in

HAS_BF16 = multiplies_in(torch.bfloat16)
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this processor does not multiply in bf16")


def pair(bias: bool = True) -> tuple[Linear, nn.Linear]:
    ours, theirs = Linear(24, 40, bias=bias), nn.Linear(24, 40, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def passed(layer: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """What the layer gives, and all gradients."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.backward(upstream)
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
def test_it_is_pytorchs_own_in_bf16(shape: tuple[int, ...]):
    ours, theirs = pair()
    x, upstream = torch.randn(*shape, 24), torch.randn(*shape, 40).bfloat16()
    found, wanted = passed(ours, x, upstream), passed(theirs, x, upstream)
    assert len(found) == len(wanted) == 4
    for ours_here, theirs_here in zip(found, wanted, strict=True):
        assert ours_here.dtype == theirs_here.dtype
        torch.testing.assert_close(ours_here, theirs_here, rtol=1e-2, atol=1e-2)


def test_gradients_of_a_turned_and_strided_upstream():
    ours, theirs = pair()
    x, upstream = torch.randn(6, 4, 24), torch.randn(40, 4, 6).bfloat16().permute(2, 1, 0)
    for a, b in zip(passed(ours, x, upstream), passed(theirs, x, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


@needs_bf16
def test_only_what_learns_in_bf16_takes_the_other_way(monkeypatch: pytest.MonkeyPatch):
    taken = []
    apply = Biased.apply
    monkeypatch.setattr(
        linear_file.Biased, "apply", lambda *args: taken.append(args[0].dtype) or apply(*args)
    )
    ours, x = Linear(24, 40), torch.randn(3, 24)
    ours(x)  # fp32
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            ours(x)
        Linear(24, 40, bias=False)(x)
        assert not taken
        ours(x)
    ours.bfloat16()(x.bfloat16())
    assert taken == [torch.bfloat16] * 2


@needs_bf16
def test_a_frozen_weight_has_no_gradient_and_passes_one_on():
    ours = Linear(24, 40).requires_grad_(False)
    x = torch.randn(3, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        linear(x, ours.weight, ours.bias).sum().backward()
    assert (ours.weight.grad, ours.bias.grad) == (None, None)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, ours.weight.sum(0).expand(3, -1), rtol=2e-2, atol=2e-2)


def test_fp32_is_exactly_pytorchs_own():
    ours, theirs = pair()
    x = torch.randn(5, 24)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours(x), F.linear(x, ours.weight, ours.bias))
