"""One training step of the real model, rehearsed on fake tensors, and what it cost.

Legend: B rows of one micro-batch. Nothing here knows a model by name: the network is copied with
its parameters replaced by fake ones, and its own forward, backward and optimiser update run.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from layerwise.data.examples import Batch
from layerwise.errors import OptionError
from layerwise.plan.optimizers import make_optimizer
from layerwise.plan.trace import Event, Ledger, Operation
from layerwise.runtime import DTYPES

MICRO_BATCHES = 2  # from the second on, memory and cost repeat
STEPS = 3  # the first makes the optimiser's state, the third repeats the second


@dataclass(frozen=True)
class Setting:
    """What decides the cost of a step beside the network and its loss."""

    device_batch_size: int
    grad_accum_steps: int = 1
    optimizer: str | Callable[[nn.Module], torch.optim.Optimizer] = "adamw"
    dtype: str = "fp32"  # of the arithmetic: "fp32", "bf16" or "fp16"; weights stay in fp32
    checkpointing: bool = False  # keep each layer's input only, compute the rest again in backward
    freeze: bool = False  # train the head alone
    training: bool = True  # False: predictions without gradients
    grad_clip: bool = True
    ema: bool = False  # a running mean of the weights beside them

    @property
    def global_batch_size(self) -> int:
        return self.device_batch_size * self.grad_accum_steps


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
    """What one step of training (or of prediction) costs, counted exactly. Bytes throughout."""

    setting: Setting
    params: int
    trainable: int
    embedding: int
    layers: tuple[LayerCost, ...]
    ops: dict[Operation, float]  # operation -> times per step
    parts: dict[str, int]  # the most each part ever has
    at_peak: dict[str, int]  # the parts at the moment of the highest total
    peak: int
    saved: int  # kept by autograd at the end of forward, weights and inputs not counted
    events: tuple[Event, ...]
    operations: tuple[Operation, ...]  # what events of kind "op" point to
    seconds: float = 0.0

    @property
    def flops(self) -> int:
        """FLOPs of one step."""
        return round(sum(op.flops * times for op, times in self.ops.items()))

    @property
    def flops_per_sample(self) -> float:
        return self.flops / self.setting.global_batch_size

    @property
    def moved(self) -> int:
        """Bytes read and written in one step, if every operation met an ideal cache."""
        return round(sum(op.bytes * times for op, times in self.ops.items()))


def rehearse(
    network: nn.Module | Callable[[], nn.Module], batch: Batch, task: Any, setting: Setting
) -> Trace:
    """Run the step of `setting` on fake tensors and return its ledger.

    network: a module (real or on the meta device; left as it is) or a function that builds one,
    called under the meta device. batch: an example, real or meta; only its shapes, dtypes and
    memory layout count, the row axis is stretched to the batch size. task: has
    `loss(network, batch) -> (sum, parts)` and `count(batch)`, and `predict` for training=False.
    Errors: a network whose forward depends on the values in a tensor cannot be rehearsed.
    """
    if not isinstance(network, nn.Module):
        with torch.device("meta"):
            network = network()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fake = fake_copy(network)
        _prepare(fake, setting)
        ledger = Ledger(fake, layers_of(fake))
        try:
            saved = _steps(fake, _stretch(batch, setting), task, setting, ledger)
        except torch._subclasses.fake_tensor.DataDependentOutputException as e:
            raise OptionError(
                f"the plan cannot follow this network: {e} reads a value out of a tensor, and "
                "a plan has only shapes; compute it without .item(), or fit with plan off"
            ) from e
        finally:
            ledger.close()
    return _trace(fake, setting, ledger, saved)


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """The network's own `layers()`, or its direct children where it has none."""
    layers = getattr(network, "layers", None)
    return layers() if callable(layers) else dict(network.named_children())


def fake_copy(network: nn.Module) -> nn.Module:
    """The same network with fake parameters and buffers; takes no memory. In a fake mode only."""

    def fake(t: Tensor) -> Tensor:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu")

    memo: dict[int, Any] = {}
    for p in network.parameters():
        memo[id(p)] = nn.Parameter(fake(p), requires_grad=p.requires_grad)
    for b in network.buffers():
        memo[id(b)] = fake(b)
    return copy.deepcopy(network, memo)


def checkpoint_layers(layers: dict[str, nn.Module]) -> None:
    """From now on these layers keep their input only and compute the rest again in backward."""
    from torch.utils.checkpoint import checkpoint

    for layer in layers.values():
        run = layer.forward
        layer.forward = lambda *args, run=run, **kwargs: checkpoint(
            run, *args, use_reentrant=False, **kwargs
        )


def _prepare(network: nn.Module, setting: Setting) -> None:
    network.train(setting.training)
    layers = layers_of(network)
    if setting.freeze:
        *_, head = layers.values()
        network.requires_grad_(False)
        head.requires_grad_(True)
    if setting.checkpointing:
        checkpoint_layers(layers)


