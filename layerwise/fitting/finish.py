"""After training: score on rows never seen, calibrate, probe the depth, save, and report.

Everything the page shows is one JSON document, `result.json` beside it, so that nothing on the
page is more than what was measured.
"""

import pathlib
import shlex
import time
from typing import Any

import numpy as np

from layerwise import runtime
from layerwise.console import Console, duration
from layerwise.data.examples import Examples
from layerwise.data.label_errors import suspect_labels
from layerwise.fitting.contenders import Contender, Job, Rung
from layerwise.fitting.cure import metrics_of
from layerwise.fitting.inside import look_inside
from layerwise.fitting.result import Result, Rows
from layerwise.kinds.text.documents import texts_of
from layerwise.kinds.text.encoders import yardstick
from layerwise.kinds.text.language import unigram_bits
from layerwise.model.evaluation import evaluation_of
from layerwise.model.model import Model, write_json
from layerwise.report.thumbnails import picture
from layerwise.tasks.scores import intervals
from layerwise.tasks.scores.calibration import conformal_quantile, fit_temperature
from layerwise.tasks.scores.metrics import confusion, softmax
from layerwise.train.run import predict_rows

SHOWN = 400  # characters of a text
# what comes out at the top, else labels
ROOFS = {
    "causal": "next token", "masked": "hidden words", "span": "answers", "embed": "vectors"
}  # fmt: skip
FIRST = {  # what to do with a model that has no answer to give of a row
    "causal": ("go on with a text", "generate {} 'A PROMPT'"),
    "masked": ("learn labels with it as the base", "fit LABELLED_TEXTS --base {}"),
}
GROUNDS = {"image": "pixels", "table": "raw input", "tokens": "tokens", "text": "tokens"}


def finish(
    job: Job,
    examples: Examples,
    rows: Rows,
    winner: Contender,
    rungs: list[Rung],
    diagnoses: list[Any],
    model: Model,
    seconds_so_far: float,
    data: str,
    base: Model | None = None,
) -> Result:
    """Turn a trained winner into a Result, a saved model and a report."""
    console, started = job.console, time.monotonic()
    runtime.give_back()
    page: dict[str, Any] = {
        "command": command_of(data, job),
        "data": data,
        "understood": examples.understood,
        "environment": runtime.environment(),
        "machine_notes": list(job.machine.notes),
        "settings": job.settings.to_dict(),
        "model": model_facts(model, winner),
        "ground": GROUNDS[rows.train.kind],
        "roof": ROOFS.get(job.task.name, "labels"),
        "rows": {n: len(getattr(rows, n)) for n in ("train", "val", "test")},
        "ladder": [r.to_dict() for r in rungs],
        "plan": plan_rows(winner),
        "forecast": forecast_beside(winner),
        "lens": job.lens and job.lens.to_dict(),
        "metrics": metrics_of(job, winner),
        "diagnoses": [vars(d) for d in diagnoses],
    }
    finished = winner.outcome is None or winner.outcome.state.finished
    page |= score_model(job, rows, model)
    page["audit"] = findings_of(examples, rows, page)
    runtime.give_back()
    page |= look_inside(job, rows, model, winner, base)
    model.card |= {"score": page["score"], "rows": page["rows"]}
    model.save(job.folder / "model")
    page["seconds"] = seconds_so_far + time.monotonic() - started
    page["next"] = next_commands(job.folder, data, job.task.name)
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
    return Result(
        folder=str(job.folder),
        model=model,
        score_name=score["name"],
        score=score["value"],
        low=score["low"],
        high=score["high"],
        metrics=page["test_metrics"],
        ladder=page["ladder"],
        report=str(report),
        finished=finished,
        details={
            "plan": page["plan"],
            "forecast": page["forecast"],
            "calibration": page.get("calibration"),
            "next": page["next"],
        },
    )


def say_result(console: Console, page: dict[str, Any]) -> None:
    """The score with its noise, beside what it has to beat and what was foretold."""
    score = page["score"]
    console.head("result")
    console.say(
        f"  {score['name']} {score['value']:.4f} on {score['n']:,} rows never seen "
        f"(95% interval {score['low']:.4f} to {score['high']:.4f})"
    )
    floor = score["baseline"]
    if "beside" in floor:
        console.say(
            f"  {floor['what']}: {floor['value']:.4f} ({floor['low']:.4f} to {floor['high']:.4f}); "
            f"{floor['beside']}"
        )
    if score.get("clean"):
        clean = score["clean"]
        console.say(f"  without {clean['left_out']} leaked rows: {clean['value']:.4f}")
    if page["forecast"]:
        console.say("  " + page["forecast"]["said"])


