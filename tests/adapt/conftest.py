import pytest
import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.conv = nn.Conv2d(dim, dim, 1)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(self.norm(x))
        y = self.fc2(self.dropout(self.fc1(x.movedim(1, -1)).relu()))
        return x + y.movedim(-1, 1)


class Tower(nn.Module):
    """Stem, three blocks, head; a position embedding outside of all layers."""

    def __init__(self, dim: int = 8, n_classes: int = 3):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, 4, 4))
        self.stem = nn.Conv2d(3, dim, 3, padding=1)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(3))
        self.head = nn.Linear(dim, n_classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def layers(self) -> dict[str, nn.Module]:
        blocks = {f"blocks.{i}": block for i, block in enumerate(self.blocks)}
        return {"stem": self.stem, **blocks, "head": self.head}


@pytest.fixture
def network() -> Tower:
    """A small network with everything that freezing and grouping must handle."""
    torch.manual_seed(0)
    return Tower()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
