"""After training: calibrate, score on rows never seen, probe the depth, save, and report.

Everything the page shows is one JSON document, `result.json` beside it, so that nothing on the
page is more than what was measured.
"""

import shlex
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerwise import kinds, runtime
from layerwise.console import Console, duration
from layerwise.data.examples import Examples
from layerwise.fitting.cure import metrics_of
from layerwise.fitting.inside import look_inside
from layerwise.fitting.job import Contender, Job, Result, Rows
from layerwise.kinds.label_errors import suspect_labels
from layerwise.model.evaluation import evaluation_of, wrong_rows
from layerwise.model.model import Model
from layerwise.storage import write_json
from layerwise.tasks.feed import Feed
from layerwise.tasks.scores import intervals
from layerwise.train.predicting import predict_rows


def finish(job: Job, rows: Rows, winner: Contender, model: Model, base: Model | None) -> Result:
    """Turn a trained winner into a Result, a saved model and a report."""
    console = job.console
    runtime.give_back()
    page: dict[str, Any] = {
        "command": command_of(job),
        "data": job.data,
        "understood": rows.read.understood,
        "environment": runtime.environment(),
        "machine_notes": list(job.machine.notes),
        "settings": job.settings.to_dict(),
        "model": model_facts(model, winner),
        "reads": kinds.of(rows.train).ground,
        "gives": job.task.top,
        "rows": {"train": len(rows.train), "val": len(rows.val), "test": len(rows.test)},
        "ladder": [vars(r) for r in job.rungs],
        "plan": plan_rows(winner),
        "forecast": forecast_beside(winner),
        "lens": job.lens and job.lens.to_dict(),
        "metrics": metrics_of(job, winner),
        "diagnoses": [vars(d) for d in job.diagnoses],
    }
    finished = winner.outcome is None or winner.outcome.state.finished
    page |= score_model(job, rows, model, winner)
    page["audit"] = findings_of(rows, page)
    runtime.give_back()
    page |= look_inside(job, rows, model, winner, base)
    model.card |= {"score": page["score"], "rows": page["rows"]}
    model.save(job.folder / "model")
    page["seconds"] = time.monotonic() - job.started
    own, data = shlex.quote(str(job.folder / "model")), shlex.quote(job.data)
    page["next"] = [{"what": what, "command": run} for what, run in job.task.next(own, data)]
    write_json(job.folder / "result.json", without_pictures(page))
    from layerwise.report.page import write_page

    report = write_page(job.folder / "report.html", page)
    say_result(console, page)
    console.say(f"  model   {job.folder / 'model'}")
    console.say(f"  report  {report}")
    console.say(f"  took    {duration(page['seconds'])}")
    if not finished:
        console.say(f"  stopped early; go on: layerwise fit --resume {job.folder}")
    score = page["score"]
    details = {name: page.get(name) for name in ("plan", "forecast", "calibration", "next")}
    came = score["name"], score["value"], score["low"], score["high"], page["test_metrics"]
    ladder = page["ladder"]
    return Result(str(job.folder), model, *came, ladder, str(report), finished, details)


def say_result(console: Console, page: dict[str, Any]) -> None:
    """The score with its interval, beside the baseline and the forecast."""
    score = page["score"]
    console.head("result")
    said = "  {name} {value:.4f} on {n:,} rows never seen (95% interval {low:.4f} to {high:.4f})"
    console.say(said.format(**score))
    if "beside" in (floor := score["baseline"]):
        said = "  {what}: {value:.4f} ({low:.4f} to {high:.4f}); {beside}"
        console.say(said.format(**floor))
    if score.get("clean"):
        clean = score["clean"]
        console.say(f"  without {clean['left_out']} leaked rows: {clean['value']:.4f}")
    if page["forecast"]:
        console.say("  " + page["forecast"]["said"])


def command_of(job: Job) -> str:
    """The exact command, with every option that differs from its default."""
    default = vars(type(job.settings)())
    parts = ["layerwise", "fit", job.data]
    for name, value in job.settings.to_dict().items():
        if value != default[name]:
            flag = "--" + name.replace("_", "-")
            on_off = isinstance(value, bool)
            parts += [flag if value or not on_off else "--no-" + flag[2:]]
            parts += [] if on_off else [str(value)]
    return shlex.join(parts)


def model_facts(model: Model, winner: Contender) -> dict[str, Any]:
    total = sum(p.numel() for p in model.network.parameters())
    plan = winner.plan
    return {
        "variant": model.variant,
        "family": model.family,
        "way": winner.way,
        "why": winner.choice.why,
        "params": total,
        "flops_per_sample": plan.flops_per_sample if plan else None,
        "recipe": {k: str(v) for k, v in vars(winner.recipe).items()},
        "card": {k: str(v) for k, v in model.card.items()},
        "labels": list(model.labels),
    }


# ---- the score, its noise and its calibration ------------------------------------------------


