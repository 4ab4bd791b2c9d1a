"""The gated mlp of today's decoders: down(activation(gate(x)) * up(x)).

Paper: Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class GatedMlp(nn.Module):
    """Each position by itself; (.., D) to (.., D), F wide inside."""

    def __init__(self, dim: int, mlp_dim: int, activation: Callable[[Tensor], Tensor] = F.silu):
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(dim, mlp_dim, bias=False)
        self.up_proj = nn.Linear(dim, mlp_dim, bias=False)
        self.down_proj = nn.Linear(mlp_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
