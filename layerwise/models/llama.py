"""Llama and its relatives: rotary positions, RMSNorm, gated mlp, shared key and value heads.

Papers: Llama 2, Touvron et al., arXiv:2307.09288; Llama 3, Grattafiori et al., arXiv:2407.21783;
Mistral 7B (sliding window), Jiang et al., arXiv:2310.06825; Qwen2 and 2.5 (biases of query, key and
value), arXiv:2407.10671 and 2412.15115; Qwen3 (norms of query and key), arXiv:2505.09388.
Published weights: Hugging Face's `LlamaForCausalLM`, `Mistral...`, `Qwen2...`, `Qwen3...`: one
naming for all.

Not here: biases elsewhere, windows in some layers only, attention dropout. No published size of
these families has them.

Shapes: B batch, T positions, S keys, D width, H heads, K key and value heads, Dh head width,
F mlp width, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Unpack

from torch import Tensor, nn

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


@dataclass(frozen=True)
class Config(RopeFields):
    vocab_size: int = 32000
    max_seq_len: int = 4096  # that it was trained for; longer texts work, too
    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int = 32
    head_dim: int = 128
    mlp_dim: int = 11008
    norm_eps: float = 1e-5
    window: int = 0  # tokens back that each one attends to, itself included; 0 for all
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    n_classes: int = 0  # scores of a head of its own; 0: one for each token of the vocabulary

    def __post_init__(self):
        n, k = self.n_heads, self.n_kv_heads
        if n % k:
            raise OptionError(f"n_heads {n} is not a multiple of n_kv_heads {k}")
        if self.head_dim % 2:
            raise OptionError(f"head_dim {self.head_dim} is odd; rotary positions rotate pairs")


SIZES = ("dim", "n_layers", "n_heads", "n_kv_heads", "mlp_dim")


def _sized(base: Config, *sizes: int, **more: object) -> Config:
    return replace(base, **dict(zip(SIZES, sizes, strict=True)), **more)


LLAMA3 = Config(vocab_size=128256, max_seq_len=8192, rope_theta=500_000.0)
LLAMA31 = replace(
    LLAMA3, max_seq_len=131072, rope_scaling="llama3", rope_factor=8.0, rope_original_len=8192
)
LLAMA32 = replace(LLAMA31, rope_factor=32.0, tied_head=True)
QWEN2 = Config(
    vocab_size=151936, max_seq_len=32768, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True
)  # the tables give the sizes; positions, eps and padded vocabulary are in the base models' configs
QWEN2_LARGE = replace(QWEN2, vocab_size=152064, max_seq_len=131072, norm_eps=1e-5)
QWEN3 = replace(QWEN2, max_seq_len=40960, qkv_bias=False, qk_norm=True)

VARIANTS = {
    # Llama 2, table 1 (sizes as in Llama, arXiv:2302.13971, table 2)
    "llama2_7b": Config(),
    "llama2_13b": _sized(Config(), 5120, 40, 40, 40, 13824),
    "llama2_70b": _sized(Config(), 8192, 80, 64, 8, 28672),
    # Llama 3, table 3
    "llama3_8b": _sized(LLAMA3, 4096, 32, 32, 8, 14336),
    "llama3_70b": _sized(LLAMA3, 8192, 80, 64, 8, 28672),
    "llama31_8b": _sized(LLAMA31, 4096, 32, 32, 8, 14336),
    "llama31_70b": _sized(LLAMA31, 8192, 80, 64, 8, 28672),
    "llama31_405b": _sized(LLAMA31, 16384, 126, 128, 8, 53248),
    # meta-llama/Llama-3.2-1B and -3B, config.json
    "llama32_1b": _sized(LLAMA32, 2048, 16, 32, 8, 8192, head_dim=64),
    "llama32_3b": _sized(LLAMA32, 3072, 28, 24, 8, 8192),
    # Mistral 7B, table 1; the third edition dropped the window (mistralai/Mistral-7B-v0.3)
    "mistral_7b": _sized(Config(), 4096, 32, 32, 8, 14336, window=4096, max_seq_len=32768),
    "mistral_7b_v3": _sized(
        Config(vocab_size=32768, rope_theta=1e6), 4096, 32, 32, 8, 14336, max_seq_len=32768
    ),
    # Qwen2.5, table 1 (0.5b, 1.5b, 7b and 72b as in Qwen2, table 1)
    "qwen25_0_5b": _sized(QWEN2, 896, 24, 14, 2, 4864, head_dim=64, tied_head=True),
    "qwen25_1_5b": _sized(QWEN2, 1536, 28, 12, 2, 8960, max_seq_len=131072, tied_head=True),
    "qwen25_3b": _sized(QWEN2, 2048, 36, 16, 2, 11008, tied_head=True),
    "qwen25_7b": _sized(QWEN2_LARGE, 3584, 28, 28, 4, 18944, norm_eps=1e-6),
    "qwen25_14b": _sized(QWEN2_LARGE, 5120, 48, 40, 8, 13824),
    "qwen25_32b": _sized(QWEN2_LARGE, 5120, 64, 40, 8, 27648),
    "qwen25_72b": _sized(QWEN2_LARGE, 8192, 80, 64, 8, 29568),
    # Qwen3, table 1
    "qwen3_0_6b": _sized(QWEN3, 1024, 28, 16, 8, 3072, tied_head=True),
    "qwen3_1_7b": _sized(QWEN3, 2048, 28, 16, 8, 6144, tied_head=True),
    "qwen3_4b": _sized(QWEN3, 2560, 36, 32, 8, 9728, tied_head=True),
    "qwen3_8b": _sized(QWEN3, 4096, 36, 32, 8, 12288),
    "qwen3_14b": _sized(QWEN3, 5120, 40, 40, 8, 17408),
    "qwen3_32b": _sized(QWEN3, 5120, 64, 64, 8, 25600),
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config):
        super().__init__()
        c = config
        norm = (lambda: RMSNorm(c.head_dim, eps=c.norm_eps)) if c.qk_norm else nn.Identity
        self.attn_norm = RMSNorm(c.dim, eps=c.norm_eps)
        self.attn = SelfAttention(c.dim, c.n_heads, c.n_kv_heads, c.head_dim, c.qkv_bias, norm)
        self.mlp_norm = RMSNorm(c.dim, eps=c.norm_eps)
        self.mlp = GatedMlp(c.dim, c.mlp_dim)

    def forward(self, x: Tensor, cos_sin: CosSin, mask: Mask, cache: LayerCache | None) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos_sin, mask, cache)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """Tokens (B, T) to scores of the next token (B, T, V)."""

    READS, HEADS, unit_vectors = ("tokens", "documents", "mask"), ("causal",), False
    BALANCES = False

    def __init__(self, config: Config):
        super().__init__()
        c = self.config = config
        self.rope = make_rope(c.head_dim, c)
        self.token_embed = nn.Embedding(c.vocab_size, c.dim)
        self.blocks = nn.ModuleList([Block(c) for _ in range(c.n_layers)])
        self.norm = RMSNorm(c.dim, eps=c.norm_eps)
        self.head = language_head(self.token_embed, c.n_classes, c.tied_head)
        normal_init(self)

    def forward(self, tokens: Tensor, **given: Unpack[Given]) -> Tensor:
        """Scores of what follows each token: (B, T, V)."""
        return self.head(self.features(tokens, **given))

    def features(self, tokens: Tensor, **given: Unpack[Given]) -> Tensor:
        """What the head sees, normalised: (B, T, D)."""
        cos_sin, cache = self.rope(positions_of(tokens, given)), given.get("cache")
        mask = attention_mask(tokens, given, self.config.window)
        x = self.token_embed(tokens)  # (B, T, D)
        for i, block in enumerate(self.blocks):
            x = block(x, cos_sin, mask, cache and cache[i])
        return self.norm(x)

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


Model = Llama

PUBLISHED = {  # ours -> theirs, prefix by prefix; the rename engine reads it in both directions
    "huggingface": {
        "token_embed": "model.embed_tokens",
        "blocks.{}.attn_norm": "model.layers.{}.input_layernorm",
        "blocks.{}.attn": "model.layers.{}.self_attn",
        "blocks.{}.mlp_norm": "model.layers.{}.post_attention_layernorm",
        "blocks.{}.mlp": "model.layers.{}.mlp",
        "norm": "model.norm",
        "head": "lm_head",
        "(drop)": "*.rotary_emb.inv_freq",
        "(copy)": "lm_head.weight=model.embed_tokens.weight",
    },
}
