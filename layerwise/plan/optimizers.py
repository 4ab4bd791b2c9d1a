"""Optimisers by name, for rehearsals and measurements: the state and the arithmetic of the real.

adamw keeps two numbers per trainable parameter, sgd with momentum one, muon one per matrix (and
flattened convolution filter) and adamw's two for everything else.
Muon: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz

from layerwise.errors import unknown

NAMES = ("adamw", "sgd", "muon")
_NEWTON_SCHULZ = ((3.4445, -4.775, 2.0315), 5, 1e-7)  # coefficients, steps, eps, as published


def make_optimizer(
    optimizer: str | Callable[[nn.Module], torch.optim.Optimizer], network: nn.Module
) -> torch.optim.Optimizer:
    """The optimiser of the network's trainable parameters, by name or by a function of it."""
    if callable(optimizer):
        return optimizer(network)
    params = [p for p in network.parameters() if p.requires_grad]
    if optimizer == "adamw":
        return torch.optim.AdamW(params, fused=True)
    if optimizer == "sgd":
        return torch.optim.SGD(params, lr=1e-2, momentum=0.9, nesterov=True, fused=True)
    if optimizer == "muon":
        return Muon(params)
    raise unknown("optimizer", optimizer, NAMES)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices and filters, AdamW for the rest."""

    def __init__(self, params: list[nn.Parameter], lr: float = 1e-3):
        super().__init__(params, {"lr": lr})
        rest = [p for p in params if p.ndim < 2]
        self.rest = torch.optim.AdamW(rest, lr=lr, fused=True) if rest else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim >= 2 and p.grad is not None:
                    self._update(p, p.grad, group["lr"])
        if self.rest is not None:
            self.rest.step()
            self.state.update(self.rest.state)

    def _update(self, p: nn.Parameter, grad: Tensor, lr: float) -> None:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(grad)
        state["momentum"].lerp_(grad, 0.05)
        direction = grad.lerp(state["momentum"], 0.95).flatten(1)  # (rows, columns)
        update = _zeropower_via_newtonschulz(direction, *_NEWTON_SCHULZ)
        p.add_(update.view_as(p), alpha=-lr)
