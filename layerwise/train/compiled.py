"""Compile the layers of a network when that saves time, and say why when it does not.

Layer by layer, so that layers of one kind share one compilation.
Whether it pays is measured on the commonest layer: the time of its forward and backward pass, eager
and compiled, against the time that compiling took and the steps that are left. With dropout it
seldom pays on the CPU, where compiled layers draw their random numbers one by one.
"""

import copy
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from layerwise.data.examples import Batch
from layerwise.models.network import Network
from layerwise.runtime import Runtime
from layerwise.tasks.task import Task

WORTH_TRYING = 600.0  # seconds of training below which compiling alone would eat the gain
REPEATS = 3


Batches = Callable[[], list[Batch]]


@dataclass(frozen=True)
class Verdict:
    """Whether the layers were compiled, and the sentence that says why."""

    compiled: bool
    why: str


def whether_to_compile(
    network: Network, task: Task, some: Batches, machine: Runtime, mode: str, seconds: float
) -> Verdict:
    """What `mode` says, or a measurement.

    mode: "on", "off", or "auto" to measure; seconds: the planned time of the
    training; some: makes two micro-batches, whose shapes differ where those of the training do.
    """
    if mode == "off":
        return Verdict(False, "not compiled: switched off")
    if machine.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return Verdict(False, "not compiled: it needs a C++ compiler, and there is none")
    if mode == "auto" and seconds < WORTH_TRYING:
        few = f"{seconds:.0f} s of training are too few for it to pay"
        return Verdict(False, f"not compiled: {few}")
    if mode == "on":
        return Verdict(True, "compiled layer by layer: as asked")
    try:
        gain, cost, name = measure(copy.deepcopy(network).train(), task, some(), machine)
    except Exception as error:  # a compiler's own; the training goes on without it
        what = str(error).strip().partition("\n")[0]
        return Verdict(False, f"not compiled: {type(error).__name__} in trying it: {what}")
    saved, cost = seconds * (1 - 1 / gain), cost * len(network.layers())
    if saved < 1.5 * cost:
        little = f"would save {max(0.0, saved):.0f} s; compiling takes about {cost:.0f} s"
        why = f"not compiled: {name} ran {gain:.2f} times as fast, which {little}"
        return Verdict(False, why)
    return Verdict(True, f"compiled layer by layer: {name} runs {gain:.2f} times as fast")


def compile_layers(network: Network, batches: list[Batch]) -> None:
    """In place, for inputs of all lengths where the two batches differ in theirs."""
    for layer in network.layers().values():
        layer.compile(dynamic=varying(batches))


def varying(batches: list[Batch]) -> bool | None:
    """Whether to compile for any length; None: the compiler's own choice, one length at first."""
    first, second = ([t.shape for t in batch.tensors.values()] for batch in batches)
    return True if first != second else None


def commonest(stack: dict[str, nn.Module]) -> str:
    """The name of a layer of the kind that occurs most often, from the middle of the network."""
    kinds = Counter(type(layer) for layer in stack.values())
    kind = kinds.most_common(1)[0][0]
    of_kind = [name for name, layer in stack.items() if type(layer) is kind]
    return of_kind[len(of_kind) // 2]


def measure(
    network: Network, task: Task, batches: list[Batch], machine: Runtime
) -> tuple[float, float, str]:
    """How many times as fast one layer runs compiled, what compiling it took, and its name.

    network: a copy, because passes move the statistics of normalisations.
    """
    stack = network.layers()
    name = commonest(stack)
    layer, seen = stack[name], []
    hook = layer.register_forward_pre_hook(lambda m, args: seen.append(args))
    with machine.autocast(), torch.no_grad():
        task.loss(network, batches[0])
    hook.remove()
    inputs = seen[0]
    eager = time_passes(layer, inputs, machine)
    started = time.perf_counter()
    compiled = cast(nn.Module, torch.compile(layer, dynamic=varying(batches)))
    time_passes(compiled, inputs, machine, repeats=1)
    cost = time.perf_counter() - started
    return eager / time_passes(compiled, inputs, machine), cost, name


def time_passes(
    layer: nn.Module, inputs: tuple[Any, ...], machine: Runtime, repeats: int = REPEATS
) -> float:
    """The fastest of `repeats` forward and backward passes, in seconds; gradients are dropped.

    inputs: what the layer is called with, first what the layer below gave: it passes gradients on.
    """
    best = float("inf")
    inputs = tree_map_only(Tensor, lambda x: x.detach().clone(), inputs)
    inputs[0].requires_grad_(inputs[0].is_floating_point())
    for _ in range(repeats):
        started = time.perf_counter()
        with machine.autocast():
            out = layer(*inputs)
        out.sum().backward()
        if machine.device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    for parameter in layer.parameters():
        parameter.grad = None
    return best
