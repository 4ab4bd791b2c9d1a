"""From a trace to the memory a process really takes, with its interval.

On the CPU: resident memory before the run, plus code and kernels that the first step loads, plus
the extent of the heap under the step's requests (`allocator.Heap`) and under the scratch memory
of oneDNN, which the trace does not see. On CUDA: what the caching allocator reserves, plus the
context and the libraries' workspaces.

The constants were measured with `bench/plan.py --calibrate` on networks that are not among the
families its error table is made of (plain convolutions, depthwise, dense, attention), 2 threads,
torch 2.13.0+cpu, glibc 2.36, 2 cores of an AMD EPYC (Zen 5); those of lengths in turn on texts
(docs/log.md, 2026-11-23).
"""

import statistics
from collections.abc import Callable, Iterator
from math import prod
from typing import Protocol

from layerwise.planning.allocator import MB, CudaCache, Heap
from layerwise.planning.estimate import Estimate
from layerwise.planning.hardware import CUDA_STARTED
from layerwise.planning.machine import allocator_keeps, glibc_version, resident
from layerwise.planning.rehearsal import STEPS, Trace
from layerwise.planning.trace import Event, Operation
from layerwise.runtime import kernels_kept

PINNED = 1.0  # glibc < 2.38: the share of cut-off ends that small blocks take, see allocator.Heap
PIN_LIFE = 1.6  # how long, in mean lifetimes of the step's own blocks: autograd's nodes sit there
SEEDS = 5
REPLAYS = 7  # steps after the rehearsed ones; where holes lie settles within a few
CODE = 14 * MB  # pages of PyTorch's libraries that the first step touches
PER_CONV, PER_MATMUL = 0.06 * MB, 0.5 * MB  # compiled kernels of oneDNN and their descriptors
MARGIN = 0.10  # of the heap: what the imitation misses, 19 times out of 20
SURE_OF_KERNELS = 0.4  # their memory is known to within this share

CUDA_CONTEXT = Estimate(CUDA_STARTED, 350 * MB, 800 * MB)  # [estimate] and loaded kernels
CUDA_WORKSPACES = Estimate(64 * MB, 8 * MB, 512 * MB)  # [estimate] cuBLAS and cuDNN


class Allocator(Protocol):
    high: int

    def allocate(self, ident: int, nbytes: int) -> None: ...
    def release(self, ident: int) -> None: ...


def cpu_peak(trace: Trace, base: int | None = None, steps: int | None = None) -> Estimate:
    """Peak resident bytes of the process that runs this step.

    base: resident bytes before the network is built; None for this process now.
    """
    base = resident() if base is None else base
    loaded = base + CODE + PER_CONV * _convolutions(trace) + PER_MATMUL * _products(trace)
    if not allocator_keeps():
        largest = max((sum(scratch(op)) for op in trace.operations), default=0)
        return Estimate.around(loaded + trace.peak + largest, 0.1, 0.15)
    pinned = 0.0 if glibc_version() >= (2, 38) else PINNED
    life = PIN_LIFE * mean_lifetime(trace)
    replays = REPLAYS if steps is None else max(0, min(REPLAYS, steps - STEPS))
    heaps = [Heap(pinned, life, seed) for seed in range(SEEDS if pinned else 1)]
    for heap in heaps:
        replay(trace, heap, scratch, replays)
    extents = [heap.high for heap in heaps]
    value = statistics.median(extents)
    low, high = min(extents) - MARGIN * value, max(extents) + MARGIN * value
    return Estimate(value, low, high).plus(Estimate.around(loaded, 0.03))


def lengths_in_turn(trace: Trace, lengths: int) -> Estimate:
    """What batches of so many lengths add to the memory of one, on the CPU: kernels for each.

    Evaluation has as many again, of its own; oneDNN keeps `runtime.kernels_kept()`.
    """
    own = _products(trace)
    more = min(2 * lengths * own, max(own, kernels_kept())) - own
    return Estimate.around(PER_MATMUL * more, SURE_OF_KERNELS)


