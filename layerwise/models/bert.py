"""BERT and its relatives: encoders that read a text in both directions; the head gives the output.

Papers: BERT: Devlin et al., arXiv:1810.04805; the small sizes: Turc et al., arXiv:1908.08962;
RoBERTa: Liu et al., arXiv:1907.11692; DistilBERT: Sanh et al., arXiv:1910.01108; MiniLM: Wang et
al., arXiv:2002.10957; sentence vectors: Reimers and Gurevych, arXiv:1908.10084.
Published weights: Hugging Face's `Bert*`, `Roberta*`, `XLMRoberta*`, `Camembert*` and `DistilBert*`
for masked words, classes, tags and spans, and the bare models of sentence-transformers.

Departures from the papers and from Hugging Face
- Padding stands at the end of a row: RoBERTa's positions count from the row's start.
- The second pre-training task (next sentence) is left out, as in RoBERTa.
- RoBERTa's classifier drops units once, after its hidden layer, not before it as well.

Shapes: B texts, T positions, D width, F mlp width, V vocabulary, C classes.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.errors import DataError, OptionError, unknown
from layerwise.layers.attention import as_bias
from layerwise.layers.dropout import Dropout
from layerwise.layers.head import TiedHead
from layerwise.layers.linear import Linear
from layerwise.layers.mask import positions_of
from layerwise.layers.pool import POOLINGS, pool
from layerwise.layers.self_attention import MultiHeadAttention
from layerwise.layers.stack import stack

STYLES = ("bert", "roberta", "distilbert")  # whose heads and names
HEADS = ("masked", "class", "tag", "span", "embed", "pooled")
HIDDEN = -1e30  # added to the scores of padding; finite, so that an empty row stays finite too


@dataclass(frozen=True)
class Config:
    """head_kind: scores of each word at each position ("masked", (B, T, V)), of classes for the
    text ("class", (B, C)) or each position ("tag", (B, T, C)), of a span's start and end ("span",
    (B, T, 2)), or one vector for the text ("embed", (B, D)), pooled and normalised as it says;
    "pooled" are scores of classes (B, C) from that vector, where "class" reads the first position.
    """

    n_classes: int = 2
    dim: int = 768
    n_layers: int = 12
    n_heads: int = 12
    mlp_dim: int = 3072
    vocab_size: int = 30522
    max_seq_len: int = 512
    n_token_types: int = 2  # 0 for DistilBERT
    norm_eps: float = 1e-12
    style: str = "bert"
    head_kind: str = "masked"
    pooling: str = "mean"
    normalise: bool = True
    dropout: float = 0.1  # after the embeddings, attention and mlp
    attn_dropout: float = 0.1  # of the attention weights
    head_dropout: float = 0.1  # before the last layer for classes and tags

    def __post_init__(self):
        if self.dim % self.n_heads:
            raise OptionError(f"dim {self.dim} is not a multiple of n_heads {self.n_heads}")
        for what, known in (("style", STYLES), ("head_kind", HEADS), ("pooling", POOLINGS)):
            if getattr(self, what) not in known:
                raise unknown(what, getattr(self, what), known)

    @property
    def first_position(self) -> int:
        """RoBERTa counts from 2: its first two rows are for padding and stay unused."""
        return 2 if self.style == "roberta" else 0


BASE = Config()  # BERT, section 3
LARGE = Config(dim=1024, n_layers=24, n_heads=16, mlp_dim=4096)  # BERT, section 3
ROBERTA = Config(vocab_size=50265, n_token_types=1, norm_eps=1e-5, style="roberta")
DISTIL = Config(n_layers=6, n_token_types=0, style="distilbert", head_dropout=0.2)  # section 2
MINILM = Config(dim=384, n_layers=12, mlp_dim=1536)  # MiniLM, table 3

VARIANTS = {
    # Turc et al., table 1
    "bert-tiny": Config(dim=128, n_layers=2, n_heads=2, mlp_dim=512),
    "bert-mini": Config(dim=256, n_layers=4, n_heads=4, mlp_dim=1024),
    "bert-small": Config(dim=512, n_layers=4, n_heads=8, mlp_dim=2048),
    "bert-medium": Config(dim=512, n_layers=8, n_heads=8, mlp_dim=2048),
    # vocabularies: google-research/bert's README
    "bert-base-uncased": BASE,
    "bert-base-cased": replace(BASE, vocab_size=28996),
    "bert-base-multilingual-cased": replace(BASE, vocab_size=119547),
    "bert-large-uncased": LARGE,
    "bert-large-cased": replace(LARGE, vocab_size=28996),
    "roberta-base": ROBERTA,  # RoBERTa, table 9
    "roberta-large": replace(ROBERTA, dim=1024, n_layers=24, n_heads=16, mlp_dim=4096),
    "distilroberta-base": replace(ROBERTA, n_layers=6),
    "distilbert-base-uncased": DISTIL,
    "distilbert-base-cased": replace(DISTIL, vocab_size=28996),
    # the cards of sentence-transformers/all-MiniLM-L6-v2 and -L12-v2
    "minilm-l6": replace(MINILM, n_layers=6, head_kind="embed"),
    "minilm-l12": replace(MINILM, head_kind="embed"),
}


class Embed(nn.Module):
    """Embeddings of tokens, positions and token types (texts of a pair), summed and normalised."""

    def __init__(self, config: Config):
        super().__init__()
        D = config.dim
        self.first = config.first_position
        self.token_embed = nn.Embedding(config.vocab_size, D)
        self.pos_embed = nn.Embedding(config.max_seq_len + self.first, D)
        self.type_embed = nn.Embedding(config.n_token_types, D) if config.n_token_types else None
        self.norm = nn.LayerNorm(D, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, tokens: Tensor, token_types: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """tokens, token_types, positions: (B, T) whole numbers. Returns (B, T, D)."""
        place = self.places(tokens.shape[1], positions)  # (T, D) or (B, T, D)
        if self.type_embed is None:
            if token_types is not None:
                raise DataError("this network has no token types: leave token_types out")
        elif token_types is None:
            place = place + self.type_embed.weight[0]
        else:
            place = place + self.type_embed(token_types)
        return self.dropout(self.norm(self.token_embed(tokens) + place))

    def places(self, n_tokens: int, positions: Tensor | None) -> Tensor:
        if positions is not None:
            return self.pos_embed(positions + self.first)
        longest = self.pos_embed.num_embeddings - self.first
        if n_tokens > longest:
            raise DataError(
                f"a text of {n_tokens} tokens; this network reads at most {longest}: cut the texts "
                f"(max_length={longest}) or split them"
            )
        return self.pos_embed.weight[self.first : self.first + n_tokens]


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + fc2(gelu(fc1(x)))): post-norm."""

    def __init__(self, config: Config):
        super().__init__()
        self.attn = MultiHeadAttention(config.dim, config.n_heads, config.attn_dropout)
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.fc1 = Linear(config.dim, config.mlp_dim)
        self.fc2 = Linear(config.mlp_dim, config.dim)
        self.mlp_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:  # (B, T, D)
        x = self.attn_norm(x + self.dropout(self.attn(x, (bias, False))))
        inner = self.fc2(F.gelu(self.fc1(x)))  # (B, T, F) inside
        return self.mlp_norm(x + self.dropout(inner))


