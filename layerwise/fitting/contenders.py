"""Contenders for a budget: each trained once for a share of it and scored, and the best kept.

The first, which is the one to have, gets most of the time, as far as its recipe takes it, and all
where that would be a small part of its recipe; the others share what is left. Each runs its
learning rate's whole course, so a way that is fast at first is not kept for that alone. Scores are
of the validation rows.

Legend: n rows.
"""

import math
import pathlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from layerwise import models, runtime
from layerwise.console import duration
from layerwise.fitting.job import Contender, Job, Rung
from layerwise.runtime import peak_memory_mb
from layerwise.storage import read_json, write_json
from layerwise.tasks.scores.intervals import interval
from layerwise.train.predicting import predict_rows
from layerwise.train.run import Recipe, Training

LEAST_STEPS, TELLING_STEPS = 10, 40  # fewer teach nothing; cannot separate the contenders
FIRST = 0.6  # of the time for the first of several; all shares add up to the whole
LEAST_SHARE = 0.25  # of its recipe that the first must come to before others take time from it
VALIDATING = 0.2  # of a share of the budget may go into looking at the validation rows


def affordable(
    job: Job, ways: list[str], make: Callable[[str], Contender], optional: bool
) -> list[Contender]:
    """Contenders of the ways, one by one for as long as the budget has time for another.

    optional: there may be none. What was decided is kept in the run's folder for a resumed run.
    """
    kept, out = job.folder / "contenders.json", []
    known = read_json(kept)["ways"] if kept.exists() else None
    for way in ways if known is None else known:
        if known is None and out and not has_time(job, out, len(out) + 1):
            job.console.say(f"  {way}: left out, the budget has no time for it")
        else:
            out.append(make(way))
    if known is None:
        if optional and not has_time(job, out, len(out), LEAST_STEPS):
            job.console.say("  no time is left in the budget to train")
            out = []
        write_json(kept, {"ways": [c.way for c in out]})
    return out


def has_time(job: Job, contenders: list[Contender], n: int, steps: int = TELLING_STEPS) -> bool:
    """Whether there is time for `n` contenders like these, each with enough steps to be compared,
    and for enough of the first's recipe."""
    share, first = share_of(job, contenders, n), contenders[0]
    course = LEAST_SHARE * first.recipe.steps * step_seconds(first)
    if n > 1 and FIRST * seconds_to_train(job, contenders) < course:
        return False
    return all(share >= least_seconds(c, len(job.val), steps) for c in contenders)


def least_seconds(contender: Contender, n_val: int, steps: int) -> float:
    """What a first run of so many steps takes, scored in between and at its end."""
    steps = min(steps, contender.recipe.steps)
    return steps * step_seconds(contender) + 2 * scoring_seconds(contender, n_val)


def share_of(job: Job, contenders: list[Contender], n: int) -> float:
    """Seconds that the least of `n` contenders gets now."""
    left = seconds_to_train(job, contenders)
    return left if n == 1 else (1 - FIRST) * left / (n - 1)


def seconds_to_train(job: Job, contenders: list[Contender]) -> float:
    """What is left now; what scoring takes beyond its half of what is reserved for the end is set
    apart."""
    scoring = max(scoring_seconds(c, len(job.val) + job.n_test) for c in contenders)
    return job.deadline - max(0.0, scoring - job.reserved / 2) - time.monotonic()


def compete(job: Job, contenders: list[Contender]) -> Contender:
    """Train one after another under the deadline; without one, each runs its recipe whole."""
    for i, contender in enumerate(contenders):
        left, others = seconds_to_train(job, contenders), len(contenders) - i - 1
        train_within(job, contender, FIRST * left if others and not i else left / (others + 1))
        assert contender.rung is not None
        job.rungs.append(contender.rung)
        if contender.outcome and not contender.outcome.state.finished:  # Ctrl-C
            return contender
        if others and not worth_going_on(job, contender.rung):
            break
    return best_of(job, [c for c in contenders if c.rung])


def scoring_seconds(contender: Contender, n: int) -> float:
    """About what it takes to score n rows: a third of training on them."""
    return step_seconds(contender) / 3 * n / contender.recipe.global_batch_size


def step_seconds(contender: Contender) -> float:
    plan = contender.plan
    return plan.seconds.value / max(1, plan.steps) if plan else 0.0


def best_of(job: Job, contenders: list[Contender]) -> Contender:
    defined = [c for c in contenders if not math.isnan(score_of(c))] or contenders
    return (max if job.task.higher_is_better else min)(defined, key=score_of)


def score_of(contender: Contender) -> float:
    assert contender.rung is not None, "scored before it is compared"
    return contender.rung.score


def better(job: Job, a: Rung | None, b: Rung) -> bool:
    if a is None:
        return False
    return a.score > b.score if job.task.higher_is_better else a.score < b.score


