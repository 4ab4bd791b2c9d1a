"""The fused attention beside attention written out, forward and backward, in every form."""

import math

import pytest
import torch
from torch import Tensor, nn

from layerwise.layers.attention import (
    attention,
    attention_weights,
    causal_attention,
    causal_mask,
    join_heads,
    plain_attention,
    project,
    short_on_cpu,
    split_heads,
)

B, H, T, S, Dh = 2, 4, 5, 7, 8


def qkv(n_queries: int = T, n_keys: int = S, n_kv_heads: int = H) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q = torch.randn(B, H, n_queries, Dh, requires_grad=True)
    k = torch.randn(B, n_kv_heads, n_keys, Dh, requires_grad=True)
    return q, k, torch.randn(B, n_kv_heads, n_keys, Dh, requires_grad=True)


def bool_mask() -> Tensor:
    mask = torch.rand(B, 1, T, S, generator=torch.Generator().manual_seed(2)) > 0.4
    mask[..., 0] = True  # every query sees at least one key
    return mask


def documents(n: int) -> Tensor:
    """(B, 1, T, T) of packed texts: each position sees those before it in its own text."""
    own = torch.arange(n) // torch.arange(3, 3 + B)[:, None]  # (B, T)
    return ((own[:, None] == own[..., None]) & causal_mask(n, n))[:, None]


FORMS = {
    "full": {},
    "square": {"n_keys": T},
    "short": {"n_queries": 20, "n_keys": 30},
    "short, scale": {"n_queries": 20, "n_keys": 30, "scale": 0.5},
    "short, causal": {"n_queries": 20, "n_keys": 20, "causal": True},
    "short, causal with a cache": {"n_queries": 20, "n_keys": 30, "causal": True},
    "short, shared key heads": {"n_queries": 20, "n_keys": 20, "n_kv_heads": 2, "causal": True},
    "short, documents": {"n_queries": 20, "n_keys": 20, "n_kv_heads": 2, "mask": documents(20)},
    "long": {"n_queries": 260, "n_keys": 260},
    "causal": {"n_keys": T, "causal": True},
    "causal with a cache": {"causal": True},
    "causal, in halves": {"n_queries": 256, "n_keys": 256, "causal": True},
    "one new token": {"n_queries": 1, "causal": True},
    "shared key heads": {"n_kv_heads": 2},
    "one key head, causal": {"n_kv_heads": 1, "n_keys": T, "causal": True},
    "bool mask": {"mask": bool_mask()},
    "added mask": {"mask": torch.linspace(-3, 3, T * S).view(1, 1, T, S)},
    "scale": {"scale": 0.5},
}


@pytest.mark.parametrize("form", FORMS)
def test_fused_equals_plain(form: str):
    options = dict(FORMS[form])
    sizes = {k: options.pop(k) for k in ("n_queries", "n_keys", "n_kv_heads") if k in options}
    inputs = qkv(**sizes)
    fused, plain = attention(*inputs, **options), plain_attention(*inputs, **options)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(fused)
    grads = [torch.autograd.grad((y * weight).sum(), inputs) for y in (fused, plain)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_keys", [21, 33])
@pytest.mark.parametrize("n_kv_heads", [H, 2])
def test_halves_of_halves_equal_the_whole(n_keys: int, n_kv_heads: int):
    q, k, v = qkv(21, n_keys, n_kv_heads)
    found = causal_attention(q, k, v, 0.3, 0.0, least=4)  # 10 and 11 queries, then 5, 5, 5 and 6
    want = plain_attention(q, k, v, causal=True, scale=0.3)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


def rms(x: Tensor) -> float:
    return float(x.detach().double().pow(2).mean().sqrt())


@pytest.mark.parametrize("n", [4, 40, 197, 520])
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_bf16_is_as_close_as_its_precision(n: int, sharpness: float):
    q, k, v = (x.detach().bfloat16() for x in qkv(n, n))
    q = q * sharpness
    exact = plain_attention(q.double(), k.double(), v.double())
    found = attention(q, k, v)
    assert found.dtype == torch.bfloat16
    assert rms(found.double() - exact) < 0.01 * rms(exact)  # bf16 has 8 bits: 0.004


def test_the_short_way_is_taken_on_short_rows_of_a_cpu_alone():
    def chosen(n_queries: int, n_keys: int, dtype: torch.dtype, heads: int = 0) -> bool:
        q, k, _ = qkv(n_queries, n_keys, 1 if heads else H)
        mask = torch.ones(B, heads, n_queries, n_keys) if heads else None
        return short_on_cpu(q.to(dtype), k.to(dtype), mask)

    assert chosen(197, 197, torch.bfloat16)
    assert chosen(50, 50, torch.float32)
    assert not chosen(300, 300, torch.float32)
    assert not chosen(1, 64, torch.bfloat16)
    assert not chosen(600, 600, torch.bfloat16)
    assert chosen(50, 50, torch.bfloat16, heads=1)
    assert not chosen(50, 50, torch.bfloat16, heads=H)  # a mask of its own for each query head
    with torch.device("meta"):
        assert not chosen(50, 50, torch.bfloat16)


def test_weights_are_probabilities_over_what_may_be_seen():
    q, k, _ = qkv()
    weights = attention_weights(q, k, causal=True)
    assert weights.shape == (B, H, T, S)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))
    assert weights[..., ~causal_mask(T, S)].abs().max() == 0


def test_the_causal_mask_ends_with_the_last_key():
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True] * 4]


def test_dropout_drops_weights_and_keeps_the_mean():
    q, k, v = (x.detach() for x in qkv())
    torch.manual_seed(0)
    mean = torch.stack([attention(q, k, v, dropout=0.3) for _ in range(4000)]).mean(0)
    assert (mean - attention(q, k, v)).abs().max() < 10 / math.sqrt(4000)


def test_heads_split_and_join():
    x = torch.randn(B, T, H * Dh)
    heads = split_heads(x, H)
    assert heads.shape == (B, H, T, Dh)
    assert torch.equal(heads[:, 1, :, :], x[:, :, Dh : 2 * Dh])
    assert torch.equal(join_heads(heads), x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [3, 1500])
def test_one_product_for_several_linear_layers(rows: int, bias: bool):
    torch.manual_seed(0)
    linears = [nn.Linear(8, n, bias=bias) for n in (16, 4, 4)]
    x = torch.randn(1, rows, 8, requires_grad=True)
    wanted = [linear(x) for linear in linears]
    weights = [torch.randn_like(y) for y in wanted]
    inputs = [x, *(p for linear in linears for p in linear.parameters())]
    found = project(x, *linears)
    grads = [
        torch.autograd.grad(sum((y * w).sum() for y, w in zip(ys, weights, strict=True)), inputs)
        for ys in (found, wanted)
    ]
    for a, b in zip([*found, *grads[0]], [*wanted, *grads[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_hooks_of_single_layers_are_kept():
    linears, seen = [nn.Linear(8, 8) for _ in range(3)], []
    linears[1].register_forward_hook(lambda m, args, out: seen.append(out))
    project(torch.randn(1500, 8), *linears)
    assert len(seen) == 1
