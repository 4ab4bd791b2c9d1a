"""One training step of the real model, rehearsed on fake tensors, and what it cost.

Nothing here knows a model by name: the network is copied with its parameters replaced by fake
ones, and its own forward, backward and optimiser update run, seen by `trace.Ledger`. Where a step
can only be small it runs on real tensors: the same ledger, without the seconds that PyTorch's fake
ones need to be imported.
"""

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from layerwise.data.examples import Batch
from layerwise.errors import OptionError
from layerwise.models.network import Network
from layerwise.planning.optimizers import make_optimizer
from layerwise.planning.step import Builder, Learned, Setting, built, prepare, stretched, train_step
from layerwise.planning.trace import Event, Ledger, Operation

MICRO_BATCHES = 2  # from the second on, memory and cost repeat
SMALL = 2**28  # bytes of a step that is not worth faking
COPIES, WIDENING = 8, 1000  # bounds: of the weights, and of what becomes of an input
STEPS = 2  # the first makes the optimiser's state, from the second on they repeat


@dataclass(frozen=True)
class LayerCost:
    """One layer's share of a step."""

    name: str
    params: int
    trainable: int
    flops: int  # per step: forward, backward and recomputation
    moved: int  # bytes read and written per step
    saved: int  # bytes kept from forward for backward, one micro-batch


@dataclass(frozen=True)
class Trace:
    """What one training step costs, counted exactly. Bytes throughout."""

    setting: Setting
    params: int
    trainable: int
    embedding: int
    layers: tuple[LayerCost, ...]
    ops: dict[Operation, float]  # operation -> times per step
    parts: dict[str, int]  # the most each part ever has
    peak: int
    events: tuple[Event, ...]
    operations: tuple[Operation, ...]  # what events of kind "op" point to
    last_step: int  # where in `events` the last rehearsed step begins

    @property
    def flops(self) -> int:
        """FLOPs of one step."""
        return round(sum(op.flops * times for op, times in self.ops.items()))

    @property
    def flops_per_sample(self) -> float:
        return self.flops / self.setting.global_batch_size

    @property
    def saved(self) -> int:
        """Bytes kept from forward for backward, weights and inputs not counted."""
        return sum(layer.saved for layer in self.layers)


def rehearse(network: Network | Builder, batch: Batch, task: Learned, setting: Setting) -> Trace:
    """Run the step of `setting` on fake tensors and return its ledger.

    network: a module (real or on the meta device; left as it is) or a function that builds one,
    called under the meta device. batch: an example, real or meta; only its shapes, dtypes and
    memory layout count, the row axis is stretched to the batch size.
    Errors: a network whose forward pass depends on the values in a tensor cannot be rehearsed.
    """
    with torch.device("meta"):
        network = built(network)
    small = is_small(network, batch, setting)
    with contextlib.nullcontext() if small else FakeTensorMode(allow_non_fake_inputs=True):
        fake = copy.deepcopy(network) if small else fake_copy(network)
        prepare(fake, setting)
        ledger = Ledger(fake, fake.layers())
        try:
            saved = _run(fake, stretched(batch, setting), task, setting, ledger)
        except DataDependentOutputException as e:
            raise OptionError(
                f"the plan cannot follow this network: {e} reads a value out of a tensor, but a "
                "plan has only shapes; compute it without .item()"
            ) from e
        finally:
            ledger.close()
    return _trace(fake, setting, ledger, saved)


def is_small(network: Network, batch: Batch, setting: Setting) -> bool:
    """Whether a real step surely takes little memory: few numbers in, few weights, all on the CPU.

    Token ids say too little about what becomes of them (a row of logits each).
    """
    held = [*network.parameters(), *network.buffers()]
    told = all(t.is_floating_point() or t.ndim == 1 for t in batch.tensors.values())
    if not told or not all(t.device.type == "cpu" for t in held):
        return False
    inputs = sum(t.nbytes for t in batch.tensors.values()) // max(1, len(batch))
    rows = setting.global_batch_size
    return COPIES * sum(t.nbytes for t in held) + WIDENING * rows * inputs < SMALL


def fake_copy(network: Network) -> Network:
    """The same network with fake parameters and buffers; takes no memory. In a fake mode only."""

    def fake(t: Tensor) -> Tensor:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu")

    memo = {id(p): nn.Parameter(fake(p), p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, memo | {id(b): fake(b) for b in network.buffers()})


def _run(
    network: Network, batch: Batch, task: Learned, setting: Setting, ledger: Ledger
) -> dict[str, int]:
    """Run the step under the ledger; returns the bytes each layer keeps for backward."""
    ledger.adopt(network.parameters(), "weights")
    ledger.adopt(network.buffers(), "buffers")
    ledger.adopt(batch.tensors.values(), "inputs")
    mean = [torch.empty_like(p) for p in network.parameters()] if setting.ema else []
    ledger.adopt(mean, "optimizer")
    optimizer = make_optimizer(setting.optimizer, network)
    saved: dict[str, int] = {}

    def entering(phase: str) -> None:
        ledger.enter(phase)
        if phase == "backward" and not saved:  # of the first micro-batch
            saved.update(ledger.by_layer("activations", "autocast"))

    for _ in range(STEPS):
        ledger.counts.clear()
        saved.clear()
        ledger.mark = len(ledger.events)
        with ledger:
            train_step(network, batch, task, setting, optimizer, MICRO_BATCHES, entering)
        state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        ledger.adopt(state, "optimizer")
    return saved


def _trace(network: Network, setting: Setting, ledger: Ledger, saved: dict[str, int]) -> Trace:
    ops = _per_step(ledger.counts, setting)
    embeddings = {id(m.weight): m.weight for m in network.modules() if isinstance(m, nn.Embedding)}
    return Trace(
        setting=setting,
        params=n_params(network),
        trainable=n_trainable(network),
        embedding=sum(w.numel() for w in embeddings.values()),
        layers=tuple(_layer_costs(ledger, ops, saved)),
        ops=ops,
        parts={k: v for k, v in ledger.most.items() if v},
        peak=ledger.peak,
        events=tuple(ledger.events),
        operations=tuple(ledger.operations),
        last_step=ledger.mark,
    )


def n_params(module: nn.Module) -> int:
    """Weights, also those that lie packed in buffers."""
    packed = sum(getattr(m, "n_packed", 0) for m in module.modules())
    return packed + sum(p.numel() for p in module.parameters())


def n_trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _per_step(counts: Counter[Operation], setting: Setting) -> dict[Operation, float]:
    """Times per step: the rehearsed micro-batches stand for all of them, the update runs once."""
    times = setting.grad_accum_steps / min(setting.grad_accum_steps, MICRO_BATCHES)
    return {op: n if op.phase == "update" else n * times for op, n in counts.items()}


def _layer_costs(
    ledger: Ledger, ops: dict[Operation, float], saved: dict[str, int]
) -> Iterator[LayerCost]:
    for name in dict.fromkeys([*ledger.layers, *(op.layer for op in ops), *saved]):
        layer = ledger.layers.get(name, nn.Identity())
        own = [(op, n) for op, n in ops.items() if op.layer == name]
        flops = round(sum(op.flops * n for op, n in own))
        moved = round(sum(op.bytes * n for op, n in own))
        yield LayerCost(name, n_params(layer), n_trainable(layer), flops, moved, saved.get(name, 0))
