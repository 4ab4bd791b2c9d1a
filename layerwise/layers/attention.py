"""Attention behind one function with one layout; every family calls it, none knows the kernel.

Equation: softmax(q k^T / sqrt(Dh) + mask) v, per head.
Source: Vaswani et al., "Attention Is All You Need", arXiv:1706.03762, section 3.2.1; grouped key
and value heads: Ainslie et al., arXiv:2305.13245.

Shapes: B batch, H heads, K key and value heads, T query positions, S key positions, Dh head width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.layers.dropout import dropout as drop
from layerwise.layers.linear import PLAIN, linear

MANY_ROWS = 1024  # from which one product of concatenated weights pays for concatenating them


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    softcap: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention, by the fastest exact way here.

    q: (B, H, T, Dh); k, v: (B, K, S, Dh) with H a multiple of K (query heads share key heads).
    mask: broadcast to (B, H, T, S): bool, True where attending is allowed, or float, added.
    causal: position t sees keys up to S - T + t (the last query sees all); not together with mask.
    scale: of the products, 1 / sqrt(Dh) unless given. dropout: of the weights, 0 outside training.
    softcap: scores s become softcap * tanh(s / softcap) before masking (Gemma 2); without dropout.
    Returns (B, H, T, Dh). Every query must be allowed at least one key.
    """
    assert mask is None or not causal, "a causal mask and an explicit one: combine them first"
    if softcap:
        assert not dropout, "attention with a softcap has no dropout"
        options = {"mask": mask, "causal": causal, "scale": scale, "softcap": softcap}
        return plain_attention(q, k, v, **options)
    if short_on_cpu(q, k, mask):
        if causal:
            least = 128 if q.shape[-2] < 512 else 256  # shorter products are slower
            return causal_attention(q, k, v, scale, dropout, least)
        return short_attention(q, k, v, mask, scale, dropout)
    if causal and q.shape[-2] != k.shape[-2]:
        # the fused kernels align the triangle with the first key; a cache needs the last
        mask, causal = causal_mask(q.shape[-2], k.shape[-2], q.device), False
    shared = q.shape[1] != k.shape[1]
    fused = F.scaled_dot_product_attention
    return fused(q, k, v, mask, dropout, causal, scale=scale, enable_gqa=shared)


def short_on_cpu(q: Tensor, k: Tensor, mask: Tensor | None) -> bool:
    """Whether two matrix products beat PyTorch's fused kernel here.

    Measured on two Zen 4 cores, causal, forward and backward: in bf16 by 4.7 at 64 positions, 4.0
    at 128, 1.7 at 256 and 512, 1.25 at 1,024; in fp32 by 5.3, 3.7, 1.5, 1.1 and 0.8. Above
    the limits the gain does not pay for holding the weights. A few queries alone (decoding) are a
    matter of memory bandwidth and stay with the fused kernel.
    """
    if q.device.type != "cpu" or q.shape[-2] < 16:
        return False
    if q.shape[1] != k.shape[1] and mask is not None and mask.ndim == 4 and mask.shape[1] > 1:
        return False  # a mask for each query head, and key heads that several of them share
    return q.shape[-2] * k.shape[-2] <= (512 if q.dtype == torch.bfloat16 else 256) ** 2


def short_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, dropout: float
) -> Tensor:
    """Attention by two matrix products, the scores in the precision of the inputs.

    Query heads that share a key head are stacked: one product for all of them.
    """
    B, H, T, _ = q.shape
    K, groups = k.shape[1], H // k.shape[1]
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = (q * scale).reshape(B, K, groups * T, -1) @ k.transpose(-2, -1)  # (B, K, H/K T, S)
    if mask is not None:
        bias = as_bias(mask, q.dtype) if mask.dtype == torch.bool else mask
        scores += bias.repeat(*[1] * (bias.ndim - 2), groups, 1) if groups > 1 else bias
    weights = scores.softmax(dim=-1)
    return (drop(weights, dropout) @ v).view(B, H, T, -1)


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, dropout: float, least: int
) -> Tensor:
    """`short_attention` of one half of the queries after the other, down to `least` of them.

    The first half sees fewer keys, so three quarters of the weights are computed and held.
    Measured on two Zen 4 cores in bf16: as fast at 256 positions, 1.14 times at 512, 1.22 at 1,024.
    """
    T, S = q.shape[-2], k.shape[-2]
    if 2 * least > T:
        return short_attention(q, k, v, causal_mask(T, S, q.device), scale, dropout)
    half = T // 2
    seen = S - T + half  # keys that the first half looks back on
    how = scale, dropout, least
    first = causal_attention(q[:, :, :half], k[:, :, :seen], v[:, :, :seen], *how)
    return torch.cat([first, causal_attention(q[:, :, half:], k, v, *how)], dim=2)


def as_bias(mask: Tensor, dtype: torch.dtype, hidden: float = -math.inf) -> Tensor:
    """What is added to the scores: 0 where `mask` allows attending, `hidden` elsewhere."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, hidden)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """`attention` written out, without dropout: the reference for the fused kernels.

    options: of `attention_weights`.
    """
    weights = attention_weights(q, k, **options)  # (B, H, T, S)
    return weights.to(v.dtype) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def attention_weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Tensor:
    """How much each query position reads from each key position: (B, H, T, S), rows sum to 1.

    Arguments as for `attention`. The softmax is taken in fp32, as the fused kernels do.
    """
    assert mask is None or not causal, "a causal mask and an explicit one: combine them first"
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, S, Dh)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = (q @ k.transpose(-2, -1)).float() * scale  # (B, H, T, S)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        mask = causal_mask(q.shape[-2], k.shape[-2], q.device)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1)


def causal_mask(n_queries: int, n_keys: int, device: torch.device | None = None) -> Tensor:
    """(T, S) bool: True where query t, the last of which is the last key, may see key s."""
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return ones.tril(diagonal=n_keys - n_queries)


def project(x: Tensor, *linears: nn.Linear) -> list[Tensor]:
    """Several linear layers of one input (..., D), as one matrix product where that is faster.

    The same as [linear(x) for linear in linears]; adapted, quantised and hooked layers are called.
    Measured on two cores in bf16, 2,048 rows, D = 768: 272 GFLOP/s, one by one 227.
    """
    plain = all(type(m) in PLAIN and not m._forward_hooks for m in linears)
    if not plain or x.numel() < MANY_ROWS * x.shape[-1]:
        return [linear(x) for linear in linears]
    weight = torch.cat([m.weight for m in linears])
    bias = None if linears[0].bias is None else torch.cat([m.bias for m in linears])
    return list(linear(x, weight, bias).split([m.out_features for m in linears], -1))


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, H * Dh) to (B, H, T, Dh)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, Dh) to (B, T, H * Dh)."""
    return x.transpose(1, 2).flatten(2)
