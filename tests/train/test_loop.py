"""The loop: equal to the big batch, the same to the bit when resumed, and stopped by no number."""

import dataclasses
import itertools
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from layerwise import runtime
from layerwise.data.examples import Batch
from layerwise.errors import TrainingStopped
from layerwise.tasks.classify import Classify
from layerwise.tasks.embed import Embed
from layerwise.train import checkpoint
from layerwise.train.loop import MOST_TOKENS, Average, Hooks, LoopConfig, State, parts_of, train
from layerwise.train.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from layerwise.train.schedule import lr_factor

CPU = runtime.Runtime("cpu", torch.float32, 1)
TASK = Classify(("a", "b", "c"))


class Rows:
    """Batches as a pure function of the step."""

    def __init__(self, size: int = 24, broken_step: int = -1, infinite: bool = False):
        self.size, self.broken_step, self.infinite = size, broken_step, infinite

    def __getitem__(self, step: int) -> Batch:
        g = runtime.generator(7, step)
        x = torch.randn(self.size, 10, generator=g)
        y = (x[:, :3] + 0.1 * torch.randn(self.size, 3, generator=g)).argmax(1)
        if step == self.broken_step:
            x[5] = float("inf") if self.infinite else float("nan")
        return Batch({"table": x, "targets": y}, np.arange(self.size) + step * self.size)


class Stack(nn.Sequential):
    READS = ("table",)

    def forward(self, table: torch.Tensor) -> torch.Tensor:
        return super().forward(table)


def network(dropout: float = 0.0) -> nn.Module:
    with runtime.seeded(3):
        return Stack(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 3))


def optimiser(net: nn.Module, name: str = "adamw") -> torch.optim.Optimizer:
    return build_optimizer(name, [{"params": list(net.parameters()), "weight_decay": 0.01}], 0.01)


def run(net, course, state=None, hooks=None, batches=None, name="adamw"):
    opt = optimiser(net, name)
    return train(net, TASK, batches or Rows(), opt, course, state or State(), CPU, hooks or Hooks())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_it_learns(name: str):
    net, losses = network(), []
    hooks = Hooks(log=lambda step, **v: losses.append(v["loss"]))
    state = run(net, LoopConfig(steps=150, lr=0.05, warmup_steps=5), hooks=hooks, name=name)
    assert state.finished
    assert np.mean(losses[-10:]) < 0.35 * np.mean(losses[:5])


@pytest.mark.parametrize("parts", [2, 3, 5])  # 5 does not divide 24: the last part is smaller
def test_accumulation_gives_the_gradient_of_the_big_batch(parts: int):
    gradients = []
    for accum in (1, parts):
        net = network().double()
        batch = Rows()[0]
        batch.tensors["table"] = batch["table"].double()
        seen: list[torch.Tensor] = []
        opt = torch.optim.SGD(net.parameters(), lr=0.0)
        opt.step = lambda net=net, seen=seen: seen.extend(p.grad.clone() for p in net.parameters())  # type: ignore[method-assign]
        course = LoopConfig(steps=1, lr=0.0, grad_accum_steps=accum, grad_clip=0)
        train(net, TASK, {0: batch}, opt, course, State(), CPU, Hooks())
        gradients.append(seen)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)  # the loss itself is in fp32


def test_many_tokens_are_learned_from_a_few_at_a_time():
    texts = Batch({"tokens": torch.zeros(32, 512, dtype=torch.int64)}, np.arange(32))
    windows = Batch({"tokens": torch.zeros(2, 3, 500, dtype=torch.int64)}, np.arange(2))
    images = Batch({"image": torch.zeros(32, 3, 64, 64)}, np.arange(32))
    assert 32 * 512 // MOST_TOKENS == parts_of(TASK, texts, 32, 1, "cpu") == 8
    assert parts_of(TASK, texts, 32, 16, "cpu") == 16  # as asked
    assert parts_of(TASK, texts, 36, 1, "cpu") == 9  # equal ones
    assert parts_of(TASK, windows, 2, 1, "cpu") == 2  # a row is never cut
    assert parts_of(TASK, texts, 32, 1, "cuda") == 1
    assert parts_of(TASK, images, 32, 1, "cpu") == 1
    joint = Embed("matches")
    assert parts_of(joint, texts, 32, 1, "cpu") == 1