def _stretch(batch: Batch, setting: Setting) -> Batch:
    """The example batch with as many rows as one whole step has (in few micro-batches)."""
    rows = setting.global_batch_size
    tensors = {}
    for name, t in batch.tensors.items():
        like = torch.empty((rows, *t.shape[1:]), dtype=t.dtype, device="cpu")
        last = t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last)
        tensors[name] = like.to(memory_format=torch.channels_last) if last else like
    return Batch(tensors, np.arange(rows))


def _steps(
    network: nn.Module, batch: Batch, task: Any, setting: Setting, ledger: Ledger
) -> dict[str, int]:
    ledger.adopt(network.parameters(), "weights")
    ledger.adopt(network.buffers(), "buffers")
    ledger.adopt(batch.tensors.values(), "inputs")
    if not setting.training:
        return _predict(network, batch, task, setting, ledger)
    optimizer = make_optimizer(setting.optimizer, network)
    if setting.ema:
        ledger.adopt([torch.empty_like(p) for p in network.parameters()], "optimizer")
    saved: dict[str, int] = {}
    for _ in range(STEPS):
        ledger.counts.clear()
        saved = _step(network, batch, task, setting, ledger, optimizer)
    return saved


def _predict(
    network: nn.Module, batch: Batch, task: Any, setting: Setting, ledger: Ledger
) -> dict[str, int]:
    ledger.phase = "forward"
    with ledger, torch.no_grad(), _autocast(setting):
        outputs = task.predict(network, batch)
    del outputs
    return {}


def _step(
    network: nn.Module,
    batch: Batch,
    task: Any,
    setting: Setting,
    ledger: Ledger,
    optimizer: torch.optim.Optimizer,
) -> dict[str, int]:
    """The step of the training loop; returns what each layer keeps for backward."""
    saved: dict[str, int] = {}
    with ledger:
        for micro in batch.split(setting.grad_accum_steps)[:MICRO_BATCHES]:
            ledger.phase = "forward"
            with _autocast(setting):
                loss, parts = task.loss(network, micro)
            scaled = loss / task.count(batch)
            saved = saved or ledger.by_layer("activations", "autocast")
            del loss, parts
            ledger.phase = "backward"
            scaled.backward()
            del scaled
        ledger.phase = "update"
        if setting.grad_clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        ledger.adopt(state, "optimizer")
        optimizer.zero_grad(set_to_none=True)
        ledger.phase = "build"
    return saved


@contextlib.contextmanager
def _autocast(setting: Setting) -> Iterator[None]:
    on = setting.dtype != "fp32"
    dtype = DTYPES[setting.dtype] if on else torch.bfloat16
    with torch.autocast("cpu", dtype=dtype, enabled=on):
        yield


def _trace(network: nn.Module, setting: Setting, ledger: Ledger, saved: dict[str, int]) -> Trace:
    ops = _per_step(ledger.counts, setting)
    embedding = {id(m.weight): m.weight for m in network.modules() if isinstance(m, nn.Embedding)}
    return Trace(
        setting=setting,
        params=sum(p.numel() for p in network.parameters()),
        trainable=sum(p.numel() for p in network.parameters() if p.requires_grad),
        embedding=sum(w.numel() for w in embedding.values()),
        layers=tuple(_layer_costs(ledger, ops, saved)),
        ops=ops,
        parts={k: v for k, v in ledger.most.items() if v},
        at_peak={k: v for k, v in ledger.at_peak.items() if v},
        peak=ledger.peak,
        saved=sum(saved.values()),
        events=tuple(ledger.events),
        operations=tuple(ledger.operations),
    )


def _per_step(counts: dict[Operation, int], setting: Setting) -> dict[Operation, float]:
    """Times per step: the rehearsed micro-batches stand for all of them, the update runs once."""
    times = setting.grad_accum_steps / min(setting.grad_accum_steps, MICRO_BATCHES)
    return {op: n if op.phase == "update" else n * times for op, n in counts.items()}


def _layer_costs(
    ledger: Ledger, ops: dict[Operation, float], saved: dict[str, int]
) -> Iterator[LayerCost]:
    names = list(dict.fromkeys([*ledger.layers, *(op.layer for op in ops)]))
    for name in names:
        layer = ledger.layers.get(name)
        params = list(layer.parameters()) if layer is not None else []
        own = [(op, n) for op, n in ops.items() if op.layer == name]
        yield LayerCost(
            name=name,
            params=sum(p.numel() for p in params),
            trainable=sum(p.numel() for p in params if p.requires_grad),
            flops=round(sum(op.flops * n for op, n in own)),
            moved=round(sum(op.bytes * n for op, n in own)),
            saved=saved.get(name, 0),
        )


def with_batch(setting: Setting, device_batch_size: int) -> Setting:
    """Another micro-batch with the same global batch (rounded up to whole micro-batches)."""
    steps = -(-setting.global_batch_size // device_batch_size)
    return replace(setting, device_batch_size=device_batch_size, grad_accum_steps=steps)
