"""Where a network looks, and what its units answer to.

Saliency of single images: SmoothGrad (Smilkov et al., arXiv:1706.03825). Whether it depends on
what was learned at all is tested by randomising the weights (Adebayo et al., arXiv:1810.03292).

What excites a unit is shown by real rows: those on which it answers most, and where.

Legend: B rows, b c h w images and maps, U units.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from layerwise.data.examples import Batch
from layerwise.errors import DataError
from layerwise.inspection.taps import eager, outputs_seen
from layerwise.models.network import Network
from layerwise.runtime import generator

NOISE, COPIES = 0.15, 16  # its standard deviation, as a share of each row's own range

# ---- saliency ------------------------------------------------------------------------------------


def smooth_grad(network: nn.Module, inputs: Tensor, targets: Tensor, seed: int = 0) -> Tensor:
    """The squared gradient of the target's score, averaged over noisy copies: (B, ...)."""
    draw = generator(seed)
    span = inputs.flatten(1).amax(1) - inputs.flatten(1).amin(1)  # (B,)
    scale = (NOISE * span).view(-1, *[1] * (inputs.ndim - 1))
    total = torch.zeros_like(inputs)
    for _ in range(COPIES):
        extra = torch.randn(inputs.shape, generator=draw).to(inputs) * scale
        total += gradient(network, inputs + extra, targets) ** 2
    return total / COPIES


def gradient(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """d score[target] / d input, row by row, in evaluation mode: the shape of the inputs."""
    x = inputs.detach().clone().requires_grad_(True)
    with eager(network, gradients=True):
        scores = network(x).float().gather(1, targets[:, None])  # (B, 1)
        (found,) = torch.autograd.grad(scores.sum(), x)
    return found


def heat(saliency: Tensor) -> Tensor:
    """Saliency of images (b, c, h, w) as maps (b, h, w) from 0 to 1, without single outliers."""
    maps = saliency.abs().sum(1)
    top = torch.quantile(maps.flatten(1).float(), 0.99, dim=1)
    return (maps / top.clamp_min(1e-12)[:, None, None]).clamp(0, 1)


# ---- what excites a unit -------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """A unit of a layer and the rows it answers to most, strongest first."""

    layer: str
    index: int
    rows: tuple[int, ...]  # indices into the Examples that the batches were made of
    values: tuple[float, ...]  # its largest answer on each
    places: tuple[tuple[float, float], ...]  # where, as (down, right) from 0 to 1; images only
    selectivity: float  # strongest answers minus mean answer, in standard deviations


def top_examples(
    network: Network, batches: Iterable[Batch], units_per_layer: int = 4, rows_per_unit: int = 8
) -> dict[str, list[Unit]]:
    """The real rows that excite each layer's most selective units.

    batches: rows in any order, e.g. of `in_order`; a unit's answer to an image is its largest in
    the map. Returns {layer: units}, the most selective first; the head is left out: its units are
    the classes. Errors: DataError without any batch.
    """
    layers = dict(list(network.layers().items())[:-1])
    found = {name: Strongest(rows_per_unit) for name in layers}
    rows = np.empty(0, int)  # of the batch that runs
    device = str(next(network.parameters()).device)
    with outputs_seen(network, layers, lambda name, out: found[name].add(out.float(), rows)):
        for batch in batches:
            rows = batch.rows
            network(**batch.to(device).select(network.READS))
    return {name: s.units(name, units_per_layer) for name, s in found.items()}


class Strongest:
    """Keeps, for every unit of a layer, the rows to which it answers most."""

    def __init__(self, keep: int):
        self.keep, self.n = keep, 0
        self.sum = self.squares = 0.0
        self.best: dict[str, np.ndarray] = {}  # each (keep, U)

    def add(self, x: Tensor, rows: np.ndarray) -> None:
        """x: (B, U), (B, T, U) or (b, U, h, w): the answers to these rows."""
        answer, place, (height, width) = strongest_place(x)  # (B, U) each
        at = place.cpu().numpy()
        new = {
            "values": answer.cpu().numpy(),
            "rows": np.broadcast_to(rows[:, None], at.shape),
            "down": (at // width + 0.5) / height,
            "right": (at % width + 0.5) / width,
        }
        self.n += len(rows)
        self.sum = self.sum + new["values"].sum(0, dtype=np.float64)
        self.squares = self.squares + (new["values"].astype(np.float64) ** 2).sum(0)
        both = {k: np.concatenate([self.best[k], v]) if self.best else v for k, v in new.items()}
        order = np.argsort(-both["values"], axis=0, kind="stable")[: self.keep]  # (keep, U)
        self.best = {k: np.take_along_axis(v, order, 0) for k, v in both.items()}

    def units(self, layer: str, count: int) -> list[Unit]:
        if not self.n:
            raise DataError("no rows to find what excites a unit; give at least one batch")
        mean = self.sum / self.n
        deviation = np.sqrt(np.maximum(self.squares / self.n - mean**2, 0))
        alive, strongest = deviation > 1e-6, self.best["values"].mean(0)
        selective = np.where(alive, (strongest - mean) / np.maximum(deviation, 1e-6), -1)
        order = np.argsort(-selective, kind="stable")[:count].tolist()
        return [self.unit(layer, u, float(selective[u])) for u in order if alive[u]]

    def unit(self, layer: str, u: int, selectivity: float) -> Unit:
        columns = {k: v[:, u].tolist() for k, v in self.best.items()}
        places = tuple(zip(columns["down"], columns["right"], strict=True))
        return Unit(layer, u, tuple(columns["rows"]), tuple(columns["values"]), places, selectivity)


def strongest_place(x: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Largest answer of each unit (B, U), its place in the grid (B, U), and the grid's shape.

    In a sequence the places after any leading class token form the square grid of patches.
    """
    if x.ndim == 4:
        answer, place = x.flatten(2).max(2)
        return answer, place, (x.shape[2], x.shape[3])
    if x.ndim == 3:
        side = int((x.shape[1]) ** 0.5)
        extra = x.shape[1] - side * side
        if extra > 1:  # no square of patches: places in a row
            side, extra = 0, 0
        answer, place = x[:, extra:].max(1)
        return answer, place, (side, side) if side else (1, x.shape[1])
    return x, torch.zeros_like(x, dtype=torch.long), (1, 1)
