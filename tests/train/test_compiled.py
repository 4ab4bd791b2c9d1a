"""Whether layers are compiled: what is measured, and for which lengths."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from layerwise import models
from layerwise.data.examples import Batch
from layerwise.runtime import Runtime
from layerwise.tasks.causal import Causal
from layerwise.tasks.classify import Classify
from layerwise.tasks.masked import Masked
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
        return network(batch["table"]).sum(), {}


def some(*lengths: int):
    return lambda: [Batch({"table": torch.zeros(2, n, 4)}, None) for n in lengths]  # type: ignore[arg-type]


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


def test_a_compiler_that_fails_stops_no_training(timed, monkeypatch):
    def broken(layer, dynamic):
        raise RuntimeError("no such instruction\nand a page of text")

    monkeypatch.setattr(compiled.torch, "compile", broken)
    verdict = whether_to_compile(Stack(), Task(), some(8, 8), FP32, "auto", 3600)
    why = "not compiled: RuntimeError in trying it: no such instruction"
    assert verdict == Verdict(False, why)


SIZE = {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 2, "mlp_dim": 64}
GROUPED = {"n_kv_heads": 1, "head_dim": 16}
DECODERS = {"gpt": {}, "llama": GROUPED, "moe": GROUPED, "gemma": GROUPED}


def decoder(family: str, **fields: int) -> nn.Module:
    torch.manual_seed(0)
    size = {**SIZE, **DECODERS[family], **fields}
    config = models.family(family).Config(**size, max_seq_len=64)
    return models.build(family, config)


def texts(length: int) -> Batch:
    """Two windows, each of two documents that do not see each other."""
    g = torch.Generator().manual_seed(length)
    inputs = torch.randint(5, 50, (2, length), generator=g)
    documents = torch.arange(length).ge(length // 3).long().expand(2, -1)
    return Batch({"tokens": inputs, "targets": inputs, "documents": documents}, np.arange(2))


def images(size: int) -> Batch:
    inputs = torch.randn(2, 3, size, size)
    return Batch({"image": inputs, "targets": torch.tensor([0, 2])}, np.arange(2))


@pytest.mark.parametrize("family", [*DECODERS, "bert", "resnet", "vit"])
def test_the_trial_calls_a_layer_as_its_network_does(family, monkeypatch):
    """Layers take masks, angles in pairs and lists besides; all of it reaches the trial."""
    monkeypatch.setattr(compiled.torch, "compile", lambda layer, dynamic: layer)
    if family in DECODERS:
        network, task, batches = decoder(family), Causal(), [texts(16), texts(16)]
    elif family == "bert":
        config = models.family("bert").Config(**SIZE, max_seq_len=64)
        network, task, batches = models.build("bert", config), Masked(), [texts(16), texts(16)]
    else:
        name, config = models.resolve({"resnet": "resnet20", "vit": "vit_tiny_patch16_224"}[family])
        network, task = models.build(name, config), Classify(["a", "b", "c"])
        batches = [images(32 if family == "resnet" else 224)] * 2
    gain, cost, name = compiled.measure(network.train(), task, batches, FP32)
    assert gain > 0
    assert cost > 0
    assert name in network.layers()  # type: ignore[operator]
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler warns of itself
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no compiler")
@pytest.mark.parametrize("family", ["llama", "gpt"])
def test_a_compiled_decoder_learns_the_same_at_every_length(family):
    plain, fast = (decoder(family, n_layers=1) for _ in range(2))
    compile_layers(fast, [texts(16), texts(24)])
    for length in (16, 24, 40):
        for network in (plain, fast):
            network.zero_grad()
            Causal().loss(network, texts(length))[0].backward()
        for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)
    torch._dynamo.reset()