# ---- heads -------------------------------------------------------------------------------------
class Transform(nn.Module):
    """Before the scores of words: norm(gelu(fc(x))) at each position."""

    def __init__(self, config: Config):
        super().__init__()
        self.fc = nn.Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.fc(x)))


class First(nn.Module):
    """Before the scores of classes: a hidden layer on the first position, (B, T, D) to (B, D)."""

    def __init__(self, config: Config):
        super().__init__()
        self.fc = nn.Linear(config.dim, config.dim)
        self.activation = F.relu if config.style == "distilbert" else torch.tanh
        self.dropout = Dropout(config.head_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.activation(self.fc(x[:, 0])))


def make_head(config: Config, words: nn.Embedding) -> tuple[nn.Module, nn.Module]:
    """What stands before the last layer, and the last layer."""
    kind = config.head_kind
    if kind == "masked":
        head = TiedHead(words)
        head.bias = nn.Parameter(torch.zeros(config.vocab_size))
        return Transform(config), head
    if kind == "embed":
        return nn.Identity(), nn.Identity()  # pooled by `score`
    drop = Dropout(config.head_dropout if kind in ("tag", "pooled") else 0.0)
    before = First(config) if kind == "class" else drop
    return before, nn.Linear(config.dim, 2 if kind == "span" else config.n_classes)


