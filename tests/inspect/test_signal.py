"""Whether labels can be foretold: a few unseen rows can show it, and never disprove it."""

import numpy as np
import torch
from torch import nn

from layerwise.data.examples import Batch
from layerwise.inspection.signal import signal


class Parity(nn.Module):
    """Names the parity of three signs, which no linear probe on the raw values can."""

    READS = ("table",)

    def __init__(self, right: bool):
        super().__init__()
        self.right = right

    def forward(self, table: torch.Tensor) -> torch.Tensor:
        even = (table[:, :3] > 0).sum(1) % 2 == 0
        even = even if self.right else table[:, 3] > 0
        return torch.stack([even, ~even], 1).float()

    def features(self, table: torch.Tensor) -> torch.Tensor:
        return table[:, :0]


def rows(n: int, seed: int) -> Batch:
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    targets = (x[:, :3] > 0).sum(1) % 2
    return Batch({"table": x, "targets": targets}, np.arange(n))


def test_a_network_that_names_forty_unseen_rows_has_found_something():
    assert signal(Parity(right=True), rows(400, 0), rows(40, 1)).present is True


def test_forty_rows_it_cannot_name_prove_nothing():
    found = signal(Parity(right=False), rows(400, 0), rows(40, 1))
    assert found.present is None
    assert "too few" in found.sentence


def test_many_rows_nobody_can_name_say_that_there_is_nothing():
    assert signal(Parity(right=False), rows(400, 0), rows(400, 1)).present is False
