"""Convolution with batch normalisation and activation, TensorFlow's padding, channel rounding.

Shapes: b images, c channels, h x w pixels.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": ceil(h / stride) rows come out.

    An odd pixel of padding goes to the bottom and the right, unlike any symmetric padding:
    224 rows at stride 2 with a 3 x 3 kernel are padded by 0 above and 1 below.
    """

    def forward(self, input: Tensor) -> Tensor:
        top, bottom = same_padding(input.shape[-2], self.kernel_size[0], self.stride[0])
        left, right = same_padding(input.shape[-1], self.kernel_size[1], self.stride[1])
        return super().forward(F.pad(input, (left, right, top, bottom)))


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after, as TensorFlow's "same" pads an axis of `size` pixels."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class ConvNorm(nn.Module):
    """act(norm(conv(x))): (b, n_in, h, w) to (b, n_out, ceil(h / stride), ceil(w / stride)).

    activation: a module class, or None for a linear output.
    same: TensorFlow's padding instead of kernel // 2 on every side.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
        norm_eps: float = 1e-5,
        same: bool = False,
    ):
        super().__init__()
        conv = SameConv2d if same else nn.Conv2d
        padding = 0 if same else kernel // 2
        self.conv = conv(n_in, n_out, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(n_out, eps=norm_eps)
        self.act = activation() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


def conv_norm_names(theirs: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Published names of the two parts of ConvNorm layers: {"stem": (convolution, norm)}."""
    parts = ((0, "conv"), (1, "norm"))
    return {f"{ours}.{part}": names[i] for ours, names in theirs.items() for i, part in parts}


def round_channels(channels: float, multiple: int = 8) -> int:
    """The nearest multiple of 8 (for the hardware's sake) that is not 10% below `channels`."""
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * channels else rounded
