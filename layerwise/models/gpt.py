"""GPT-2: a stack of decoder blocks with learned positions.

Paper: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (no arXiv);
what it leaves out is as in the code published with it, github.com/openai/gpt-2.
Published weights: `openai-community/gpt2` and its larger sizes, whose matrices lie transposed (in,
out), with query, key and value side by side in one of them.

Departures
- Dropout, 0.1 everywhere in the paper's training, is 0 unless asked for.
- Positions start at 0.02 like everything else (as in Hugging Face), not at the code's 0.01.

Shapes: B batch, T positions, S keys, D width, F mlp width, V vocabulary.
"""

import math
from dataclasses import dataclass, replace
from typing import Unpack

from torch import Tensor, nn

from layerwise.errors import DataError, OptionError
from layerwise.layers.cache import Cache, LayerCache
from layerwise.layers.dropout import Dropout
from layerwise.layers.gelu import gelu_tanh
from layerwise.layers.head import language_head, untied_head
from layerwise.layers.mask import Given, Mask, attention_mask, positions_of
from layerwise.layers.mlp import Mlp
from layerwise.layers.pool import pool
from layerwise.layers.self_attention import MultiHeadAttention
from layerwise.layers.stack import stack


@dataclass(frozen=True)
class Config:
    vocab_size: int = 50257
    max_seq_len: int = 1024  # positions that are learned
    dim: int = 768
    n_layers: int = 12
    n_heads: int = 12
    mlp_dim: int = 3072
    norm_eps: float = 1e-5
    dropout: float = 0.0  # of what attention and mlp add to the stream
    embed_dropout: float = 0.0
    attn_dropout: float = 0.0  # of the attention weights
    n_classes: int = 0  # scores of a head of its own; 0: one for each token of the vocabulary

    def __post_init__(self):
        if self.dim % self.n_heads:
            raise OptionError(f"dim {self.dim} is not a multiple of n_heads {self.n_heads}")


VARIANTS = {  # table 2 of the paper; the heads are in the published code
    "gpt2": Config(),
    "gpt2_medium": Config(dim=1024, n_layers=24, n_heads=16, mlp_dim=4096),
    "gpt2_large": Config(dim=1280, n_layers=36, n_heads=20, mlp_dim=5120),
    "gpt2_xl": Config(dim=1600, n_layers=48, n_heads=25, mlp_dim=6400),
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = MultiHeadAttention(config.dim, config.n_heads, config.attn_dropout)
        self.mlp_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = Mlp(config.dim, config.mlp_dim, gelu_tanh)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Mask, cache: LayerCache | None) -> Tensor:  # (B, T, D)
        x = x + self.dropout(self.attn(self.attn_norm(x), mask, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    """Tokens (B, T) to scores of the next token (B, T, V)."""

    READS, HEADS, unit_vectors = ("tokens", "documents", "mask"), ("causal",), False
    BALANCES = False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.token_embed = nn.Embedding(config.vocab_size, config.dim)
        self.pos_embed = nn.Embedding(config.max_seq_len, config.dim)
        self.dropout = Dropout(config.embed_dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layers)])
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.head = language_head(self.token_embed, config.n_classes)
        init_weights(self)

    def forward(self, tokens: Tensor, **given: Unpack[Given]) -> Tensor:
        """Scores of what follows each token: (B, T, V)."""
        return self.head(self.features(tokens, **given))

    def features(self, tokens: Tensor, **given: Unpack[Given]) -> Tensor:
        """What the head sees, normalised: (B, T, D)."""
        cache, positions = given.get("cache"), positions_of(tokens, given)
        n, most = tokens.shape[1] + (cache.n_seen if cache else 0), self.config.max_seq_len
        if n > most:
            raise DataError(f"a text of {n} tokens; this model has positions for {most}: cut it")
        mask = attention_mask(tokens, given)
        x = self.dropout(self.token_embed(tokens) + self.pos_embed(positions))  # (B, T, D)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, cache and cache[i])
        return self.norm(x)

    def make_cache(self, batch: int, length: int) -> Cache:
        """For `length` tokens, prompt and continuation together, of `batch` rows."""
        c = self.config
        shape = (batch, c.n_heads, length, c.dim // c.n_heads)
        return Cache(self.token_embed.weight, shape, [0] * c.n_layers)

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return pool(features, mask, normalise=False)

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it."""
        return stack(self, "token_embed", "pos_embed", "blocks", "norm", "head")

    def reset_head(self, n_classes: int, kind: str = "causal") -> None:
        """A fresh last layer, no longer tied to the embedding; everything below stays."""
        self.config = replace(self.config, n_classes=n_classes)
        self.head = untied_head(self.token_embed, n_classes)


def init_weights(network: GPT) -> None:
    """Normal of 0.02; of what adds to the stream, 1 / sqrt(number of additions) of that (2.3)."""
    less = 1 / math.sqrt(2 * network.config.n_layers)
    for name, parameter in network.named_parameters():
        if name.endswith(("o_proj.weight", "fc2.weight")):
            nn.init.normal_(parameter, std=0.02 * less)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


Model = GPT

_HF, QKV = "transformer.h.{}", ((0, "q"), (1, "k"), (2, "v"))

PUBLISHED = {  # ours -> theirs, prefix by prefix; the rename engine reads it in both directions
    "huggingface": {
        "token_embed": "transformer.wte",
        "pos_embed": "transformer.wpe",
        "blocks.{}.attn_norm": f"{_HF}.ln_1",
        **{
            f"blocks.{{}}.attn.{p}_proj": f"{_HF}.attn.c_attn[:, {i}/3] | transpose" for i, p in QKV
        },
        "blocks.{}.attn.o_proj": f"{_HF}.attn.c_proj | transpose",
        "blocks.{}.mlp_norm": f"{_HF}.ln_2",
        "blocks.{}.mlp.fc1": f"{_HF}.mlp.c_fc | transpose",
        "blocks.{}.mlp.fc2": f"{_HF}.mlp.c_proj | transpose",
        "norm": "transformer.ln_f",
        # OpenAI's own sizes on the hub have no "transformer." in front
        "(alias)": "wte.=transformer.wte. wpe.=transformer.wpe. h.=transformer.h. "
        "ln_f.=transformer.ln_f.",
        "(drop)": "*.attn.bias *.attn.masked_bias",  # the causal triangle
        "(copy)": "lm_head.weight=transformer.wte.weight",
    },
}
