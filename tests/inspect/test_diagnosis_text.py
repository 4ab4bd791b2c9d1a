"""Faults of transformers are named, and sound ones are left in peace; the bench has the rates."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from layerwise import models
from layerwise.data.examples import Batch
from layerwise.errors import DataError
from layerwise.inspection.case import Case
from layerwise.inspection.diagnosis import diagnose
from layerwise.inspection.signal import chance_loss, signal
from layerwise.inspection.watch import Watch, common_share
from layerwise.tasks.causal import Causal

V, T = 48, 24


def text(n: int, seed: int, back: int = 1) -> torch.Tensor:
    """Rows (n, T + 1) in which a token is mostly that of `back` places before."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(V, (n, T + 1), generator=g)
    x = x * (torch.rand(n, T + 1, generator=g) < 0.5)  # token 0 is common
    for t in range(back, T + 1):
        keep = torch.rand(n, generator=g) < 0.8
        x[:, t] = torch.where(keep, x[:, t - back], x[:, t])
    return x


def batch_of(rows: torch.Tensor) -> Batch:
    return Batch({"tokens": rows[:, :-1], "targets": rows[:, 1:].clone()}, np.arange(len(rows)))


def train(break_=None, spoil=None, lr=3e-3, steps=48, back=1, **config: Any):
    torch.manual_seed(0)
    small = {"vocab_size": V, "dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4}
    made = models.family("llama").Config(**small | {"head_dim": 8, "mlp_dim": 64} | config)
    network: Any = models.build("llama", made)
    if break_:
        break_(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.0)
    watch, curve, task = Watch(network.layers(), optimizer, every=12, budget=1.0), [], Causal()
    for s in range(steps):
        batch = batch_of(text(16, s, back))
        if spoil:
            spoil(batch)
        watch.before(s)
        optimizer.zero_grad()
        loss = task.loss(network, batch)[0] / task.count(batch)
        loss.backward()
        watch.after_backward(loss.item())
        optimizer.step()
        watch.after_step()
        curve.append({"step": s + 1, "loss": loss.item()})
    watch.detach()
    probe, held = (batch_of(text(60, seed, back)) for seed in (1000, 2000))
    for b in (probe, held):
        if spoil:
            spoil(b)
    found = diagnose(watch.history, network, curve, probe=probe, held_out=held, lr=lr)
    return found, watch, network


def sharpen(network: nn.Module) -> None:
    for name, p in network.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            p.data *= 200


def collapse(network: Any) -> None:
    network.token_embed.weight.data += 4.0


def kill_head(network: Any) -> None:
    attn = network.blocks[1].attn
    attn.v_proj.weight.data[8:16] = 0
    attn.o_proj.weight.data[:, 8:16] = 0


def shuffle(batch: Batch) -> None:
    y = batch["targets"]
    order = torch.randperm(y.numel(), generator=torch.Generator().manual_seed(1))
    y.copy_(y.flatten()[order].view_as(y))


def mask(batch: Batch) -> None:
    batch["targets"][::2] = -100


@pytest.mark.parametrize(("fault", "layer", "given"), [
    ("saturated_attention", "blocks.0 to blocks.2", {"break_": sharpen, "back": 2}),
    ("embedding_collapse", "token_embed", {"break_": collapse}),
    ("dead_heads", "blocks.1", {"break_": kill_head}),
    ("masked_labels", "", {"spoil": mask}),
    ("shuffled_labels", "", {"spoil": shuffle}),
    ("lr_too_high", "", {"lr": 3.0}),
    ("lr_too_low", "", {"lr": 1e-6}),
])  # fmt: skip
def test_a_fault_is_named(fault: str, layer: str, given: dict[str, Any]):
    found, _, _ = train(**given)
    assert [d.fault for d in found][:1] == [fault]
    assert found[0].layer == layer
    assert found[0].evidence
    assert found[0].cure


@pytest.mark.parametrize("config", [{}, {"qk_norm": True}, {"tied_head": True}, {"lr": 6e-3}])
def test_nothing_is_said_of_a_sound_decoder(config: dict[str, Any]):
    found, watch, network = train(**config)
    assert found == []
    seen = watch.history[0]["layers"]["blocks.0"]
    assert seen["entropy"] > 0.8  # fresh heads look everywhere
    assert seen["idle"] == 0
    assert watch.history[0]["layers"]["token_embed"]["common"] < 0.5
    assert "inputs" not in watch.history[0]  # numbers of tokens say nothing by their size
    assert not any(m._forward_hooks or "forward" in vars(m) for m in network.modules())


def test_nothing_is_said_of_a_sound_encoder():
    torch.manual_seed(0)
    config = models.family("bert").Config(
        vocab_size=V, dim=32, n_layers=2, n_heads=4, mlp_dim=64, head_kind="class", n_classes=2
    )
    network: Any = models.build("bert", config)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    watch, curve = Watch(network.layers(), optimizer, every=12, budget=1.0), []

    def rows(n: int, seed: int) -> Batch:
        x = torch.randint(V, (n, 12), generator=torch.Generator().manual_seed(seed))
        mask = torch.arange(12) < torch.randint(6, 13, (n, 1))
        y = ((x < 5) & mask).any(1).long()
        return Batch({"tokens": x, "mask": mask, "targets": y}, np.arange(n))

    for s in range(40):
        batch = rows(32, s)
        watch.before(s)
        optimizer.zero_grad()
        out = network(**batch.select(network.READS))
        loss = nn.functional.cross_entropy(out, batch["targets"])
        loss.backward()
        watch.after_backward(loss.item())
        optimizer.step()
        watch.after_step()
        curve.append({"step": s + 1, "loss": loss.item()})
    held = rows(200, 999)
    assert (
        diagnose(watch.history, network, curve, probe=rows(200, 99), held_out=held, lr=3e-3) == []
    )
    assert signal(network, rows(200, 99), held).present
    assert len(watch.history[0]["layers"]["embed"]) == len(watch.history[0]["layers"]["head"])


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_heads_are_read_the_same_from_compiled_blocks_and_training_stays_the_same():
    ends, seen = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        config = models.family("gpt").Config(
            vocab_size=V, dim=32, n_layers=2, n_heads=4, mlp_dim=64, max_seq_len=T, attn_dropout=0.1
        )
        network: Any = models.build("gpt", config)
        for every in (0, 1):
            torch.manual_seed(3)
            again = models.build("gpt", config)
            again.load_state_dict(network.state_dict())
            if compiled:
                for layer in again.layers().values():  # type: ignore[operator]
                    layer.compile(backend="eager")
            optimizer = torch.optim.SGD(again.parameters(), 0.1)
            watch = Watch(again.layers(), optimizer, every=every, budget=1.0)  # type: ignore[operator]
            for s in range(3):
                torch.manual_seed(s)  # as the loop does: dropout is a function of the step
                batch = batch_of(text(4, s))
                watch.before(s)
                Causal().loss(again, batch)[0].backward()
                watch.after_backward()
                optimizer.step()
                watch.after_step()
                optimizer.zero_grad()
            ends.append([p.detach().clone() for p in again.parameters()])
        seen.append([r["layers"]["blocks.1"]["entropy"] for r in watch.history])
    assert all(torch.equal(a, b) for a, b in zip(ends[0], ends[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ends[2], ends[3], strict=True))
    assert seen[0] == pytest.approx(seen[1], abs=1e-4)


def test_a_run_in_which_no_token_carries_loss_is_refused_before_the_first_step():
    with pytest.raises(DataError, match="no token"):
        train(spoil=lambda batch: batch["targets"].fill_(-100))


def test_what_frequencies_alone_cost_and_common_share():
    batch = batch_of(text(400, 5))
    shares = torch.bincount(batch["targets"].flatten()) / batch["targets"].numel()
    assert chance_loss(batch) == pytest.approx(float(torch.special.entr(shares).sum()), rel=1e-4)
    table = nn.Embedding(100, 8)
    table.weight.data = torch.ones(100, 8)
    assert common_share(table) == pytest.approx(1.0)
    assert common_share(nn.Linear(3, 3)) is None


def test_likeness_of_texts_counts_only_where_their_labels_can_be_told_apart():
    from layerwise.inspection.signal import Signal
    from layerwise.inspection.text_rules import embedding_collapse

    layers = {"embed": {"common": 0.1}, "head": {"common": None}}
    history = [{"step": 0, "layers": layers}]
    curve = [{"step": i, "loss": 0.7} for i in range(20)]
    for present, wanted in ((True, 1), (False, 0), (None, 0)):
        case = Case(history, curve, chance=0.69, likeness=0.999, lr=1e-3)
        case.signal = Signal(present, "a probe")
        assert len(list(embedding_collapse(case))) == wanted
