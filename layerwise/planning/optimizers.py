"""Optimisers by name, for rehearsals and measurements: those of the training itself."""

from collections.abc import Callable

import torch
from torch import nn

from layerwise.errors import unknown
from layerwise.optim.eager import SGD, AdamW
from layerwise.optim.muon import Muon

Optimizer = str | Callable[[nn.Module], torch.optim.Optimizer]  # a name, or a function
NAMES = ("adamw", "sgd", "muon")


def make_optimizer(optimizer: Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the network's trainable parameters, by name or by a function of it."""
    if callable(optimizer):
        return optimizer(network)
    named = {n: p for n, p in network.named_parameters() if p.requires_grad}
    if optimizer == "adamw":
        return AdamW(named.values(), fused=True)
    if optimizer == "sgd":
        return SGD(named.values(), lr=1e-2, momentum=0.9, nesterov=True, fused=True)
    if optimizer == "muon":
        return Muon([{"params": list(named.values()), "names": list(named)}])
    raise unknown("optimizer", optimizer, NAMES)