def test_the_loop_learns_so_and_gradients_are_those_of_all_rows():
    class Counted(Classify):
        def loss(self, network, batch):
            sizes.append(len(batch))
            return super().loss(network, batch)

    class Bag(nn.Module):
        READS = ("tokens",)

        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, tokens):
            return self.head(self.embed(tokens).mean(1))

    g = runtime.generator(1, 2)
    tensors = {"tokens": torch.randint(50, (20, 512), generator=g), "targets": torch.arange(20) % 3}
    batch, sizes = Batch(tensors, np.arange(20)), []
    with runtime.seeded(3):
        net = Bag()
    TASK.loss(net, batch)[0].div(20).backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    task, course = Counted(("a", "b", "c")), LoopConfig(steps=1, lr=0.0, grad_clip=0)
    train(net, task, {0: batch}, opt, course, State(), CPU, Hooks())
    assert sizes == [4] * 5
    for p, w in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, w)


def test_the_best_weights_are_kept_whatever_the_periods():
    scores, saved = iter((0.2, float("nan"), 0.9, 0.5, 0.6)), []
    hooks = Hooks(evaluate=lambda net: next(scores), save=lambda s: saved.append(s.step))
    state = run(network(), LoopConfig(14, 0.01, evaluate_every=3, checkpoint_every=5), hooks=hooks)
    assert (state.best_step, state.best_score) == (9, 0.9)
    assert saved == [0, 3, 5, 9, 10, 14]


def test_clipping_bounds_the_norm_and_keeps_the_direction():
    free, cut = [], []
    for limit, out in ((0.0, free), (0.01, cut)):
        net = network()
        opt = torch.optim.SGD(net.parameters(), lr=0.0)
        opt.step = lambda net=net, out=out: out.append(  # type: ignore[method-assign]
            torch.cat([p.grad.flatten() for p in net.parameters()])
        )
        train(net, TASK, Rows(), opt, LoopConfig(1, 0.0, grad_clip=limit), State(), CPU, Hooks())
    assert cut[0].norm().item() == pytest.approx(0.01, rel=1e-4)
    assert torch.cosine_similarity(free[0], cut[0], dim=0) > 1 - 1e-6


def test_schedules_begin_low_peak_at_one_and_end_low():
    for name in ("cosine", "linear", "wsd"):
        course = [lr_factor(s, 100, 10, name) for s in range(100)]
        assert course[0] == pytest.approx(0.1)
        assert max(course) == 1.0
        assert course[-1] < 0.06
        assert all(a >= b for a, b in itertools.pairwise(course[10:]))
    assert lr_factor(99, 100, 0, "constant") == 1.0


def test_a_run_cut_anywhere_and_resumed_ends_in_the_same_bits(tmp_path: pathlib.Path):
    whole = network(dropout=0.3)
    run(whole, LoopConfig(steps=12, lr=0.02, warmup_steps=2))
    for cut in (1, 5, 11):
        net = network(dropout=0.3)
        folder = tmp_path / str(cut)
        opt = optimiser(net)

        def save(state, net=net, opt=opt, folder=folder):
            tensors = {"model": net.state_dict(), "optimizer": optimizer_tensors(net, opt)}
            checkpoint.save_checkpoint(folder, state, tensors)

        class Cut(Rows):
            def __getitem__(self, step: int, cut=cut) -> Batch:
                if step == cut:
                    raise KeyboardInterrupt
                return super().__getitem__(step)

        course = LoopConfig(steps=12, lr=0.02, warmup_steps=2, checkpoint_every=1)
        with pytest.raises(KeyboardInterrupt):
            train(net, TASK, Cut(), opt, course, State(), CPU, Hooks(save=save))
        net2 = network()
        net2[2].p = 0.3
        opt2 = optimiser(net2)
        state, tensors = checkpoint.load_checkpoint(checkpoint.latest(folder))
        assert state.step == cut
        net2.load_state_dict(tensors["model"])
        load_optimizer_tensors(net2, opt2, tensors["optimizer"])
        train(net2, TASK, Rows(), opt2, course, state, CPU, Hooks())
        for a, b in zip(whole.parameters(), net2.parameters(), strict=True):
            assert torch.equal(a, b)


def test_the_guardian_names_the_row_goes_back_once_and_then_stops():
    net = network()
    good = {k: v.clone() for k, v in net.state_dict().items()}
    said = []

    def restore(state: State) -> State:
        net.load_state_dict(good)
        return dataclasses.replace(state, step=0)

    hooks = Hooks(
        log=lambda step, **v: said.append(v),
        restore=restore,
        names=[f"row {i}" for i in range(999)],
    )
    with pytest.raises(TrainingStopped, match=r"step 3; rows: row 77 again.*going back once"):
        run(net, LoopConfig(steps=6, lr=0.01), hooks=hooks, batches=Rows(broken_step=3))
    recovered = [v for v in said if "guardian" in v]
    assert len(recovered) == 1
    assert recovered[0]["lr_scale"] == pytest.approx(0.1)
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())


