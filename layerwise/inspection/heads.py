"""Where each attention head looks: its weights, computed beside the fast kernel, which keeps none.

The forward pass of every attention module calls `layers.attention.attention`. While a module is
watched, its own forward pass runs with that name bound to a witness, so what is seen is exact for
every family (rotary positions, norms of query and key, windows, padding) and its class stays as is.

Shapes: B rows, T queries, S keys, H heads, K key and value heads, Dh head width.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from layerwise.layers.attention import attention, attention_weights
from layerwise.runtime import evaluating

SHARP = 0.1  # of the possible entropy: a head below it reads hardly more than one key
RESTING = 0.5  # of its weight on the first token: such a head looks away, it is not stuck
IDLE = 1e-3  # of the strongest head's contribution
FEWEST_KEYS = 4  # a query that sees fewer says nothing about where a head looks
Mask = Tensor | None
MEASURES = ("entropy", "distance", "first", "itself", "previous")


def attention_modules(network: nn.Module) -> dict[str, nn.Module]:
    """The modules whose forward pass calls `attention`, by name."""
    return {name: m for name, m in network.named_modules() if calls_attention(type(m).forward)}


def calls_attention(forward: Callable) -> bool:
    if not isinstance(forward, FunctionType) or "attention" not in forward.__code__.co_names:
        return False
    return forward.__globals__.get("attention") is attention


@contextmanager
def heads_seen(network: nn.Module, see: Callable[..., None]) -> Iterator[None]:
    """Inside, every attention calls see(name, module, q, k, v, mask, causal, options) first."""
    watched = attention_modules(network)
    try:
        for name, module in watched.items():
            module.forward = MethodType(witnessed(module, partial(see, name, module)), module)
        yield
    finally:
        for module in watched.values():
            module.__dict__.pop("forward", None)


def witnessed(module: nn.Module, see: Callable[..., None]) -> FunctionType:
    """The forward pass of the module's class, which shows its attention to `see`."""

    def witness(q: Tensor, k: Tensor, v: Tensor, mask=None, causal=False, dropout=0.0, **options):
        see(q, k, v, mask, causal, options)
        return attention(q, k, v, mask, causal, dropout=dropout, **options)

    own: object = type(module).forward
    scope = own.__globals__ | {"attention": witness}
    out = FunctionType(own.__code__, scope, own.__name__, own.__defaults__, own.__closure__)
    out.__kwdefaults__ = own.__kwdefaults__
    return out


@torch.no_grad()
def measures(
    q: Tensor, k: Tensor, mask: Mask, causal: bool, options: dict[str, Any], keep: Mask = None
) -> tuple[dict[str, np.ndarray], Tensor]:
    """Where the heads look: (H,) of each of MEASURES, and the weights (B, H, T, S).

    Arguments as for `attention`; keep: (B, T) bool, the queries that are no padding.
    entropy: as a share of what all visible keys alike would have; distance: mean positions between
    query and key; first, itself, previous: share of the weight on the first visible token, on the
    query's own and on the one before it. NaN where no query sees FEWEST_KEYS keys.
    """
    weights = attention_weights(q, k, mask, causal, **options)  # (B, H, T, S)
    even = attention_weights(q[:, :1] * 0, k[:, :1] * 0, mask, causal)  # (B, 1, T, S)
    seen = even > 0
    counted = seen.sum(-1) >= FEWEST_KEYS  # (B, 1, T)
    if keep is not None:
        counted = counted & keep[:, None]
    T, S = weights.shape[-2:]
    queries = torch.arange(S - T, S, device=q.device)
    apart = (queries[:, None] - torch.arange(S, device=q.device)).abs().float()  # (T, S)
    start = seen.float().argmax(-1, keepdim=True).expand(-1, weights.shape[1], -1, -1)
    found = {
        "entropy": entropy(weights) / entropy(even).clamp_min(1e-9),
        "distance": (weights * apart).sum(-1),
        "first": weights.gather(-1, start)[..., 0],
        "itself": weights.diagonal(S - T, -2, -1),
        "previous": weights[..., 1:, :].diagonal(S - T, -2, -1),  # of every query but the first
    }
    found["previous"] = torch.cat([torch.zeros_like(found["first"][..., :1]), found["previous"]], 2)
    total = counted.sum((0, 2)).clamp_min(1)  # (1,)
    kept = {n: (x * counted).sum((0, 2)) / total for n, x in found.items()}  # (H,)
    none = 0.0 if bool(counted.any()) else math.nan
    return {n: x.double().cpu().numpy() + none for n, x in kept.items()}, weights


def entropy(weights: Tensor) -> Tensor:
    """(..., S) to (...), in nats."""
    return torch.special.entr(weights).sum(-1)


def contributions(module: nn.Module, weights: Tensor, v: Tensor) -> np.ndarray:
    """(H,) how much each head adds to the stream: its output's size times its part of `o_proj`."""
    v = v.repeat_interleave(weights.shape[1] // v.shape[1], dim=1)  # (B, H, S, Dh)
    sizes = (weights.to(v.dtype) @ v).float().square().mean((0, 2, 3)).sqrt()  # (H,)
    weight = cast(Tensor, module.get_submodule("o_proj").weight)  # packed, it is not a parameter
    out = weight.detach().unflatten(1, (len(sizes), -1))
    return (sizes * out.float().norm(dim=(0, 2))).double().cpu().numpy()


def head_statistics(layer: nn.Module, args: tuple, options: dict[str, Any]) -> dict[str, float]:
    """What a layer's heads do with the first row of its inputs, by a forward pass of that row.

    args, options: of the layer's forward. Returns {"entropy": the median head's, "sharp": share of
    heads stuck on one key other than the first, "idle": share of heads that add next to nothing}.
    """
    n_rows = len(args[0])
    found: list[tuple[dict[str, np.ndarray], np.ndarray]] = []

    def see(name: str, module: nn.Module, q, k, v, mask, causal, options) -> None:
        where, weights = measures(q, k, mask, causal, options)
        found.append((where, contributions(module, weights, v)))

    with evaluating(layer), heads_seen(layer, see):
        layer.forward(*first_row(args, n_rows), **first_row(options, n_rows))
    where = {n: np.concatenate([w[n] for w, _ in found]) for n in ("entropy", "first")}
    out = {"idle": float(np.mean([(c <= IDLE * c.max()).mean() for _, c in found]))}
    if np.isnan(where["entropy"]).any():
        return out
    stuck = (where["entropy"] < SHARP) & (where["first"] < RESTING)
    return out | {"entropy": float(np.median(where["entropy"])), "sharp": float(stuck.mean())}


def first_row(value: object, n_rows: int) -> Any:
    """The arguments of a forward pass cut to one row; what has no rows stays whole."""
    if isinstance(value, Tensor):
        return value[:1] if value.ndim > 2 and len(value) == n_rows else value
    if isinstance(value, tuple | list):
        return type(value)(first_row(v, n_rows) for v in value)
    return {k: first_row(v, n_rows) for k, v in value.items()} if isinstance(value, dict) else value
