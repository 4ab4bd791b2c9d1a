"""The watch sees what is there, costs nothing between looks, and leaves nothing behind."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.inspection import watch as watching
from layerwise.inspection.taps import saturated_share
from layerwise.inspection.watch import Watch


class Stack(nn.Module):
    """Linear layers with a functional activation, so that no module betrays where it is."""

    def __init__(self, activation=F.relu, dim: int = 16, depth: int = 3):
        super().__init__()
        self.activation = activation
        self.blocks = nn.ModuleList(nn.Linear(8 if i == 0 else dim, dim) for i in range(depth))
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.activation(block(x))
        return self.head(x)

    def layers(self) -> dict[str, nn.Module]:
        return {**{f"blocks.{i}": b for i, b in enumerate(self.blocks)}, "head": self.head}


@pytest.fixture
def network() -> Stack:
    torch.manual_seed(0)
    return Stack()


def step(network: nn.Module, watch: Watch, optimizer: torch.optim.Optimizer, number: int) -> None:
    draw = torch.Generator().manual_seed(number)
    x, y = torch.randn(64, 8, generator=draw), torch.randint(3, (64,), generator=draw)
    watch.before(number)
    optimizer.zero_grad()
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    watch.after_backward(loss.item())
    optimizer.step()
    watch.after_step()


def test_looks_come_early_then_every_n_steps(network):
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    watch = Watch(network.layers(), optimizer, every=10, budget=1.0)
    for s in range(31):
        step(network, watch, optimizer, s)
    assert [r["step"] for r in watch.history] == [0, 1, 2, 4, 8, 10, 16, 20, 30]
    assert watch.history[3]["lr"] == 0.1


def test_gradient_and_update_are_the_true_ones(network):
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    watch = Watch(network.layers(), optimizer, budget=1.0)
    before = [p.detach().clone() for p in network.blocks[1].parameters()]
    step(network, watch, optimizer, 0)
    seen = watch.history[0]["layers"]["blocks.1"]
    grads = torch.cat([p.grad.flatten() for p in network.blocks[1].parameters()])
    old = torch.cat([b.flatten() for b in before])
    assert seen["grad_norm"] == pytest.approx(float(grads.norm()), rel=1e-5)
    assert seen["update_ratio"] == pytest.approx(float(0.5 * grads.norm() / old.norm()), rel=1e-4)
    assert seen["weight_norm"] == pytest.approx(float(old.norm()), rel=1e-5)
    assert seen["trainable"]


def test_activations_are_those_behind_a_functional_activation(network):
    watch = Watch(network.layers(), budget=1.0)
    x = torch.randn(48, 8)
    watch.before(0)
    network(x)
    hidden = F.relu(network.blocks[0](x)).detach()
    seen = watch.history[0]["layers"]["blocks.0"]
    assert seen["act_mean"] == pytest.approx(float(hidden.mean()), rel=1e-4)
    assert seen["act_std"] == pytest.approx(float(hidden.std(unbiased=False)), rel=1e-4)
    assert watch.history[0]["inputs"]["std"] == pytest.approx(
        float(x.std(unbiased=False)), rel=1e-4
    )


def test_dead_units_are_counted_over_the_whole_batch_and_a_window(network):
    network.blocks[1].bias.data[:4] = -1e3  # a quarter of the layer never opens
    watch = Watch(network.layers(), every=1, budget=1.0)
    for s in range(4):
        watch.before(s)
        network(torch.randn(200, 8))
    found = [r["layers"]["blocks.1"]["dead"] for r in watch.history]
    assert found[-1] == pytest.approx(0.25, abs=0.07)
    network.blocks[1].bias.data[:4] = 0.0
    watch.before(4)
    network(torch.randn(200, 8))  # one look in which they open ends it
    assert watch.history[-1]["layers"]["blocks.1"]["dead"] < 0.1


def test_a_unit_open_for_one_row_outside_the_sample_is_not_dead():
    network = Stack(depth=2)
    network.blocks[0].weight.data.zero_()
    network.blocks[0].weight.data[0, 0] = 1.0
    network.blocks[0].bias.data.zero_()
    x = torch.zeros(257, 8)
    x[3, 0] = 5.0  # the sample takes every fifth row and so misses this one
    watch = Watch(network.layers(), budget=1.0)
    watch.before(0)
    network(x)
    assert watch.history[0]["layers"]["blocks.0"]["dead"] == pytest.approx(15 / 16)


@pytest.mark.parametrize(("activation", "scale", "wanted"), [
    (torch.sigmoid, 40.0, True), (torch.sigmoid, 1.0, False),
    (torch.tanh, 40.0, True), (torch.tanh, 1.0, False),
    (F.relu, 40.0, False), (F.gelu, 40.0, False),
])  # fmt: skip
def test_saturated_units_are_told_from_other_activations(activation, scale, wanted):
    torch.manual_seed(1)
    network = Stack(activation)
    for block in network.blocks:
        block.weight.data *= scale
    watch = Watch(network.layers(), budget=1.0)
    watch.before(0)
    network(torch.randn(64, 8))
    shares = [watch.history[0]["layers"][n]["saturated"] for n in ("blocks.0", "blocks.1")]
    assert (min(shares) > 0.5) if wanted else (max(shares) < 0.1)


def test_small_relu_outputs_do_not_look_like_a_sigmoid():
    values = torch.randn(100, 10).relu().mul(1e-3).numpy()
    assert saturated_share(values) == 0.0


def test_nothing_stays_attached_even_when_a_step_is_stopped(network):
    watch = Watch(network.layers(), every=1, budget=1.0)
    watch.before(0)
    with pytest.raises(RuntimeError):
        network(torch.randn(4, 9))
    watch.detach()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    step(network, watch, optimizer, 1)
    assert watch.history[-1]["layers"]["head"]["grad_norm"] is not None


def test_only_the_first_micro_batch_is_read(network):
    watch = Watch(network.layers(), budget=1.0)
    watch.before(0)
    network(torch.ones(4, 8))
    first = dict(watch.history[0]["layers"]["blocks.0"])
    network(torch.full((4, 8), 50.0))
    assert watch.history[0]["layers"]["blocks.0"] == first


def test_training_is_the_same_to_the_bit_with_and_without_a_watch():
    ends = []
    for every in (0, 1):
        torch.manual_seed(3)
        network = Stack()
        optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
        watch = Watch(network.layers(), optimizer, every=every, budget=1.0)
        for s in range(8):
            step(network, watch, optimizer, s)
        ends.append([p.detach().clone() for p in network.parameters()])
        assert bool(watch.history) == bool(every)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_layers_without_gradient_or_training_are_said_so(network):
    network.blocks[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    watch = Watch(network.layers(), optimizer, budget=1.0)
    step(network, watch, optimizer, 0)
    seen = watch.history[0]["layers"]["blocks.0"]
    assert (seen["trainable"], seen["grad_norm"], seen["update_ratio"]) == (False, None, 0.0)


def test_looks_pause_when_they_cost_more_than_their_share(network, monkeypatch):
    """By a clock of its own: a step takes 10 ms, and each time it is read within a look 1 ms."""
    now = [0.0]

    def read() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(watching, "time", SimpleNamespace(perf_counter=read))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    watch = Watch(network.layers(), optimizer, every=1, budget=0.02)
    for s in range(300):
        step(network, watch, optimizer, s)
        now[0] += 0.01
        if len(watch.history) == 2:
            free = watch.spent  # the first two looks are free
    each = free / 2
    assert 3 <= len(watch.history) < 150
    assert watch.spent <= 0.02 * now[0] + each


def test_convolutions_count_channels_and_shared_inputs_once():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.left, self.right = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.head((self.left(x) + self.right(x)).mean((2, 3)))

        def layers(self):
            names = ("stem", "left", "right", "head")
            return {n: getattr(self, n) for n in names}

    network = Branches()
    network.stem.bias.data[:3] = -100.0
    watch = Watch(network.layers(), budget=1.0)
    watch.before(0)
    network(torch.randn(10, 3, 8, 8))
    layers = watch.history[0]["layers"]
    assert layers["stem"]["dead"] == pytest.approx(0.5)
    assert layers["left"]["act_mean"] is None  # the right branch reads the stem, not the left one
    assert layers["right"]["act_mean"] is not None


def test_compiled_layers_are_watched_too():
    network = Stack(depth=2)
    for layer in network.layers().values():
        layer.compile(backend="eager")
    watch = Watch(network.layers(), every=1, budget=1.0)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for s in range(3):
        step(network, watch, optimizer, s)
    assert all(r["layers"]["blocks.0"]["act_std"] > 0 for r in watch.history)
    assert watch.history[-1]["layers"]["head"]["act_std"] > 0
