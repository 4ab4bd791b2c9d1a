"""Self-attention with its projections: of GPT-2, BERT and ViT, and of today's decoders.

Shapes: B batch, T positions, D width, H heads, K key and value heads, Dh head width.
"""

from collections.abc import Callable

from torch import Tensor, nn

from layerwise.layers.attention import attention, join_heads, project, split_heads
from layerwise.layers.cache import LayerCache
from layerwise.layers.linear import Linear
from layerwise.layers.mask import Mask
from layerwise.layers.rope import CosSin, rotate


class MultiHeadAttention(nn.Module):
    """Of GPT-2, BERT and ViT: each position reads from all, or from those that `mask` allows.

    Every projection has a bias. dropout: of the attention weights, in training.
    """

    def __init__(self, dim: int, n_heads: int, dropout: float = 0.0):
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        projections = (Linear(dim, dim) for _ in range(4))
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = projections

    def forward(
        self, x: Tensor, mask: Mask = (None, False), cache: LayerCache | None = None
    ) -> Tensor:  # (B, T, D)
        projected = project(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (split_heads(y, self.n_heads) for y in projected)  # (B, H, T, Dh)
        if cache is not None:
            k, v = cache.update(k, v)  # (B, H, S, Dh)
        dropout = self.dropout if self.training else 0.0
        return self.o_proj(join_heads(attention(q, k, v, *mask, dropout=dropout)))


class SelfAttention(nn.Module):
    """Of today's decoders: rotary positions, key heads shared by query heads.

    `cos_sin`, `mask` and `cache` come from the model.

    bias: of query, key and value. norm: makes the norm of each head's query and key, (.., Dh).
    scale, softcap: of the scores, see `attention`.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        bias: bool = False,
        norm: Callable[[], nn.Module] = nn.Identity,
        scale: float | None = None,
        softcap: float = 0.0,
    ):
        super().__init__()
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.scale, self.softcap = scale, softcap
        self.q_proj = nn.Linear(dim, n_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, n_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, n_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(n_heads * head_dim, dim, bias=False)
        self.q_norm, self.k_norm = norm(), norm()

    def forward(
        self, x: Tensor, cos_sin: CosSin, mask: Mask, cache: LayerCache | None = None
    ) -> Tensor:  # (B, T, D)
        q, k, v = project(x, self.q_proj, self.k_proj, self.v_proj)
        q = rotate(self.q_norm(split_heads(q, self.n_heads)), cos_sin)  # (B, H, T, Dh)
        k = rotate(self.k_norm(split_heads(k, self.n_kv_heads)), cos_sin)
        v = split_heads(v, self.n_kv_heads)  # (B, K, T, Dh)
        if cache is not None:
            k, v = cache.update(k, v)
        mixed = attention(q, k, v, *mask, scale=self.scale, softcap=self.softcap)
        return self.o_proj(join_heads(mixed))
