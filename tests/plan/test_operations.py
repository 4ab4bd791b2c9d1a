"""FLOPs of single operations against counting by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerwise.planning.operations import forward_flops, nbytes
from layerwise.planning.rehearsal import rehearse
from layerwise.planning.step import Setting


def test_linear_is_two_per_multiply_accumulate():
    with torch.device("meta"):
        network, x = nn.Linear(20, 30), torch.zeros(7, 20)
    assert forward_flops(network, x) == 2 * 7 * 20 * 30


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (4, 1), (8, 2)])
def test_convolution(groups: int, stride: int):
    with torch.device("meta"):
        network = nn.Conv2d(8, 16, 3, stride, 1, groups=groups)
        x = torch.zeros(2, 8, 12, 12)
    side = 12 // stride
    assert forward_flops(network, x) == 2 * 2 * side * side * 16 * (8 // groups) * 9


def test_attention():
    class Attend(nn.Module):
        def forward(self, q: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, q, q)

    q = torch.zeros(2, 4, 16, 8)  # (B, H, T, Dh), on the CPU: its own fused kernel
    assert forward_flops(Attend(), q) == 2 * (2 * 2 * 4 * 16 * 16 * 8)


def test_forward_flops_leaves_the_network_in_its_mode():
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    network[1].eval()
    forward_flops(network, torch.zeros(1, 4))
    assert network[0].training
    assert not network[1].training


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_backward_of_a_grouped_convolution_is_twice_its_forward(groups: int, example, task):
    """PyTorch's own counter has the weight gradient `groups` times too high."""

    class Grouped(nn.Module):
        READS, HEADS = ("image",), ("class",)

        def __init__(self) -> None:
            super().__init__()
            self.lift = nn.Conv2d(3, 8, 1)
            self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
            self.head = nn.Linear(8, 10)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(self.lift(image)).mean((2, 3)))

        def layers(self) -> dict[str, nn.Module]:
            return dict(self.named_children())

    trace = rehearse(Grouped, example(3, 6, 6), task, Setting(5))
    forward = 2 * 5 * 36 * 8 * (8 // groups) * 9
    layer = next(x for x in trace.layers if x.name == "conv")
    assert layer.flops == 3 * forward


def test_expanded_axes_are_moved_once():
    assert nbytes(torch.zeros(1, 5).expand(1000, 5)) == 5 * 4
    assert nbytes(torch.zeros(1000, 5)) == 1000 * 5 * 4
