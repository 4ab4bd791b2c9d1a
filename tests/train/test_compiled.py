"""Whether layers are compiled: what is measured, and for which lengths."""

import pytest
import torch
from torch import nn

from layerwise.data.examples import Batch
from layerwise.runtime import Runtime
from layerwise.train import compiled
from layerwise.train.compiled import Verdict, compile_layers, whether_to_compile

FP32 = Runtime("cpu", torch.float32, 2)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))] * 2)

    def layers(self) -> dict[str, nn.Module]:
        return {f"blocks.{i}": block for i, block in enumerate(self.blocks)}

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


class Task:
    def loss(self, network, batch):
        return network(batch["inputs"]).sum(), {}


def some(*lengths: int):
    return lambda: [Batch({"inputs": torch.zeros(2, n, 4)}, None) for n in lengths]  # type: ignore[arg-type]


@pytest.fixture
def timed(monkeypatch):
    """What is timed: (in training mode, asked for any length); compiled is twice as fast."""
    seen = []

    def time_passes(layer, inputs, machine, repeats=3):
        seen.append((layer.training, getattr(layer, "dynamic", "eager")))
        return 1.0 if seen[-1][1] == "eager" else 0.5

    def compile_it(layer, dynamic):
        faster = nn.Sequential(layer)
        faster.dynamic = dynamic  # type: ignore[assignment]
        return faster

    monkeypatch.setattr(compiled, "time_passes", time_passes)
    monkeypatch.setattr(compiled.torch, "compile", compile_it)
    return seen


@pytest.mark.parametrize(("lengths", "dynamic"), [((8, 8), None), ((8, 16), True)])
def test_what_is_measured_is_what_will_run(timed, lengths, dynamic):
    network = Stack().eval()  # as a base comes from its file
    verdict = whether_to_compile(network, Task(), some(*lengths), FP32, "auto", 3600)
    assert verdict == Verdict(True, "compiled layer by layer: blocks.1 runs 2.00 times as fast")
    assert timed[0] == (True, "eager")
    assert set(timed[1:]) == {(True, dynamic)}
    assert not network.training  # a copy was measured


def test_short_trainings_measure_nothing():
    def nothing():
        raise AssertionError("no batch is needed")

    for mode, word in (("off", "switched off"), ("auto", "599 s of training are too few")):
        verdict = whether_to_compile(Stack(), Task(), nothing, FP32, mode, 599)
        assert not verdict.compiled
        assert word in verdict.why
    assert whether_to_compile(Stack(), Task(), nothing, FP32, "on", 1).compiled


def test_compiling_for_all_lengths(monkeypatch):
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **kw: asked.append(kw["dynamic"]))
    compile_layers(Stack(), some(8, 16)())
    compile_layers(Stack(), some(8, 8)())
    assert asked == [True, True, None, None]