def cuda_peak(trace: Trace) -> Estimate:
    """Peak bytes taken on the GPU: reserved by PyTorch, context and workspaces."""
    cache = CudaCache()
    replay(trace, cache, lambda op: (), 1)
    return Estimate.around(cache.high, 0.05, 0.1).plus(CUDA_CONTEXT).plus(CUDA_WORKSPACES)


def replay(
    trace: Trace,
    allocator: Allocator,
    scratch_of: Callable[[Operation], tuple[int, ...]],
    replays: int,
) -> None:
    """Make the requests of the rehearsed steps, then those of the last one again and again."""
    wanted = [scratch_of(op) for op in trace.operations]
    for event in _events(trace, replays):
        if event.kind == "+":
            allocator.allocate(event.ident, event.bytes)
        elif event.kind == "-":
            allocator.release(event.ident)
        elif wanted[event.ident]:
            blocks = wanted[event.ident]
            for ident, nbytes in enumerate(blocks, -len(blocks)):
                allocator.allocate(ident, nbytes)
            for ident in range(-len(blocks), 0):
                allocator.release(ident)


def _events(trace: Trace, replays: int) -> Iterator[Event]:
    yield from trace.events
    last = trace.events[trace.last_step :]
    own = {e.ident for e in last if e.kind == "+"} & {e.ident for e in last if e.kind == "-"}
    for again in range(1, replays + 1):
        shift = again * len(trace.events)
        for e in last:
            if e.kind == "op":
                yield e
            elif e.ident in own:
                yield Event(e.kind, e.ident + shift, e.bytes)


def mean_lifetime(trace: Trace) -> float:
    """How many allocations a block of the last rehearsed step lives through, on average."""
    born: dict[int, int] = {}
    lives = []
    for event in trace.events[trace.last_step :]:
        if event.kind == "+":
            born[event.ident] = len(born)
        elif event.kind == "-" and event.ident in born:
            lives.append(len(born) - 1 - born[event.ident])
    return max(1.0, statistics.mean(lives)) if lives else 1.0


def scratch(op: Operation) -> tuple[int, ...]:
    """Blocks that are taken while this operation runs on the CPU, and given back after.

    The logarithm of a sum of exponentials holds these; the rest is oneDNN's.

    A convolution copies its weight into the layout of its kernel; images that are not
    channels-last are copied too, in and out. The backward makes the weight's gradient in that
    layout, once more per thread, and copies it back.
    """
    if op.name == "aten.logsumexp":
        return (op.bytes,)
    if op.unit not in ("conv", "depthwise") or not op.operands:
        return ()  # nothing is multiplied where only the bias learns
    sizes = [prod(shape) * itemsize for shape, _, itemsize in op.operands]
    forward = op.name == "aten.convolution"
    images = op.operands[: 1 if forward else 2]
    plain = any(len(shape) == 4 and not last for shape, last, _ in images)
    if forward:
        x, weight = sizes[:2]
        return (weight, x, sizes[-1]) if plain else (weight,)
    grad_out, x, weight = sizes[:3]
    return (weight, 2 * weight, weight, *((grad_out, x, x) if plain else ()))


def _convolutions(trace: Trace) -> int:
    """How many kernels oneDNN compiles for them: one per shape forward, two backward."""
    convolutions = (op for op in trace.operations if op.unit in ("conv", "depthwise"))
    kernels = {(op.name, op.dtype, op.operands): op.phase for op in convolutions}
    return sum(1 if phase == "forward" else 2 for phase in kernels.values())


def _products(trace: Trace) -> int:
    """How many it compiles for matrix products: one per shape; those in fp32 are not its."""
    products = (op for op in trace.operations if op.unit == "matmul" and op.dtype != "fp32")
    return len({(op.name, op.dtype, op.operands) for op in products})
