"""The MLP of a block, applied at each position; (.., D) to (.., D), F wide inside.

Paper of the gated one: Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.layers.linear import Linear


class Mlp(nn.Module):
    """fc2(activation(fc1(x))), of GPT-2 and ViT."""

    def __init__(self, dim: int, mlp_dim: int, activation: Callable[[Tensor], Tensor] = F.gelu):
        super().__init__()
        self.activation = activation
        self.fc1 = Linear(dim, mlp_dim)
        self.fc2 = Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class GatedMlp(nn.Module):
    """down(activation(gate(x)) * up(x)), of today's decoders."""

    def __init__(self, dim: int, mlp_dim: int, activation: Callable[[Tensor], Tensor] = F.silu):
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(dim, mlp_dim, bias=False)
        self.up_proj = nn.Linear(dim, mlp_dim, bias=False)
        self.down_proj = nn.Linear(mlp_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