def command_of(data: str, job: Job) -> str:
    """The exact command, with every option that differs from its default."""
    default = type(job.settings)()
    parts = ["layerwise", "fit", data]
    for name, value in job.settings.to_dict().items():
        if value != getattr(default, name):
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


def score_model(job: Job, rows: Rows, model: Model) -> dict[str, Any]:
    """Calibrate on the validation rows, then score the test rows, once."""
    raw_val = predict_rows(model.network, job.task, model.processor, rows.val, job.machine)
    out: dict[str, Any] = {}
    val_targets = np.asarray(rows.val.targets)
    if job.task.name == "classify":
        model.temperature = fit_temperature(raw_val, val_targets)
        shares = softmax(raw_val / model.temperature)
        own = 1 - shares[np.arange(len(shares)), val_targets]
        model.conformal = tuple(np.sort(own).round(6).tolist())
    elif job.task.name == "regress":
        errors = np.abs(raw_val[:, 0] - val_targets)
        model.conformal = tuple(np.sort(errors).tolist())
    outputs = model.outputs(rows.test, job.machine)
    targets = np.asarray(rows.test.targets)
    scored = evaluation_of(model, outputs, rows.test, "test")
    out["score"] = {
        "name": scored.score_name,
        "value": scored.score,
        "low": scored.low,
        "high": scored.high,
        "n": scored.n,
        "baseline": baseline(job, rows, outputs),
    }
    out["test_metrics"] = scored.metrics
    if rows.clean_test is not None and not rows.clean_test.all():
        clean = rows.clean_test
        again = intervals.interval(job.task.metric, job.task.scored(outputs[clean]), targets[clean])
        out["score"]["clean"] = vars(again) | {"left_out": int((~clean).sum())}
    if job.task.name == "classify":
        out |= calibration_of(model, outputs, targets)
        out["confusion"] = {
            "labels": list(model.labels),
            "matrix": confusion(outputs, targets).tolist(),
        }
        out["mistakes"] = [m | shown_row(rows.test, m["row"]) for m in scored.wrong]
        out["_shares"] = softmax(outputs)
    elif job.task.name == "regress":
        pairs = np.stack([targets, outputs[:, 0]], 1)[:1500]
        out["scatter"] = pairs.astype(float).tolist()
        out["mistakes"] = worst_numbers(rows.test, outputs[:, 0], targets)
    elif scored.wrong:
        out["mistakes"] = scored.wrong
    if getattr(job.task, "marked", False):
        out["kinds"] = job.task.by_kind(outputs, targets)
    return out


def baseline(job: Job, rows: Rows, outputs: np.ndarray) -> dict[str, Any]:
    """The floor to beat: what always giving the commonest class (or the mean) would score.

    For texts with targets the score of a linear model on words, which is not always beaten, with
    its interval and the difference of `outputs` to it.
    """
    train, test = np.asarray(rows.train.targets), np.asarray(rows.test.targets)
    found = yardstick(rows.train, rows.test, job.task) if rows.train.kind == "text" else None
    if found is not None:
        what, plain = found
        metric, better = job.task.metric, job.task.higher_is_better
        ours, theirs = job.task.scored(outputs), job.task.scored(plain)
        found = intervals.interval(metric, theirs, test)
        both = intervals.compare(metric, theirs, ours, test, better)
        return {
            "what": what,
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "beside": f"this model {both.difference:+.4f} ({both.low:+.4f} to {both.high:+.4f}), "
            f"p {both.p:.2g}",
        }
    if job.task.name in ("causal", "masked"):
        bits = unigram_bits(rows.train, rows.test)
        return {"what": "tokens by their frequency alone", "value": bits}
    if job.task.name == "classify":
        common = np.bincount(train).argmax()
        return {
            "what": f"always '{job.task.labels[common]}'",
            "value": float((test == common).mean()),
        }
    if job.task.name == "regress":
        rmse = float(np.sqrt(((test - train.mean()) ** 2).mean()))
        return {"what": "always the mean", "value": rmse}
    if job.task.name == "embed":
        return {"what": "by chance", "value": 1 / len(test)}
    return {"what": "the labels' shares", "value": float(test.mean())}


