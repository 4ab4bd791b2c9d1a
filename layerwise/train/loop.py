"""The training loop: one function for every task, family and scale.

Everything random in step s follows from (seed, s): the batch, its augmentation, dropout. So a run
resumes from one integer, and the same seed gives the same weights to the bit on the same CPU.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from layerwise import runtime
from layerwise.data.examples import Batch
from layerwise.data.sources import Draw
from layerwise.errors import TrainingStopped
from layerwise.inspection.watch import Watch
from layerwise.models.network import Network
from layerwise.planning.step import accumulate
from layerwise.tasks.task import Task
from layerwise.train import guardian
from layerwise.train.checkpoint import State
from layerwise.train.optim import set_lr
from layerwise.train.schedule import lr_factor

MOST_TOKENS = 2048  # of a micro-batch on the CPU: larger ones take more memory and no less time


class Steps(Protocol):
    """`batches[step]` is the whole step's batch, a pure function of the step; `draw(step)` what
    everything random in it follows from."""

    def __getitem__(self, step: int) -> Batch: ...
    def draw(self, step: int) -> Draw: ...


@dataclass(frozen=True)
class LoopConfig:
    """The scalars of one training that the loop needs."""

    steps: int
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 0
    grad_accum_steps: int = 1
    grad_clip: float = 1.0
    ema: float = 0.0
    evaluate_every: int = 0
    checkpoint_every: int = 0


@dataclass
class Hooks:
    """What happens around the steps; each is a plain call, and each may be left out."""

    log: Callable[..., None] = lambda step, **values: None
    evaluate: Callable[[Network], float | None] | None = None
    save: Callable[[State], None] = lambda state: None
    restore: Callable[[State], State] | None = None  # back to the last good checkpoint
    before_step: Callable[[int], None] = lambda step: None
    watch: Watch | None = None
    names: Sequence[str] = field(default_factory=list)
    higher_is_better: bool = True


def train(
    network: Network,
    task: Task,
    batches: Steps,
    optimizer: torch.optim.Optimizer,
    config: LoopConfig,
    state: State,
    machine: runtime.Runtime,
    hooks: Hooks,
    average: "Average | None" = None,
) -> State:
    """Train until `config.steps`; the state says where it ended.

    batches: `batches[step]` gives the whole step's Batch, a pure function of the step.
    Returns the state; `state.finished` is False after a Ctrl-C (the step was finished and saved).
    Errors: TrainingStopped when numbers are not finite a second time.
    """
    network.train()
    hooks.save(state)
    with interruptible() as stop:
        while state.step < config.steps and not stop:
            # ---- what to learn from ----------------------------------------------------------
            started = time.perf_counter()
            batch: Batch = batches[state.step].to(machine.device)  # with all that is random drawn
            if task.learns_from_itself:
                batch = task.act(network, batch, batches.draw(state.step))
            count = task.count(batch)
            parts = parts_of(task, batch, len(batch), config.grad_accum_steps, machine.device)
            micros = batch.split(parts, task.joint)
            hooks.before_step(state.step)
            if hooks.watch is not None:
                hooks.watch.before(state.step)

            # ---- forward and backward: sums, divided once by the count of the whole step -----
            torch.manual_seed(runtime.mix(state.seed, state.step))
            optimizer.zero_grad(set_to_none=True)
            total = accumulate(network, task, micros, count, machine.autocast)

            # ---- guard and clip --------------------------------------------------------------
            norm = clip(network, config.grad_clip)
            mean_loss, grad_norm = float(total) / count, float(norm)
            try:
                find = lambda m=micros: guardian.culprits(network, task, m)  # noqa: E731
                guardian.check(mean_loss, grad_norm, state.step, find, hooks.names)
            except guardian.NotFinite as e:
                state = recover(e, state, hooks)
                continue
            if hooks.watch is not None:
                hooks.watch.after_backward()

            # ---- update ----------------------------------------------------------------------
            factor = lr_factor(state.step, config.steps, config.warmup_steps, config.schedule)
            set_lr(optimizer, config.lr * factor * state.lr_scale)
            optimizer.step()
            if average is not None:
                average.update(network)
            if hooks.watch is not None:
                hooks.watch.after_step()
            state.step += 1
            state.seconds += time.perf_counter() - started

            # ---- log, evaluate, save: each with its own period -------------------------------
            lr = config.lr * factor * state.lr_scale
            hooks.log(state.step, loss=mean_loss, grad_norm=grad_norm, lr=lr, rows=len(batch))
            last = state.step == config.steps
            if hooks.evaluate and (last or due(state.step, config.evaluate_every)):
                score = hooks.evaluate(average.network if average else network)
                note_best(state, score, hooks.higher_is_better)
                network.train()
            state.finished = last
            best = state.best_step == state.step
            if last or stop or best or due(state.step, config.checkpoint_every):
                hooks.save(state)
    return state


def parts_of(task: Task, batch: Batch, rows: int, asked: int, device: str) -> int:
    """Into how many micro-batches `rows` rows like those of this batch are split, at least `asked`.

    On the CPU tokens by the thousand leave the caches and hold their activations all at once.
    """
    tokens = batch.tokens_per_row
    if device != "cpu" or not tokens or task.joint:
        return asked
    parts = min(rows, max(asked, -(-rows * tokens // MOST_TOKENS)))
    return next((n for n in range(parts, 2 * parts) if rows % n == 0), parts)  # equal ones


def due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


def note_best(state: State, score: float | None, higher_is_better: bool) -> None:
    if score is None or math.isnan(score):
        return
    best = state.best_score
    if best is None or (score > best if higher_is_better else score < best):
        state.best_score, state.best_step = score, state.step


def clip(network: nn.Module, grad_clip: float) -> Tensor:
    """The norm of all gradients; scaled down to `grad_clip` where that is above 0."""
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if grad_clip > 0 and bool(norm > grad_clip):
        torch._foreach_mul_(grads, float(grad_clip / norm))
    return norm


def recover(error: guardian.NotFinite, state: State, hooks: Hooks) -> State:
    """Back to the last good checkpoint with a tenth of the rate, once; then give up.

    Errors: TrainingStopped, which names the step and the rows.
    """
    if state.recoveries or hooks.restore is None:
        again = " again, after going back once with a tenth of the learning rate"
        what = f"{error}{again * bool(state.recoveries)}. The last good checkpoint is kept"
        cure = "Look at these rows (`layerwise audit DATA`), or lower --lr"
        raise TrainingStopped(f"{what}. {cure}") from error
    scale, recoveries = state.lr_scale, state.recoveries
    state = hooks.restore(state)
    state.lr_scale, state.recoveries = scale * 0.1, recoveries + 1
    hooks.log(state.step, guardian=str(error), lr_scale=state.lr_scale)
    hooks.save(state)  # a kill now must not forget that this happened
    return state


@contextmanager
def interruptible() -> Iterator[list[bool]]:
    """A list that is empty until the first Ctrl-C; a second Ctrl-C interrupts at once."""
    stop: list[bool] = []

    def first(signum: int, frame: object) -> None:
        stop.append(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, first)
    except ValueError:  # not in the main thread: nothing to catch
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class Average:
    """An exponential moving average of the weights (EMA) in a network of its own.

    Its decay rises with the step, min(decay, (1 + n) / (10 + n)), so early weights fade quickly.
    """

    def __init__(self, network: Network, copy: Network, decay: float):
        self.network, self.decay, self.updates = copy, decay, 0
        copy.load_state_dict(network.state_dict())
        copy.requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        ours, theirs = self.network.state_dict(), network.state_dict()
        floats = [k for k, v in ours.items() if v.is_floating_point()]
        torch._foreach_lerp_([ours[k] for k in floats], [theirs[k] for k in floats], weight)
        for k in ours.keys() - set(floats):
            ours[k].copy_(theirs[k])
