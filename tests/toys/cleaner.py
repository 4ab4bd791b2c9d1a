"""Toy family: a noisy picture and how noisy it is to the picture without, (B, 3, h, w)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    dim: int = 16


VARIANTS = {"cleaner": Config()}
PUBLISHED: dict[str, dict[str, str]] = {}


class Model(nn.Module):
    READS, HEADS, unit_vectors = ("image", "level"), ("picture",), False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(4, config.dim, 3, padding=1)
        self.middle = nn.Conv2d(config.dim, config.dim, 3, padding=1)
        self.head = nn.Conv2d(config.dim, 3, 3, padding=1)

    def forward(self, image: Tensor, level: Tensor) -> Tensor:
        return self.head(self.features(image, level))

    def features(self, image: Tensor, level: Tensor) -> Tensor:
        how = level[:, None, None, None].expand(-1, 1, *image.shape[2:]).to(image)
        x = torch.relu(self.stem(torch.cat([image, how], 1)))
        return torch.relu(self.middle(x))

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return features.mean((2, 3))

    def layers(self) -> dict[str, nn.Module]:
        return {"stem": self.stem, "middle": self.middle, "head": self.head}

    def reset_head(self, n_classes: int, kind: str = "picture") -> None:
        self.head = nn.Conv2d(self.config.dim, 3, 3, padding=1)