def score_model(job: Job, rows: Rows, model: Model, winner: Contender) -> dict[str, Any]:
    """Calibrate on the validation rows, then score the test rows, once."""
    task, said = job.task, winner.said
    if said is None or model.network is not winner.network:
        said = predict_rows(model.network, Feed(task, rows.val, model.processors), job.machine)
    model.calibration = task.calibrate(said, rows.val)
    predictions = model.predictions(rows.test, job.machine)
    scored = evaluation_of(model, predictions, rows.test, "test")
    came = {"value": scored.score, "low": scored.low, "high": scored.high, "n": scored.n}
    score = {"name": scored.score_name, **came, "baseline": baseline(job, rows, predictions)}
    out: dict[str, Any] = {"score": score, "test_metrics": scored.metrics}
    clean = rows.clean_test
    if clean is not None and not clean.all():
        kept = [p for p, keep in zip(predictions, clean, strict=True) if keep]
        again = intervals.interval(task.metric, *task.scored(kept, rows.test.subset(clean)))
        out["score"]["clean"] = vars(again) | {"left_out": int((~clean).sum())}
    out |= task.figures(predictions, rows.test, model.calibration)
    if mistakes := wrong_rows(model, predictions, rows.test):
        out["mistakes"] = [shown(rows.test, m) for m in mistakes]
    if task.named_by_classes:
        out["_shares"] = np.stack([p.probabilities for p in predictions])
    return out


def baseline(job: Job, rows: Rows, predictions: Sequence[Any]) -> dict[str, Any]:
    """The score to beat, of what needs no network; with its interval and the difference of the
    predictions to it where it answers row by row."""
    task, kind = job.task, kinds.of(rows.train)
    found = task.baseline(rows.train, rows.test, lambda: kind.plain_features(rows.train))
    if found.predictions is None:
        return {"what": found.what, "value": found.value}
    ours, targets = task.scored(predictions, rows.test)
    theirs, _ = task.scored(found.predictions, rows.test)
    alone = intervals.interval(task.metric, theirs, targets)
    both = intervals.compare(task.metric, theirs, ours, targets, task.higher_is_better)
    ends = f"({both.low:+.4f} to {both.high:+.4f})"
    said = {"beside": f"this model {both.difference:+.4f} {ends}, p {both.p:.2g}"}
    value = {"value": alone.value, "low": alone.low, "high": alone.high}
    return {"what": found.what, **value, **said}


def shown(rows: Examples, mistake: dict[str, Any]) -> dict[str, Any]:
    """A mistake with what a person is shown of its row, where it does not say that itself."""
    if "text" in mistake:
        return mistake
    for kind in kinds.several(rows):
        mistake = kind.show(rows, mistake["row"]).to_dict() | mistake
    return mistake


# ---- data ------------------------------------------------------------------------------------


def findings_of(rows: Rows, page: dict[str, Any]) -> dict[str, Any]:
    """Everything the readers and the audit found, and the held-out labels that look wrong."""
    found = [*rows.read.findings, *(rows.audit.findings if rows.audit else [])]
    shares = page.pop("_shares", None)
    if shares is not None and rows.audit:
        test, targets = rows.test, np.asarray(rows.test.targets)
        suspects = suspect_labels(shares, targets, test.names, test.labels)
        found += [suspects] if suspects else []
    return {"audited": rows.audit is not None, "findings": [vars(f) for f in found]}


# ---- plan beside actual ----------------------------------------------------------------------


def plan_rows(winner: Contender) -> list[dict[str, Any]]:
    """Predicted beside actual for what was measured."""
    if winner.plan is None or winner.rung is None or winner.outcome is None:
        return []
    plan, steps = winner.plan, max(1, winner.outcome.state.step)
    per_step = plan.seconds.scaled(1 / max(1, plan.steps))
    rows = [
        {"name": "seconds per step", "actual": winner.outcome.step_seconds, **vars(per_step)},
        {"name": "peak memory, MB", "actual": winner.rung.peak_mb,
         **vars(plan.memory["peak"].scaled(1e-6))},
    ]  # fmt: skip
    return [r | {"steps": steps} for r in rows]


def forecast_beside(winner: Contender) -> dict[str, Any] | None:
    """The forecast of the loss for the tokens that were read, what came, and both in a sentence."""
    outlook, state = winner.forecast, winner.outcome and winner.outcome.state
    if outlook is None or winner.rung is None or not (state and state.finished):
        return None
    length = winner.choice.processors["text"].max_seq_len
    read = state.step * winner.recipe.global_batch_size * length
    found = outlook.beside(read, winner.rung.score)
    where = "within" if found["within"] else "outside"
    found["said"] = (
        f"forecast {found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f}) "
        f"{found['unit'].replace('_', ' ')} on the validation rows, came {found['came']:.3f}: "
        f"{where} its interval"
    )
    return found


def without_pictures(value: object) -> Any:
    """The document without its thumbnails: they are large, and only for the page."""
    if isinstance(value, dict):
        return {k: without_pictures(v) for k, v in value.items() if k not in ("image", "overlay")}
    return [without_pictures(v) for v in value] if isinstance(value, list | tuple) else value
