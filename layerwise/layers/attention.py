"""Attention behind one function with one layout; every family calls it, none knows the kernel.

Equation: softmax(q k^T / sqrt(Dh) + mask) v, per head.
Source: Vaswani et al., "Attention Is All You Need", arXiv:1706.03762, section 3.2.1; grouped key
and value heads: Ainslie et al., arXiv:2305.13245.

Shapes: B batch, H heads, K key and value heads, T query positions, S key positions, Dh head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """What each query position reads from the key positions it may see, by the fastest exact way.

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
        return plain_attention(q, k, v, mask, causal, scale, softcap)
    if not causal and short_on_cpu(q, k):
        return short_attention(q, k, v, mask, scale, dropout)
    if causal and q.shape[-2] != k.shape[-2]:
        # the fused kernels align the triangle with the first key; a cache needs the last
        mask, causal = causal_mask(q.shape[-2], k.shape[-2], q.device), False
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )  # (B, H, T, Dh)


def short_on_cpu(q: Tensor, k: Tensor) -> bool:
    """Whether two matrix products beat PyTorch's fused kernel here.

    Measured on two Zen 5 cores, forward and backward: in bf16 by 8 at 65 positions, 2.8 at 197, 2.1
    at 256; in fp32 by 5 at 50 positions, not any more at 65. A few queries alone (decoding) are a
    matter of memory bandwidth and stay with the fused kernel.
    """
    if q.device.type != "cpu" or q.shape[1] != k.shape[1] or q.shape[-2] < 16:
        return False
    return q.shape[-2] * k.shape[-2] <= (256 if q.dtype == torch.bfloat16 else 64) ** 2


def short_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention by two matrix products, the scores in the precision of the inputs."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = (q * scale) @ k.transpose(-2, -1)  # (B, H, T, S)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask.to(scores.dtype)
    weights = scores.softmax(dim=-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ v  # (B, H, T, Dh)


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Tensor:
    """`attention` written out, without dropout: the reference for the fused kernels."""
    weights = attention_weights(q, k, mask, causal, scale, softcap)  # (B, H, T, S)
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


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, H * Dh) to (B, H, T, Dh)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, Dh) to (B, T, H * Dh)."""
    return x.transpose(1, 2).flatten(2)
