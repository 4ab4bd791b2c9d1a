"""How long a run takes: from a few real steps when there is time for them, else from a roofline.

Measured: warm-up steps of the real network on this machine. The first compiles kernels and faults
memory in; the rest give the pace, their spread and drift the interval.
Roofline (Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", 2009):
every operation takes the larger of FLOPs / rate and bytes / bandwidth, plus a fixed overhead. On
this processor the rates come from a benchmark of under three seconds, done once per process.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from layerwise.data.examples import Batch
from layerwise.models.network import Network
from layerwise.planning.estimate import Estimate
from layerwise.planning.hardware import Hardware
from layerwise.planning.optimizers import make_optimizer
from layerwise.planning.rehearsal import Trace
from layerwise.planning.step import Learned, Setting, prepare, stretched, train_step
from layerwise.planning.trace import Operation

LEAST_STEPS = 3  # one to warm up and two to compare
LEAST_MARGIN = 0.15  # a machine is not steadier than this over a longer run
ENOUGH = 20.0  # seconds after which no further step is measured, once there are LEAST_STEPS
GPU_OVERHEAD = 8e-6  # seconds per operation, launched from Python [estimate]


def measure_steps(
    network: Network, batch: Batch, task: Learned, setting: Setting, steps: int = 5
) -> list[float]:
    """Seconds of each of the first `steps` real steps; they change the network.

    batch: an example, repeated up to the batch size.
    """
    device = next(network.parameters()).device.type
    prepare(network, setting)
    whole = stretched(batch, setting, device)
    optimizer, seconds = make_optimizer(setting.optimizer, network), []
    step = lambda: train_step(network, whole, task, setting, optimizer)  # noqa: E731
    while len(seconds) < steps and (len(seconds) < LEAST_STEPS or sum(seconds) < ENOUGH):
        seconds.append(_seconds(step, device))
    return seconds


def _seconds(run: Callable[[], Any], device: str = "cpu") -> float:
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def from_measured(seconds: Sequence[float], steps: int) -> Estimate:
    """Total seconds of a run of `steps` after these measured ones, in the same process.

    The first measured step is left out: what it compiled and faulted in stays. The pace is the
    mean of the others without their slowest; the interval comes from their spread (Student's t
    for so few) and from how much the later half drifted from the first.
    """
    later = list(seconds[1:]) or list(seconds)
    kept = sorted(later)[: max(1, len(later) - 1)] if len(later) > 3 else later
    pace = statistics.mean(kept)
    spread = statistics.stdev(later) / pace if len(later) > 1 else 0.3
    half = len(later) // 2
    drift = abs(statistics.mean(later[half:]) / statistics.mean(later[:half]) - 1) if half else 0.0
    t = {1: 6.0, 2: 4.3, 3: 3.2, 4: 2.8, 5: 2.6}.get(len(later) - 1, 2.3)
    margin = max(LEAST_MARGIN, t * spread / math.sqrt(len(later)) + drift / 2)
    return Estimate.around(pace * steps, min(margin, 0.6), margin)


# ---- roofline


@dataclass(frozen=True)
class Rates:
    """What a machine reaches: FLOP/s by (unit, dtype), bytes/s, and seconds per operation."""

    flops: dict[tuple[str, str], float]
    bandwidth: float
    overhead: float

    def seconds(self, op: Operation) -> float:
        rate = self.flops.get((op.unit, op.dtype)) or self.flops.get((op.unit, "fp32"))
        compute = op.flops / rate if rate else 0.0
        return max(compute, op.bytes / self.bandwidth) + self.overhead


def from_roofline(trace: Trace, hardware: Hardware, steps: int = 1) -> Estimate:
    """Total seconds of `steps` by the roofline, with the hardware's efficiency as interval."""
    rates = rates_of(hardware)
    ideal = steps * sum(rates.seconds(op) * times for op, times in trace.ops.items())
    share = hardware.efficiency
    return Estimate(ideal / share.value, ideal / share.high, ideal / share.low)


def rates_of(hardware: Hardware) -> Rates:
    if not hardware.rates:
        return measured_rates()
    units = ("matmul", "conv", "attention", "depthwise")
    flops = {(u, dtype): rate for u in units for dtype, rate in hardware.rates.items()}
    return Rates(flops, hardware.bandwidth, GPU_OVERHEAD)


@functools.cache
def measured_rates() -> Rates:
    """This processor's rates at shapes that deep networks have; measured once per process."""
    flops = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for unit, run, count in _kernels(dtype):
            flops[unit, name] = count / _best(run)
    big, out = torch.zeros(2, 2**23)  # 32 MB each: past the caches
    small = torch.zeros(8)
    overhead = _best(lambda: [small.relu() for _ in range(100)]) / 100
    bandwidth = 2 * big.nbytes / _best(lambda: torch.mul(big, 2.0, out=out))
    return Rates(flops, bandwidth, 4 * overhead)  # autograd, hooks and bookkeeping around it


def _kernels(dtype: torch.dtype) -> list[tuple[str, Callable[[], Any], int]]:
    """(unit, a run of it, its FLOPs)."""
    a, b = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    q = torch.ones(4, 4, 196, 64, dtype=dtype)
    x = torch.ones(4, 64, 28, 28, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.ones(64, 64, 3, 3, dtype=dtype)
    depthwise = torch.ones(64, 1, 3, 3, dtype=dtype)
    pixels = 4 * 28 * 28
    return [
        ("matmul", lambda: a @ b, 2 * 256 * 1024 * 1024),
        ("attention", lambda: F.scaled_dot_product_attention(q, q, q), 4 * 16 * 196 * 196 * 64),
        ("conv", lambda: F.conv2d(x, w, padding=1), 2 * pixels * 64 * 64 * 9),
        ("depthwise", lambda: F.conv2d(x, depthwise, padding=1, groups=64), 2 * pixels * 64 * 9),
    ]


def _best(run: Callable[[], Any], budget: float = 0.1) -> float:
    """The fastest of some runs within about `budget` seconds, after one to warm up."""
    with torch.inference_mode():
        run()
        times = [_seconds(run)]
        while sum(times) < budget and len(times) < 30:
            times.append(_seconds(run))
    return min(times)
