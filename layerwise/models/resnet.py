"""ResNet: layers that learn what to add to their input, which made a hundred of them trainable.

Paper: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
Published weights: torchvision's and timm's `resnet18` ... `resnet152` (the same names), Hugging
Face's `microsoft/resnet-*`, and the CIFAR-10 networks of akamaster/pytorch_resnet_cifar10.

Departures from the paper
- In a bottleneck the 3 x 3 convolution carries the stride, not the first 1 x 1: "v1.5", as in
  torchvision and timm; about half a point better on ImageNet.
- The `_cifar` variants are the ImageNet networks with a 3 x 3 stem and no pooling, for 32 x 32
  images: wider than the paper's own CIFAR networks, and what speed comparisons train.
- `zero_init` starts the last normalisation of every block at zero, so that each block starts as the
  identity (Goyal et al., arXiv:1706.02677).

Shapes: b images, c channels, h x w pixels, C classes.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.layers.conv import ConvNorm, conv_norm_names
from layerwise.layers.stack import stack


@dataclass(frozen=True)
class Config:
    n_classes: int = 1000
    depths: tuple[int, ...] = (2, 2, 2, 2)  # blocks per stage; from the second on each halves h, w
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels of the 3 x 3 convolutions per stage
    bottleneck: bool = False  # 1 x 1, 3 x 3, 1 x 1 with four times the channels at the end
    small_stem: bool = False  # 3 x 3 and no pooling, for images of 32 x 32
    pad_shortcut: bool = False  # where shapes change: option A (subsample, pad with zero channels)
    zero_init: bool = False


SMALL = Config(10, widths=(16, 32, 64), small_stem=True, pad_shortcut=True)

VARIANTS = {
    # table 1 of the paper
    "resnet18": Config(depths=(2, 2, 2, 2)),
    "resnet34": Config(depths=(3, 4, 6, 3)),
    "resnet50": Config(depths=(3, 4, 6, 3), bottleneck=True),
    "resnet101": Config(depths=(3, 4, 23, 3), bottleneck=True),
    "resnet152": Config(depths=(3, 8, 36, 3), bottleneck=True),
    # section 4.2 and table 6: 6 n + 2 layers for CIFAR-10
    "resnet20": replace(SMALL, depths=(3, 3, 3)),
    "resnet32": replace(SMALL, depths=(5, 5, 5)),
    "resnet44": replace(SMALL, depths=(7, 7, 7)),
    "resnet56": replace(SMALL, depths=(9, 9, 9)),
    "resnet110": replace(SMALL, depths=(18, 18, 18)),
    # the ImageNet networks on images of 32 x 32
    "resnet18_cifar": Config(10, depths=(2, 2, 2, 2), small_stem=True),
    "resnet50_cifar": Config(10, depths=(3, 4, 6, 3), bottleneck=True, small_stem=True),
}


class PadShortcut(nn.Module):
    """Option A: subsample and fill new channels with zeros, half on either side; no weights."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.below = (c_out - c_in) // 2
        self.above = c_out - c_in - self.below

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.below, self.above))  # (b, c_out, h/stride, w/stride)


def shortcut(config: Config, c_in: int, c_out: int, stride: int) -> nn.Module:
    """What carries the input past a block: itself, unless its shape changes."""
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    if config.pad_shortcut:
        return PadShortcut(c_in, c_out, stride)
    return ConvNorm(c_in, c_out, 1, stride, activation=None)  # option B: learned


