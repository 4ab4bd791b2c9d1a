"""Mixture of experts: each token's mlp is a few of many, chosen by a router.

Papers: Mixtral, Jiang et al., arXiv:2401.04088; Qwen3-MoE, arXiv:2505.09388. Balancing: Fedus et
al., "Switch Transformers", arXiv:2101.03961, equations 4 to 6, over the layers together and
counting every choice, as the published coefficients assume.
Published weights: Hugging Face's `Qwen3MoeForCausalLM` ("huggingface") and `MixtralForCausalLM`
("huggingface_mixtral"), with one matrix per expert, as the files on the hub have them.

No token is dropped and experts have no capacity limit: tokens are sorted by expert, and each expert
takes its share in one product.

Shapes: B batch, T positions, S keys, N = B * T tokens, D width, E experts, n choices per token.
"""

from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from layerwise.errors import OptionError
from layerwise.layers.cache import Cache, LayerCache
from layerwise.layers.head import language_head, normal_init, untied_head
from layerwise.layers.mask import Given, Mask, attention_mask, positions_of
from layerwise.layers.mlp import GatedMlp
from layerwise.layers.norm import RMSNorm
from layerwise.layers.pool import pool
from layerwise.layers.rope import CosSin, RopeFields, make_rope
from layerwise.layers.self_attention import SelfAttention
from layerwise.layers.stack import stack

Routed = list[Tensor] | None  # collects each layer's router scores, for `balance_loss`


@dataclass(frozen=True)
class Config(RopeFields):
    vocab_size: int = 32000
    max_seq_len: int = 32768  # that it was trained for; longer texts work, too
    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 128
    mlp_dim: int = 14336  # of one expert
    n_experts: int = 8
    n_active: int = 2  # experts per token
    norm_active: bool = True  # their weights sum to 1
    balance_weight: float = 0.02  # of `balance_loss`, beside the mean loss per token
    norm_eps: float = 1e-5
    rope_theta: float = 1e6
    window: int = 0  # tokens back that each one attends to, itself included; 0 for all
    qk_norm: bool = False
    tied_head: bool = False
    n_classes: int = 0  # scores of a head of its own; 0: one for each token of the vocabulary

    def __post_init__(self):
        n, k = self.n_heads, self.n_kv_heads
        if n % k:
            raise OptionError(f"n_heads {n} is not a multiple of n_kv_heads {k}")
        if not 1 <= self.n_active <= self.n_experts:
            raise OptionError(
                f"n_active {self.n_active} is not within 1 .. n_experts {self.n_experts}"
            )


def _qwen3(**sizes: int) -> Config:
    shared = {"vocab_size": 151936, "max_seq_len": 40960, "n_experts": 128, "n_active": 8}
    more: dict[str, Any] = {"balance_weight": 0.001, "norm_eps": 1e-6, "qk_norm": True}
    return Config(**sizes, **shared, **more, n_kv_heads=4)


VARIANTS = {
    "mixtral_8x7b": Config(),  # table 1
    "mixtral_8x22b": Config(  # mistralai/Mixtral-8x22B-v0.1, config.json
        dim=6144, n_layers=56, n_heads=48, mlp_dim=16384, max_seq_len=65536, balance_weight=0.001
    ),
    "qwen3_30b_a3b": _qwen3(dim=2048, n_layers=48, n_heads=32, mlp_dim=768),  # Qwen3, table 2
    "qwen3_235b_a22b": _qwen3(dim=4096, n_layers=94, n_heads=64, mlp_dim=1536),
}


class Moe(nn.Module):
    """Each token by itself through the experts it is routed to, weighted by the router."""

    def __init__(self, config: Config):
        super().__init__()
        self.n_active, self.norm_active = config.n_active, config.norm_active
        self.router = nn.Linear(config.dim, config.n_experts, bias=False)
        experts = [GatedMlp(config.dim, config.mlp_dim) for _ in range(config.n_experts)]
        self.experts = nn.ModuleList(experts)

    def forward(self, x: Tensor, routed: Routed = None) -> Tensor:  # (B, T, D)
        tokens = x.flatten(0, -2)  # (N, D)
        scores = self.router(tokens).float()  # (N, E)
        if routed is not None:
            routed.append(scores)
        weights, chosen = scores.softmax(-1).topk(self.n_active)  # (N, n)
        if self.norm_active:
            weights = weights / weights.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)  # (N * n,) choices, grouped by expert
        rows = order // self.n_active  # the token of each
        parts = tokens[rows].split(shares(chosen, len(self.experts)))
        pairs = zip(self.experts, parts, strict=True)
        mixed = [expert(part) for expert, part in pairs if len(part)]
        weighted = torch.cat(mixed) * weights.flatten()[order, None].to(x.dtype)
        return torch.zeros_like(tokens).index_add(0, rows, weighted.to(x.dtype)).view_as(x)


def shares(chosen: Tensor, n_experts: int) -> list[int]:
    """How many choices each expert got. Where a plan knows shapes only: as many for each."""
    if chosen.is_meta or isinstance(chosen, FakeTensor):
        some, rest = divmod(chosen.numel(), n_experts)
        return [some + (i < rest) for i in range(n_experts)]
    return chosen.flatten().bincount(minlength=n_experts).tolist()


