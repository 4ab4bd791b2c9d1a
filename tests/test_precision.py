"""The choice of the fp32 matrix product: only where it is exact, and undone where it is not."""

import platform

import pytest
import torch
import torch.nn.functional as F

from layerwise.runtime import precision as linear


@pytest.fixture(autouse=True)
def _switch_comes_back(monkeypatch):
    monkeypatch.delenv("LAYERWISE_FP32_MATMUL", raising=False)
    before = torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.fixture
def amd(monkeypatch):
    """As on a processor the switch is for, whatever this machine is."""
    monkeypatch.setattr(linear, "why_not", lambda: None)


def switch() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


def test_the_choice_is_exact_on_this_machine():
    said = linear.choose_fp32_matmul()
    torch.manual_seed(0)
    x, weight = torch.randn(70, 300, requires_grad=True), torch.randn(90, 300, requires_grad=True)
    y = F.linear(x, weight)
    upstream = torch.randn(70, 90)
    gradients = torch.autograd.grad(y, (x, weight), upstream)
    exact = x.double() @ weight.double().T
    wanted = (upstream.double() @ weight.double(), upstream.double().T @ x.double())
    pairs = zip((y, *gradients), (exact, *wanted), strict=True)
    for ours, theirs in pairs:
        assert float((ours.detach() - theirs.detach()).norm() / theirs.detach().norm()) < 1e-6
    assert ("oneDNN, exact" in said) == (switch() == "bf16")


def test_an_inexact_product_is_not_used(amd, monkeypatch):
    before = switch()
    monkeypatch.setattr(linear, "largest_error", lambda: 3e-3)
    assert "3e-03 is not that of fp32" in linear.choose_fp32_matmul()
    assert switch() == before


def test_the_check_sees_bf16_inside(monkeypatch):
    honest = linear.products

    def rounded(inputs, weight, bias, upstream):
        if inputs.dtype == torch.float64:
            return honest(inputs, weight, bias, upstream)
        halves = (t.bfloat16() for t in (inputs, weight, bias, upstream))
        return [t.float() for t in honest(*halves)]

    monkeypatch.setattr(linear, "products", rounded)
    assert linear.largest_error() > 1e-3


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_the_check_sees_what_is_not_finite(monkeypatch, broken):
    honest = linear.products
    monkeypatch.setattr(
        linear,
        "products",
        lambda *t: [p * broken for p in honest(*t)] if t[0].dtype == torch.float32 else honest(*t),
    )
    assert linear.largest_error() == float("inf")


@pytest.mark.parametrize("layout", range(4))
def test_the_check_covers_every_layout(monkeypatch, layout):
    honest = linear.products

    def spoiled(*tensors):
        out = honest(*tensors)
        if tensors[0].dtype == torch.float32:
            out[layout] = out[layout] * 1.001
        return out

    monkeypatch.setattr(linear, "products", spoiled)
    assert linear.largest_error() > linear.TOLERANCE


def test_autocast_around_it_does_not_spoil_the_check():
    with torch.autocast("cpu", torch.bfloat16):
        assert linear.largest_error() < linear.TOLERANCE


def test_processors_it_is_not_for(monkeypatch):
    monkeypatch.setattr(linear, "vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    before = switch()
    assert "AMX" in linear.choose_fp32_matmul()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert linear.why_not() is None
    monkeypatch.setattr(linear, "vendor", lambda: "GenuineIntel")
    assert linear.choose_fp32_matmul() == ""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert linear.choose_fp32_matmul() == ""
    assert switch() == before


def test_it_can_be_left_as_it_is(amd, monkeypatch):
    monkeypatch.setenv("LAYERWISE_FP32_MATMUL", "default")
    before = switch()
    assert "as asked" in linear.choose_fp32_matmul()
    assert switch() == before