class Bert(nn.Module):
    """Texts as token numbers (B, T) to what `config.head_kind` says.

    mask: bool, True for tokens, False for padding, (B, T); or (B, 1, T, T) saying which position
    may attend to which (then without pooling). None where no row is padded: fastest.
    places: `token_types` (B, T), 1 in the second text of a pair; `positions` (B, T), where they are
    not 0, 1, 2 ...; or `documents` (B, T), equal where two tokens of a packed row belong together:
    each document is then encoded as if it were alone in its row. Without `mask` and pooling.
    """

    READS, HEADS = ("tokens", "mask", "token_types", "documents"), HEADS

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = Embed(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layers)])
        self.transform, self.head = make_head(config, self.embed.token_embed)
        self.apply(init_weights)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, **places: Tensor) -> Tensor:
        return self.score(self.features(tokens, mask, **places), mask)

    def features(self, tokens: Tensor, mask: Tensor | None = None, **places: Tensor) -> Tensor:
        """A vector for each position, normalised: (B, T, D)."""
        documents = places.pop("documents", None)
        if documents is not None:
            mask = documents[:, None, :, None] == documents[:, None, None, :]  # (B, 1, T, T)
            places["positions"] = positions_of(tokens, {"documents": documents})
        x = self.embed(tokens, **places)
        if mask is not None:
            mask = as_bias(mask if mask.ndim > 2 else mask[:, None, None], x.dtype, HIDDEN)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def score(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """The head on features (B, T, D); for masked words also on chosen positions (N, D)."""
        if self.config.head_kind in ("embed", "pooled"):
            features = self.pooled(features, mask)
        return self.head(self.transform(features))

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """One vector (B, D) for each text as the config says, whatever the head is."""
        return pool(features, mask, self.config.pooling, self.config.normalise)

    @property
    def unit_vectors(self) -> bool:
        return self.config.normalise

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it."""
        return stack(self, "embed", "blocks", "transform", "head")

    def reset_head(self, n_classes: int, kind: str | None = None) -> None:
        """A fresh head for other classes or of another kind; all below keeps what it learned.

        kind: by default the present one, or "class" for a network that has no classes.
        """
        now, classes = self.config.head_kind, ("class", "tag", "pooled")
        kind = kind or (now if now in classes else "class")
        n_classes = self.config.n_classes if kind == "masked" else n_classes
        self.config = replace(self.config, n_classes=n_classes, head_kind=kind)
        like = self.embed.token_embed.weight
        parts = make_head(self.config, self.embed.token_embed)
        fresh = (part.apply(init_weights).to(like).train(self.training) for part in parts)
        self.transform, self.head = fresh


def init_weights(module: nn.Module) -> None:
    """Normal of 0.02 for linear layers and embeddings, as BERT (A.2); biases start at zero."""
    if isinstance(module, TiedHead):
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


Model = Bert


# ---- published names ---------------------------------------------------------------------------
# ours -> theirs, prefix by prefix; the rename engine reads it in both directions
_EMBED = {
    "embed.token_embed": "embeddings.word_embeddings",
    "embed.pos_embed": "embeddings.position_embeddings",
    "embed.type_embed": "embeddings.token_type_embeddings",
    "embed.norm": "embeddings.LayerNorm",
}
_BLOCK = {  # in a block: BERT's and RoBERTa's, DistilBERT's
    "attn.q_proj": ("attention.self.query", "attention.q_lin"),
    "attn.k_proj": ("attention.self.key", "attention.k_lin"),
    "attn.v_proj": ("attention.self.value", "attention.v_lin"),
    "attn.o_proj": ("attention.output.dense", "attention.out_lin"),
    "attn_norm": ("attention.output.LayerNorm", "sa_layer_norm"),
    "fc1": ("intermediate.dense", "ffn.lin1"),
    "fc2": ("output.dense", "ffn.lin2"),
    "mlp_norm": ("output.LayerNorm", "output_layer_norm"),
}
_WORDS = ("transform.fc", "transform.norm", "head")
_MASKED = {
    "bert": [f"cls.predictions{part}" for part in (".transform.dense", ".transform.LayerNorm", "")],
    "roberta": ["lm_head.dense", "lm_head.layer_norm", "lm_head"],
    "distilbert": ["vocab_transform", "vocab_layer_norm", "vocab_projector"],
}
_CLASS = {
    "bert": {"transform.fc": "bert.pooler.dense", "head": "classifier"},
    "roberta": {"transform.fc": "classifier.dense", "head": "classifier.out_proj"},
    "distilbert": {"transform.fc": "pre_classifier", "head": "classifier"},
}
# the decoder that is the embedding again, the second pre-training task
_UNUSED = (
    "*position_ids cls.seq_relationship.* cls.predictions.decoder.* lm_head.decoder.* "
    "vocab_projector.weight"
)


def _rules(style: str, kind: str) -> dict[str, str]:
    """One table of names; that for "embed" has no model's name in front."""
    front, distil = "" if kind == "embed" else f"{style}.", style == "distilbert"
    stack = "transformer" if distil else "encoder"
    body = _EMBED | {f"blocks.{{}}.{n}": f"{stack}.layer.{{}}.{_BLOCK[n][distil]}" for n in _BLOCK}
    words = dict(zip(_WORDS, _MASKED[style], strict=True))
    heads = {"masked": words, "class": _CLASS[style], "span": {"head": "qa_outputs"}, "embed": {}}
    unused = "cls.* lm_head.* vocab_*" if kind == "embed" else ""
    unused += "" if (style, kind) == ("bert", "class") else f" {front}pooler.*"
    parts = ("embeddings", stack, "pooler")
    old = [f"{part}.={front}{part}." for part in parts] if front else [f"{style}.="]
    return {
        **{ours: front + theirs for ours, theirs in body.items()},
        **heads.get(kind, {"head": "classifier"}),
        "(drop)": f"{_UNUSED} {unused}",
        "(alias)": " ".join([".gamma=.weight .beta=.bias", *old]),
    }


PUBLISHED = {f"{style}-{kind}": _rules(style, kind) for style in STYLES for kind in HEADS}
