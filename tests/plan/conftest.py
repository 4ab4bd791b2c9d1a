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

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(20, 30)
        self.fc2 = nn.Linear(30, 30)
        self.head = nn.Linear(30, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc2(self.fc1(x).relu()).relu())

    def layers(self) -> dict[str, nn.Module]:
        return {"fc1": self.fc1, "fc2": self.fc2, "head": self.head}


class Stack(nn.Module):
    """Convolutions with normalisation: activations weigh more than parameters."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        widths = [3] + [16] * depth
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
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
    """example(20) or example(3, 16, 16): two rows of that shape on the meta device."""

    def make(*shape: int, rows: int = 2) -> Batch:
        tensors = {
            "inputs": torch.zeros((rows, *shape), device="meta"),
            "targets": torch.zeros(rows, dtype=torch.int64, device="meta"),
        }
        return Batch(tensors, np.arange(rows))

    return make
