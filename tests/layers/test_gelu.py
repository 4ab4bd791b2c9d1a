"""GELU with its own derivative, against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from layerwise.layers import gelu
from layerwise.layers.gelu import gelu_tanh


def exact(x, up):
    x = x.detach().double().requires_grad_()
    y = F.gelu(x, approximate="tanh")
    y.backward(up.double())
    return y.detach(), x.grad


@pytest.fixture(params=[7, gelu.AT_ONCE], ids=["many parts", "one part"], autouse=True)
def at_once(request, monkeypatch):
    monkeypatch.setattr(gelu, "AT_ONCE", request.param)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 4e-3)]
)
def test_value_and_derivative(dtype, error):
    torch.manual_seed(0)
    x = torch.cat([3 * torch.randn(400), torch.tensor([0.0, 60, -60, 1e4, -1e4])]).to(dtype)
    x, up = x.view(81, 5).T.detach().requires_grad_(), torch.randn(5, 81).to(dtype)
    y = gelu_tanh(x)
    assert type(y.grad_fn).__name__.startswith("GeluTanh")
    y.backward(up)
    want, wanted = exact(x, up)
    assert (y.dtype, x.grad.dtype) == (dtype, dtype)
    for found, right in ((y.detach(), want), (x.grad, wanted)):
        torch.testing.assert_close(found.double(), right, rtol=error, atol=error)


def test_without_gradients_it_is_torchs():
    x = torch.randn(30, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(gelu_tanh(x), F.gelu(x, approximate="tanh"))
