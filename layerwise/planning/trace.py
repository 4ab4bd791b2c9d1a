"""The ledger of one training step: every storage from birth to release, every operation's cost.

`Ledger` is a dispatch mode that sees each operation of the real model run on fake tensors (shapes,
strides and lifetimes of the real thing, no memory). A storage is followed by a weak reference, so
the moment of its release is the one the real step would have. Operations and storages are booked
to the layer that caused them (`owners`).
"""

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from layerwise.planning import operations
from layerwise.planning.operations import Args
from layerwise.planning.owners import Owners


class Operation(NamedTuple):
    """One kind of operation in one place; `Trace.ops` counts how often it runs per step."""

    layer: str
    phase: str  # "forward", "backward" (recomputation included) or "update"
    name: str  # "aten.convolution"
    unit: operations.Unit
    dtype: str
    flops: int
    bytes: int
    operands: tuple[tuple[tuple[int, ...], bool, int], ...] = ()  # (shape, channels last, itemsize)


class Event(NamedTuple):
    """What the allocator sees, in order: +bytes, -bytes, or an operation and its scratch memory."""

    kind: str  # "+", "-" or "op"
    ident: int  # of the storage, or the place in `Trace.operations`
    bytes: int = 0


@dataclass
class Storage:
    ident: int
    bytes: int
    part: str  # "weights", "gradients", "optimizer", "activations", "autocast" ...
    layer: str
    reference: weakref.ref[torch.UntypedStorage] = field(repr=False)


class Ledger(TorchDispatchMode):
    """Books storages and operations while it is the active dispatch mode."""

    def __init__(self, network: nn.Module, layers: dict[str, nn.Module]):
        super().__init__()
        self.alive: dict[int, Storage] = {}
        self.now: Counter[str] = Counter()  # bytes per part
        self.most: Counter[str] = Counter()  # largest bytes each part ever had
        self.peak = 0
        self.events: list[Event] = []
        self.mark = 0  # a place in `events` that the rehearsal wants to find again
        self.operations: dict[Operation, int] = {}  # -> its place, for events
        self.counts: Counter[Operation] = Counter()
        self.phase = "build"
        self.layers = layers
        self.owners = Owners(network, layers)
        learning = [p for p in network.parameters() if p.requires_grad]
        self._hooks = [p.register_post_accumulate_grad_hook(self._keep_gradient) for p in learning]

    def enter(self, phase: str) -> None:
        """From now on: "forward", "backward", "update", or "build", where only storages count."""
        self.phase = self.owners.phase = phase

    # ---- storages

    def adopt(self, tensors: Iterable[Tensor], part: str) -> None:
        """Book tensors under `part`: new storages, or old ones that turned out to be that."""
        for t in tensors:
            storage = self.alive.get(t.untyped_storage()._cdata)
            if storage is None:
                self._born(t, part, self.owners.of_param(t))
            elif storage.part != part:
                self.now[storage.part] -= storage.bytes
                storage.part = part
                self._add(storage)

    def _keep_gradient(self, param: Tensor) -> None:
        assert param.grad is not None
        self.adopt([param.grad], "gradients")

    def _born(self, tensor: Tensor, part: str, layer: str) -> None:
        raw = tensor.untyped_storage()
        key = raw._cdata
        reference = weakref.ref(raw, lambda _: self._died(key))
        storage = Storage(len(self.events), raw.nbytes(), part, layer, reference)
        self.alive[key] = storage
        self.events.append(Event("+", storage.ident, storage.bytes))
        self._add(storage)

    def _add(self, storage: Storage) -> None:
        part = storage.part
        self.now[part] += storage.bytes
        self.most[part] = max(self.most[part], self.now[part])
        self.peak = max(self.peak, self.now.total())

    def _died(self, key: int) -> None:
        storage = self.alive.pop(key)
        self.now[storage.part] -= storage.bytes
        self.events.append(Event("-", storage.ident, storage.bytes))

    def by_layer(self, *parts: str) -> dict[str, int]:
        """Bytes alive now under these parts, layer by layer."""
        found: dict[str, int] = defaultdict(int)
        for storage in self.alive.values():
            if storage.part in parts:
                found[storage.layer] += storage.bytes
        return dict(found)

    # ---- operations

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard would double the cost of a call

    def __torch_dispatch__(self, func: OpOverload, types, args: Args = (), kwargs=None) -> object:
        out = func(*args, **(kwargs or {}))
        if func.namespace not in ("prim", "profiler") and self.phase != "build":
            self._book(func, args, list((kwargs or {}).values()), out)
        return out

    def _book(self, func: OpOverload, args: Args, more: list[Any], out: object) -> None:
        results = operations.tensors_in([out])
        layer, part = self.owners.running(), self._part(func, args)
        fresh = [t for t in results if t.untyped_storage()._cdata not in self.alive]
        for t in fresh:
            if t.untyped_storage()._cdata not in self.alive:  # two results may share one
                self._born(t, part, layer)
        if not fresh and not operations.mutates(func):
            return  # a view: nothing is computed, nothing moves
        read = operations.tensors_in([*args, *more])
        moved = {id(t): operations.nbytes(t) for t in (*read, *fresh)}
        flops, unit = operations.flops_and_unit(func, args, out)
        operands = tuple(_operand(t) for t in (*read, *fresh)) if flops else ()
        name, dtype = str(func.overloadpacket), operations.dtype_name(read or results)
        op = Operation(layer, self.phase, name, unit, dtype, flops, sum(moved.values()), operands)
        self.counts[op] += 1
        place = self.operations.setdefault(op, len(self.operations))
        self.events.append(Event("op", place))

    def _part(self, func: OpOverload, args: Args) -> str:
        if self.phase != "forward":
            return "temporary"
        if str(func.overloadpacket) == "aten._to_copy" and args:
            source = self.alive.get(args[0].untyped_storage()._cdata)
            if source is not None and source.part == "weights":
                return "autocast"  # a weight in the dtype of the arithmetic
        return "activations"

    def close(self) -> None:
        """Leave the network without our hooks."""
        self.owners.close()
        for hook in self._hooks:
            hook.remove()


def _operand(t: Tensor) -> tuple[tuple[int, ...], bool, int]:
    last = t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last)
    return tuple(t.shape), last, t.itemsize
