"""One training in a folder: batches, optimiser, checkpoints and log around the loop.

Legend: n rows, C classes.
"""

import copy
import json
import pathlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from layerwise import runtime, storage
from layerwise.adapt.freeze import Freezing
from layerwise.adapt.groups import parameter_groups
from layerwise.data.examples import Batch, Examples
from layerwise.data.loader import Batches, Prefetch
from layerwise.inspection.watch import Watch
from layerwise.models.network import Network
from layerwise.planning.step import checkpoint_layers
from layerwise.runtime import Runtime
from layerwise.tasks.feed import Feed
from layerwise.tasks.task import Processors, Task
from layerwise.train import checkpoint
from layerwise.train.checkpoint import State
from layerwise.train.compiled import Verdict, compile_layers, whether_to_compile
from layerwise.train.log import MetricsLog
from layerwise.train.loop import Average, Hooks, LoopConfig, parts_of, train
from layerwise.train.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from layerwise.train.predicting import predict_rows


@dataclass(frozen=True)
class Recipe(LoopConfig):
    """Every choice of a training, none of them "auto" any more."""

    global_batch_size: int = 1  # rows per step
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    momentum: float = 0.9
    layer_decay: float = 1.0
    unfreeze: str = "all"
    augment: object = None  # as the rows' kind has it
    keep: int = 2
    seed: int = 0
    loader_threads: int = 2
    watch_every: int = 0
    checkpointing: bool = False  # recompute each layer's activations in backward
    compile: str = "off"


@dataclass
class Outcome:
    """What a training came to."""

    state: State
    history: list[dict[str, Any]]  # the watch's looks at the layers
    stall_share: float  # of the time: waiting for batches
    step_seconds: float  # median of a step
    compiled: str = ""  # whether the layers were compiled, and why


