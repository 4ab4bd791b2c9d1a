"""What every layer does while it trains, seen often enough to tell and seldom enough to be cheap.

A snapshot is taken at steps 0, 1, 2, 4, 8, 16 and then every `every` steps; in between nothing is
attached to the network. It costs one pass over a sample of weights, gradients and activations.
Snapshots pause while they have cost more than `budget` of the training time, so that a network
whose step takes a millisecond is not slowed down by being watched.

Where activations are read: at the input of every weight layer (linear or convolution). There they
have passed norm, non-linearity, pooling and addition, however the forward pass is written; they are
credited to the layer that computed them. Shapes: n sampled positions, U units (channels).
"""

import functools
import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerwise.inspection import taps
from layerwise.inspection.heads import attention_modules, head_statistics
from layerwise.inspection.taps import Sampled, Stats


class Watch:
    """Takes snapshots of the layers of a network in training.

    layers: the ordered stack, as `network.layers()` gives it; optimizer: to note the learning rate;
    every: steps between snapshots (0: never); budget: the share of the training time that they may
    take (1: no limit); window: snapshots over which a unit must stay silent to count as dead.

    The loop calls `before(step)`, `after_backward()` (best before clipping) and `after_step()`.
    `history` then holds one dict per snapshot: "step", "loss", "lr", "inputs" (mean and std),
    "dtype" (the narrowest among the activations), and "layers": {name: {
        grad_norm      norm of the gradient of its parameters, None when it got none
        weight_norm    norm of its parameters
        zero_grad      share of gradient entries that are exactly zero
        update_ratio   norm of the update over the norm of the weights, None before the update
        act_mean act_std   of its outputs
        spread         share of the activations' size that differs between rows (0: all rows alike)
        dead           share of units that were zero for every row in the last `window` snapshots
        saturated      share of units more often than not in the flat part of a sigmoid or tanh
        gain           rms of the weights times sqrt(fan-in): about 0.6 to 1.4 after a sound start
        common         share of a token embedding's size that is the same for all tokens
        entropy        of the attention weights, as a share of the largest one: the median head's
        sharp          share of heads that read one key alone, the first one aside
        idle           share of heads that add next to nothing
        trainable      whether any of its parameters requires a gradient
    }}; a step that was stopped half-way keeps what was seen of it.
    """

    def __init__(
        self,
        layers: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer | None = None,
        every: int = 25,
        budget: float = 0.02,
        window: int = 3,
    ):
        self.layers, self.optimizer = layers, optimizer
        self.attending = [n for n, layer in layers.items() if attention_modules(layer)]
        self.every, self.budget, self.window = every, budget, window
        self.history: list[dict[str, Any]] = []
        self.spent = 0.0  # seconds that snapshots have taken so far
        self._began = time.perf_counter()
        self._silent: dict[str, deque[np.ndarray]] = {}
        self._undo: list[Callable[[], Any]] = []
        self._snapshot: Snapshot | None = None

    def due(self, step: int) -> bool:
        """Whether a snapshot is due: a function of the step, but for the budget."""
        if not self.every or not (step % self.every == 0 or step in (1, 2, 4, 8, 16)):
            return False
        elapsed = time.perf_counter() - self._began
        return len(self.history) < 2 or self.spent <= self.budget * elapsed

    def before(self, step: int) -> None:
        """Attach to the network when this step is due."""
        self.detach()  # from a step that was stopped half-way
        if not self.due(step):
            return
        with self._clock():
            self._snapshot = Snapshot(self.layers)
            record = {"step": step, "loss": None, "lr": None, "layers": self._snapshot.stats}
            self.history.append(record)
            self._attach(record)

    def after_backward(self, loss: float | None = None) -> None:
        """Read the gradients; `loss` (mean per row) goes into the history when given."""
        if self._snapshot is None:
            return
        with self._clock():
            self._release()
            self.history[-1]["loss"] = loss
            self._snapshot.read_gradients()

    def after_step(self) -> None:
        """Compare the weights with what they were before the update."""
        if self._snapshot is None:
            return
        with self._clock():
            self._snapshot.read_updates()
            self._snapshot = None
            if self.optimizer is not None:
                self.history[-1]["lr"] = max(g["lr"] for g in self.optimizer.param_groups)

    def detach(self) -> None:
        """Take everything off the network; an unfinished snapshot keeps what it has."""
        self._release()
        self._snapshot = None

    def _release(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    def _attach(self, record: dict[str, Any]) -> None:
        """Read the input of every weight layer, and the output of the last layer."""
        flow = Flow(record, self._silent, self.window)
        last = list(self.layers)[-1]
        for name, layer in self.layers.items():
            for key, point in taps.points(name, layer):
                arrive = self._timed(flow.arrive, name, key, point)
                self._undo.append(taps.tap(point, arrive, before=True))
        self._undo.append(taps.tap(self.layers[last], self._timed(flow.leave, last)))
        for name in self.attending:
            attend = self._timed(flow.attend, name, self.layers[name])
            self._undo.append(taps.tap(self.layers[name], attend))

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Adds the time inside to what the watch has spent."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - start

    def _timed(self, call: Callable[..., None], *fixed: object) -> Callable[..., None]:
        return self._clock()(functools.partial(call, *fixed))


class Flow:
    """The activations of one forward pass, credited to the layers that computed them."""

    def __init__(self, record: dict[str, Any], silent: dict[str, deque], window: int):
        self.record, self.silent, self.window = record, silent, window
        self.passed = ""  # the layer whose weights were used last
        self.met: set[str] = set()
        self.seen: dict[Any, weakref.ref[torch.UntypedStorage]] = {}  # by place and shape
        self.narrowest = 8  # bytes per number

    def arrive(self, name: str, key: str, point: nn.Module, args: tuple, options: dict) -> None:
        """An input reaches a weight layer: it is the output of the layer that ran before."""
        if key in self.met or not args or not isinstance(args[0], Tensor):
            return  # only the first micro-batch, and no recomputation
        x = args[0].detach()
        self.met.add(key)
        source, self.passed = self.passed, name
        if not x.is_floating_point():  # numbers of tokens say nothing by their size
            return
        mark = (x.data_ptr(), x.shape)
        known = self.seen.get(mark)
        if known is not None and known() is not None:  # the same tensor into several weights: q, k
            return  # and v, or a shortcut; one that was freed may have left its place to another
        self.seen[mark] = weakref.ref(x.untyped_storage())
        if not source:
            values = taps.sample(x, taps.unit_axis(point, x))
            self.record["inputs"] = {"mean": float(values.mean()), "std": float(values.std())}
        else:
            self.book(source, key, x, taps.unit_axis(point, x))

    def leave(self, name: str, args: tuple, options: dict, x: object) -> None:
        """The output of the last layer: scores, which are never dead or saturated."""
        if "output" not in self.met and isinstance(x, Tensor) and x.is_floating_point():
            self.met.add("output")
            values = taps.sample(x.detach(), x.ndim - 1)
            self.record["layers"][name] |= taps.size(values) | {"dead": 0.0, "saturated": 0.0}

    def attend(self, name: str, layer: nn.Module, args: tuple, options: dict, out: object) -> None:
        """A block has run: what its heads do with the first row."""
        if f"{name} heads" not in self.met:
            self.met.add(f"{name} heads")
            self.record["layers"][name] |= head_statistics(layer, args, options)

    def book(self, name: str, key: str, x: Tensor, axis: int) -> None:
        if x.dtype.itemsize <= self.narrowest:  # under autocast norms stay wider than products
            self.narrowest = x.dtype.itemsize
            self.record["dtype"] = str(x.dtype).removeprefix("torch.")
        values = taps.sample(x, axis)  # (n, U)
        silent = self.silent.setdefault(key, deque(maxlen=self.window))
        silent.append(taps.silent_units(x, values, axis))
        same = all(m.shape == silent[-1].shape for m in silent)
        dead = float(np.logical_and.reduce(list(silent)).mean()) if same else 0.0
        stats = self.record["layers"][name]
        stats |= taps.size(values)  # the last ones are the outputs of the layer
        stats["dead"] = max(stats["dead"] or 0.0, dead)
        stats["saturated"] = max(stats["saturated"] or 0.0, taps.saturated_share(values))


class Snapshot:
    """Weights, gradients and updates of one step, layer by layer.

    One vector holds a sample of all parameters: its pieces are summed by parameter, then by layer.
    """

    def __init__(self, layers: dict[str, nn.Module]):
        self.stats: dict[str, Stats] = {n: dict(EMPTY) for n in layers}
        self.owned = [(n, p) for n, layer in layers.items() for p in layer.parameters()]
        self.owners = [n for n, _ in self.owned]
        self.weights = Sampled([p for _, p in self.owned])
        squares = self.weights.squares()
        self.norms = self.by_layer(squares * self.weights.scale)
        gains: dict[str, list[float]] = {n: [] for n in layers}
        means = squares / np.maximum(self.weights.sizes, 1)
        for (name, p), mean in zip(self.owned, means, strict=True):
            if p.ndim >= 2 and p.shape[0] > 1:
                gains[name].append(math.sqrt(mean * p.numel() / p.shape[0]))
        for name, layer in layers.items():
            stats = self.stats[name]
            stats["common"] = common_share(layer)
            stats["trainable"] = any(p.requires_grad for p in layer.parameters())
            stats["weight_norm"] = math.sqrt(self.norms[name]) if name in self.norms else None
            stats["gain"] = float(np.median(gains[name])) if gains[name] else None

    def by_layer(self, values: np.ndarray, owners: Sequence[str] = ()) -> dict[str, float]:
        """The sums over each layer's parameters of one value per parameter."""
        out: dict[str, float] = {}
        for name, value in zip(owners or self.owners, values.tolist(), strict=True):
            out[name] = out.get(name, 0.0) + value
        return out

    def read_gradients(self) -> None:
        found = [(n, p.grad) for n, p in self.owned if p.grad is not None]
        if not found:
            return
        owners, grads = zip(*found, strict=True)
        norms = torch.stack(torch._foreach_norm(grads)).double().cpu().numpy()
        sample = Sampled(grads)
        zeros = self.by_layer(sample.sums(sample.values == 0), owners)
        sizes = self.by_layer(sample.sizes, owners)
        for name, square in self.by_layer(norms**2, owners).items():
            self.stats[name]["grad_norm"] = math.sqrt(square) if square >= 0 else square
            self.stats[name]["zero_grad"] = zeros[name] / sizes[name]

    def read_updates(self) -> None:
        change = Sampled([p for _, p in self.owned]).minus(self.weights)
        for name, square in self.by_layer(change.squares() * change.scale).items():
            before = max(self.norms[name], 1e-24)
            self.stats[name]["update_ratio"] = (square / before) ** 0.5


def common_share(layer: nn.Module) -> float | None:
    """The norm of the mean embedding over the root mean square norm of all, of the largest table.

    None for a layer without embeddings, 0 to 1 else: 0.9 leaves 19% of the size to tell tokens by.
    """
    tables = [m for m in layer.modules() if isinstance(m, nn.Embedding)]
    if not tables:
        return None
    weight = max(tables, key=lambda m: m.num_embeddings).weight.detach()  # (V, D)
    rows = weight[:: -(-len(weight) // taps.SAMPLED_ROWS**2)].float()
    size = rows.square().sum(1).mean().sqrt()
    return float(rows.mean(0).norm() / size) if size > 0 else 1.0


MEASURED = (
    *("grad_norm", "weight_norm", "zero_grad", "update_ratio", "act_mean", "act_std", "spread"),
    *("dead", "saturated", "gain", "common", "entropy", "sharp", "idle"),
)
EMPTY: Stats = dict.fromkeys(MEASURED) | {"trainable": False}
