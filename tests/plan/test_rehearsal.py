"""The ledger against numbers that can be counted by hand, and against PyTorch's saved tensors."""

import pytest
import torch
from torch import nn

from layerwise import models
from layerwise.data.examples import Batch
from layerwise.errors import OptionError
from layerwise.planning import rehearsal
from layerwise.planning.rehearsal import rehearse
from layerwise.planning.step import Setting

PARAMS = 20 * 30 + 30 + 30 * 30 + 30 + 30 * 10 + 10


def layer(trace, name: str):
    return next(x for x in trace.layers if x.name == name)


def test_parameters_and_the_bytes_that_go_with_them(dense, example, task):
    trace = rehearse(dense, example(20), task, Setting(8))
    assert trace.params == trace.trainable == PARAMS
    assert trace.parts["weights"] == trace.parts["gradients"] == 4 * PARAMS
    steps_taken = 6 * 4  # AdamW counts its updates in one number per tensor
    assert trace.parts["optimizer"] == 2 * 4 * PARAMS + steps_taken
    assert trace.parts["inputs"] == 8 * 20 * 4 + 8 * 8


@pytest.mark.parametrize(("optimizer", "expected"), [("sgd", 4 * PARAMS), ("muon", None)])
def test_state_of_other_optimizers(dense, example, task, optimizer: str, expected: int | None):
    trace = rehearse(dense, example(20), task, Setting(8, optimizer=optimizer))
    matrices, rest = 4 * (600 + 900) + 2 * 4, 2 * 4 * (70 + 300) + 4 * 4  # the head is of the rest
    assert trace.parts["optimizer"] == (expected or matrices + rest)


def test_optimizer_by_a_function_of_the_network(dense, example, task):
    setting = Setting(8, optimizer=lambda n: torch.optim.SGD(n.head.parameters(), 0.1, 0.9))
    assert rehearse(dense, example(20), task, setting).parts["optimizer"] == 4 * 310


def test_flops_of_a_training_step(dense, example, task):
    """Forward and two products backward, but for the first layer, whose input needs none."""
    trace = rehearse(dense, example(20), task, Setting(8))
    fc1, fc2, head = 2 * 8 * 20 * 30, 2 * 8 * 30 * 30, 2 * 8 * 30 * 10
    assert layer(trace, "fc1").flops == 2 * fc1
    assert layer(trace, "fc2").flops == 3 * fc2
    assert layer(trace, "head").flops == 3 * head
    assert trace.flops == 2 * fc1 + 3 * fc2 + 3 * head
    assert trace.flops_per_sample == trace.flops / 8


def saved_bytes(network: nn.Module, task, batch: Batch, dtype: str) -> int:
    """Bytes of the distinct storages that autograd saves, weights and inputs left out."""
    known = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    known |= {t.untyped_storage().data_ptr() for t in batch.tensors.values()}
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        pointer = t.untyped_storage().data_ptr()
        if pointer not in known:
            found[pointer] = t.untyped_storage().nbytes(), t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss, _ = task.loss(network, batch)
        loss.backward()
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("which", ["dense", "stack", "vit"])
def test_activations_are_what_autograd_saves(request, example, task, which: str, dtype: str):
    """To a few hundred bytes: the loss and the logits live beside them, and the fake batch
    normalisation keeps its means in bf16 where the CPU's keeps them in fp32."""
    if which == "vit":
        family, config = models.resolve("vit_tiny_patch4_32", n_layers=2, dim=48)
        build, shape = (lambda: models.build(family, config)), (3, 32, 32)
    else:
        build = request.getfixturevalue(which)
        shape = (20,) if which == "dense" else (3, 16, 16)
    rows = 4
    batch = example(*shape, rows=rows, device="cpu")
    actual = saved_bytes(build().train(), task, batch, dtype)
    trace = rehearse(build, example(*shape), task, Setting(rows, dtype=dtype))
    logits = rows * 10 * 4
    assert actual - 256 <= trace.saved <= actual + 3 * logits


def test_autocast_copies_of_the_weights_count(dense, example, task):
    trace = rehearse(dense, example(20), task, Setting(8, dtype="bf16"))
    assert trace.parts["autocast"] == 2 * PARAMS  # bf16 of every weight and bias
    assert "autocast" not in rehearse(dense, example(20), task, Setting(8)).parts


def test_accumulation_keeps_activations_and_multiplies_the_work(stack, example, task):
    once = rehearse(stack, example(3, 16, 16), task, Setting(8))
    four = rehearse(stack, example(3, 16, 16), task, Setting(8, grad_accum_steps=4))
    whole = rehearse(stack, example(3, 16, 16), task, Setting(32))
    assert four.flops == whole.flops == 4 * once.flops
    assert four.saved == once.saved
    assert once.peak < four.peak < whole.peak
    assert four.parts["inputs"] == whole.parts["inputs"] == 4 * once.parts["inputs"]