class BasicBlock(nn.Module):
    """y = relu(x + norm(conv(relu(norm(conv(x)))))), both convolutions 3 x 3."""

    expansion = 1

    def __init__(self, config: Config, c_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = ConvNorm(c_in, width, 3, stride)
        self.conv2 = ConvNorm(width, width, 3, activation=None)
        self.shortcut = shortcut(config, c_in, width, stride)
        if config.zero_init:
            nn.init.zeros_(self.conv2.norm.weight)

    def forward(self, x: Tensor) -> Tensor:  # (b, c_in, h, w)
        y = self.conv2(self.conv1(x))
        return F.relu(y + self.shortcut(x))  # (b, width, h/stride, w/stride)


class Bottleneck(nn.Module):
    """The same with 1 x 1 down to `width`, 3 x 3, and 1 x 1 up to four times that."""

    expansion = 4

    def __init__(self, config: Config, c_in: int, width: int, stride: int):
        super().__init__()
        c_out = width * self.expansion
        self.conv1 = ConvNorm(c_in, width, 1)
        self.conv2 = ConvNorm(width, width, 3, stride)
        self.conv3 = ConvNorm(width, c_out, 1, activation=None)
        self.shortcut = shortcut(config, c_in, c_out, stride)
        if config.zero_init:
            nn.init.zeros_(self.conv3.norm.weight)

    def forward(self, x: Tensor) -> Tensor:  # (b, c_in, h, w)
        y = self.conv3(self.conv2(self.conv1(x)))
        return F.relu(y + self.shortcut(x))  # (b, 4 width, h/stride, w/stride)


class ResNet(nn.Module):
    """Images (b, 3, h, w), normalised as the card says, to class scores (b, C)."""

    READS, HEADS, unit_vectors = ("image",), ("class",), False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        kind = Bottleneck if config.bottleneck else BasicBlock
        c, small = config.widths[0], config.small_stem
        self.stem = ConvNorm(3, c, 3) if small else ConvNorm(3, c, 7, stride=2)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        for i, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            stage = nn.Sequential()
            for j in range(depth):
                stage.append(kind(config, c, width, stride=2 if i > 0 and j == 0 else 1))
                c = width * kind.expansion
            self.stages.append(stage)
        self.head = nn.Linear(c, config.n_classes)
        self.apply(init_weights)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))  # (b, C)

    def features(self, image: Tensor) -> Tensor:
        """The last feature map averaged over all places: (b, c)."""
        x = self.pool(self.stem(image))  # (b, c, h/4, w/4), or (b, c, h, w) with the small stem
        for stage in self.stages:
            x = stage(x)
        return x.mean(dim=(2, 3))

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return features

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it: stem, every block, head."""
        return stack(self, "stem", "stages", "head")

    def reset_head(self, n_classes: int, kind: str = "class") -> None:
        """A fresh last layer for another set of classes; everything below keeps what it learned."""
        self.config = replace(self.config, n_classes=n_classes)
        self.head = nn.Linear(self.head.in_features, n_classes).to(self.head.weight)


def init_weights(module: nn.Module) -> None:
    """He initialisation by the fan-out; normalisations and the head start as PyTorch has them."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


Model = ResNet

_CONVS = {
    "stem": ("conv1", "bn1"),
    "stages.{}.{}.conv1": ("layer{+1}.{}.conv1", "layer{+1}.{}.bn1"),
    "stages.{}.{}.conv2": ("layer{+1}.{}.conv2", "layer{+1}.{}.bn2"),
    "stages.{}.{}.conv3": ("layer{+1}.{}.conv3", "layer{+1}.{}.bn3"),
    "stages.{}.{}.shortcut": ("layer{+1}.{}.downsample.0", "layer{+1}.{}.downsample.1"),
}
_TORCHVISION = {**conv_norm_names(_CONVS), "head": "fc"}
_HF = "resnet.encoder.stages.{}.layers.{}"
_HF_CONVS = {
    "stem": "resnet.embedder.embedder",
    **{f"stages.{{}}.{{}}.conv{i + 1}": f"{_HF}.layer.{i}" for i in range(3)},
    "stages.{}.{}.shortcut": f"{_HF}.shortcut",
}
_HF_PAIRS = {n: (f"{t}.convolution", f"{t}.normalization") for n, t in _HF_CONVS.items()}

PUBLISHED = {  # ours -> theirs, prefix by prefix; the rename engine reads it in both directions
    "torchvision": _TORCHVISION,
    "timm": _TORCHVISION,
    "akamaster": {"(prefix)": "module.", **_TORCHVISION, "head": "linear"},
    "huggingface": {**conv_norm_names(_HF_PAIRS), "head": "classifier.1"},
}