@dataclass
class Training:
    """A network, its data and a recipe, in a folder from which it can be resumed.

    groups: parameter groups of its own, where the usual ones will not do.
    """

    folder: pathlib.Path
    network: Network
    task: Task
    processors: Processors
    train_rows: Examples
    val_rows: Examples
    recipe: Recipe
    machine: Runtime
    progress: Callable[..., None]
    planned_seconds: float
    groups: list[dict[str, Any]] | None

    def __post_init__(self) -> None:
        network, recipe, task = self.network, self.recipe, self.task
        self.checkpoints = self.folder / "checkpoints"
        self.freezing = Freezing(network, recipe.unfreeze, recipe.steps)
        decay = recipe.weight_decay, recipe.layer_decay
        groups = self.groups or parameter_groups(network, *decay)
        self.optimizer = build_optimizer(recipe.optimizer, groups, recipe.lr, recipe.momentum)
        self.average = Average(network, copy.deepcopy(network), recipe.ema) if recipe.ema else None
        threads = recipe.loader_threads
        rows = Feed(task, self.train_rows, self.processors, recipe.augment, threads=threads)
        self.batches = Batches(rows, recipe.global_batch_size, recipe.seed)
        self.validation = Feed(task, self.val_rows, self.processors)
        self.watch: Watch | None = None
        self.looks = self.folder / "watch.json"  # what it saw, as old as the newest checkpoint
        self.times: list[float] = []
        self.compiled, self.current = "", 0  # the step that is under way, counted from 1

    def run(self) -> Outcome:
        """Train, from the newest checkpoint in the folder when there is one."""
        state = self.resume() or State(seed=self.recipe.seed)
        log = MetricsLog(self.folder, state.step)
        feed = Prefetch(self.batches, state.step, stop=self.recipe.steps)
        if self.recipe.watch_every:
            self.watch = Watch(self.network.layers(), self.optimizer, self.recipe.watch_every)
            kept = json.loads(self.looks.read_text()) if state.step and self.looks.exists() else []
            self.watch.history += [look for look in kept if look["step"] < state.step]
        layers = self.network.layers()
        started = time.perf_counter()
        try:
            if self.recipe.checkpointing:
                checkpoint_layers(layers)
            else:
                self.compile()
            around = state, self.machine, self.hooks(log), self.average
            state = train(self.network, self.task, feed, self.optimizer, self.recipe, *around)
        finally:
            feed.close()
            log.close()
            self.freezing.release()
            for layer in layers.values():
                layer.__dict__.pop("forward", None)  # what checkpointing put there
                layer._compiled_call_impl = None
        self.take_best(state)
        history = self.watch.history if self.watch else []
        stalled = feed.stall_seconds / max(1e-9, time.perf_counter() - started)
        step = float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.0
        return Outcome(state, history, stalled, step, self.compiled)

    def compile(self) -> None:
        """Compile the layers where it pays; `self.compiled` says why or why not.

        A resumed training does as it did before: compiled layers round in another way.
        """
        kept, how = self.folder / "compiled.json", (self.recipe.compile, self.planned_seconds)
        if kept.exists():
            verdict = Verdict(**json.loads(kept.read_text()))
        else:
            trial = self.network, self.task, self.samples, self.machine
            verdict = whether_to_compile(*trial, *how)
            with storage.replacing(kept, checkpoint.CURE) as path:
                path.write_text(json.dumps(asdict(verdict)))
        if verdict.compiled:
            compile_layers(self.network, self.samples())
        self.compiled = verdict.why

    def samples(self) -> list[Batch]:
        """The first micro-batches of the first two steps."""
        out, device = [], self.machine.device
        for batch in (self.batches[0], self.batches[1]):
            parts = parts_of(self.task, batch, len(batch), self.recipe.grad_accum_steps, device)
            out.append(batch.split(parts)[0].to(device))
        return out

    # ---- checkpoints ---------------------------------------------------------------------------

    def save(self, state: State) -> None:
        learned = optimizer_tensors(self.network, self.optimizer)
        tensors = {"model": self.network.state_dict(), "optimizer": learned}
        if self.average:
            tensors["ema"] = self.average.network.state_dict()
        if self.watch:
            with storage.replacing(self.looks, checkpoint.CURE) as path:
                path.write_text(json.dumps(self.watch.history))
        checkpoint.save_checkpoint(self.checkpoints, state, tensors)
        checkpoint.clean(self.checkpoints, self.recipe.keep, state.best_step)

    def resume(self) -> State | None:
        """The state of the newest checkpoint, its tensors loaded into network and optimiser."""
        newest = checkpoint.latest(self.checkpoints)
        if newest is None:
            return None
        state, tensors = checkpoint.load_checkpoint(newest)
        self.network.load_state_dict(tensors["model"])
        load_optimizer_tensors(self.network, self.optimizer, tensors.get("optimizer", {}))
        if self.average:
            self.average.network.load_state_dict(tensors["ema"])
            self.average.updates = state.step
        return state

    def restore(self, broken: State) -> State:
        """For the guardian: back to the newest checkpoint, which holds only finite numbers."""
        state = self.resume()
        assert state is not None, "the loop saves before its first step"
        state.seconds = broken.seconds
        return state

    def take_best(self, state: State) -> None:
        """Put the averaged weights, or those of the best validation, into the network."""
        if not state.finished:
            return
        best = self.checkpoints / f"{checkpoint.PREFIX}{state.best_step:08d}"
        if state.best_step not in (-1, state.step) and best.exists():
            tensors = checkpoint.load_checkpoint(best)[1]
            self.network.load_state_dict(tensors["ema" if self.average else "model"])
        elif self.average:
            self.network.load_state_dict(self.average.network.state_dict())

    # ---- around the steps ----------------------------------------------------------------------

    def hooks(self, log: MetricsLog) -> Hooks:
        def on_log(step: int, **values: object) -> None:
            self.times.append(time.perf_counter())
            log.write(step, **values)
            self.progress(step=step, steps=self.recipe.steps, **values)

        def on_evaluate(network: Network) -> float:
            # what steps and this leave behind they can seldom use of one another
            runtime.give_back()
            found = predict_rows(network, self.validation, self.machine)
            runtime.give_back()
            metrics = self.task.metrics(found, self.validation.examples)
            log.write(self.current, **{f"val_{k}": v for k, v in metrics.items()})
            self.progress(step=self.current, steps=self.recipe.steps, val=metrics)
            return metrics[self.task.score]

        def before(step: int) -> None:
            self.current = step + 1
            self.freezing.before(step)

        around = on_log, on_evaluate, self.save, self.restore, before, self.watch
        return Hooks(*around, self.train_rows.names, self.task.higher_is_better)


def fresh(builder: Callable[[], Network], seed: int) -> Network:
    """A network whose initial weights follow from the seed alone."""
    with runtime.seeded(seed, 0x1A7E5):
        network = builder()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
