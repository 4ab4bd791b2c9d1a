"""What every layer does while it trains, seen often enough to tell and seldom enough to be free.

A look is taken at steps 0, 1, 2, 4, 8, 16 and then every `every` steps; between looks nothing is
attached to the network. A look costs one pass over a sample of weights, gradients and activations.
Looks pause while they have cost more than `budget` of the training time, so that a network whose
step takes a millisecond is not slowed down by being watched.

Where activations are read: at the input of every weight layer (linear or convolution). There they
have passed norm, non-linearity, pooling and addition, however the forward pass is written; they are
booked to the layer that computed them. Shapes: n sampled positions, U units (channels).
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SAMPLED_ROWS, SAMPLED_PLACES = 64, 16  # of a batch, of an image or sequence
SAMPLED_WEIGHTS = 1 << 15  # of one parameter
FLAT = 0.02  # a sigmoid within this of 0 or 1 has a slope below 0.02: it no longer learns
Stats = dict[str, Any]


class Watch:
    """Looks at the layers of a network in training.

    layers: the ordered stack, as `network.layers()` gives it; optimizer: to note the learning rate;
    every: steps between looks (0: never); budget: the share of the training time that looks may
    take (1: no limit); window: looks over which a unit must stay silent to count as dead.

    The loop calls `before(step)`, `after_backward()` (before or after clipping) and `after_step()`.
    `history` then holds one dict per look: "step", "loss", "lr", "inputs" (mean and std), "dtype" of
    the activations, and "layers": {name: {
        grad_norm      norm of the gradient of its parameters, None when it got none
        weight_norm    norm of its parameters
        zero_grad      share of gradient entries that are exactly zero
        update_ratio   norm of the update over the norm of the weights, None before the update
        act_mean act_std   of what it hands on
        spread         share of the activations' size that differs between rows (0: all rows alike)
        dead           share of units that were zero for the whole batch in the last `window` looks
        saturated      share of units that sit in the flat part of a sigmoid or tanh
        gain           rms of the weights times sqrt(fan-in): about 0.6 to 1.4 after a sound start
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
        self.every, self.budget, self.window = every, budget, window
        self.history: list[dict[str, Any]] = []
        self.spent = 0.0  # seconds that looks have taken so far
        self._began = time.perf_counter()
        self._silent: dict[str, deque[np.ndarray]] = {}
        self._undo: list[Callable[[], Any]] = []
        self._look: Look | None = None

    def due(self, step: int) -> bool:
        """Whether this step is looked at: a function of the step, but for the budget."""
        if not self.every or not (step % self.every == 0 or step in (1, 2, 4, 8, 16)):
            return False
        elapsed = time.perf_counter() - self._began
        return len(self.history) < 2 or self.spent <= self.budget * elapsed

    def before(self, step: int) -> None:
        """Attach to the network when this step is due."""
        self.detach()  # from a step that was stopped half-way
        if not self.due(step):
            return
        with Clock(self):
            self._look = Look(self.layers)
            record = {"step": step, "loss": None, "lr": None, "layers": self._look.stats}
            self.history.append(record)
            self._attach(record)

    def after_backward(self, loss: float | None = None) -> None:
        """Read the gradients; `loss` (mean per row) goes into the history when given."""
        if self._look is None:
            return
        with Clock(self):
            self._release()
            self.history[-1]["loss"] = loss
            self._look.read_gradients()

    def after_step(self) -> None:
        """Compare the weights with what they were before the update."""
        if self._look is None:
            return
        with Clock(self):
            self._look.read_updates()
            self._look = None
            if self.optimizer is not None:
                self.history[-1]["lr"] = max(g["lr"] for g in self.optimizer.param_groups)

    def detach(self) -> None:
        """Take everything off the network; a look in progress keeps what it has."""
        self._release()
        self._look = None

    def _release(self) -> None:
        for undo in self._undo:
            undo()
        self._undo = []

    def _attach(self, record: dict[str, Any]) -> None:
        """Read the input of every weight layer, and the output of the last layer."""
        flow = Flow(record, self._silent, self.window)
        last = list(self.layers)[-1]
        for name, layer in self.layers.items():
            for key, point in points(name, layer):
                self._undo.append(tap(point, self._timed(flow.arrive, name, key, point), None))
        seen = self._timed(flow.leave, last)
        self._undo.append(tap(self.layers[last], None, seen))

    def _timed(self, call: Callable[..., None], *fixed: Any) -> Callable[[Tensor], None]:
        def see(x: Tensor) -> None:
            with Clock(self):
                call(*fixed, x)

        return see


class Clock:
    """Adds the time inside to what the watch has spent."""

    def __init__(self, watch: Watch):
        self.watch = watch

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: Any) -> None:
        self.watch.spent += time.perf_counter() - self.start


class Flow:
    """The activations of one forward pass, booked to the layers that computed them."""

    def __init__(self, record: dict[str, Any], silent: dict[str, deque], window: int):
        self.record, self.silent, self.window = record, silent, window
        self.passed = ""  # the layer whose weights were used last
        self.met: set[Any] = set()

    def arrive(self, name: str, key: str, point: nn.Module, x: Tensor) -> None:
        """An input reaches a weight layer: it is what the layer passed before handed on."""
        if key in self.met:  # only the first micro-batch, and no recomputation
            return
        self.met.add(key)
        source, self.passed = self.passed, name
        mark = (x.data_ptr(), x.shape)
        if mark in self.met:  # the same tensor into several weights: q, k and v, or a shortcut
            return
        self.met.add(mark)
        if not source:
            values = sample(x, unit_axis(point, x))
            self.record["inputs"] = {"mean": number(values.mean()), "std": number(values.std())}
        else:
            self.book(source, key, x, unit_axis(point, x))

    def leave(self, name: str, x: Tensor) -> None:
        """The output of the last layer: scores, which are never dead or saturated."""
        if "output" not in self.met and x.is_floating_point():
            self.met.add("output")
            values = sample(x, x.ndim - 1)
            self.record["layers"][name] |= size(values) | {"dead": 0.0, "saturated": 0.0}

    def book(self, name: str, key: str, x: Tensor, axis: int) -> None:
        self.record["dtype"] = str(x.dtype).removeprefix("torch.")
        values = sample(x, axis)  # (n, U)
        looks = self.silent.setdefault(key, deque(maxlen=self.window))
        looks.append(silent_units(x, values, axis))
        same = all(m.shape == looks[-1].shape for m in looks)
        dead = float(np.logical_and.reduce(list(looks)).mean()) if same else 0.0
        stats = self.record["layers"][name]
        stats |= size(values)  # what comes last is what the layer hands on
        stats["dead"] = max(stats["dead"] or 0.0, dead)
        stats["saturated"] = max(stats["saturated"] or 0.0, saturated_share(values))


class Look:
    """Weights, gradients and updates of one step, layer by layer."""

    def __init__(self, layers: dict[str, nn.Module]):
        self.parameters = {n: list(layer.parameters()) for n, layer in layers.items()}
        self.stats: dict[str, Stats] = {n: dict(EMPTY) for n in layers}
        self.weights = {n: sampled(p) for n, p in self.parameters.items() if p}
        for name, parameters in self.parameters.items():
            self.stats[name]["gain"] = gain(parameters)
            self.stats[name]["weight_norm"] = weight_norm(parameters)
            self.stats[name]["trainable"] = any(p.requires_grad for p in parameters)

    def read_gradients(self) -> None:
        for name, parameters in self.parameters.items():
            grads = [p.grad for p in parameters if p.grad is not None]
            if grads:
                norm = torch.nn.utils.get_total_norm(grads)
                self.stats[name]["grad_norm"] = number(norm.item())
                self.stats[name]["zero_grad"] = (sampled(grads) == 0).float().mean().item()

    def read_updates(self) -> None:
        for name, before in self.weights.items():
            after = sampled(self.parameters[name])
            ratio = (after - before).norm() / before.norm().clamp_min(1e-12)
            self.stats[name]["update_ratio"] = number(ratio.item())


EMPTY: Stats = {
    "grad_norm": None,
    "weight_norm": None,
    "zero_grad": None,
    "update_ratio": None,
    "act_mean": None,
    "act_std": None,
    "spread": None,
    "dead": None,
    "saturated": None,
    "gain": None,
    "trainable": False,
}


def points(name: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The weight layers inside a layer; the layer itself when it is compiled or has none."""
    inner = [] if is_compiled(layer) else [(k, m) for k, m in layer.named_modules() if is_weight(m)]
    for key, module in inner or [("", layer)]:
        yield f"{name}.{key}", module


def is_weight(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim >= 2 and not isinstance(module, nn.Embedding)


def is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def tap(
    module: nn.Module,
    arrive: Callable[[Tensor], None] | None,
    leave: Callable[[Tensor], None] | None,
) -> Callable[[], Any]:
    """Show the module's first input and its output to the functions; returns what undoes it.

    A compiled module ignores hooks added later, so its call is wrapped instead.
    """
    if is_compiled(module):
        return tap_compiled(module, arrive, leave)
    if arrive is not None:
        return module.register_forward_pre_hook(
            lambda _, args: arrive(args[0].detach()) if is_tensor(args[:1]) else None
        ).remove
    assert leave is not None
    return module.register_forward_hook(
        lambda _, args, out: leave(out.detach()) if is_tensor((out,)) else None
    ).remove


def tap_compiled(module: nn.Module, arrive: Any, leave: Any) -> Callable[[], Any]:
    inner: Any = module._compiled_call_impl

    def call(*args: Any, **options: Any) -> Any:
        if arrive is not None and is_tensor(args[:1]):
            arrive(args[0].detach())
        out = inner(*args, **options)
        if leave is not None and is_tensor((out,)):
            leave(out.detach())
        return out

    module._compiled_call_impl = call
    return lambda: setattr(module, "_compiled_call_impl", inner)


def is_tensor(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], Tensor)


def unit_axis(point: nn.Module, x: Tensor) -> int:
    """Channels of an image or of a map; the last axis of vectors and sequences."""
    weight = point._parameters.get("weight")
    dense = weight is not None and weight.ndim == 2
    return x.ndim - 1 if dense or x.ndim < 4 else 1


def sample(x: Tensor, axis: int) -> np.ndarray:
    """At most SAMPLED_ROWS rows with SAMPLED_PLACES places each, as float32 (n, U)."""
    x = x[:: max(1, -(-x.shape[0] // SAMPLED_ROWS))] if x.ndim > 1 else x[:, None]
    x = x.movedim(axis, -1) if x.ndim > 1 else x
    places = math.prod(x.shape[1:-1])
    if places > SAMPLED_PLACES:
        for d in range(1, x.ndim - 1):  # the same stride along each axis of an image
            keep = max(1, round(SAMPLED_PLACES ** (1 / (x.ndim - 2))))
            x = x[(slice(None),) * d + (slice(None, None, max(1, x.shape[d] // keep)),)]
    return x.reshape(-1, x.shape[-1]).float().cpu().numpy()


def sampled(tensors: list[Any]) -> Tensor:
    """Evenly spaced entries of each tensor in one float32 vector (a copy)."""
    parts = []
    for t in tensors:
        flat = t.detach().reshape(-1)
        parts.append(flat[:: max(1, flat.numel() // SAMPLED_WEIGHTS)].float())
    return torch.cat(parts)


def size(values: np.ndarray) -> Stats:
    """Mean, deviation, and which share of the size differs between the positions: of (n, U)."""
    rms = float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))
    varies = float(np.sqrt(np.mean(values.var(0, dtype=np.float64))))
    return {
        "act_mean": number(values.mean(dtype=np.float64)),
        "act_std": number(values.std(dtype=np.float64)),
        "spread": number(varies / rms) if rms > 0 else 0.0,
    }


def silent_units(x: Tensor, values: np.ndarray, axis: int) -> np.ndarray:
    """(U,) which units are zero for the whole batch; the sample says where to look closely."""
    silent = ~values.any(0)  # (U,)
    rows = np.flatnonzero(silent)
    if len(rows):
        chosen = x.movedim(axis, 0)[torch.from_numpy(rows).to(x.device)]
        silent[rows] = ~chosen.flatten(1).any(1).cpu().numpy()
    return silent


def saturated_share(values: np.ndarray) -> float:
    """Share of units nearly always in the flat part of a sigmoid or tanh; 0 for any other kind.

    Told by the range: no other common activation keeps to [0, 1] without exact zeros, or to [-1, 1]
    with many values at its ends.
    """
    low, high = values.min(), values.max()
    if not (low >= -1 and high <= 1):
        return 0.0
    if low < 0:
        flat = np.abs(values) > 1 - FLAT
    elif np.mean(values == 0) < 0.01 and high > 0.5:
        flat = (values < FLAT) | (values > 1 - FLAT)
    else:
        return 0.0
    return float((flat.mean(0) > 0.9).mean())


def gain(parameters: list[nn.Parameter]) -> float | None:
    """Median over the layer's matrices and filters of rms(weight) * sqrt(fan-in)."""
    gains = []
    for p in parameters:
        if p.ndim >= 2 and p.shape[0] > 1:
            values = sampled([p])
            fan_in = p[0].numel()
            gains.append(float(values.square().mean().sqrt()) * math.sqrt(fan_in))
    return float(np.median(gains)) if gains else None


def weight_norm(parameters: list[nn.Parameter]) -> float | None:
    if not parameters:
        return None
    return float(torch.nn.utils.get_total_norm([p.detach() for p in parameters]))


def number(value: Any) -> float:
    return float(value)
