"""`make_plan`: rehearse one step, turn its ledger into memory, time, energy and money."""

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from layerwise.data.examples import Batch
from layerwise.planning import cost, memory, timing
from layerwise.planning.estimate import Estimate
from layerwise.planning.forecast import Builder, Plan, Request
from layerwise.planning.hardware import Hardware
from layerwise.planning.hardware import hardware as named
from layerwise.planning.rehearsal import Trace, rehearse
from layerwise.planning.step import Setting
from layerwise.runtime import DTYPES

PARTS = ("weights", "gradients", "optimizer", "activations", "buffers")
MEASURED_STEPS = 5


def make_plan(
    network: nn.Module | Builder,
    batch: Batch,
    task: Any,
    *,
    steps: int,
    device_batch_size: int | None = None,
    grad_accum_steps: int = 1,
    optimizer: str | Callable[[nn.Module], torch.optim.Optimizer] = "adamw",
    dtype: str | torch.dtype = "fp32",
    checkpointing: bool = False,
    training: bool = True,
    ema: bool = False,
    hardware: str | Hardware | None = None,
    measure: bool = False,
    base: int | None = None,
    extra: int = 0,
    remedies: Mapping[str, Callable[[nn.Module], nn.Module]] | None = None,
) -> Plan:
    """Plan a run of `steps` optimiser updates before it takes memory or time.

    network: a module (left as it is) or a function that builds one. batch: an example, its
    tensors real or on the meta device: shapes, dtypes and memory layout count. task: has
    `loss(network, batch) -> (sum, parts)`, `count(batch)`, and `predict` for training=False.
    device_batch_size: rows of one micro-batch; None: as many as the example has.
    optimizer: "adamw", "sgd", "muon", or a function of the network. dtype: of the arithmetic.
    hardware: a name, or None for where the network is (on meta: this processor).
    measure: run a few real steps when the hardware is this machine and they fit, instead of the
    roofline. base: resident bytes of the process before the run (None: now). extra: bytes that
    live beside the step in the processor's memory. remedies: further ways out for `suggest`, name
    -> function that changes a network, e.g. {"LoRA of rank 8": ...}.
    Returns a Plan. Errors: an unknown hardware, dtype or optimiser, with the nearest known name.
    """
    setting = Setting(
        device_batch_size or len(batch),
        grad_accum_steps,
        optimizer,
        dtype if isinstance(dtype, str) else _name(dtype),
        checkpointing,
        training=training,
        ema=ema,
    )
    machine = hardware if isinstance(hardware, Hardware) else named(hardware or _where(network))
    ways = remedies or {}
    request = Request(network, batch, task, setting, steps, machine, base, extra, ways)
    return plan_of(request, measure)


def plan_of(request: Request, measure: bool = False) -> Plan:
    """A plan from tracing, its time from real steps if asked for and possible."""
    trace = rehearse(request.network, request.batch, request.task, request.setting)
    parts = _memory(trace, request)
    if measure and _is_here(request.hardware) and parts["peak"].value <= request.hardware.memory:
        measured = measured_seconds(request)
        seconds = timing.from_measured(measured, request.steps)
        timed_by = f"{len(measured)} measured steps"
    else:
        seconds = timing.from_roofline(trace, request.hardware, request.steps)
        timed_by = "roofline"
    samples = request.setting.global_batch_size * request.steps
    return Plan(
        params=trace.params,
        trainable=trace.trainable,
        embedding=trace.embedding,
        flops_per_sample=trace.flops_per_sample,
        flops_total=trace.flops_per_sample * samples,
        memory=parts,
        seconds=seconds,
        joules=cost.energy(seconds, request.hardware),
        money=cost.money(seconds, request.hardware),
        steps=request.steps,
        hardware=request.hardware.name,
        setting=request.setting,
        timed_by=timed_by,
        trace=trace,
        request=request,
    )


def _name(dtype: torch.dtype) -> str:
    return next((name for name, d in DTYPES.items() if d == dtype), str(dtype))


def _where(network: nn.Module | Builder) -> str:
    params = network.parameters() if isinstance(network, nn.Module) else iter(())
    device = next((p.device.type for p in params), "cpu")
    return device if device in ("cuda", "mps") else "cpu"


def _is_here(machine: Hardware) -> bool:
    """Whether real steps can run on it: this processor, or the CUDA GPU of that name."""
    if machine.kind == "cpu":
        return True
    return torch.cuda.is_available() and machine.name in torch.cuda.get_device_name().lower()


def _memory(trace: Trace, request: Request) -> dict[str, Estimate]:
    parts = {**dict.fromkeys(PARTS, 0), **trace.parts}
    if request.hardware.kind == "cpu":
        peak = memory.cpu_peak(trace, request.base, request.steps).plus(request.extra)
    else:
        peak = memory.cuda_peak(trace)
    return {**{k: Estimate.exact(v) for k, v in parts.items()}, "peak": peak}


def measured_seconds(request: Request) -> list[float]:
    """Seconds of the first few real steps on this machine; everything is released afterwards."""
    device = "cuda" if request.hardware.kind == "cuda" else "cpu"
    network = request.network
    network = copy.deepcopy(network) if isinstance(network, nn.Module) else network()
    steps = min(MEASURED_STEPS, max(timing.LEAST_STEPS, request.steps))
    with _rng_kept():
        seconds = timing.measure_steps(
            network.to(device), request.batch, request.task, request.setting, steps
        )
    del network
    gc.collect()
    return seconds


@contextlib.contextmanager
def _rng_kept() -> Iterator[None]:
    """Dropout in measured steps must not move the generator of the run that follows."""
    before = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(before)
