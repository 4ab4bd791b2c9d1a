"""Losses and scores of vectors, beside the same written out in plain numpy and by scipy."""

import numpy as np
import pytest
import torch
from torch import nn

from layerwise.data.examples import Batch
from layerwise.errors import DataError, OptionError
from layerwise.models import bert
from layerwise.runtime import Runtime
from layerwise.tasks import embed
from layerwise.tasks.embed import CosinePrediction, Embed
from layerwise.tasks.scores import metrics
from layerwise.tasks.scores.intervals import compare, interval
from layerwise.tasks.task import Options
from layerwise.train.checkpoint import State
from layerwise.train.loop import Hooks, LoopConfig, train
from tests.rows import numbered

TINY = bert.Config(
    dim=16, n_layers=2, n_heads=2, mlp_dim=24, vocab_size=40, max_seq_len=12, head_kind="embed"
)
CPU = Runtime("cpu", torch.float32, 1)


class Given(nn.Module):
    """A network whose vectors are its input."""

    READS = ("tokens", "mask")

    def __init__(self, vectors: np.ndarray):
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(vectors))  # (B, K, D)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.table.flatten(0, 1)


def given(B: int, K: int, texts: np.ndarray | None = None, D: int = 6) -> tuple[Given, Batch]:
    rng = np.random.default_rng(B * K)
    texts = 1 + np.arange(B * K).reshape(B, K) if texts is None else texts
    tensors = {
        "tokens": torch.zeros(B, K, 3, dtype=torch.int64),
        "texts": torch.from_numpy(texts),
        "targets": torch.from_numpy(rng.integers(0, 6, B).astype(np.float32)),
    }
    return Given(rng.normal(size=(B, K, D)).astype(np.float32)), Batch(tensors, np.arange(B))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---- losses ------------------------------------------------------------------------------------
def plain_info_nce(vectors: np.ndarray, texts: np.ndarray, scale: float = 20.0) -> float:
    """Row by row, candidate by candidate."""
    v, total = unit(vectors.astype(np.float64)), 0.0
    B, K, _ = v.shape
    for i in range(B):
        right = np.exp(scale * v[i, 0] @ v[i, 1])
        below = right
        for j in range(B):
            for k in range(1, K):
                if (
                    (j, k) == (i, 1)
                    or texts[j, k] == 0
                    or texts[j, k] in (texts[i, 0], texts[i, 1])
                ):
                    continue
                if k == 1 and texts[j, 0] == texts[i, 0]:
                    continue  # right for an equal first text
                below += np.exp(scale * v[i, 0] @ v[j, k])
        total -= np.log(right / below)
    return total


@pytest.mark.parametrize("K", [2, 3])
def test_info_nce_is_as_written_out(K: int):
    network, batch = given(7, K)
    loss, parts = Embed("matches").loss(network, batch)
    vectors = network.table.detach().numpy()
    assert float(loss.detach()) == pytest.approx(
        plain_info_nce(vectors, batch["texts"].numpy()), rel=1e-5
    )
    assert parts["info_nce"] == loss.detach()
    assert Embed("matches").count(batch) == 7


def test_what_is_right_elsewhere_does_not_count_as_wrong():
    """A text twice, a first text twice, an absent third one: each changes the loss."""
    plain = 1 + np.arange(15).reshape(5, 3)
    seen = []
    for change in ([], [(3, 1, 2)], [(4, 0, 1)], [(2, 2, 0)], [(2, 1, 1)], [(1, 2, 2)]):
        texts = plain.copy()
        for i, k, value in change:
            texts[i, k] = value
        network, batch = given(5, 3, texts)
        loss = float(Embed("matches", scale=2.0).loss(network, batch)[0].detach())
        assert loss == pytest.approx(
            plain_info_nce(network.table.detach().numpy(), texts, 2.0), rel=1e-5
        )
        seen.append(round(loss, 4))
    assert len(set(seen)) == len(seen)


def test_squared_error_of_the_cosine_is_as_written_out():
    network, batch = given(8, 2)
    task = Embed("scores", 0.0, 5.0)
    loss, _ = task.loss(network, batch)
    v, s = unit(network.table.detach().numpy().astype(np.float64)), batch["targets"].numpy()
    want = sum((v[i, 0] @ v[i, 1] - s[i] / 5) ** 2 for i in range(8))
    assert float(loss.detach()) == pytest.approx(want, rel=1e-5)
    assert task.count(batch) == 8


def test_matryoshka_is_the_mean_over_the_sizes():
    network, batch = given(6, 2)
    each = []
    for d in (6, 2, 4):
        short = Given(network.table.detach().numpy()[..., :d].copy())
        each.append(float(Embed("matches").loss(short, batch)[0].detach()))
    both = Embed("matches", dims=(2, 4, 100)).loss(network, batch)[0]
    assert float(both.detach()) == pytest.approx(np.mean(each), rel=1e-5)


def test_a_batch_of_one_pair_is_refused():
    with pytest.raises(DataError, match="nothing to compare it with"):
        Embed("matches").count(given(1, 2)[1])
    assert Embed("matches").count(given(1, 3)[1]) == 1


# ---- accumulation ------------------------------------------------------------------------------
def tiny_batch(B: int = 6, K: int = 3) -> Batch:
    rng = np.random.default_rng(3)
    lengths = rng.integers(2, 9, (B, K, 1))
    tensors = {
        "tokens": torch.from_numpy(rng.integers(3, 40, (B, K, 9))),
        "mask": torch.from_numpy(np.arange(9) < lengths),
        "texts": torch.from_numpy(1 + np.arange(B * K).reshape(B, K)),
        "targets": torch.from_numpy(rng.random(B).astype(np.float32)),
    }
    return Batch(tensors, np.arange(B))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("learns", ["scores", "matches"])
