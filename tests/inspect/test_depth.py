"""The depth report finds what was put into a network on purpose."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerwise.data.examples import Batch
from layerwise.errors import DataError
from layerwise.inspection.depth import depth_report, image_properties, pooled
from layerwise.inspection.floors import DepthReport
from layerwise.inspection.texts import thinned
from layerwise.kinds.text.corpus import NO_LOSS

N, D = 600, 24


class Known(nn.Module):
    """Layers that square, pass on, blur or forget what they get, so that every answer is known."""

    READS = ("table",)

    def __init__(self):
        super().__init__()
        self.square, self.same, self.forget = Square(), nn.Identity(), Forget()
        self.head = nn.Linear(2 * D, 2)

    def forward(self, table: Tensor) -> Tensor:
        return self.head(self.forget(self.same(self.square(table))))

    def layers(self) -> dict[str, nn.Module]:
        return {n: getattr(self, n) for n in ("square", "same", "forget", "head")}


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x**2], 1)


class Forget(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.cat([torch.ones(D), torch.zeros(D)])


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    """The label is whether the first three values are large in size: no linear probe on the inputs
    can tell, one on the squares can."""
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    y = (x[:, :3].square().sum(1) > 2.4).long()
    rows = torch.arange(N).split(100)
    return [Batch({"table": x[r], "targets": y[r]}, r.numpy()) for r in rows]


@pytest.fixture(scope="module")
def report(batches) -> DepthReport:
    return depth_report(
        Known(), batches, ("small", "large"), gradients={"square": 2.0, "head": 4.0}
    )


def test_the_floor_that_makes_the_label_readable_is_found(report):
    floors = {f.name: f for f in report.layers}
    assert list(floors) == ["inputs", "square", "same", "forget", "head"]
    assert floors["inputs"].probe < 0.6
    assert floors["square"].probe > 0.8
    assert floors["square"].adds
    assert not floors["same"].adds
    assert floors["forget"].loses


def test_control_is_at_chance(report):
    for floor in report.layers:
        assert floor.control == pytest.approx(0.5, abs=0.06)
    assert report.chance == pytest.approx(0.5, abs=0.1)


def test_similarity_and_rank(report):
    assert report.cka[1][2] == 1.0
    assert report.layers[0].effective_rank == pytest.approx(D, rel=0.03)
    assert report.layers[3].effective_rank == pytest.approx(D, rel=0.03)
    assert report.layers[3].width == 2 * D


def test_the_sentences_say_it(report):
    text = " ".join(report.sentences())
    assert "square knows most" in text
    assert "same adds nothing that a linear probe can see" in text
    assert "CKA 1.00" in text
    assert "forget loses some of what the layer below it knew" in text
    assert "gradient of square was 0.5 times that of head" in text
    assert "Control: with shuffled labels" in text


def test_the_report_is_plain_json(report):
    values = json.loads(json.dumps(report.to_dict()))
    assert values["sentences"] == report.sentences()
    assert set(values["recall"]) == {"small", "large"}


def test_the_same_seed_gives_the_same_report(batches):
    network = Known()
    assert depth_report(network, batches).to_dict() == depth_report(network, batches).to_dict()


def test_labels_without_meaning_are_said_to_be(batches):
    draw = torch.Generator().manual_seed(5)
    mixed = [
        Batch({"table": b["table"], "targets": torch.randint(2, (100,), generator=draw)}, b.rows)
        for b in batches
    ]
    assert "nothing about the labels was learned" in depth_report(Known(), mixed).sentences()[0]


def test_numbers_are_scored_by_variance(batches):
    numbers = [
        Batch({"table": b["table"], "targets": b["table"][:, 0] ** 2}, b.rows) for b in batches
    ]
    report = depth_report(Known(), numbers)
    assert report.score_name == "r2"
    assert report.layers[0].probe < 0.1
    assert report.layers[1].probe > 0.99
    assert "R² " in report.sentences()[0]


def test_hooks_are_gone_and_the_mode_is_back(batches):
    network = Known().train()
    depth_report(network, batches)
    assert network.training
    assert not any(m._forward_hooks for m in network.modules())


def test_too_few_rows_are_refused(batches):
    one = Batch({k: v[:10] for k, v in batches[0].tensors.items()}, np.arange(10))
    with pytest.raises(DataError, match="at least 40 labelled rows; 10 were given"):
        depth_report(Known(), [one])
    with pytest.raises(DataError, match="needs labelled rows"):
        depth_report(Known(), [])


def test_pooling_keeps_places():
    maps = torch.zeros(1, 5, 16, 16)
    maps[:, :, :8] = 1.0
    grid = pooled(maps).reshape(5, 8, 8)
    assert (grid[:, :4] == 1).all()
    assert (grid[:, 4:] == 0).all()
    tokens = torch.arange(17.0).reshape(1, 17, 1).expand(1, 17, 3)
    assert pooled(tokens).shape == (1, 3 * 16 + 3)
    assert pooled(torch.randn(2, 11, 4)).shape == (2, 8)


def test_edges_are_upright_or_level():
    image = torch.zeros(2, 3, 16, 16)
    image[0, :, :, ::4] = 1.0  # upright lines
    image[1, :, ::4, :] = 1.0
    edges = image_properties(image)["edges"].reshape(2, 2, 4)  # (image, direction, quarter)
    assert (edges[0, 0] > 5 * edges[0, 1]).all()
    assert (edges[1, 1] > 5 * edges[1, 0]).all()


def test_a_trained_network_on_real_digits():
    from sklearn.datasets import load_digits

    from layerwise.models import mlp

    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x / 16).float(), torch.from_numpy(y)
    torch.manual_seed(0)
    network = mlp.Model(mlp.Config(dim=64, n_layers=4))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for s in range(150):
        rows = torch.randint(1200, (64,), generator=torch.Generator().manual_seed(s))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
    held = [Batch({"table": x[1200:], "targets": y[1200:]}, np.arange(597))]
    report = depth_report(network, held, [str(i) for i in range(10)])
    assert report.layers[-2].probe > 0.9
    assert max(f.control for f in report.layers) < 0.15
    near = [report.cka[i][i + 1] for i in range(1, 4)]
    assert min(near) > report.cka[0][4]


def test_of_words_that_are_mostly_no_name_only_as_many_are_probed():
    targets = torch.zeros(4, 10, dtype=torch.int64)
    targets[0, :3], targets[2, 5] = torch.tensor([1, 2, 1]), 2
    targets[:, 9] = NO_LOSS
    batch = Batch(
        {"tokens": torch.ones(4, 10, dtype=torch.int64), "targets": targets}, np.arange(4)
    )
    left = thinned(batch)["targets"]
    assert [(left == c).sum().item() for c in (0, 1, 2)] == [4, 2, 2]
    assert torch.equal(left[targets > 0], targets[targets > 0])
    assert batch["targets"] is targets
    assert (targets == 0).sum() == 32
    even = Batch(
        {"tokens": batch["tokens"], "targets": torch.arange(40).view(4, 10) % 2}, batch.rows
    )
    assert torch.equal(thinned(even)["targets"], even["targets"])
    whole = Batch({"tokens": batch["tokens"], "targets": torch.zeros(4)}, batch.rows)
    assert thinned(whole) is whole
