"""Gemma 2 and 3 (text): most layers see a window, some see everything; norms on both sides.

Papers: Gemma 2, arXiv:2408.00118 (softcaps on attention scores and outputs); Gemma 3,
arXiv:2503.19786 (norms of query and key instead; two rotary bases). What they leave out is as in
the code published with them, github.com/google/gemma_pytorch.
Published weights: Hugging Face's `Gemma2ForCausalLM` and `Gemma3ForCausalLM` ("huggingface"), and
the text part of `Gemma3ForConditionalGeneration` ("huggingface_multimodal").

The head is always the embedding, which is multiplied by sqrt(dim) on the way in; RMSNorm scales by
1 + weight.

Shapes: B batch, T positions, S keys, D width, H heads, K key and value heads, Dh head width,
F mlp width, V vocabulary.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.errors import OptionError
from layerwise.layers.cache import Cache, LayerCache
from layerwise.layers.gelu import gelu_tanh
from layerwise.layers.head import language_head, normal_init, untied_head
from layerwise.layers.mask import Given, Mask, attention_mask, positions_of
from layerwise.layers.mlp import GatedMlp
from layerwise.layers.pool import pool
from layerwise.layers.rope import CosSin, RopeFields, make_rope
from layerwise.layers.self_attention import SelfAttention
from layerwise.layers.stack import stack


@dataclass(frozen=True)
class Config:
    vocab_size: int = 256_000
    max_seq_len: int = 8192  # that it was trained for; longer texts work, too
    dim: int = 2304
    n_layers: int = 26
    n_heads: int = 8
    n_kv_heads: int = 4
    head_dim: int = 256
    mlp_dim: int = 9216
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0  # of global layers
    rope_factor: float = 1.0  # global layers' angles are divided by it
    local_rope_theta: float = 10_000.0
    window: int = 4096  # tokens back that local layers attend to, itself included
    global_every: int = 2  # the last of so many layers is global
    query_scalar: int = 256  # scores are divided by its root
    attn_softcap: float = 50.0  # 0 for none
    logit_softcap: float = 30.0
    qk_norm: bool = False
    n_classes: int = 0  # scores of a head of its own; 0: one for each token of the vocabulary

    def __post_init__(self):
        n, k = self.n_heads, self.n_kv_heads
        if n % k:
            raise OptionError(f"n_heads {n} is not a multiple of n_kv_heads {k}")
        if self.window < 1 or self.global_every < 1:
            raise OptionError("window and global_every must be at least 1")

    def is_global(self, layer: int) -> bool:
        return (layer + 1) % self.global_every == 0


GEMMA2 = Config()
NORMED = Config(attn_softcap=0.0, logit_softcap=0.0, qk_norm=True)  # instead of softcaps
GEMMA3 = replace(
    NORMED, vocab_size=262_144, max_seq_len=32_768, rope_theta=1e6, window=512, global_every=6
)
LONG = {"max_seq_len": 131_072, "window": 1024, "rope_factor": 8}
GEMMA3_LARGE = replace(GEMMA3, vocab_size=262_208, **LONG)


SIZES = ("dim", "n_layers", "n_heads", "n_kv_heads", "mlp_dim")


def _sized(base: Config, *sizes: int, **more: object) -> Config:
    return replace(base, **dict(zip(SIZES, sizes, strict=True)), **more)


VARIANTS = {
    # Gemma 2, table 1 (its mlp widths count gate and up together)
    "gemma2_2b": GEMMA2,
    "gemma2_9b": _sized(GEMMA2, 3584, 42, 16, 8, 14336),
    "gemma2_27b": _sized(GEMMA2, 4608, 46, 32, 16, 36864, head_dim=128, query_scalar=144),
    # google/gemma-3-*, config.json; the paper's table 1 has the parameters only
    "gemma3_270m": _sized(GEMMA3, 640, 18, 4, 1, 2048),
    "gemma3_1b": _sized(GEMMA3, 1152, 26, 4, 1, 6912),
    "gemma3_4b": _sized(GEMMA3_LARGE, 2560, 34, 8, 4, 10240),
    "gemma3_12b": _sized(GEMMA3_LARGE, 3840, 48, 16, 8, 15360),
    "gemma3_27b": _sized(GEMMA3_LARGE, 5376, 62, 32, 16, 21504, head_dim=128, query_scalar=168),
}


class Norm(nn.Module):
    """RMSNorm scaled by 1 + weight, in fp32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + self.weight.float()
        return F.rms_norm(x.float(), self.weight.shape, scale, self.eps).type_as(x)