def test_accumulation_gives_the_gradient_of_the_whole_batch(learns: str, dropout: float):
    """Through the loop itself: the weights after a step are the same for 1, 2 and 4 parts.

    With dropout parts draw other units than the whole does, so only that it works is asked.
    """
    from dataclasses import replace

    batch, after = tiny_batch(6, 2 if learns == "scores" else 3), []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        config = replace(TINY, dropout=dropout, attn_dropout=dropout)
        network = bert.Model(config)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        course = LoopConfig(
            steps=1, lr=0.1, schedule="constant", grad_accum_steps=parts, grad_clip=0
        )
        train(network, Embed(learns), [batch], optimizer, course, State(seed=0), CPU, Hooks())
        after.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert all(w.isfinite().all() for w in after)
    if not dropout:
        start = torch.cat([p.detach().flatten() for p in untrained().parameters()])
        moved = (after[0] - start).norm()
        assert moved > 0.01
        for other in after[1:]:
            assert (other - after[0]).norm() < 1e-5 * moved


def untrained() -> nn.Module:
    torch.manual_seed(0)
    return bert.Model(TINY)


# ---- scores ------------------------------------------------------------------------------------
def test_correlations_equal_scipys_also_with_ties():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a = np.round(rng.normal(size=200), 1)
    b = np.round(a + rng.normal(size=200), 1)
    assert metrics.spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-12)
    assert metrics.pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0], abs=1e-12)
    assert np.isnan(metrics.spearman(a, np.ones(200)))


@pytest.mark.parametrize("metric", [metrics.spearman, metrics.pearson])
def test_a_row_of_weight_two_is_a_row_twice(metric):
    rng = np.random.default_rng(1)
    a, b = np.round(rng.normal(size=(2, 50)), 1)
    counts = rng.integers(0, 4, (5, 50))
    found = metric(a, b, counts.astype(float))
    again = [metric(np.repeat(a, c), np.repeat(b, c)) for c in counts]
    np.testing.assert_allclose(found, again, rtol=1e-10)
    assert metric(a, b, counts[0].astype(float)) == pytest.approx(again[0])


def test_the_interval_of_spearman_holds_its_value():
    rng = np.random.default_rng(2)
    a = rng.normal(size=300)
    found = interval(metrics.spearman, a + rng.normal(size=300), a)
    assert found.low < found.value < found.high
    assert 0.1 < found.high - found.low < 0.3


def test_ranks_are_as_counted_one_by_one(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(4)
    texts = 1 + np.arange(60).reshape(20, 3)
    texts[5, 1], texts[6, 0], texts[7, 2] = texts[3, 1], texts[2, 0], 0
    network, batch = given(20, 3, texts)
    task = Embed("matches")
    with torch.no_grad():
        found = task.predict(network, batch)
    rows = numbered(20)
    v = unit(network.table.detach().numpy())
    want = []
    for i in range(20):
        rank = 1
        for j in range(20):
            for k in (1, 2):
                same = texts[j, k] in (0, texts[i, 0], texts[i, 1])
                same |= k == 1 and texts[j, 0] == texts[i, 0]
                rank += not same and v[i, 0] @ v[j, k] > v[i, 0] @ v[i, 1]
        want.append(rank)
    np.testing.assert_array_equal(task.scored(found, rows)[0], want)
    said = task.metrics(found, rows)
    assert said["recall_at_1"] == np.mean(np.array(want) == 1)
    assert said["mrr"] == pytest.approx(np.mean(1 / np.array(want)))
    third = texts[:, 2] > 0
    right = (v[:, 0] * v[:, 1]).sum(1) > (v[:, 0] * v[:, 2]).sum(1)
    assert said["triple_accuracy"] == pytest.approx(right[third].mean())
    monkeypatch.setattr(embed, "BLOCK", 7)
    assert (task.scored(found, rows)[0] <= want).all()  # fewer candidates
    del rng


def test_vectors_that_are_all_alike_find_nothing():
    network, batch = given(20, 2)
    network.table.data[:] = network.table.data[0, 0]
    with torch.no_grad():
        found = Embed("matches").predict(network, batch)
    said = Embed("matches").metrics(found, numbered(20))
    assert (said["recall_at_1"], said["mrr"]) == (0.0, pytest.approx(1 / 20))


def test_a_task_comes_back_from_what_it_saves():
    task = Embed("matches", scale=15.0, dims=(64, 128))
    again = Embed(**{k: v for k, v in task.to_dict().items() if k != "name"})
    assert (again.to_dict(), again.score) == (task.to_dict(), "recall_at_1")


def test_sizes_of_vectors_are_checked():
    rows = numbered(2, targets=np.array([0.5, 4.0]), target_kind="number")
    with pytest.raises(OptionError, match="sizes from 1 up such as 64,128; '0,64'"):
        Embed.of(rows, Options(dims="0,64"))
    task = Embed.of(rows, Options(dims="64, 8"))
    assert (task.dims, task.low, task.high) == ((64, 8), 0.5, 4.0)


def test_the_scores_of_two_models_compare_whatever_the_spread_of_their_cosines():
    rng = np.random.default_rng(6)
    targets = rng.random(300)
    a = targets + 0.3 * rng.normal(size=300)
    b = 0.2 + 0.01 * (targets + 0.4 * rng.normal(size=300))  # all of them alike
    task, rows = Embed("scores"), numbered(300, targets=targets, target_kind="number")
    ranks = [task.scored([CosinePrediction(c) for c in x.tolist()], rows)[0] for x in (a, b)]
    found = compare(task.metric, *ranks, targets)
    assert found.a == pytest.approx(metrics.spearman(a, targets))
    assert found.high < 0
    assert found.p < 0.05
