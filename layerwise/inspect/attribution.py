"""Where a network looks, and what its units answer to.

Saliency of single images: integrated gradients (Sundararajan et al., arXiv:1703.01365), whose
values add up to the change of the score, and SmoothGrad (Smilkov et al., arXiv:1706.03825). Both
can be wrong, so `occlusion_check` hides the most salient part and compares with hiding a random
part of the same size. Whether saliency depends on what was learned at all is tested by randomising
the weights (Adebayo et al., arXiv:1810.03292).

What excites a unit is shown by real rows: those on which it answers most, and where.

Legend: B rows, b c h w images and maps, U units.
"""

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.data.examples import Batch
from layerwise.errors import DataError
from layerwise.runtime import evaluating, generator

HIDDEN_SHARE = 0.1  # of the image that the occlusion check hides


# ---- saliency ------------------------------------------------------------------------------------


def integrated_gradients(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    baseline: Tensor | None = None,
    steps: int = 32,
) -> Tensor:
    """What each input value contributed to the score of its target, along the way from a baseline.

    inputs: (B, ...) as the processor makes them; targets: (B,) output indices; baseline: one row
    (...) or the mean of the batch's own values when left out (0 after standardising).
    Returns (B, ...): summed over a row, the score of the input minus that of the baseline.
    """
    start = torch.zeros_like(inputs) if baseline is None else baseline.expand_as(inputs)
    total = torch.zeros_like(inputs)
    for i in range(steps):  # the middle of each of `steps` equal pieces of the way
        total += gradient(network, start + (inputs - start) * ((i + 0.5) / steps), targets)
    return total / steps * (inputs - start)


def smooth_grad(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    noise: float = 0.15,
    samples: int = 16,
    seed: int = 0,
) -> Tensor:
    """The squared gradient of the target's score, averaged over noisy copies: (B, ...).

    noise: its standard deviation as a share of each row's own range.
    """
    draw = generator(seed)
    span = inputs.flatten(1).amax(1) - inputs.flatten(1).amin(1)  # (B,)
    scale = (noise * span).view(-1, *[1] * (inputs.ndim - 1))
    total = torch.zeros_like(inputs)
    for _ in range(samples):
        extra = torch.randn(inputs.shape, generator=draw).to(inputs) * scale
        total += gradient(network, inputs + extra, targets) ** 2
    return total / samples


