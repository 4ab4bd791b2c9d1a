"""A plain convolutional network with the same choices as the family mlp, for `faults.py`."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"relu": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": F.gelu}
SCALES = {"kaiming": 2**0.5, "small": 0.14, "large": 7.0, "default": 3**-0.5}


@dataclass(frozen=True)
class PlainConfig:
    n_layers: int = 5
    dim: int = 24
    activation: str = "relu"
    init: str = "kaiming"
    norm: str = "none"
    residual: bool = False


class PlainLayer(nn.Module):
    def __init__(self, config: PlainConfig, c_in: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, config.dim, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(config.dim) if config.norm == "batch" else nn.Identity()
        self.activation = ACTIVATIONS[config.activation]
        self.residual = config.residual and stride == 1 and c_in == config.dim
        nn.init.normal_(self.conv.weight, std=SCALES[config.init] / math.sqrt(9 * c_in))
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, h, w)
        y = self.activation(self.norm(self.conv(x)))
        return x + y if self.residual else y


class PlainConv(nn.Module):
    """3 x 3 convolutions one after the other, the second and third of stride 2; no shortcuts."""

    READS, HEADS, unit_vectors = ("image",), ("class",), False

    def __init__(self, config: PlainConfig):
        super().__init__()
        self.config = config
        sizes = [(3, 1), (config.dim, 2), (config.dim, 2)] + [(config.dim, 1)] * config.n_layers
        self.blocks = nn.ModuleList(PlainLayer(config, c, s) for c, s in sizes[: config.n_layers])
        self.head = nn.Linear(config.dim, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))

    def features(self, image: Tensor) -> Tensor:
        for block in self.blocks:
            image = block(image)
        return image.mean((2, 3))

    def layers(self) -> dict[str, nn.Module]:
        return {**{f"blocks.{i}": b for i, b in enumerate(self.blocks)}, "head": self.head}