def calibration_of(model: Model, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Calibration error on the test rows with and without the temperature fitted elsewhere."""
    from layerwise.tasks.scores.calibration import ece, reliability

    before, after = softmax(outputs * model.temperature), softmax(outputs)
    alpha = 0.1
    level = conformal_quantile(np.asarray(model.conformal), alpha)
    sets = 1 - after <= level
    return {
        "calibration": {
            "temperature": model.temperature,
            "ece_before": ece(before, targets),
            "ece_after": ece(after, targets),
            "bins": reliability(after, targets),
        },
        "conformal": {
            "confidence": 1 - alpha,
            "coverage": float(sets[np.arange(len(targets)), targets].mean()),
            "mean_size": float(sets.sum(1).mean()),
            "unsure": float((sets.sum(1) != 1).mean()),
        },
    }


def worst_numbers(rows: Examples, values: np.ndarray, targets: np.ndarray) -> list[dict[str, Any]]:
    order = np.argsort(-np.abs(values - targets), kind="stable")[:12]
    return [
        {"name": str(rows.names[int(i)]), "row": int(i), "truth": f"{targets[i]:g}",
         "predicted": f"{values[i]:.4g}", **shown_row(rows, int(i))}
        for i in order
    ]  # fmt: skip


def shown_row(rows: Examples, row: int) -> dict[str, str]:
    """What a person is shown of a row: its picture, or its text."""
    if rows.kind != "text":
        return {"image": picture(rows, row)}
    text = texts_of(rows.subset(np.array([row])))[0]
    return {"text": text if len(text) <= SHOWN else text[:SHOWN] + " ..."}


# ---- data ------------------------------------------------------------------------------------


def findings_of(examples: Examples, rows: Rows, page: dict[str, Any]) -> dict[str, Any]:
    """Everything the readers and the audit found, and the held-out labels that look wrong."""
    found = [*examples.findings, *(rows.audit.findings if rows.audit else [])]
    shares = page.pop("_shares", None)
    if shares is not None and rows.audit:
        suspects = suspect_labels(
            shares, np.asarray(rows.test.targets), rows.test.names, rows.test.labels
        )
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
    outlook, state = winner.choice.forecast, winner.outcome and winner.outcome.state
    if outlook is None or winner.rung is None or not (state and state.finished):
        return None
    read = state.step * winner.recipe.global_batch_size * winner.choice.processor.max_seq_len
    found = outlook.beside(read, winner.rung.score)
    where = "within" if found["within"] else "outside"
    found["said"] = (
        f"forecast {found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f}) "
        f"{found['unit'].replace('_', ' ')} on the validation rows, came {found['came']:.3f}: "
        f"{where} its interval"
    )
    return found


# ---- afterwards ------------------------------------------------------------------------------


def next_commands(folder: pathlib.Path, data: str, task: str) -> list[dict[str, str]]:
    model = shlex.quote(str(folder / "model"))
    if task == "embed":
        first = {"what": "embed texts to search in",
                 "command": f"layerwise embed {model} TEXTS --output index.npz"}  # fmt: skip
        last = {"what": "search", "command": "layerwise search index.npz 'what to look for'"}
    else:
        what, verb = FIRST.get(task, ("predict new files", "predict {} NEW_FILES"))
        first = {"what": what, "command": f"layerwise {verb.format(model)}"}
        last = {"what": "what each layer learned",
                "command": f"layerwise inspect {model} {shlex.quote(data)}"}  # fmt: skip
    score = {"what": "score on other data", "command": f"layerwise evaluate {model} OTHER_DATA"}
    return [first, score, last]


def without_pictures(value: Any) -> Any:
    """The document without its thumbnails: they are large, and only for the page."""
    if isinstance(value, dict):
        return {k: without_pictures(v) for k, v in value.items() if k not in ("image", "overlay")}
    return [without_pictures(v) for v in value] if isinstance(value, list | tuple) else value