def test_checkpointing_trades_memory_for_work(stack, example, task):
    plain = rehearse(stack, example(3, 32, 32), task, Setting(8))
    kept = rehearse(stack, example(3, 32, 32), task, Setting(8, checkpointing=True))
    one_image = 8 * 16 * 32 * 32 * 4  # each block keeps its input alone
    assert kept.saved < plain.saved / 2
    assert layer(kept, "block1").saved <= one_image
    assert kept.peak < plain.peak
    assert layer(kept, "block1").flops * 3 == layer(plain, "block1").flops * 4  # forward again


def test_frozen_parameters_cost_no_gradient(dense, example, task):
    def build() -> nn.Module:
        network = dense()
        network.fc1.requires_grad_(False)
        return network

    trace = rehearse(build, example(20), task, Setting(8))
    trained = PARAMS - 630
    assert trace.trainable == trained
    assert trace.parts["gradients"] == 4 * trained
    head_only = rehearse(dense, example(20), task, Setting(8, freeze=True))
    assert head_only.trainable == 310
    assert head_only.parts["gradients"] == 4 * 310


def test_buffers_and_ema(stack, example, task):
    trace = rehearse(stack, example(3, 16, 16), task, Setting(8))
    assert trace.parts["buffers"] == 4 * (16 + 16) * 4 + 4 * 8  # means, variances, counts
    mean = rehearse(stack, example(3, 16, 16), task, Setting(8, ema=True))
    assert mean.parts["optimizer"] - trace.parts["optimizer"] == trace.parts["weights"]


def test_the_given_network_is_left_as_it_was(dense, example, task):
    network = dense().eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    rehearse(network, example(20), task, Setting(8, checkpointing=True, freeze=True))
    assert not network.training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert "forward" not in vars(network.fc1)
    assert not network.fc1._forward_hooks


def test_work_is_booked_to_the_layer_that_causes_it(stack, example, task):
    """The parts of the whole, forward and backward, add up layer by layer."""
    trace = rehearse(stack, example(3, 16, 16), task, Setting(8))
    names = [x.name for x in trace.layers]
    assert names[:5] == ["block0", "block1", "block2", "block3", "head"]
    assert layer(trace, "block1").flops == layer(trace, "block2").flops
    assert layer(trace, "block1").saved == layer(trace, "block2").saved > 0
    assert layer(trace, "(update)").moved > 3 * trace.parts["weights"]
    assert sum(x.flops for x in trace.layers) == trace.flops
    assert sum(x.params for x in trace.layers) == trace.params


def test_resnet50_at_batch_64_costs_no_memory(example, task):
    family, config = models.resolve("resnet50", n_classes=10)
    batch = example(3, 224, 224)
    trace = rehearse(lambda: models.build(family, config), batch, task, Setting(64))
    assert trace.peak > 5e9  # more than a small machine has, and nothing was allocated
    assert trace.flops_per_sample == pytest.approx(3 * 2 * 4.09e9, rel=0.02)  # table 1 of the paper


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize(
    ("variant", "smaller", "shape"),
    [
        ("resnet20", {}, (3, 32, 32)),
        ("vit_tiny_patch4_32", {"n_layers": 2, "dim": 48}, (3, 32, 32)),
        ("mobilenet_v1_025", {}, (3, 64, 64)),
        ("mlp", {"n_in": 64}, (64,)),
    ],
)
def test_a_small_step_costs_the_same_on_real_tensors(
    example, task, monkeypatch, variant: str, smaller: dict, shape: tuple[int, ...], optimizer: str
):
    family, config = models.resolve(variant, n_classes=10, **smaller)
    batch = example(*shape, device="cpu")
    traces = []
    for small in (rehearsal.SMALL, 0):  # as it comes, and faked whatever it weighs
        monkeypatch.setattr(rehearsal, "SMALL", small)
        setting = Setting(2, optimizer=optimizer)
        network = models.build(family, config)
        assert rehearsal.is_small(network, batch, setting) == bool(small)
        traces.append(rehearse(network, batch, task, setting))
    real, fake = ([op for op in t.ops if op.phase != "update"] for t in traces)
    assert real == fake
    real, fake = traces
    assert (real.parts, real.peak, real.flops) == (fake.parts, fake.peak, fake.flops)
    assert real.layers[:-1] == fake.layers[:-1]
    moved = [sum(x.moved for x in trace.layers) for trace in (real, fake)]
    assert moved[0] == pytest.approx(moved[1], rel=0.01)  # clipping: of lists, or one by one


def test_a_network_that_reads_values_is_an_error_with_a_way_out(example, task):
    class Reads(nn.Module):
        READS, HEADS = ("table",), ("class",)

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(20, 10)

        def forward(self, table: torch.Tensor) -> torch.Tensor:
            return self.head(table) * table.sum().item()

        def layers(self) -> dict[str, nn.Module]:
            return {"head": self.head}

    with pytest.raises(OptionError, match=r"cannot follow .* without \.item"):
        rehearse(Reads, example(20), task, Setting(4))


def test_settings_are_checked():
    with pytest.raises(OptionError, match="did you mean 'adamw'"):
        Setting(8, optimizer="adam")
    with pytest.raises(OptionError, match="dtype"):
        Setting(8, dtype="fp8")
    with pytest.raises(OptionError, match="at least 1"):
        Setting(0)