def worth_going_on(job: Job, rung: Rung) -> bool:
    """False when a perfect score lies within the interval: nothing better could be recognised."""
    if not job.task.higher_is_better or rung.high < 1.0:
        return True
    rung.note += "; a perfect score lies within its interval, so climbing further cannot pay"
    return False


def train_within(job: Job, contender: Contender, share: float) -> None:
    """Train one contender for at most `share` seconds, and score it."""
    started = time.monotonic()
    runtime.forget_peak()
    folder = job.folder / "rungs" / contender.way
    folder.mkdir(parents=True, exist_ok=True)
    recipe = kept_steps(folder, affordable_recipe(contender, share, len(job.val)))
    learned = contender.network, job.task, contender.choice.processors, job.train, job.val
    how = (
        Progress(job, contender.way),
        recipe.steps * step_seconds(contender),
        own_groups(contender),
    )
    training = Training(folder, *learned, recipe, job.machine, *how)
    contender.outcome = training.run()
    job.console.say(f"  {contender.outcome.compiled}")
    contender.recipe = recipe
    contender.said = predict_rows(contender.network, training.validation, job.machine)
    note = f"{recipe.steps} steps"
    contender.rung = score_rung(job, contender.way, contender.said, started, note)


def affordable_recipe(contender: Contender, share: float, n_val: int) -> Recipe:
    """The recipe with as many steps as the share of time pays for, at most what it has.

    n_val: rows that are scored at every evaluation and once at the end, at a third of a step's cost
    each; evaluations get at most VALIDATING of the time, or there is only the last one.
    """
    recipe, plan = contender.recipe, contender.plan
    if plan is None or share == float("inf"):
        return recipe
    most = max(recipe.steps, contender.choice.most_steps)
    once = scoring_seconds(contender, n_val)
    times = int(min(5, max(1, VALIDATING * share / max(once, 1e-6))))
    left = 0.9 * share - (times + 1) * once
    paid = int(left / max(step_seconds(contender), 1e-6))
    steps = max(LEAST_STEPS, min(most, paid))
    warmup, save = min(recipe.warmup_steps, steps // 10), max(1, steps // 5)
    paced = {"warmup_steps": warmup, "evaluate_every": -(-steps // times), "checkpoint_every": save}
    return replace(recipe, steps=steps, **paced)


def kept_steps(folder: pathlib.Path, recipe: Recipe) -> Recipe:
    """The recipe with the steps this training was begun with: resuming measures nothing anew."""
    path = folder / "steps.json"
    if not path.exists():
        kept = ("steps", "warmup_steps", "evaluate_every", "checkpoint_every")
        write_json(path, {name: vars(recipe)[name] for name in kept})
    return replace(recipe, **read_json(path))


def own_groups(contender: Contender) -> list[dict[str, Any]] | None:
    """The parameter groups that the family itself has for Muon from scratch; None for the usual."""
    family = models.family(contender.choice.family)
    make = vars(family).get("muon_groups")
    if make is None or contender.way != "scratch" or contender.recipe.optimizer != "muon":
        return None
    return make(contender.network, contender.recipe.global_batch_size)


def score_rung(
    job: Job, name: str, predictions: Sequence[Any], started: float, note: str = ""
) -> Rung:
    """Score predictions of the validation rows, with a bootstrap interval."""
    task, seed = job.task, job.settings.seed
    found = interval(task.metric, *task.scored(predictions, job.val), seed=seed)
    value, low, high, seconds = found.value, found.low, found.high, time.monotonic() - started
    said = f"{task.score} {value:.4f}  ({low:.4f} to {high:.4f})  {duration(seconds)}"
    job.console.say(f"  {name:<8} {said}")
    return Rung(name, value, low, high, seconds, peak_memory_mb(), note)


class Progress:
    """One line that says how far a training is."""

    def __init__(self, job: Job, way: str):
        self.console, self.way, self.score = job.console, way, job.task.score
        self.started, self.first, self.val = time.monotonic(), 0, ""

    def __call__(
        self, step: int, steps: int, val: dict[str, float] | None = None, **values: Any
    ) -> None:
        if val is not None:
            self.val = f"  val {self.score} {val[self.score]:.4f}"
        if "guardian" in values:
            self.console.say(f"  guardian: {values['guardian']}; going on once at a tenth the rate")
        if "loss" not in values:
            return
        said = f"  {self.way} {step}/{steps}  loss {values['loss']:.4f}{self.val}"
        if not self.first:  # what came before it is paid once
            self.started, self.first = time.monotonic(), step
        if step > self.first:
            pace = (time.monotonic() - self.started) / (step - self.first)
            said += f"  {duration(pace * (steps - step))} left"
        self.console.progress(said)
