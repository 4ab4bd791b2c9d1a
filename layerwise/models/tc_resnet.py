"""TC-ResNet: keywords and other sounds by convolutions over time, the mel bands as channels.

Paper: Choi et al., "Temporal Convolution for Real-time Keyword Spotting on Mobile Devices",
arXiv:1904.03814, section 2.2 and figure 2. No published weights are known here.

Departures from the paper: the input is a log-mel spectrogram, not MFCCs (its first step is the
cosine transform that the first layer can learn).

Shapes: B recordings, M mel bands, T frames, C classes, c channels.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.errors import DataError
from layerwise.layers.stack import stack


@dataclass(frozen=True)
class Config:
    n_classes: int = 12
    n_mels: int = 40
    channels: tuple[int, ...] = (16, 24, 32, 48)  # of the first layer, then of each block
    kernel: int = 9  # frames
    width: float = 1.0  # multiplies the channels
    dropout: float = 0.1


DEEP = Config(channels=(16, 24, 24, 32, 32, 48, 48))
VARIANTS = {  # table 1
    "tc_resnet8": Config(),
    "tc_resnet14": DEEP,
    "tc_resnet8_15": Config(width=1.5),
    "tc_resnet14_15": replace(DEEP, width=1.5),
}


class Unit(nn.Module):
    """Convolution over time, batch normalisation: (B, c_in, 1, T) to (B, c_out, 1, T / stride)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1):
        super().__init__()
        pad = (0, kernel // 2)
        self.conv = nn.Conv2d(c_in, c_out, (1, kernel), (1, stride), pad, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Block(nn.Module):
    """Two convolutions and a shortcut: relu(y + shortcut(x)); a wider one halves the time."""

    def __init__(self, c_in: int, c_out: int, kernel: int):
        super().__init__()
        stride = 1 if c_in == c_out else 2
        self.conv1 = Unit(c_in, c_out, kernel, stride)
        self.conv2 = Unit(c_out, c_out, kernel)
        self.shortcut = nn.Identity() if c_in == c_out else Unit(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:  # (B, c_in, 1, T)
        y = self.conv2(F.relu(self.conv1(x)))
        return F.relu(y + self.shortcut(x))


class TcResNet(nn.Module):
    """Log-mel spectrograms (B, 1, M, T), normalised, to class scores (B, C)."""

    READS, HEADS, unit_vectors = ("audio",), ("class",), False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        first, *others = (round(config.width * c) for c in config.channels)
        self.stem = nn.Conv2d(config.n_mels, first, (1, 3), padding=(0, 1), bias=False)
        widths = zip((first, *others), others, strict=False)
        self.blocks = nn.ModuleList([Block(a, b, config.kernel) for a, b in widths])
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(others[-1], config.n_classes)
        self.apply(init_weights)

    def forward(self, audio: Tensor) -> Tensor:
        return self.head(self.features(audio))  # (B, C)

    def features(self, audio: Tensor) -> Tensor:
        """The last feature map averaged over time: (B, c)."""
        if audio.shape[2] != self.config.n_mels:
            raise DataError(
                f"spectrograms of {self.config.n_mels} mel bands were expected, these have "
                f"{audio.shape[2]}: prepare the recordings as in training"
            )
        x = self.stem(audio.transpose(1, 2))  # (B, c, 1, T)
        for block in self.blocks:
            x = block(x)
        return self.dropout(x.mean((2, 3)))

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return features

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it."""
        return stack(self, "stem", "blocks", "head")

    def reset_head(self, n_classes: int, kind: str = "class") -> None:
        """A fresh last layer for another set of classes; everything below keeps what it learned."""
        self.config = replace(self.config, n_classes=n_classes)
        self.head = nn.Linear(self.head.in_features, n_classes).to(self.head.weight)


def init_weights(module: nn.Module) -> None:
    """He initialisation; normalisations and the head start as PyTorch has them."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


Model = TcResNet

PUBLISHED: dict[str, dict[str, str]] = {}
