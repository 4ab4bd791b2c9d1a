"""From the trace to the process: what must move the prediction, and which way."""

import pytest

from layerwise.planning import memory
from layerwise.planning.allocator import MB
from layerwise.planning.rehearsal import rehearse
from layerwise.planning.step import Setting
from layerwise.runtime import CAPACITY, KERNELS

BASE = 300 * MB


def test_the_process_holds_at_least_its_tensors(stack, example, task):
    trace = rehearse(stack, example(3, 64, 64), task, Setting(32))
    peak = memory.cpu_peak(trace, BASE)
    assert peak.low <= peak.value <= peak.high
    assert peak.value >= BASE + trace.peak
    assert peak.value < BASE + 4 * trace.peak


def test_without_the_tuned_allocator_holes_go_back(stack, example, task, monkeypatch):
    trace = rehearse(stack, example(3, 64, 64), task, Setting(32))
    monkeypatch.setenv("LAYERWISE_ALLOCATOR", "default")
    peak = memory.cpu_peak(trace, BASE)
    assert peak.value < BASE + 1.2 * trace.peak + 60 * MB


@pytest.mark.parametrize("version", [(2, 36), (2, 38)])
def test_newer_glibc_leaves_fewer_holes(stack, example, task, monkeypatch, version):
    trace = rehearse(stack, example(3, 64, 64), task, Setting(32))
    monkeypatch.setattr(memory, "glibc_version", lambda: version)
    monkeypatch.setattr(memory, "allocator_keeps", lambda: True)
    peak = memory.cpu_peak(trace, BASE).value
    monkeypatch.setattr(memory, "glibc_version", lambda: (2, 40))
    newest = memory.cpu_peak(trace, BASE).value
    assert peak == newest if version >= (2, 38) else peak >= newest


def test_images_that_are_not_channels_last_are_copied(stack, example, task):
    """oneDNN reorders plain images and their gradients; channels-last ones it takes as they are."""
    plain = rehearse(stack, example(3, 32, 32), task, Setting(8))
    wanted = [memory.scratch(op) for op in plain.operations if op.unit == "conv"]
    image = 8 * 16 * 32 * 32 * 4
    assert any(image in blocks for blocks in wanted)


def test_lengths_in_turn_add_a_bounded_amount(stack, example, task, monkeypatch):
    monkeypatch.setenv(CAPACITY, str(KERNELS))
    trace = rehearse(stack, example(3, 16, 16), task, Setting(2, dtype="bf16"))
    few, many, most = (memory.lengths_in_turn(trace, n) for n in (2, 9, 10_000))
    assert 0 < few.low < few.value < few.high
    assert few.value < many.value < most.value < memory.PER_MATMUL * KERNELS
    monkeypatch.setenv(CAPACITY, "64")  # as a user may say
    assert memory.lengths_in_turn(trace, 10_000).value < memory.PER_MATMUL * 64
    plain = rehearse(stack, example(3, 16, 16), task, Setting(2))  # other libraries multiply fp32
    assert memory.lengths_in_turn(plain, 10_000).value == 0


def test_cuda_holds_segments_context_and_workspaces(stack, example, task):
    trace = rehearse(stack, example(3, 64, 64), task, Setting(32))
    peak = memory.cuda_peak(trace)
    assert peak.value >= trace.peak + memory.CUDA_CONTEXT.value
    assert peak.low < peak.value < peak.high
