"""SqueezeNet: AlexNet's accuracy with fifty times fewer parameters.

Paper: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and < 0.5 MB
model size", arXiv:1602.07360. Version 1.1, of the authors' repository: pools earlier, 2.4 times
fewer operations.
Published weights: torchvision's `squeezenet1_0` and `squeezenet1_1`; the compressed weights of Han
et al., "Deep Compression", arXiv:1510.00149, under the names of the authors' Caffe network.

Departures from the family contract
- The published head is not linear: a 1x1 convolution scores every place, ReLU, and the mean over
  the places is the class score. So `features` is a map (b, 512, h, w), not a vector, and `head` is
  that `ConvHead`; for one vector per image take the mean over h and w (`pooled`).
- `reset_head` puts a linear layer on that mean instead (`linear_head`): for few classes the ReLU
  would leave classes without a gradient, and a probe fitted to the means can be copied into it.

Shapes: b images, c channels, h x w pixels, C classes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from layerwise.layers.dropout import Dropout
from layerwise.layers.stack import stack


@dataclass(frozen=True)
class Config:
    n_classes: int = 1000
    stem_channels: int = 96
    stem_kernel: int = 7
    squeeze: tuple[int, ...] = (16, 16, 32, 32, 48, 48, 64, 64)  # of fire2 .. fire9
    pool_after: tuple[int, ...] = (1, 4, 8)  # the layers (conv1 is 1) that end in a pooling
    dropout: float = 0.5
    linear_head: bool = False  # on the mean over the places, as `reset_head` makes it


VARIANTS = {
    "squeezenet1_0": Config(),  # table 1 of the paper: 1.25 million parameters
    "squeezenet1_1": Config(stem_channels=64, stem_kernel=3, pool_after=(1, 3, 5)),  # 1.24 million
}

EXPANSION = 4  # each of a fire module's two expanding convolutions is 4 times its squeeze


def _pool(wanted: bool) -> nn.Module:
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True) if wanted else nn.Identity()


class Stem(nn.Module):
    """conv1: (b, 3, h, w) to (b, c, about h / 4, about w / 4)."""

    def __init__(self, channels: int, kernel: int, pool: bool):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, kernel, stride=2)
        self.pool = _pool(pool)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.conv(images).relu())


class Fire(nn.Module):
    """Squeeze to a few channels, expand by 1x1 and 3x3 convolutions side by side."""

    def __init__(self, n_in: int, squeeze: int, pool: bool):
        super().__init__()
        expand = EXPANSION * squeeze
        self.squeeze = nn.Conv2d(n_in, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.pool = _pool(pool)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()  # (b, s, h, w)
        x = torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1)  # (b, 8 s, h, w)
        return self.pool(x.relu())


class ConvHead(nn.Module):
    """The last convolution, conv10: scores every place; the mean over places: (b, C)."""

    def __init__(self, channels: int, n_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, n_classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3))


class MeanHead(nn.Linear):
    """The mean over the places, then a linear layer: (b, c, h, w) to (b, C)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.mean((2, 3)))


class SqueezeNet(nn.Module):
    """Images (b, 3, h, w), normalised as the card says, to class scores (b, C)."""

    READS, HEADS, unit_vectors = ("image",), ("class",), False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.conv1 = Stem(config.stem_channels, config.stem_kernel, pool=1 in config.pool_after)
        channels = config.stem_channels
        for number, squeeze in enumerate(config.squeeze, start=2):
            fire = Fire(channels, squeeze, pool=number in config.pool_after)
            self.add_module(f"fire{number}", fire)
            channels = 2 * EXPANSION * squeeze
        self.dropout = Dropout(config.dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.get_parameter("bias"))
        head = MeanHead if config.linear_head else ConvHead
        self.head: nn.Module = head(channels, config.n_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))  # (b, C)

    def features(self, image: Tensor) -> Tensor:
        """A feature vector at every place: (b, 512, h, w), h and w about a 17th of the image's."""
        x = image
        for name, layer in self.layers().items():
            if name != "head":
                x = layer(x)
        return self.dropout(x)

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return features.mean((2, 3))

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it."""
        fires = (f"fire{number}" for number in range(2, 2 + len(self.config.squeeze)))
        return stack(self, "conv1", *fires, "head")

    def reset_head(self, n_classes: int, kind: str = "class") -> None:
        """A fresh last layer for another set of classes; everything below keeps what it learned."""
        self.config = replace(self.config, n_classes=n_classes, linear_head=True)
        head = MeanHead(2 * EXPANSION * self.config.squeeze[-1], n_classes)
        self.head = head.to(self.conv1.conv.weight)


Model = SqueezeNet


def _torchvision(*places: int) -> dict[str, str]:
    """places: of fire2 .. fire9 in `features`."""
    fires = {f"fire{number}": f"features.{n}" for number, n in enumerate(places, start=2)}
    return {"conv1.conv": "features.0", **fires, "head.conv": "classifier.1"}


PUBLISHED = {  # ours -> theirs, prefix by prefix; the rename engine reads it in both directions
    "torchvision": _torchvision(3, 4, 5, 7, 8, 9, 10, 12),  # squeezenet1_0
    "torchvision_1_1": _torchvision(3, 4, 6, 7, 9, 10, 11, 12),  # the poolings shift the numbers
    "deep_compression": {  # the authors' Caffe names
        "conv1.conv": "conv1",
        "fire{}.squeeze": "fire{}.squeeze1x1",
        "fire{}.expand1x1": "fire{}.expand1x1",
        "fire{}.expand3x3": "fire{}.expand3x3",
        "head.conv": "conv10",
    },
}
