"""Diagnose a training that went on, and with `--cure` train once more with what cures it."""

from dataclasses import replace
from typing import Any

from layerwise.fitting.contenders import better, compete
from layerwise.fitting.job import Contender, Job, some_rows
from layerwise.fitting.ladder import new_contender
from layerwise.inspection.diagnosis import Diagnosis, diagnose, split_cure
from layerwise.inspection.texts import legible
from layerwise.models import replace_fields
from layerwise.tasks.feed import batch_of
from layerwise.train.log import read_metrics

PROBED = 200  # rows of each split that a diagnosis looks at
WINDOWS = 24  # of running text


def metrics_of(job: Job, contender: Contender) -> list[dict[str, Any]]:
    """The loss curve of a contender."""
    return read_metrics(job.folder / "rungs" / contender.way)


def diagnoses(job: Job, contender: Contender) -> list[Diagnosis]:
    """What was wrong with a training, root cause first; each is said."""
    if contender.outcome is None or not contender.outcome.history:
        return []
    task, processors = job.task, contender.choice.processors
    most = WINDOWS if task.every_position else PROBED
    some = [batch_of(task, some_rows(rows, most), processors) for rows in (job.train, job.val)]
    seen, unseen = (legible(batch, task.token_targets) for batch in some)
    metrics = [m for m in metrics_of(job, contender) if "loss" in m or "guardian" in m]
    rows = {"probe": seen, "held_out": unseen, "frozen": frozen_layers(contender)}
    how = {"lr": contender.recipe.lr, "optimizer": contender.recipe.optimizer}
    found = diagnose(contender.outcome.history, contender.network, metrics, **rows, **how)
    for d in found:
        job.console.say(f"  diagnosis: {d.fault.replace('_', ' ')} in {d.layer}: {d.evidence}")
        job.console.say(f"    cure: {d.cure}")
    return found


def frozen_layers(contender: Contender) -> list[str]:
    """Layers not meant to train: below the head for LoRA, and what a family keeps fixed."""
    stack = contender.network.layers()
    if contender.way == "lora" or contender.recipe.unfreeze == "head":
        return list(stack)[:-1]
    return [n for n, m in stack.items() if not any(p.requires_grad for p in m.parameters())]


def apply_cure(job: Job, ill: Contender) -> Contender:
    """Train once more with what the first diagnosis advises; the better of both is kept.

    Only a network that is trained from scratch can be given another activation or initialisation;
    for a base the cure is in the settings alone.
    """
    first = job.diagnoses[0]
    options, fields = split_cure(first.cure_options, ill.choice.config)
    config = replace_fields(ill.choice.config, fields)
    choice = replace(ill.choice, config=config, why=f"{ill.choice.why}, cured: {first.cure}")
    again = replace(job, settings=replace(job.settings, **options), folder=job.folder / "cured")
    well = new_contender(again, "scratch", None, lambda: (choice, None))
    job.console.say(f"  cure applied: {options | fields or 'fresh weights'}; training again")
    well = compete(again, [well])
    assert well.rung is not None
    assert ill.rung is not None
    well.rung.name = "cured"
    kept = well if better(job, well.rung, ill.rung) else ill
    for rung in job.rungs:
        rung.chosen = rung is kept.rung
    return kept
