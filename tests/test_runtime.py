"""What the processor lacks is noticed, said, and gone around."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from layerwise import runtime
from layerwise.adapt import packed
from layerwise.adapt.fuse import fused
from layerwise.layers import linear as linear_file
from layerwise.layers.linear import Linear
from tests.networks import Stack

X86 = platform.machine() in ("x86_64", "AMD64")
HELD_DOWN = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.fixture(autouse=True)
def _asked_anew():
    runtime.multiplies_in.cache_clear()
    yield
    runtime.multiplies_in.cache_clear()


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch):
    """As on a processor whose flags promise what oneDNN does not have."""

    def refuse(x, weight):
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(runtime, "tried_product", refuse)


def test_auto_is_fp32_where_a_product_in_bf16_is_refused(without_bf16):
    assert runtime.choose_dtype("cpu", "auto")[0] == torch.float32
    assert runtime.kernel_dtype(torch.bfloat16) == torch.float32
    assert runtime.kernel_dtype(torch.float32) == torch.float32


def test_auto_is_fp32_where_a_product_in_bf16_is_wrong(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(runtime, "tried_product", lambda x, weight: 0.9 * (x @ weight.T))
    assert runtime.choose_dtype("cpu", "auto")[0] == torch.float32


def test_auto_is_fp32_where_the_flags_promise_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(runtime, "tried_product", lambda x, weight: x @ weight.T)
    assert runtime.choose_dtype("cpu", "auto")[0] == torch.float32


def test_the_trial_is_real_within_fake_tensors_and_autocast():
    want = runtime.multiplies_in(torch.bfloat16)
    runtime.multiplies_in.cache_clear()
    with FakeTensorMode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        assert runtime.multiplies_in(torch.bfloat16) == want


def test_bf16_as_asked_says_how_much_slower_it_is(without_bf16, monkeypatch: pytest.MonkeyPatch):
    seconds = {torch.bfloat16: 0.5, torch.float32: 0.025}
    monkeypatch.setattr(runtime, "seconds_of_product", seconds.get)
    (said,) = runtime.start("cpu", "bf16", threads=1).warnings
    assert "a matrix product takes 20 times as long in it as in fp32" in said
    assert not runtime.start("cpu", "fp32", threads=1).warnings
    assert not runtime.start("cpu", "auto", threads=1).warnings


def test_linear_layers_learn_in_bf16_all_the_same(without_bf16, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(linear_file, "Biased")
    layer = Linear(24, 40)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(3, 24)).sum().backward()
    assert layer.weight.grad is not None


def test_rewritten_networks_compute_in_fp32_instead(without_bf16):
    network = Stack(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    x = torch.randn(2, 3, 8, 8)
    quick = fused(network, x, torch.bfloat16)
    assert quick.dtype == torch.float32
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):  # as the run asked for it
        found = quick(x)
    with torch.inference_mode():
        torch.testing.assert_close(found, network(x))


@pytest.mark.parametrize("post", ["none", "gelu"])
def test_packed_layers_where_onednn_has_no_kernel(post: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "laid_out", lambda weight, rows: None)
    layer, x = nn.Linear(24, 40), torch.randn(5, 24)
    y = F.linear(x, layer.weight, layer.bias)
    want = F.gelu(y) if post == "gelu" else y
    torch.testing.assert_close(packed.PackedLinear(layer, x.dtype, 16, post)(x), want)


def test_builds_of_pytorch_without_onednn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not runtime.multiplies_in(torch.bfloat16)
    assert packed.laid_out(torch.ones(4, 4), 16) is None
    network, x = Stack(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(fused(network, x, torch.bfloat16)(x), network(x))


@pytest.mark.skipif(not X86, reason="only there the instruction set can be held down")
def test_held_down_to_avx2_nothing_is_taken_that_is_missing():
    code = (
        "import json, torch; from layerwise import runtime; from layerwise.layers.linear import "
        "Linear; auto, asked = runtime.start('cpu'), runtime.start('cpu', 'bf16')\n"
        "with asked.autocast(): Linear(24, 40)(torch.randn(3, 24)).sum().backward()\n"
        "print(json.dumps([str(auto.dtype), len(auto.warnings), len(asked.warnings)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | HELD_DOWN,
    )
    assert json.loads(done.stdout) == ["torch.float32", 0, 1]
