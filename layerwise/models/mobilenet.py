"""MobileNet, versions 1 and 2: image networks small enough for a phone.

Papers: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications", arXiv:1704.04861 (v1: a depthwise convolution, then a pointwise one).
Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381 (v2:
narrow between the blocks, wide inside, residuals between the narrow ends). Version 3:
`mobilenetv3.py`.
Published weights: Google's v1 under Keras' names; timm's `mobilenetv1_*` and `mobilenetv2_*`;
torchvision's `mobilenet_v2`.

Departures from the papers
- ReLU6 throughout, as in the authors' code; the text of v1 says ReLU.
- Google's weights want TensorFlow's padding and norm_eps 1e-3; the other sources pad symmetrically
  and use 1e-5. Both are fields of Config.
- v1 scores by a linear layer; Google's file holds it as a 1x1 convolution.

Shapes: b images, c channels, h x w pixels, D features, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from layerwise.layers.conv import ConvNorm, conv_norm_names, round_channels
from layerwise.layers.dropout import Dropout
from layerwise.layers.stack import stack


@dataclass(frozen=True)
class Config:
    n_classes: int = 1000
    expansion: int = 6  # times wider inside a block; 0: separable blocks without residual (v1)
    width: float = 1.0  # multiplies every number of channels
    stem_channels: int = 32
    channels: tuple[int, ...] = (16, 24, 32, 64, 96, 160, 320)  # per stage
    repeats: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)  # blocks per stage
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)  # of the first block of each stage
    last_channels: int = 1280  # of the 1x1 convolution after the blocks; 0: none (v1)
    same_padding: bool = False  # as TensorFlow pads
    norm_eps: float = 1e-5
    dropout: float = 0.2


def _v1(width: float, same: bool = False) -> Config:
    """Table 1 of the v1 paper at a width of table 6; `same`: as Google trained it."""
    stages: dict[str, Any] = {"channels": (64, 128, 256, 512, 1024)}
    stages |= {"repeats": (1, 2, 2, 6, 2), "strides": (1, 2, 2, 2, 2), "last_channels": 0}
    google = {"same_padding": True, "norm_eps": 1e-3, "dropout": 1e-3} if same else {}
    return Config(expansion=0, width=width, **stages, **google)


VARIANTS = {
    "mobilenet_v1_025": _v1(0.25, same=True),  # 0.5 million parameters (table 6)
    "mobilenet_v1_050": _v1(0.50, same=True),  # 1.3 million
    "mobilenet_v1_075": _v1(0.75, same=True),  # 2.6 million
    "mobilenet_v1_100": _v1(1.00, same=True),  # 4.2 million
    "mobilenetv1_100": _v1(1.00),  # timm's
    "mobilenetv1_125": _v1(1.25),
    "mobilenetv2_035": Config(width=0.35),
    "mobilenetv2_050": Config(width=0.50),
    "mobilenetv2_075": Config(width=0.75),
    "mobilenetv2_100": Config(),  # table 2 of the v2 paper; 3.4 million parameters (table 4)
    "mobilenetv2_140": Config(width=1.4),  # 6.9 million
}


Unit = Callable[..., ConvNorm]  # ConvNorm with this network's activation, padding and norm_eps


class SeparableBlock(nn.Module):
    """v1: a depthwise convolution filters each channel, a pointwise one combines them."""

    def __init__(self, n_in: int, n_out: int, stride: int, unit: Unit):
        super().__init__()
        self.filter = unit(n_in, n_in, 3, stride, groups=n_in)
        self.combine = unit(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(self.filter(x))  # (b, n_out, h / stride, w / stride)


class InvertedResidual(nn.Module):
    """v2: expand, filter each channel (depthwise), project back without an activation."""

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int, unit: Unit):
        super().__init__()
        inner = n_in * expansion
        self.expand = unit(n_in, inner) if expansion > 1 else nn.Identity()
        self.depthwise = unit(inner, inner, 3, stride, groups=inner)
        self.project = unit(inner, n_out, activation=None)
        self.residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))  # (b, n_out, h / stride, w / stride)
        return x + y if self.residual else y


def _stage(config: Config, stage: int, n_in: int, n_out: int, unit: Unit) -> nn.Sequential:
    """Blocks of one width; the first one changes the size, and in stage 0 does not expand."""
    blocks = []
    for i in range(config.repeats[stage]):
        stride = config.strides[stage] if i == 0 else 1
        if config.expansion:
            expansion = config.expansion if stage else 1
            blocks.append(InvertedResidual(n_in, n_out, stride, expansion, unit))
        else:
            blocks.append(SeparableBlock(n_in, n_out, stride, unit))
        n_in = n_out
    return nn.Sequential(*blocks)


class MobileNet(nn.Module):
    """Images (b, 3, h, w), normalised as the card says, to class scores (b, C)."""

    READS, HEADS, unit_vectors = ("image",), ("class",), False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        unit = partial(
            ConvNorm, activation=nn.ReLU6, norm_eps=config.norm_eps, same=config.same_padding
        )
        channels = round_channels(config.stem_channels * config.width)
        self.stem = unit(3, channels, 3, stride=2)
        stages = []
        for stage, width in enumerate(config.channels):
            n_out = round_channels(width * config.width)
            stages.append(_stage(config, stage, channels, n_out, unit))
            channels = n_out
        self.blocks = nn.Sequential(*stages)
        self.last = nn.Identity()
        if config.last_channels:
            n_out = round_channels(config.last_channels * max(1.0, config.width))
            self.last = unit(channels, n_out)
            channels = n_out
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(channels, config.n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))  # (b, C)

    def features(self, image: Tensor) -> Tensor:
        """What the head reads: (b, D)."""
        x = self.last(self.blocks(self.stem(image)))  # (b, D, h / 32, w / 32)
        return self.dropout(x.mean((2, 3)))

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return features

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it."""
        return stack(self, "stem", "blocks", "last", "head")

    def reset_head(self, n_classes: int, kind: str = "class") -> None:
        """A fresh last layer for another set of classes; everything below keeps what it learned."""
        self.config = replace(self.config, n_classes=n_classes)
        self.head = nn.Linear(self.head.in_features, n_classes).to(self.head.weight)