def gradient(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """d score[target] / d input, row by row, in evaluation mode: the shape of the inputs."""
    x = inputs.detach().clone().requires_grad_(True)
    with still(network), torch.enable_grad():
        scores = network(x).float().gather(1, targets[:, None])  # (B, 1)
        (found,) = torch.autograd.grad(scores.sum(), x)
    return found


@contextmanager
def still(network: nn.Module) -> Any:
    """Evaluation mode with gradients; each part's own mode comes back after."""
    modes = [(m, m.training) for m in network.modules()]
    network.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes:
            module.training = training


def heat(saliency: Tensor) -> Tensor:
    """Saliency of images (b, c, h, w) as maps (b, h, w) from 0 to 1, without single outliers."""
    maps = saliency.abs().sum(1)
    top = torch.quantile(maps.flatten(1).float(), 0.99, dim=1)
    return (maps / top.clamp_min(1e-12)[:, None, None]).clamp(0, 1)


# ---- is it true? ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class OcclusionCheck:
    """How much of the target's probability goes when a part of the image is hidden."""

    salient: float  # mean drop when the most salient part is hidden
    random: float  # mean drop when as large a random part is
    share: float  # of the image hidden

    @property
    def faithful(self) -> bool:
        return self.salient > self.random

    def sentence(self) -> str:
        verdict = "more than" if self.faithful else "no more than"
        return (
            f"hiding the {self.share:.0%} of the image marked as most important lowers the "
            f"probability by {self.salient:.1%}, {verdict} hiding a random part of the same size "
            f"({self.random:.1%})"
        )


def occlusion_check(
    network: nn.Module, inputs: Tensor, targets: Tensor, saliency: Tensor, seed: int = 0
) -> OcclusionCheck:
    """Hide squares of the images: the most salient ones, and random ones. All images (b, c, h, w).

    Squares of an eighth of the side; hidden means: set to the image's own mean colour.
    """
    side = max(1, inputs.shape[-1] // 8)
    importance = F.avg_pool2d(saliency.abs().sum(1, keepdim=True), side).flatten(1)  # (b, squares)
    n_hidden = max(1, round(HIDDEN_SHARE * importance.shape[1]))
    chance = torch.rand(importance.shape, generator=generator(seed)).to(importance)
    before = probability(network, inputs, targets)
    drops = []
    for order in (importance, chance):
        mask = torch.zeros_like(order).scatter(1, order.topk(n_hidden, 1).indices, 1.0)
        rows, columns = inputs.shape[-2] // side, inputs.shape[-1] // side
        drops.append(
            before - probability(network, hide(inputs, mask.view(-1, 1, rows, columns)), targets)
        )
    return OcclusionCheck(
        float(drops[0].mean()), float(drops[1].mean()), n_hidden / importance.shape[1]
    )


def hide(images: Tensor, mask: Tensor) -> Tensor:
    """Images with the squares where mask (b, 1, rows, columns) is 1 set to their mean colour."""
    full = F.interpolate(mask, images.shape[-2:], mode="nearest")
    return images * (1 - full) + images.mean((2, 3), keepdim=True) * full


def probability(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    with evaluating(network):
        scores = network(inputs).float().softmax(1)
    return scores.gather(1, targets[:, None])[:, 0]  # (B,)


def occlusion(network: nn.Module, inputs: Tensor, targets: Tensor, squares: int = 8) -> Tensor:
    """How much of the target's probability goes with each square: (b, squares, squares)."""
    before = probability(network, inputs, targets)
    out = torch.zeros(len(inputs), squares, squares)
    for i in range(squares):
        for j in range(squares):
            mask = torch.zeros(len(inputs), 1, squares, squares, device=inputs.device)
            mask[:, :, i, j] = 1.0
            out[:, i, j] = (before - probability(network, hide(inputs, mask), targets)).cpu()
    return out


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
    network: nn.Module,
    batches: Iterable[Batch],
    units_per_layer: int = 4,
    rows_per_unit: int = 8,
) -> dict[str, list[Unit]]:
    """The real rows that excite each layer's most selective units.

    batches: rows in any order, e.g. of `in_order`; a unit's answer to an image is its largest in
    the map. Returns {layer: units}, the most selective first; the head is left out: its units are
    the classes. Errors: DataError without any batch.
    """
    layers: dict[str, nn.Module] = network.layers()  # type: ignore[operator]
    found = {name: Strongest(rows_per_unit) for name in list(layers)[:-1]}
    outputs: dict[str, Tensor] = {}
    hooks = [
        layers[name].register_forward_hook(lambda _, args, out, n=name: outputs.update({n: out}))
        for name in found
    ]
    device = next(network.parameters()).device
    try:
        with evaluating(network), torch.compiler.set_stance("force_eager"):
            for batch in batches:
                network(batch["inputs"].to(device))
                for name, strongest in found.items():
                    strongest.add(outputs[name].float(), batch.rows)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: s.units(name, units_per_layer) for name, s in found.items()}


class Strongest:
    """Keeps, for every unit of a layer, the rows with its largest answers."""

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
            raise DataError("no rows to look for what excites a unit; at least one batch is needed")
        mean = self.sum / self.n
        deviation = np.sqrt(np.maximum(self.squares / self.n - mean**2, 0))
        alive = deviation > 1e-6
        selective = np.where(
            alive, (self.best["values"].mean(0) - mean) / np.maximum(deviation, 1e-6), -1
        )
        chosen = [int(u) for u in np.argsort(-selective, kind="stable")[:count] if alive[u]]
        return [self.unit(layer, u, float(selective[u])) for u in chosen]

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