def balance_loss(routed: list[Tensor], n_active: int, keep: Tensor | None = None) -> Tensor:
    """How unevenly the experts are used: n_active when evenly, n_experts when always the same.

    routed: the routers' scores (N, E) of each layer, as `forward` collects them. keep: (N,), what
    each token counts, such as 0 for padding.
    """
    scores = torch.cat(routed)  # (layers * N, E)
    counts = torch.ones_like(scores[:, 0]) if keep is None else keep.float().repeat(len(routed))
    share = scores.softmax(-1)
    chosen = share.topk(n_active).indices  # (layers * N, n)
    each = counts.repeat_interleave(n_active)
    used = torch.zeros_like(scores[0]).scatter_add(0, chosen.flatten(), each)
    uneven = (used * (counts[:, None] * share).sum(0)).sum()
    return scores.shape[-1] * uneven / counts.sum().clamp(min=1) ** 2


class Block(nn.Module):
    """x + attention(norm(x)), then x + experts(norm(x))."""

    def __init__(self, config: Config):
        super().__init__()
        c = config
        norm = (lambda: RMSNorm(c.head_dim, eps=c.norm_eps)) if c.qk_norm else nn.Identity
        self.attn_norm = RMSNorm(c.dim, eps=c.norm_eps)
        self.attn = SelfAttention(c.dim, c.n_heads, c.n_kv_heads, c.head_dim, norm=norm)
        self.mlp_norm = RMSNorm(c.dim, eps=c.norm_eps)
        self.moe = Moe(c)

    def forward(
        self, x: Tensor, cos_sin: CosSin, mask: Mask, cache: LayerCache | None, routed: Routed
    ) -> Tensor:  # (B, T, D)
        x = x + self.attn(self.attn_norm(x), cos_sin, mask, cache)
        return x + self.moe(self.mlp_norm(x), routed)


class MoeDecoder(nn.Module):
    """Tokens (B, T) to scores of the next token (B, T, V)."""

    READS, HEADS, unit_vectors = ("tokens", "documents", "mask"), ("causal",), False
    BALANCES = True

    def __init__(self, config: Config):
        super().__init__()
        c = self.config = config
        self.rope = make_rope(c.head_dim, c)
        self.token_embed = nn.Embedding(c.vocab_size, c.dim)
        self.blocks = nn.ModuleList([Block(c) for _ in range(c.n_layers)])
        self.norm = RMSNorm(c.dim, eps=c.norm_eps)
        self.head = language_head(self.token_embed, c.n_classes, c.tied_head)
        normal_init(self)

    def forward(self, tokens: Tensor, routed: Routed = None, **given: Unpack[Given]) -> Tensor:
        """Scores of what follows each token: (B, T, V)."""
        return self.head(self.features(tokens, routed, **given))

    def features(self, tokens: Tensor, routed: Routed = None, **given: Unpack[Given]) -> Tensor:
        """What the head sees, normalised: (B, T, D).

        routed: an empty list that collects each layer's router scores, for `balance_loss`.
        """
        cos_sin, cache = self.rope(positions_of(tokens, given)), given.get("cache")
        mask = attention_mask(tokens, given, self.config.window)
        x = self.token_embed(tokens)  # (B, T, D)
        for i, block in enumerate(self.blocks):
            x = block(x, cos_sin, mask, cache and cache[i], routed)
        return self.norm(x)

    def balance(self, routed: list[Tensor], keep: Tensor) -> Tensor:
        """What training adds to the mean loss of its tokens; see `balance_loss`."""
        return self.config.balance_weight * balance_loss(routed, self.config.n_active, keep)

    def make_cache(self, batch: int, length: int) -> Cache:
        """For `length` tokens, prompt and continuation together, of `batch` rows."""
        c = self.config
        shape = (batch, c.n_kv_heads, length, c.head_dim)
        return Cache(self.token_embed.weight, shape, [c.window] * c.n_layers)

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return pool(features, mask, normalise=False)

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it."""
        return stack(self, "token_embed", "blocks", "norm", "head")

    def reset_head(self, n_classes: int, kind: str = "causal") -> None:
        """A fresh last layer, tied to nothing; everything below keeps what it learned."""
        self.config = replace(self.config, n_classes=n_classes)
        self.head = untied_head(self.token_embed, n_classes)


Model = MoeDecoder

_LLAMA = {
    "token_embed": "model.embed_tokens",
    "blocks.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blocks.{}.attn": "model.layers.{}.self_attn",
    "blocks.{}.mlp_norm": "model.layers.{}.post_attention_layernorm",
    "norm": "model.norm",
    "head": "lm_head",
    "(drop)": "*.rotary_emb.inv_freq",
    "(copy)": "lm_head.weight=model.embed_tokens.weight",
}
_MIXTRAL = "model.layers.{}.block_sparse_moe"

PUBLISHED = {  # ours -> theirs, prefix by prefix; the rename engine reads it in both directions
    "huggingface": {
        **_LLAMA,
        "blocks.{}.moe.router": "model.layers.{}.mlp.gate",
        "blocks.{}.moe.experts": "model.layers.{}.mlp.experts",
    },
    "huggingface_mixtral": {
        **_LLAMA,
        "blocks.{}.moe.router": f"{_MIXTRAL}.gate",
        "blocks.{}.moe.experts.{}.gate_proj": f"{_MIXTRAL}.experts.{{}}.w1",
        "blocks.{}.moe.experts.{}.up_proj": f"{_MIXTRAL}.experts.{{}}.w3",
        "blocks.{}.moe.experts.{}.down_proj": f"{_MIXTRAL}.experts.{{}}.w2",
    },
}
