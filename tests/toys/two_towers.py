"""Toy family: a picture (B, 3, h, w) and a text (B, T) to class scores (B, C)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

WORDS = 512  # more tokens share a row


@dataclass(frozen=True)
class Config:
    n_classes: int = 2
    dim: int = 32


VARIANTS = {"two_towers": Config()}
PUBLISHED: dict[str, dict[str, str]] = {}


class Model(nn.Module):
    READS, HEADS, unit_vectors = ("image", "tokens", "mask"), ("class",), False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.sight = nn.Conv2d(3, config.dim, 3, 2)
        self.words = nn.Embedding(WORDS, config.dim)
        self.both = nn.Linear(2 * config.dim, config.dim)
        self.head = nn.Linear(config.dim, config.n_classes)

    def forward(self, image: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.features(image, tokens, mask))

    def features(self, image: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(tokens) if mask is None else mask
        said = self.words(tokens % WORDS) * mask[..., None]
        seen = torch.relu(self.sight(image)).mean((2, 3))
        return torch.relu(self.both(torch.cat([seen, said.sum(1) / mask.sum(1, True)], 1)))

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return features

    def layers(self) -> dict[str, nn.Module]:
        return {"sight": self.sight, "words": self.words, "both": self.both, "head": self.head}

    def reset_head(self, n_classes: int, kind: str = "class") -> None:
        self.config = replace(self.config, n_classes=n_classes)
        self.head = nn.Linear(self.config.dim, n_classes)
