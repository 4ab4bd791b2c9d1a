"""Vision transformer: an image is a sentence of patches, read by self-attention alone.

Papers: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv:2010.11929; the sizes Ti and S:
Touvron et al., "Training data-efficient image transformers", arXiv:2012.12877.
Published weights: timm's `vit_*_patch*_*` (query, key and value fused) and Hugging Face's
`ViTForImageClassification` (google/vit-base-patch16-224).

Departures from the paper
- No hidden layer in the head: the published networks drop it when they are fine-tuned.
- LayerNorm's eps is 1e-6, as in the paper's own code and timm; Hugging Face's files say 1e-12 in
  their config, which the card puts into `norm_eps`.
- Images of other sizes than `image_size` work, too, if whole patches cover them: the learned
  positions are then interpolated (appendix D.3 of the paper does this once, before fine-tuning).

Shapes: B images, h x w pixels, P patch side, N patches, T = 1 + N positions, D width,
F mlp width, C classes.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.errors import DataError, OptionError
from layerwise.layers.dropout import Dropout
from layerwise.layers.mlp import Mlp
from layerwise.layers.self_attention import MultiHeadAttention
from layerwise.layers.stack import stack


@dataclass(frozen=True)
class Config:
    n_classes: int = 1000
    image_size: int = 224  # side in pixels for which positions are learned
    patch_size: int = 16
    dim: int = 768
    n_layers: int = 12
    n_heads: int = 12
    mlp_dim: int = 3072
    norm_eps: float = 1e-6
    dropout: float = 0.0  # after positions, attention and mlp

    def __post_init__(self):
        if self.dim % self.n_heads:
            raise OptionError(f"dim {self.dim} is not a multiple of n_heads {self.n_heads}")
        if self.image_size % self.patch_size:
            sizes = (
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
            raise OptionError(sizes)


TINY = Config(dim=192, n_heads=3, mlp_dim=768)  # DeiT, table 1
SMALL = Config(dim=384, n_heads=6, mlp_dim=1536)  # DeiT, table 1
BASE = Config(dim=768, n_heads=12, mlp_dim=3072)  # ViT, table 1
LARGE = Config(dim=1024, n_heads=16, mlp_dim=4096, n_layers=24)  # ViT, table 1

VARIANTS = {
    "vit_tiny_patch16_224": TINY,
    "vit_small_patch16_224": SMALL,
    "vit_base_patch16_224": BASE,
    "vit_large_patch16_224": LARGE,
    "vit_small_patch32_224": replace(SMALL, patch_size=32),
    "vit_base_patch32_224": replace(BASE, patch_size=32),
    "vit_base_patch16_384": replace(BASE, image_size=384),
    # for images of 32 x 32; half the depth, and no published weights
    "vit_tiny_patch4_32": replace(TINY, n_classes=10, image_size=32, patch_size=4, n_layers=6),
}


class Embed(nn.Module):
    """Patch vectors with a class token in front, and position embeddings added to them."""

    def __init__(self, config: Config):
        super().__init__()
        P, D = config.patch_size, config.dim
        n_positions = 1 + (config.image_size // P) ** 2
        self.patch_embed = nn.Conv2d(3, D, kernel_size=P, stride=P)
        self.class_token = nn.Parameter(torch.empty(1, 1, D))
        self.pos_embed = nn.Parameter(torch.empty(1, n_positions, D))
        self.dropout = Dropout(config.dropout)

    def forward(self, images: Tensor) -> Tensor:
        h, w = images.shape[-2:]
        P = self.patch_embed.kernel_size[0]
        if h % P or w % P:
            raise DataError(
                f"images of {h} x {w} pixels do not divide into patches of {P} x {P}: "
                f"choose an image size that is a multiple of {P}"
            )
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)  # (B, N, D)
        token = self.class_token.to(patches.dtype).expand(len(images), -1, -1)  # (B, 1, D)
        x = torch.cat([token, patches], dim=1)  # (B, T, D)
        return self.dropout(x + resize_positions(self.pos_embed, h // P, w // P))


def resize_positions(pos_embed: Tensor, rows: int, columns: int) -> Tensor:
    """Positions learned on a square grid, interpolated to `rows` x `columns` patches.

    pos_embed: (1, 1 + side * side, D), the class token's first. Returns (1, 1 + rows * columns, D).
    """
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return pos_embed
    token, grid = pos_embed[:, :1].float(), pos_embed[:, 1:].float()
    grid = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, side, side)
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
    grid = grid.flatten(2).transpose(1, 2)  # (1, rows * columns, D)
    return torch.cat([token, grid], dim=1).to(pos_embed.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = MultiHeadAttention(config.dim, config.n_heads)
        self.mlp_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = Mlp(config.dim, config.mlp_dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        x = x + self.dropout(self.attn(self.attn_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class ViT(nn.Module):
    """Images (B, 3, h, w), normalised as the card says, to class scores (B, C)."""

    READS, HEADS, unit_vectors = ("image",), ("class",), False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = Embed(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layers)])
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.head = nn.Linear(config.dim, config.n_classes)
        self.apply(init_weights)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))  # (B, C)

    def features(self, image: Tensor) -> Tensor:
        """The last vector of the class token, normalised: (B, D)."""
        x = self.embed(image)  # (B, T, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return features

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it."""
        return stack(self, "embed", "blocks", "norm", "head")

    def reset_head(self, n_classes: int, kind: str = "class") -> None:
        """A fresh last layer for another set of classes; everything below keeps what it learned."""
        self.config = replace(self.config, n_classes=n_classes)
        head = nn.Linear(self.head.in_features, n_classes)
        init_weights(head)
        self.head = head.to(self.head.weight)


def init_weights(module: nn.Module) -> None:
    """Truncated normal of 0.02 for linear layers and positions, as timm; biases start at zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Embed):
        nn.init.trunc_normal_(module.pos_embed, std=0.02)
        nn.init.normal_(module.class_token, std=1e-6)


Model = ViT

_HF = "vit.encoder.layer.{}"
_NAMES = {  # ours: timm's, Hugging Face's
    "embed.class_token": ("cls_token", "vit.embeddings.cls_token"),
    "embed.pos_embed": ("pos_embed", "vit.embeddings.position_embeddings"),
    "embed.patch_embed": ("patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
    "blocks.{}.attn_norm": ("blocks.{}.norm1", f"{_HF}.layernorm_before"),
    "blocks.{}.attn.q_proj": ("blocks.{}.attn.qkv[0/3]", f"{_HF}.attention.attention.query"),
    "blocks.{}.attn.k_proj": ("blocks.{}.attn.qkv[1/3]", f"{_HF}.attention.attention.key"),
    "blocks.{}.attn.v_proj": ("blocks.{}.attn.qkv[2/3]", f"{_HF}.attention.attention.value"),
    "blocks.{}.attn.o_proj": ("blocks.{}.attn.proj", f"{_HF}.attention.output.dense"),
    "blocks.{}.mlp_norm": ("blocks.{}.norm2", f"{_HF}.layernorm_after"),
    "blocks.{}.mlp.fc1": ("blocks.{}.mlp.fc1", f"{_HF}.intermediate.dense"),
    "blocks.{}.mlp.fc2": ("blocks.{}.mlp.fc2", f"{_HF}.output.dense"),
    "norm": ("norm", "vit.layernorm"),
    "head": ("head", "classifier"),
}

PUBLISHED = {  # ours -> theirs, prefix by prefix; the rename engine reads it in both directions
    "timm": {ours: timm for ours, (timm, _) in _NAMES.items()},
    "huggingface": {ours: theirs for ours, (_, theirs) in _NAMES.items()},
}
