"""MobileNet, version 3: found by architecture search, for phone processors.

Paper: Howard et al., "Searching for MobileNetV3", arXiv:1905.02244, tables 1 (large) and 2 (small).
Squeeze-and-excitation: Hu et al., arXiv:1709.01507. Versions 1 and 2 are `mobilenet.py`.
Published weights: timm's `mobilenetv3_large_100` and `mobilenetv3_small_100`; torchvision's
`mobilenet_v3_large` and `mobilenet_v3_small` (those want norm_eps 1e-3).

Departures from the paper
- The layer after pooling is linear, as in torchvision; in timm a 1x1 convolution of one place.
- The small network's last convolution has no squeeze-and-excitation, as in both sources.

Shapes: b images, c channels, h x w pixels, D features, C classes.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.layers.conv import ConvNorm, conv_norm_names, round_channels
from layerwise.layers.dropout import Dropout
from layerwise.layers.stack import stack


@dataclass(frozen=True)
class Config:  # the tuples are columns of the paper's tables, one entry per block
    n_classes: int = 1000
    stem_channels: int = 16
    kernel: tuple[int, ...] = (3, 3, 3, 5, 5, 5, 3, 3, 3, 3, 3, 3, 5, 5, 5)
    inner: tuple[int, ...] = (16, 64, 72, 72, 120, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960)
    channels: tuple[int, ...] = (16, 24, 24, 40, 40, 40, 80, 80, 80, 80, 112, 112, 160, 160, 160)
    excite: tuple[int, ...] = (0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1)
    hard_swish: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1)  # else ReLU
    stride: tuple[int, ...] = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1)
    last_channels: int = 960  # of the 1x1 convolution before pooling
    n_features: int = 1280  # D, of the linear layer after it
    norm_eps: float = 1e-5
    dropout: float = 0.2


VARIANTS = {
    "mobilenetv3_large_100": Config(),  # table 1; 5.4 million parameters
    "mobilenetv3_small_100": Config(  # table 2; 2.5 million
        kernel=(3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 5),
        inner=(16, 72, 88, 96, 240, 240, 120, 144, 288, 576, 576),
        channels=(16, 24, 24, 40, 40, 40, 48, 48, 96, 96, 96),
        excite=(1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
        hard_swish=(0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
        stride=(2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1),
        last_channels=576,
        n_features=1024,
    ),
}


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in 0..1 computed from all channels' means: x * gate(mean(x))."""

    def __init__(self, channels: int):
        super().__init__()
        squeezed = round_channels(channels // 4)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu())  # (b, c, 1, 1)
        return x * F.hardsigmoid(gate)


class Block(nn.Module):
    """Expand, filter each channel (depthwise), excite, project back without an activation."""

    def __init__(self, config: Config, number: int, n_in: int):
        super().__init__()
        inner, n_out = config.inner[number], config.channels[number]
        kernel, stride = config.kernel[number], config.stride[number]
        act = nn.Hardswish if config.hard_swish[number] else nn.ReLU
        unit = partial(ConvNorm, activation=act, norm_eps=config.norm_eps)
        self.expand = unit(n_in, inner) if inner != n_in else nn.Identity()
        self.depthwise = unit(inner, inner, kernel, stride, groups=inner)
        self.excite = SqueezeExcite(inner) if config.excite[number] else nn.Identity()
        self.project = unit(inner, n_out, activation=None)
        self.residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.excite(self.depthwise(self.expand(x)))  # (b, inner, h / stride, w / stride)
        y = self.project(y)  # (b, n_out, h / stride, w / stride)
        return x + y if self.residual else y


def stages(channels: tuple[int, ...]) -> list[list[int]]:
    """The numbers of the blocks, a new stage wherever the width changes."""
    alike = groupby(range(len(channels)), key=lambda number: channels[number])
    return [list(numbers) for _, numbers in alike]


class MobileNetV3(nn.Module):
    """Images (b, 3, h, w), normalised as the card says, to class scores (b, C)."""

    READS, HEADS, unit_vectors = ("image",), ("class",), False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        unit = partial(ConvNorm, activation=nn.Hardswish, norm_eps=config.norm_eps)
        widths = (config.stem_channels, *config.channels)
        self.stem = unit(3, widths[0], 3, stride=2)
        last = unit(widths[-1], config.last_channels)
        blocks = ([Block(config, i, widths[i]) for i in stage] for stage in stages(config.channels))
        self.blocks = nn.Sequential(*(nn.Sequential(*b) for b in blocks), nn.Sequential(last))
        self.fc = nn.Linear(config.last_channels, config.n_features)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(config.n_features, config.n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))  # (b, C)

    def features(self, image: Tensor) -> Tensor:
        """What the head reads: (b, D)."""
        x = self.blocks(self.stem(image))  # (b, last_channels, h / 32, w / 32)
        return self.dropout(F.hardswish(self.fc(x.mean((2, 3)))))

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return features

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it."""
        return stack(self, "stem", "blocks", "fc", "head")

    def reset_head(self, n_classes: int, kind: str = "class") -> None:
        """A fresh last layer for another set of classes; everything below keeps what it learned."""
        self.config = replace(self.config, n_classes=n_classes)
        self.head = nn.Linear(self.head.in_features, n_classes).to(self.head.weight)


Model = MobileNetV3


_CONVS = {
    "stem": ("conv_stem", "bn1"),
    "blocks.0.0.depthwise": ("blocks.0.0.conv_dw", "blocks.0.0.bn1"),
    "blocks.0.0.project": ("blocks.0.0.conv_pw", "blocks.0.0.bn2"),
    "blocks.{}.{}.expand": ("blocks.{}.{}.conv_pw", "blocks.{}.{}.bn1"),
    "blocks.{}.{}.depthwise": ("blocks.{}.{}.conv_dw", "blocks.{}.{}.bn2"),
    "blocks.{}.{}.project": ("blocks.{}.{}.conv_pwl", "blocks.{}.{}.bn3"),
    "blocks.{}.{}": ("blocks.{}.{}.conv", "blocks.{}.{}.bn1"),  # the last convolution
}
_TIMM = {
    **conv_norm_names(_CONVS),
    "blocks.{}.{}.excite.fc1": "blocks.{}.{}.se.conv_reduce",
    "blocks.{}.{}.excite.fc2": "blocks.{}.{}.se.conv_expand",
    "fc": "conv_head | squeeze",
    "head": "classifier",
}


def _torchvision(config: Config) -> dict[str, str]:
    """torchvision's names: the parts that a block has are numbered consecutively."""
    grouped, n_in = stages(config.channels), config.stem_channels
    layers, excite = {"stem": "features.0"}, {}
    for number, name in enumerate(
        f"{s}.{i}" for s, st in enumerate(grouped) for i in range(len(st))
    ):
        parts = ["expand"] if config.inner[number] != n_in else []
        parts += ["depthwise"] + ["excite"] * config.excite[number] + ["project"]
        for place, part in enumerate(parts):
            chosen = excite if part == "excite" else layers
            chosen[f"blocks.{name}.{part}"] = f"features.{number + 1}.block.{place}"
        n_in = config.channels[number]
    layers[f"blocks.{len(grouped)}.0"] = f"features.{len(config.channels) + 1}"
    names = conv_norm_names({ours: (f"{n}.0", f"{n}.1") for ours, n in layers.items()})
    return names | excite | {"fc": "classifier.0", "head": "classifier.3"}


PUBLISHED = {  # ours -> theirs, prefix by prefix; the rename engine reads it in both directions
    "timm": _TIMM,  # both sizes
    "torchvision": _torchvision(VARIANTS["mobilenetv3_large_100"]),
    "torchvision_small": _torchvision(VARIANTS["mobilenetv3_small_100"]),
}
