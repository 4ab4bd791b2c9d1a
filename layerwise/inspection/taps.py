"""Where activations are read, and what is read from a sample of them.

Shapes: n sampled positions, U units (channels).
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerwise.runtime import evaluating

SAMPLED_ROWS, SAMPLED_PLACES = 64, 16  # of a batch, of an image or sequence
SAMPLED_WEIGHTS = 1 << 12  # of one parameter
FLAT = 0.02  # a sigmoid within this of 0 or 1 has a slope below 0.02: it no longer learns
Stats = dict[str, Any]


def points(name: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The weight layers inside a layer; the layer itself when it is compiled or has none."""
    inner = [] if is_compiled(layer) else [(k, m) for k, m in layer.named_modules() if is_weight(m)]
    yield from ((f"{name}.{key}", module) for key, module in inner or [("", layer)])


def is_weight(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim >= 2 and not isinstance(module, nn.Embedding)


def is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def tap(module: nn.Module, see: Callable[..., None], before: bool = False) -> Callable[[], None]:
    """`see(args, options, output)` after every call of the module, or `see(args, options)` before
    it; returns what undoes it.

    A compiled module ignores hooks added later, so its call is wrapped instead.
    """
    if not is_compiled(module):
        register = module.register_forward_pre_hook if before else module.register_forward_hook
        return register(lambda _, *call: see(*call), with_kwargs=True).remove
    inner: Any = module._compiled_call_impl

    def call(*args: object, **options: object) -> object:
        if before:
            see(args, options)
        out = inner(*args, **options)
        if not before:
            see(args, options, out)
        return out

    module._compiled_call_impl = call
    return lambda: setattr(module, "_compiled_call_impl", inner)


@contextmanager
def eager(network: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Inside, the network is evaluated, layer by layer even where it was compiled."""
    with evaluating(network, gradients), torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def outputs_seen(
    network: nn.Module, layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Inside, the network is evaluated, and `see(name, output)` hears what each layer outputs."""
    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            show = lambda args, options, out, name=name: see(name, out)  # noqa: E731
            stack.callback(tap(layer, show))
        stack.enter_context(eager(network))
        yield


def unit_axis(point: nn.Module, x: Tensor) -> int:
    """Channels of an image or of a map; the last axis of vectors and sequences."""
    weight = point._parameters.get("weight")
    dense = weight is not None and weight.ndim == 2
    return x.ndim - 1 if dense or x.ndim < 4 else 1


def sample(x: Tensor, axis: int) -> np.ndarray:
    """At most SAMPLED_ROWS rows with SAMPLED_PLACES places each, as float32 (n, U)."""
    x = x[:: max(1, -(-x.shape[0] // SAMPLED_ROWS))] if x.ndim > 1 else x[:, None]
    x = x.movedim(axis, -1) if x.ndim > 1 else x
    places = math.prod(x.shape[1:-1])
    if places > SAMPLED_PLACES:
        for d in range(1, x.ndim - 1):  # the same stride along each axis of an image
            keep = max(1, round(SAMPLED_PLACES ** (1 / (x.ndim - 2))))
            x = x[(slice(None),) * d + (slice(None, None, max(1, x.shape[d] // keep)),)]
    return x.reshape(-1, x.shape[-1]).float().cpu().numpy()


class Sampled:
    """Evenly spaced entries of many tensors in one float32 vector, on the processor.

    sizes, scale: (P,) how many entries each tensor gave, and how many of its own each stands for.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        parts, totals = [], []
        for t in tensors:
            flat = t.detach().reshape(-1)
            totals.append(flat.numel())
            parts.append(flat[:: max(1, len(flat) // SAMPLED_WEIGHTS)])
        self.sizes = np.array([len(part) for part in parts], np.float64)
        self.scale = np.array(totals) / np.maximum(self.sizes, 1)
        self.values = torch.cat(parts).float().cpu().numpy() if parts else np.empty(0, np.float32)

    def minus(self, other: "Sampled") -> "Sampled":
        """The difference of two samples of the same tensors."""
        out = copy.copy(self)
        out.values = self.values - other.values
        return out

    def squares(self) -> np.ndarray:
        """(P,) sum of the squares of each tensor's sample."""
        return self.sums(self.values * self.values)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(P,) sums over each tensor's own entries."""
        if not len(self.sizes):
            return np.empty(0)
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(int)
        return np.add.reduceat(values.astype(np.float32, copy=False), starts)


def size(values: np.ndarray) -> Stats:
    """Mean, deviation, and which share of the size differs between the positions: of (n, U)."""
    first = values[0].astype(np.float64)  # differences to a row keep digits where rows are alike
    apart = values - values[0]
    shift = apart.mean(0, dtype=np.float64)
    varies = np.einsum("nu,nu->u", apart, apart) / len(values) - shift**2  # (U,)
    within, means = float(varies.mean().clip(0)), first + shift
    rms = math.sqrt(within + float((means * means).mean()))
    return {
        "act_mean": float(means.mean()),
        "act_std": math.sqrt(within + float(means.var())),
        "spread": math.sqrt(within) / rms if rms > 0 else 0.0,
    }


def silent_units(x: Tensor, values: np.ndarray, axis: int) -> np.ndarray:
    """(U,) which units are zero for the whole batch; the sample says where to look closely."""
    silent = np.logical_not(values.any(axis=0))  # (U,)
    rows = np.flatnonzero(silent)
    if len(rows):
        chosen = x.movedim(axis, 0)[torch.from_numpy(rows).to(x.device)]
        silent[rows] = ~chosen.flatten(1).any(1).cpu().numpy()
    return silent


def saturated_share(values: np.ndarray) -> float:
    """Share of units mostly in the flat part of a sigmoid or tanh; 0 for any other kind.

    Told by the range: no other common activation keeps to [0, 1] without exact zeros, or to [-1, 1]
    with many values at its ends.
    """
    low, high = values.min(), values.max()
    if not (low >= -1 and high <= 1):
        return 0.0
    if low < 0:
        flat = np.abs(values) > 1 - FLAT
    elif np.mean(values == 0) < 0.01 and high > 0.5:
        flat = (values < FLAT) | (values > 1 - FLAT)
    else:
        return 0.0
    return float((flat.mean(0) > 0.5).mean())