Model = MobileNet


def _in_order(repeats: tuple[int, ...]) -> list[str]:
    """Our name of every block, for sources that number the blocks consecutively."""
    return [f"blocks.{s}.{i}" for s, n in enumerate(repeats) for i in range(n)]


_NUMBERED = (("expand", "0.0", "0.1"), ("depthwise", "1.0", "1.1"), ("project", "2", "3"))
_KERAS = {
    "stem": ("conv1", "conv1_bn"),
    **{
        f"{block}.{ours}": (f"conv_{theirs}_{n}", f"conv_{theirs}_{n}_bn")
        for n, block in enumerate(_in_order((1, 2, 2, 6, 2)), start=1)
        for ours, theirs in (("filter", "dw"), ("combine", "pw"))
    },
}
_TIMM = {  # the first block of v2 does not expand
    "stem": ("conv_stem", "bn1"),
    "blocks.{}.{}.filter": ("blocks.{}.{}.conv_dw", "blocks.{}.{}.bn1"),
    "blocks.{}.{}.combine": ("blocks.{}.{}.conv_pw", "blocks.{}.{}.bn2"),
    "blocks.0.0.depthwise": ("blocks.0.0.conv_dw", "blocks.0.0.bn1"),
    "blocks.0.0.project": ("blocks.0.0.conv_pw", "blocks.0.0.bn2"),
    "blocks.{}.{}.expand": ("blocks.{}.{}.conv_pw", "blocks.{}.{}.bn1"),
    "blocks.{}.{}.depthwise": ("blocks.{}.{}.conv_dw", "blocks.{}.{}.bn2"),
    "blocks.{}.{}.project": ("blocks.{}.{}.conv_pwl", "blocks.{}.{}.bn3"),
    "last": ("conv_head", "bn2"),
}
_TORCHVISION = {
    "stem": ("features.0.0", "features.0.1"),
    "blocks.0.0.depthwise": ("features.1.conv.0.0", "features.1.conv.0.1"),
    "blocks.0.0.project": ("features.1.conv.1", "features.1.conv.2"),
    **{
        f"{block}.{part}": (f"features.{n}.conv.{conv}", f"features.{n}.conv.{norm}")
        for n, block in enumerate(_in_order((1, 2, 3, 4, 3, 3, 1)), start=1)
        for part, conv, norm in _NUMBERED
        if n > 1
    },
    "last": ("features.18.0", "features.18.1"),
}
_UNCOUNTED = {"(drop)": "*.num_batches_tracked"}  # Keras does not count batches

PUBLISHED = {  # ours -> theirs, prefix by prefix; the rename engine reads it in both directions
    # v1, any width
    "keras": {**conv_norm_names(_KERAS), "head": "conv_preds | squeeze", **_UNCOUNTED},
    "timm": {**conv_norm_names(_TIMM), "head": "classifier"},  # both versions, any width
    "torchvision": {**conv_norm_names(_TORCHVISION), "head": "classifier.1"},  # v2
}
