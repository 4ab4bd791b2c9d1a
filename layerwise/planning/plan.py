"""`make_plan`: rehearse one step, turn its ledger into memory, time, energy and money."""

import copy
import gc

import torch
from torch import nn

from layerwise.data.examples import Batch
from layerwise.models.network import Network
from layerwise.planning import cost, memory, timing
from layerwise.planning.estimate import Estimate
from layerwise.planning.forecast import Plan, Request
from layerwise.planning.hardware import Hardware
from layerwise.planning.hardware import hardware as machine_named
from layerwise.planning.optimizers import Optimizer
from layerwise.planning.rehearsal import Trace, rehearse
from layerwise.planning.step import Builder, Learned, Setting, built
from layerwise.runtime import DTYPES

PARTS = ("weights", "gradients", "optimizer", "activations", "buffers")
MEASURED_STEPS = 5


def make_plan(
    network: Network | Builder,
    batch: Batch,
    task: Learned,
    *,
    steps: int,
    device_batch_size: int | None = None,
    grad_accum_steps: int = 1,
    optimizer: Optimizer = "adamw",
    dtype: str | torch.dtype = "fp32",
    checkpointing: bool = False,
    ema: bool = False,
    hardware: str | Hardware | None = None,
    measure: bool = False,
    base: int | None = None,
    extra: int = 0,
) -> Plan:
    """Plan a run of `steps` optimiser updates before it takes memory or time.

    network: a module (left as it is) or a function that builds one. batch: an example, its
    tensors real or on the meta device: shapes, dtypes and memory layout count.
    device_batch_size: rows of one micro-batch; None: as many as the example has.
    optimizer: "adamw", "sgd", "muon", or a function of the network. dtype: of the arithmetic.
    hardware: a name, or None for where the network is (on meta: this processor).
    measure: run a few real steps when the hardware is this machine and they fit, instead of the
    roofline. base: resident bytes of the process before the run (None: now). extra: bytes that
    live beside the step in the processor's memory.
    Returns a Plan. Errors: an unknown hardware, dtype or optimiser, with the nearest known name.
    """
    rows, named = device_batch_size or len(batch), dtype if isinstance(dtype, str) else _name(dtype)
    setting = Setting(rows, grad_accum_steps, optimizer, named, checkpointing, ema=ema)
    machine = (
        hardware if isinstance(hardware, Hardware) else machine_named(hardware or _where(network))
    )
    return plan_of(Request(network, batch, task, setting, steps, machine, base, extra), measure)


def plan_of(request: Request, measure: bool = False) -> Plan:
    """A plan from tracing, its time from real steps if asked for and possible."""
    machine, steps, setting = request.hardware, request.steps, request.setting
    trace = rehearse(request.network, request.batch, request.task, setting)
    parts = _memory(trace, request)
    if measure and _is_here(machine) and parts["peak"].value <= machine.memory:
        measured = measured_seconds(request)
        seconds = timing.from_measured(measured, steps)
        timed_by = f"{len(measured)} measured steps"
    else:
        seconds, timed_by = timing.from_roofline(trace, machine, steps), "roofline"
    return Plan(
        params=trace.params,
        trainable=trace.trainable,
        embedding=trace.embedding,
        flops_per_sample=trace.flops_per_sample,
        flops_total=trace.flops_per_sample * setting.global_batch_size * steps,
        memory=parts,
        seconds=seconds,
        joules=cost.energy(seconds, machine),
        money=cost.money(seconds, machine),
        steps=steps,
        hardware=machine.name,
        setting=setting,
        timed_by=timed_by,
        trace=trace,
        request=request,
    )


def _name(dtype: torch.dtype) -> str:
    return next((name for name, d in DTYPES.items() if d == dtype), str(dtype))


def _where(network: Network | Builder) -> str:
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
    network = built(request.network)
    network = copy.deepcopy(network) if network is request.network else network
    steps = min(MEASURED_STEPS, max(timing.LEAST_STEPS, request.steps))
    with torch.random.fork_rng([]):  # dropout must not move the generator of the run that follows
        seconds = timing.measure_steps(
            network.to(device), request.batch, request.task, request.setting, steps
        )
    del network
    gc.collect()
    return seconds
