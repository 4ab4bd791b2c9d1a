"""Small networks whose costs a person can count, and a batch for them on the meta device."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerwise.data.examples import Batch
from layerwise.tasks.classify import Classify


class Dense(nn.Module):
    """20 -> 30 -> relu -> 30 -> 10, with `layers()` as a family has them."""

    READS, HEADS = ("table",), ("class",)

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(20, 30)
        self.fc2 = nn.Linear(30, 30)
        self.head = nn.Linear(30, 10)

    def forward(self, table: Tensor) -> Tensor:
        return self.head(self.fc2(self.fc1(table).relu()).relu())

    def layers(self) -> dict[str, nn.Module]:
        return {"fc1": self.fc1, "fc2": self.fc2, "head": self.head}


class Stack(nn.Module):
    """Convolutions with normalisation: activations weigh more than parameters."""

    READS, HEADS = ("image",), ("class",)

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        widths = [3] + [16] * depth
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))

    def layers(self) -> dict[str, nn.Module]:
        return {f"block{i}": b for i, b in enumerate(self.blocks)} | {"head": self.head}


@pytest.fixture
def dense() -> type[nn.Module]:
    return Dense


@pytest.fixture
def stack() -> type[nn.Module]:
    return Stack


@pytest.fixture
def task() -> Classify:
    return Classify([str(i) for i in range(10)])


@pytest.fixture
def example() -> Callable[..., Batch]:
    """example(20) or example(3, 16, 16): two rows of a table or of images, by default without
    values, on the meta device."""

    def make(*shape: int, rows: int = 2, device: str = "meta") -> Batch:
        tensors = {
            "table" if len(shape) == 1 else "image": torch.randn((rows, *shape), device=device),
            "targets": torch.zeros(rows, dtype=torch.int64, device=device),
        }
        return Batch(tensors, np.arange(rows))

    return make
