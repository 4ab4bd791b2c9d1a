"""Airbench: the small convolutional network behind the CIFAR-10 speed records.

Paper: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498, which refines
Page, "How to Train Your ResNet" (myrtle.ai, 2018) and the networks of tysam-code/hlb-CIFAR10.
Its first layer is not learned: it whitens 2 x 2 patches with the principal components of the
training pixels (`whiten`, to be called once before training), so the layers above start from
decorrelated colours and edges. The 3 x 3 filters start as identities, the scale of batch
normalisation stays 1, and the features are divided by their number so that head weights of unit
size give small scores.

Published weights: none; the record publishes the training, not a checkpoint.

Departures from the paper
- The last pooling takes the maximum over whatever map is left, so any size from 28 x 28 up works;
  at 32 x 32 it is the 3 x 3 pooling of the paper.
- The division by the number of features follows the later Muon record (the paper scales by 1/9).

Shapes: b images, c channels, h x w pixels, k side of the whitened patch, C classes.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.layers.stack import stack


@dataclass(frozen=True)
class Config:
    n_classes: int = 10
    channels: tuple[int, ...] = (64, 256, 256)  # filters of each group
    n_convs: int = 2  # per group; with 3, a residual connection spans the last two
    patch: int = 2  # k, side of the whitened patch
    whiten_bias: bool = True  # a learned threshold for every whitened component
    norm_momentum: float = 0.4  # share of the newest batch in the running statistics
    norm_eps: float = 1e-12


VARIANTS = {  # sections 3 and 4 of the paper and its repository: accuracy on CIFAR-10 in the name
    "airbench94": Config(),
    "airbench95": Config(channels=(128, 384, 384)),
    "airbench96": Config(channels=(128, 384, 512), n_convs=3, norm_momentum=0.1),
}

PUBLISHED: dict[str, dict[str, str]] = {}  # no checkpoint was ever published


class Whiten(nn.Module):
    """Patches projected on plus and minus their principal components, then GELU.

    (b, 3, h, w) to (b, 6 k k, h - k + 1, w - k + 1). `whiten` sets the filters; they never learn.
    """

    def __init__(self, patch: int, bias: bool):
        super().__init__()
        n_in = 3 * patch * patch
        self.conv = nn.Conv2d(3, 2 * n_in, patch, bias=bias)
        self.conv.weight.requires_grad_(False)
        basis = nn.init.orthogonal_(torch.empty(n_in, n_in, device=self.conv.weight.device))
        self.set_components(basis.view(n_in, 3, patch, patch))
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    @torch.no_grad()
    def set_components(self, components: Tensor) -> None:
        """components: (3 k k, 3, k, k)."""
        self.conv.weight.copy_(torch.cat((components, -components)))

    def forward(self, images: Tensor) -> Tensor:
        return F.gelu(self.conv(images))


class Group(nn.Module):
    """Convolution, halving, then further convolutions, each normalised and followed by GELU.

    (b, n_in, h, w) to (b, n_out, h // 2, w // 2). Pooling before the first normalisation saves
    three quarters of its work.
    """

    def __init__(self, n_in: int, n_out: int, config: Config):
        super().__init__()
        widths = [n_in] + [n_out] * config.n_convs
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise(widths)
        )
        eps, momentum = config.norm_eps, config.norm_momentum
        self.norms = nn.ModuleList(nn.BatchNorm2d(n_out, eps, momentum) for _ in self.convs)
        self.residual = config.n_convs > 2
        for conv, norm in zip(self.convs, self.norms, strict=True):
            assert isinstance(conv, nn.Conv2d)
            nn.init.dirac_(conv.weight[: conv.in_channels])  # the rest keeps its random filters
            norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.convs[0](x), 2)  # (b, n_out, h // 2, w // 2)
        x = first = F.gelu(self.norms[0](x))
        last = len(self.convs) - 1
        for i in range(1, last + 1):
            x = self.norms[i](self.convs[i](x))
            x = F.gelu(x + first if self.residual and i == last else x)
        return x


class Airbench(nn.Module):
    """Images (b, 3, h, w) of at least 28 x 28, mean 0 and deviation 1, to class scores (b, C)."""

    READS, HEADS, unit_vectors = ("image",), ("class",), False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        c1, c2, c3 = config.channels
        self.whiten = Whiten(config.patch, config.whiten_bias)
        self.group1 = Group(6 * config.patch**2, c1, config)
        self.group2 = Group(c1, c2, config)
        self.group3 = Group(c2, c3, config)
        self.head = unit_linear(c3, config.n_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))  # (b, C)

    def features(self, image: Tensor) -> Tensor:
        """The largest response of every filter of the last group, divided by their number."""
        x = self.group1(self.whiten(image))  # (b, c1, 15, 15) from 32 x 32
        x = self.group3(self.group2(x))  # (b, c3, 3, 3)
        return x.flatten(2).amax(2) / x.shape[1]  # (b, c3)

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return features

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it."""
        return stack(self, "whiten", "group1", "group2", "group3", "head")

    def reset_head(self, n_classes: int, kind: str = "class") -> None:
        """A fresh last layer for another set of classes; everything below keeps what it learned."""
        self.config = replace(self.config, n_classes=n_classes)
        self.head = unit_linear(self.head.in_features, n_classes).to(self.head.weight)


Model = Airbench


def unit_linear(n_in: int, n_out: int) -> nn.Linear:
    """A head without bias whose weights have unit variance: its inputs were divided by `n_in`."""
    head = nn.Linear(n_in, n_out, bias=False)
    nn.init.uniform_(head.weight, -(3**0.5), 3**0.5)
    return head


def components(images: Tensor, patch: int, eps: float = 5e-4) -> Tensor:
    """Principal components of all patches, each divided by the deviation along it.

    images: (n, 3, h, w), normalised as in training; a few thousand are enough.
    eps: added to every variance, so that directions without signal are not blown up.
    Returns (3 k k, 3, k, k), the direction of least variance first.
    """
    columns = F.unfold(images.float(), patch)  # (n, 3 k k, positions)
    rows = columns.transpose(1, 2).flatten(0, 1)  # (n * positions, 3 k k)
    variances, directions = torch.linalg.eigh(rows.T.double() @ rows.double() / len(rows))
    scaled = directions.T / (variances.clamp(min=0) + eps).sqrt()[:, None]
    return scaled.float().view(-1, 3, patch, patch)


def whiten(network: Airbench, images: Tensor) -> None:
    """Set the first layer from training pixels: (n, 3, h, w), normalised as in training."""
    network.whiten.set_components(components(images, network.config.patch))


prepare = whiten  # what `fit` calls before the first step


def muon_groups(network: nn.Module, batch_size: int) -> list[dict[str, Any]]:
    """Parameter groups for Muon at a rate of 0.24, as in the record.

    Filters keep their norm and are turned; head and biases go to SGD with Nesterov's momentum. The
    record's rates are per summed loss, hence the batch size.
    """
    named = {n: p for n, p in network.named_parameters() if p.requires_grad}
    shared = {"momentum": 0.6, "ns_steps": 3, "renormalise": True}
    shared |= {"rest": "sgd", "betas": (0.85, 0.0)}
    kinds = ((4, 1.0, 0.0), (2, 0.67, 2e-6 / 0.67), (1, 0.053, 2e-6 / 0.053))  # axes, rate, decay
    return [
        {
            "params": [p for p in named.values() if p.ndim == axes],
            "names": [n for n, p in named.items() if p.ndim == axes],
            "lr_scale": rate if axes == 4 else rate * batch_size / 0.24,
            "weight_decay": decay,
            **shared,
        }
        for axes, rate, decay in kinds
    ]