class Block(nn.Module):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def __init__(self, config: Config):
        super().__init__()
        c = config
        norm = partial(Norm, c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity
        self.attn_norm = Norm(c.dim, c.norm_eps)
        sizes, scale = (c.dim, c.n_heads, c.n_kv_heads, c.head_dim), c.query_scalar**-0.5
        self.attn = SelfAttention(*sizes, norm=norm, scale=scale, softcap=c.attn_softcap)
        self.attn_post_norm = Norm(c.dim, c.norm_eps)
        self.mlp_norm = Norm(c.dim, c.norm_eps)
        self.mlp = GatedMlp(c.dim, c.mlp_dim, gelu_tanh)
        self.mlp_post_norm = Norm(c.dim, c.norm_eps)

    def forward(self, x: Tensor, cos_sin: CosSin, mask: Mask, cache: LayerCache | None) -> Tensor:
        x = x + self.attn_post_norm(self.attn(self.attn_norm(x), cos_sin, mask, cache))
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))


class Gemma(nn.Module):
    """Tokens (B, T) to scores of the next token (B, T, V)."""

    READS, HEADS, unit_vectors = ("tokens", "documents", "mask"), ("causal",), False
    BALANCES = False

    def __init__(self, config: Config):
        super().__init__()
        c = self.config = config
        self.rope = make_rope(c.head_dim, RopeFields(c.rope_theta, "linear", c.rope_factor))
        self.local_rope = make_rope(c.head_dim, RopeFields(c.local_rope_theta))
        self.token_embed = nn.Embedding(c.vocab_size, c.dim)
        self.blocks = nn.ModuleList([Block(c) for _ in range(c.n_layers)])
        self.norm = Norm(c.dim, c.norm_eps)
        self.head = language_head(self.token_embed, c.n_classes, softcap=c.logit_softcap)
        normal_init(self)

    def forward(self, tokens: Tensor, **given: Unpack[Given]) -> Tensor:
        """Scores of what follows each token: (B, T, V)."""
        return self.head(self.features(tokens, **given))

    def features(self, tokens: Tensor, **given: Unpack[Given]) -> Tensor:
        """What the head sees, normalised: (B, T, D)."""
        c, positions, cache = self.config, positions_of(tokens, given), given.get("cache")
        kinds = {}  # local and global layers: angles of their positions, and what they see
        for i in range(c.n_layers):
            if c.is_global(i) not in kinds:
                rope, window = (self.rope, 0) if c.is_global(i) else (self.local_rope, c.window)
                kinds[c.is_global(i)] = rope(positions), attention_mask(tokens, given, window, i)
        x = self.token_embed(tokens)  # (B, T, D)
        x = x * x.new_tensor(c.dim**0.5)  # rounded to the precision of x, as published
        for i, block in enumerate(self.blocks):
            x = block(x, *kinds[c.is_global(i)], cache and cache[i])
        return self.norm(x)

    def make_cache(self, batch: int, length: int) -> Cache:
        """For `length` tokens, prompt and continuation together, of `batch` rows."""
        c = self.config
        shape = (batch, c.n_kv_heads, length, c.head_dim)
        windows = [0 if c.is_global(i) else c.window for i in range(c.n_layers)]
        return Cache(self.token_embed.weight, shape, windows)

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return pool(features, mask, normalise=False)

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it."""
        return stack(self, "token_embed", "blocks", "norm", "head")

    def reset_head(self, n_classes: int, kind: str = "causal") -> None:
        """A fresh last layer, tied to nothing and without a softcap; everything below stays."""
        self.config = replace(self.config, n_classes=n_classes)
        self.head = untied_head(self.token_embed, n_classes)


Model = Gemma


def _names(model: str) -> dict[str, str]:
    layer = f"{model}.layers.{{}}"
    return {
        "token_embed": f"{model}.embed_tokens",
        "blocks.{}.attn_norm": f"{layer}.input_layernorm",
        "blocks.{}.attn": f"{layer}.self_attn",
        "blocks.{}.attn_post_norm": f"{layer}.post_attention_layernorm",
        "blocks.{}.mlp_norm": f"{layer}.pre_feedforward_layernorm",
        "blocks.{}.mlp": f"{layer}.mlp",
        "blocks.{}.mlp_post_norm": f"{layer}.post_feedforward_layernorm",
        "norm": f"{model}.norm",
    }


PUBLISHED = {  # ours -> theirs, prefix by prefix; the rename engine reads it in both directions
    "huggingface": {
        **_names("model"),
        "(copy)": "lm_head.weight=model.embed_tokens.weight",
    },
    "huggingface_multimodal": {
        **_names("language_model.model"),
        "(drop)": "vision_tower.* multi_modal_projector.*",
        "(copy)": "language_model.lm_head.weight=language_model.model.embed_tokens.weight",
    },
}
