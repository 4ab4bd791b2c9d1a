"""Saliency finds what was planted, and depends on what was learned."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.data.examples import Batch
from layerwise.errors import DataError
from layerwise.inspection.attribution import heat, smooth_grad, top_examples

SIDE, PATCH = 16, 4


class Finder(nn.Module):
    READS = ("image",)

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.head = nn.Linear(16, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(image))))
        return self.head(x.amax((2, 3)))

    def layers(self) -> dict[str, nn.Module]:
        return {n: getattr(self, n) for n in ("conv1", "conv2", "head")}


def planted(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, a checkered patch somewhere in half of the images, and where it is (row, column)."""
    draw = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(n, 1, SIDE, SIDE, generator=draw)
    y = torch.arange(n) % 2
    corner = torch.randint(0, SIDE - PATCH, (n, 2), generator=draw)
    checker = (torch.arange(PATCH)[:, None] + torch.arange(PATCH)) % 2 * 2.0 - 1.0
    for i in range(n):
        r, c = corner[i].tolist()
        if y[i]:
            x[i, 0, r : r + PATCH, c : c + PATCH] = checker
    return x, y, corner


@pytest.fixture(scope="module")
def trained() -> Finder:
    torch.manual_seed(0)
    network = Finder()
    x, y, _ = planted(256, seed=1)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    assert float((network(x).argmax(1) == y).float().mean()) > 0.95
    return network


def share_in_patch(maps: Tensor, corner: Tensor) -> float:
    """Share of the map's sum that lies within the patch and one pixel around it."""
    shares = []
    for i, (r, c) in enumerate(corner.tolist()):
        inside = maps[i, max(0, r - 1) : r + PATCH + 1, max(0, c - 1) : c + PATCH + 1]
        shares.append(float(inside.sum() / maps[i].sum()))
    return float(np.mean(shares))


def test_a_planted_patch_is_found(trained):
    x, y, corner = planted(40, seed=2)
    x, y, corner = x[1::2], y[1::2], corner[1::2]  # those with a patch
    maps = smooth_grad(trained, x, y).abs().sum(1)
    assert share_in_patch(maps, corner) > 0.4  # by area it would be 0.14


def test_saliency_depends_on_what_was_learned(trained):
    x, y, corner = planted(40, seed=4)
    x, y, corner = x[1::2], y[1::2], corner[1::2]
    learned = smooth_grad(trained, x, y).sum(1)
    torch.manual_seed(9)
    random = smooth_grad(Finder(), x, y).sum(1)
    ranks = [np.argsort(np.argsort(m.flatten(1).numpy(), 1), 1) for m in (learned, random)]
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True)]
    assert np.mean(alike) < 0.7
    assert share_in_patch(learned, corner) > share_in_patch(random, corner) + 0.1


def test_attribution_leaves_the_network_as_it_was(trained):
    trained.train()
    x, y, _ = planted(4, seed=7)
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    maps = heat(smooth_grad(trained, x, y))
    assert trained.training
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())
    assert maps.shape == (4, SIDE, SIDE)
    assert float(maps.min()) >= 0
    assert float(maps.max()) == 1.0


def test_the_rows_that_excite_a_unit_are_the_right_ones():
    network = Finder()
    with torch.no_grad():
        network.conv1.weight.zero_()
        network.conv1.bias.zero_()
        network.conv1.weight[2, 0, 1, 1] = 1.0  # unit 2 answers with the brightness of a place
    x = torch.zeros(50, 1, SIDE, SIDE)
    x[17, 0, 3, 12] = 5.0
    x[31, 0, 9, 0] = 4.0
    rows = np.arange(100, 150)
    batches = [Batch({"image": x[i : i + 20]}, rows[i : i + 20]) for i in range(0, 50, 20)]
    (unit,) = top_examples(network, batches, units_per_layer=3, rows_per_unit=2)["conv1"]
    assert unit.index == 2
    assert unit.rows == (117, 131)
    assert unit.values == pytest.approx((5.0, 4.0))
    assert unit.places[0] == pytest.approx((3.5 / SIDE, 12.5 / SIDE))
    assert set(top_examples(network, batches)) == {"conv1", "conv2"}


def test_no_rows_is_an_error():
    with pytest.raises(DataError, match="at least one batch"):
        top_examples(Finder(), [])