def test_a_rate_that_explodes_is_cured_by_going_on_at_a_tenth():
    net = network()
    good = {k: v.clone() for k, v in net.state_dict().items()}
    calls = []

    class Fragile(Classify):
        def loss(self, network, batch):
            total, parts = super().loss(network, batch)
            big = max(float(p.detach().abs().max()) for p in network.parameters())
            return total * (float("nan") if big > 8 else 1.0), parts

    def restore(state: State) -> State:
        calls.append(state.step)
        net.load_state_dict(good)
        return dataclasses.replace(state, step=0)

    hooks = Hooks(restore=restore, names=[""] * 9999)
    opt = torch.optim.SGD(net.parameters(), lr=40.0)
    course = LoopConfig(steps=20, lr=40.0, grad_clip=0)
    state = train(net, Fragile(("a", "b", "c")), Rows(), opt, course, State(), CPU, hooks)
    assert state.finished
    assert len(calls) == 1
    assert state.lr_scale == pytest.approx(0.1)


def test_ctrl_c_finishes_the_step_and_saves():
    saved, before = [], signal.getsignal(signal.SIGINT)

    class Interrupting(Rows):
        def __getitem__(self, step: int) -> Batch:
            if step == 4:
                signal.raise_signal(signal.SIGINT)
            return super().__getitem__(step)

    hooks = Hooks(save=lambda state: saved.append(state.step))
    state = run(network(), LoopConfig(steps=50, lr=0.01), hooks=hooks, batches=Interrupting())
    assert (state.step, state.finished) == (5, False)
    assert saved[-1] == 5
    assert signal.getsignal(signal.SIGINT) is before


def test_the_average_follows_and_keeps_integers():
    net = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4))
    copy = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4))
    average = Average(net, copy, 0.99)
    with torch.no_grad():
        net[0].weight.add_(1.0)
    net[1].num_batches_tracked += 3
    before = copy[0].weight.clone()
    average.update(net)
    torch.testing.assert_close(copy[0].weight - before, torch.full((4, 10), 0.9))
    assert copy[1].num_batches_tracked == 3


KILLED = """
import sys, time, torch
sys.path.insert(0, {tests!r})
from test_loop import *
folder = pathlib.Path({folder!r})
net = network(dropout=0.2); opt = optimiser(net)
state = State()
if (newest := checkpoint.latest(folder)):
    state, tensors = checkpoint.load_checkpoint(newest)
    net.load_state_dict(tensors["model"]); load_optimizer_tensors(net, opt, tensors["optimizer"])
def save(state):
    parts = {{"model": net.state_dict(), "optimizer": optimizer_tensors(net, opt)}}
    checkpoint.save_checkpoint(folder, state, parts)
    checkpoint.clean(folder, 2, state.best_step)
course = LoopConfig(60, 0.02, checkpoint_every=1)
train(net, TASK, Rows(), opt, course, state, CPU, Hooks(save=save))
"""


def test_killed_at_random_moments_and_resumed_it_ends_in_the_same_bits(tmp_path: pathlib.Path):
    """SIGKILL during checkpoints too: whatever is on the disk, the weights end the same."""
    whole = network(dropout=0.2)
    run(whole, LoopConfig(steps=60, lr=0.02))
    folder = tmp_path / "run"
    code = KILLED.format(folder=str(folder), tests=str(pathlib.Path(__file__).parent))
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code])
        while checkpoint.latest(folder) is None and process.poll() is None:
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0.0, 0.15)))
        process.kill()
        process.wait()
    subprocess.run([sys.executable, "-c", code], check=True)
    state, tensors = checkpoint.load_checkpoint(checkpoint.latest(folder))
    assert state.step == 60
    assert not list(folder.glob(".writing-*"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, tensors["model"][name])


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_state_of_channels_last_filters_survives_a_checkpoint(name: str, tmp_path: pathlib.Path):
    """Fused kernels walk memory: state that comes back in another layout would pair wrongly."""

    def filters() -> nn.Module:
        with runtime.seeded(1):
            net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
        return net.to(memory_format=torch.channels_last)

    def steps(net, opt, seeds) -> None:
        for seed in seeds:
            x = torch.randn(2, 4, 9, 9, generator=runtime.generator(seed))
            opt.zero_grad()
            net(x).square().mean().backward()
            opt.step()

    one, two = filters(), filters()
    first, second = optimiser(one, name), optimiser(two, name)
    steps(one, first, range(6))
    steps(two, second, range(3))
    saved = {"model": two.state_dict(), "optimizer": optimizer_tensors(two, second)}
    path = checkpoint.save_checkpoint(tmp_path, State(step=3), saved)
    tensors = checkpoint.load_checkpoint(path)[1]
    three = filters()
    third = optimiser(three, name)
    three.load_state_dict(tensors["model"])
    load_optimizer_tensors(three, third, tensors["optimizer"])
    steps(three, third, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), three.parameters(), strict=True))
