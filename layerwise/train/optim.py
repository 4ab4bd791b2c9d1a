"""Optimisers by name, and their state as plain named tensors."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from layerwise.data.sources import Tensors
from layerwise.errors import WeightsError, unknown
from layerwise.optim.eager import SGD, AdamW

BETAS = (0.9, 0.95)
Groups = list[dict[str, Any]]


def build_optimizer(name: str, groups: Groups, lr: float, momentum: float = 0.9) -> Optimizer:
    """An optimiser over parameter groups that carry "params", "weight_decay" and "lr_scale".

    name: "adamw" (fused), "sgd" (Nesterov), or "muon" (matrices and flattened filters; AdamW for
    the rest). Each group's rate is `lr * lr_scale`, set anew at every step by `set_lr`.
    """
    groups = [g | {"lr": lr * g.get("lr_scale", 1.0)} for g in groups if g["params"]]
    if name == "adamw":
        return AdamW(groups, lr=lr, betas=BETAS, fused=True)
    if name == "sgd":
        return SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    if name == "muon":
        from layerwise.optim.muon import Muon

        return Muon(groups, lr=lr)
    raise unknown("optimizer", name, ("adamw", "sgd", "muon"))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def parameter_names(network: nn.Module, optimizer: Optimizer) -> list[str]:
    """The names of the optimised parameters in the optimiser's own order."""
    names = {id(p): n for n, p in network.named_parameters()}
    return [names[id(p)] for g in optimizer.param_groups for p in g["params"]]


def optimizer_tensors(network: nn.Module, optimizer: Optimizer) -> Tensors:
    """All state as tensors named "parameter:key"; numbers become tensors of one element."""
    out = {}
    state = optimizer.state_dict()["state"]
    for i, name in enumerate(parameter_names(network, optimizer)):
        for key, value in state.get(i, {}).items():
            if value is not None:
                out[f"{name}:{key}"] = torch.as_tensor(value)
    return out


def load_optimizer_tensors(network: nn.Module, optimizer: Optimizer, tensors: Tensors) -> None:
    """The reverse of `optimizer_tensors`. Errors: state of a parameter that is not optimised."""
    names = parameter_names(network, optimizer)
    index = {name: i for i, name in enumerate(names)}
    params = dict(network.named_parameters())
    state: dict[int, Tensors] = {}
    for full, value in tensors.items():
        name, key = full.rsplit(":", 1)
        if name not in index:
            what = f"the checkpoint has optimiser state for '{name}', which this run does not train"
            raise WeightsError(f"{what}; resume with the settings the run was started with")
        state.setdefault(index[name], {})[key] = laid_out_as(params[name], value)
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` in the memory layout of its parameter: fused kernels walk both side by side."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
