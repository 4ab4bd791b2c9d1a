"""`fit`: from raw files to a trained, scored, explained and saved model.

Understand, audit, split, plan, climb the ladder, score on rows never seen, calibrate, probe the
depth, report. Every phase leaves its result in the run's folder, so a run can be resumed.

Legend: n rows, C classes.
"""

import pathlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from layerwise import kinds, runtime
from layerwise.adapt import lora, peft
from layerwise.console import Console, duration
from layerwise.data.examples import Examples, Finding, TargetKind
from layerwise.data.splits import place_of, split, val_share
from layerwise.errors import DataError, OptionError
from layerwise.fitting.cure import apply_cure, diagnoses
from layerwise.fitting.job import Contender, Job, Result, Rows, some_rows
from layerwise.fitting.ladder import climb
from layerwise.fitting.probes import ENOUGH, Features, affordable_rows, some_features
from layerwise.fitting.scaling import choose_by_law
from layerwise.kinds.audit import AuditReport, audit, audit_labels
from layerwise.kinds.contract import Choice
from layerwise.kinds.opening import open_data
from layerwise.model.model import Model, ends_of, for_task
from layerwise.model.saved import load
from layerwise.planning import Plan
from layerwise.planning.scaling import Forecast
from layerwise.runtime import Runtime
from layerwise.settings import Settings, seconds, settings
from layerwise.storage import read_json, storage_error, write_json
from layerwise.tasks import class_for
from layerwise.tasks.feed import batch_of
from layerwise.tasks.task import Options, Task
from layerwise.train import checkpoint
from layerwise.weights import published

GOLDEN = 16  # rows on which a merged network is proved
MERGED = 1e-4  # and by how much it may differ, relative to the largest output: fp32 adds up so
Named = str | pathlib.Path
Judge = Callable[[Examples], Features]
TRAINING_SHARE = 0.85  # of the budget; the rest is for scoring, probing and the report


def fit(
    data: Named = "", resume: Named = "", console: Console | None = None, **options: object
) -> Result:
    """Train the best model that the data and the budget allow.

    data: a file or folder of raw data (see `layerwise fit --help` for what is recognised).
    resume: the folder of an interrupted run; goes on with that run's own data and settings.
    options: the fields of `layerwise.settings.Settings`.
    Returns a Result; its `model` predicts, evaluates and saves.
    Errors: OptionError, DataError, DoesNotFit, TrainingStopped, StorageError.
    """
    console = console or Console()
    started = time.monotonic()
    folder, data, chosen = open_run(data, resume, options)
    machine = runtime.start(chosen.device, chosen.dtype, chosen.threads)
    console.head(f"layerwise fit {data}")
    for warned in machine.warnings:
        console.say(f"  warning: {warned}")
    examples, learned = understand(data, chosen, console)
    base = find_base(chosen, examples, learned, console)
    budget = seconds(chosen.budget) if chosen.budget else float("inf")
    most, judge = 0, None  # rows whose features on the base are of use
    if base is not None and learned.probe:
        every = learned.of(examples, options_of(chosen))
        most = affordable_rows(base, examples, every, machine, budget, folder)
        judge = judge_of(base, every, machine, chosen.seed, most)
    rows = prepare_rows(examples, chosen, console, judge)
    task = learned.of(rows.train, options_of(chosen))
    rows, reader = as_task_rows(rows, task, base, chosen, console)
    machine = kinds.of(rows.train).machine(machine, chosen)
    job = Job(chosen, folder, task, rows.train, rows.val, machine, console, data, started)
    job.studied, job.reader = studied(rows.train, chosen, console), reader
    job.features, job.most_features, job.n_test = rows.features, most, len(rows.test)
    job.deadline = started + TRAINING_SHARE * budget
    job.reserved = (1 - TRAINING_SHARE) * budget
    job.on_plan = lambda plan, way: note_plan(plan, way, console)
    winner = climb(job, base, lambda: choose_fresh(job))
    job.diagnoses = diagnoses(job, winner)
    if job.diagnoses and chosen.cure and base is None:
        winner = apply_cure(job, winner)
    show_ladder(job)
    from layerwise.fitting.finish import finish

    model = as_model(winner, job, base, examples.target_name)
    tuned = None if winner.way == "scratch" or winner.outcome is None else base
    return finish(job, rows, winner, model, tuned)


def understand(data: str, chosen: Settings, console: Console) -> tuple[Examples, type[Task]]:
    """The rows of the data, in a line what they are, and what is learned of them.

    Errors: DataError for rows that nothing learns from.
    """
    examples = open_chosen(data, chosen)
    learned = class_for(examples, chosen.task)
    if chosen.dims and not learned.works_untrained:
        raise OptionError(f"--dims is for vectors (--task embed); the task here is {learned.name}")
    examples = learned.whole_rows(examples, chosen.val, chosen.test)
    console.say(examples.understood)
    return examples, learned


def options_of(chosen: Settings) -> Options:
    """Classes have their labels smoothed by a tenth where nothing is asked."""
    return Options(0.1 if chosen.label_smoothing < 0 else chosen.label_smoothing, chosen.dims)


def as_task_rows(
    rows: Rows, task: Task, base: Model | None, chosen: Settings, console: Console
) -> tuple[Rows, Any]:
    """The rows of each split as the task learns them, and the processor that made them so.

    Errors: DataError where a split has too little for a single prediction.
    """
    kind = kinds.of(rows.train)
    known = None if base is None else base.processors[kind.name]
    if not task.every_position:
        return rows, None
    reader = kind.reader(rows.train, ends_of(task), chosen, known)
    splits = {"train": rows.train, "val": rows.val, "test": rows.test}
    parts = {name: task.task_rows(part, {kind.name: reader}) for name, part in splits.items()}
    console.say(kind.describe(parts, reader))
    return replace(rows, **parts, clean_test=None), reader


def studied(train: Examples, chosen: Settings, console: Console) -> dict[str, Any]:
    """By kind, what augmentation has to know of the training rows; said where it matters."""
    found = {kind.name: kind.study(train, chosen) for kind in kinds.several(train)}
    for _, said in found.values():
        for line in said:
            console.say(line)
    return {name: known for name, (known, _) in found.items()}


def choose_fresh(job: Job) -> tuple[Choice, Forecast | None]:
    """The network to train from nothing; by a scaling law where a budget asks for one."""
    s, kind = job.settings, kinds.of(job.train)
    if job.task.follows_law and s.model == "auto" and s.budget:
        return choose_by_law(job, job.reader, job.deadline - time.monotonic())
    ends = ends_of(job.task)
    choice = kind.choose(job.train, ends, s, job.reader)
    for other in kinds.several(job.train):
        if other.name not in choice.processors:
            choice.processors[other.name] = other.processor_for(job.train, ends, s)
    return choice, None


def show_ladder(job: Job) -> None:
    job.console.head("ladder")
    rows = [[r.name, f"{r.score:.4f}", f"{r.low:.4f} to {r.high:.4f}", duration(r.seconds),
             f"{r.peak_mb:.0f}", "kept" if r.chosen else r.note] for r in job.rungs]  # fmt: skip
    job.console.table(["rung", job.task.score, "95% interval", "time", "peak MB", ""], rows)


# ---- the run's folder ------------------------------------------------------------------------


def open_run(
    data: Named, resume: Named, options: dict[str, Any]
) -> tuple[pathlib.Path, str, Settings]:
    """Folder, data and settings: new ones, or those of the run to resume."""
    if resume:
        folder = pathlib.Path(resume)
        if not (folder / "run.json").exists():
            raise OptionError(f"--resume takes the folder of a run; {folder} holds no run.json")
        if data or options:
            given = ", ".join(["the data"] * bool(data) + sorted(options))
            raise OptionError(f"a resumed run keeps its own data and settings; leave out {given}")
        values = read_json(folder / "run.json")
        return folder, values["data"], settings(**values["settings"])
    if not data:
        raise OptionError("data was expected: `layerwise fit FOLDER_OR_FILE`")
    chosen = settings(**options)
    folder = new_folder(chosen.output, pathlib.Path(data))
    kept = {"data": str(pathlib.Path(data).resolve()), "settings": chosen.to_dict()}
    write_json(folder / "run.json", kept)
    write_json(folder / "environment.json", runtime.environment())
    return folder, str(data), chosen


def new_folder(output: str, data: pathlib.Path) -> pathlib.Path:
    """Errors: StorageError without permission; OptionError for a folder that holds a run."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = pathlib.Path(output) if output else pathlib.Path("runs") / f"{stamp}-{data.stem}"
    if (folder / "run.json").exists():
        cure = f"go on with it by `layerwise fit --resume {folder}`, or choose another folder"
        raise OptionError(f"{folder} holds a run already; {cure}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").write_text("")
        (folder / ".writable").unlink()
    except OSError as e:
        raise storage_error(e, folder, checkpoint.CURE) from e
    return folder


# ---- rows ------------------------------------------------------------------------------------


def open_chosen(data: str, chosen: Settings) -> Examples:
    """The data, read as the settings say where they overrule what is recognised."""
    kind = None if chosen.kind == "auto" else chosen.kind
    target_kind = None if chosen.target_kind == "auto" else cast(TargetKind, chosen.target_kind)
    target, split_column = chosen.target or None, chosen.split_column or None
    return open_data(data, target, kind, target_kind=target_kind, split_column=split_column)


def prepare_rows(
    examples: Examples, chosen: Settings, console: Console, judge: Judge | None = None
) -> Rows:
    """Audit and split; rows that cannot be used are set aside, and said. judge: see `judge_of`."""
    parts = split(examples, chosen.seed, val_share(len(examples), chosen.val), chosen.test)
    examples.findings += [f for f in parts.findings if f.kind != "leak"]  # the audit tells of those
    for finding in examples.findings:
        say_finding(finding, console)
    found, clean, features = None, None, None
    if chosen.audit:
        found = audit(examples, parts)
        parts = {name: rows[found.keep[rows]] for name, rows in parts.items()}
        clean = np.isin(parts["test"], found.clean_test)
        features = judge_labels(examples, found, parts["train"], chosen.seed, judge)
        for finding in found.findings:
            say_finding(finding, console)
    for name in ("train", "val", "test"):
        if not len(parts[name]):
            read = f"{len(examples)} rows were read from {examples.source}"
            cure = "add rows, or change --val and --test"
            raise DataError(f"no usable row is left for {name}: {read}; {cure}")
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in parts.items())
    console.say(f"rows: {sizes}")
    train, val, test = (examples.subset(parts[n]) for n in ("train", "val", "test"))
    return Rows(examples, train, val, test, found, clean, features)


def judge_of(base: Model, task: Task, machine: Runtime, seed: int, most: int = ENOUGH) -> Judge:
    """The features by which labels are judged: those of at most so many rows on the base."""
    return lambda rows: some_features(base, rows, task, machine, seed, most)


def judge_labels(
    examples: Examples, found: AuditReport, rows: np.ndarray, seed: int, judge: Judge | None
) -> Features | None:
    """Add the finding of labels among `rows` that look wrong; the features they were judged by."""
    features = None
    if judge is not None and examples.target_kind == "class":
        features = judge(examples.subset(rows))
        rows = rows[features.rows]
    values = None if features is None else features.values
    suspects = audit_labels(examples, found, rows, values, seed)
    found.findings += [suspects] if suspects else []
    return features


def say_finding(finding: Finding, console: Console) -> None:
    console.say(f"  {finding.severity}: {finding.message}")


# ---- what to train with ----------------------------------------------------------------------


def find_base(
    chosen: Settings, examples: Examples, learned: type[Task], console: Console
) -> Model | None:
    """The pre-trained base: the one named, or the best one on this machine; None to go without.

    Errors: OptionError for a base that reads another kind of data, or does not do this task.
    """
    kind = kinds.of(examples)
    if chosen.base == "none" or chosen.method == "scratch" or not kind.suggested:
        return without_base(chosen)
    if chosen.base == "auto" and (chosen.model != "auto" or learned.every_position):
        return without_base(chosen)  # a network was named: train that one
    found = published.in_reach(kind) if chosen.base == "auto" else [chosen.base]
    if not found:
        why = f"nothing is downloaded unless named: --base {kind.suggested}"
        console.say(f"base: none in reach ({why}); training from scratch")
        return without_base(chosen)
    base = load(found[0])
    if kind.name not in base.processors:
        reads = f"the base {found[0]} reads {base.kind.noun}"
        raise OptionError(f"{reads}, but the data holds {kind.noun}")
    here = ", found on this machine" if chosen.base == "auto" else ""
    console.say(f"base: {found[0]} ({base.variant}){here}")
    return for_task(base, ends_of(learned), chosen)


def without_base(chosen: Settings) -> None:
    """Errors: OptionError when the method asked for needs a base."""
    if chosen.method not in ("auto", "scratch"):
        how = "--base (a path, a published name such as resnet18.a1_in1k, or a hub id)"
        raise OptionError(f"--method {chosen.method} needs a pre-trained base: name one with {how}")


def note_plan(plan: Plan, way: str, console: Console) -> None:
    """Print the plan of a training; refuse what cannot fit."""
    console.head(f"plan ({way})")
    for line in plan.lines():
        console.say("  " + line)
    plan.require_fit()


def as_model(winner: Contender, job: Job, base: Model | None, target: str = "") -> Model:
    """The winner as it will travel."""
    winner.network = network = winner.network.to("cpu").eval()
    choice = winner.choice
    card: dict[str, Any] = {"trained_on": job.data, "why": winner.choice.why, "way": winner.way}
    card["split"] = {place_of(job.data): [job.settings.seed, job.settings.val, job.settings.test]}
    card["dtype"] = "fp32" if job.machine.dtype == torch.float32 else "auto"
    if target:
        card["target"] = target
    if base is not None and winner.way != "scratch":
        card["base"] = base.card.get("name", base.variant)
        card["base_licence"] = base.card.get("licence", "")
    model = Model(network, choice.family, choice.processors, job.task, choice.variant, card=card)
    if base is not None and winner.way == "lora":
        model.card["merged"] = merge_adapter(model, job, base.card.get("source", ""))
        winner.said = None  # rounding differs
    return model


def merge_adapter(model: Model, job: Job, base: str) -> dict[str, Any]:
    """Merge what LoRA learned, after keeping it by itself as PEFT reads it; the certificate.

    Errors: WeightsError when the merged network differs on validation rows; the adapter is kept.
    """
    folder = job.folder / "adapter"
    peft.save_adapter(model.network, model.published_names, folder, base or job.settings.base)
    golden = batch_of(job.task, some_rows(job.val, GOLDEN), model.processors)
    run = lambda: model.network(**golden.flat.select(model.network.READS))  # noqa: E731
    found = lora.merge(model.network, run, len(golden.rows), MERGED)
    off = f"{found.largest:.1e} at most, {found.relative:.1e} of the largest"
    said = f"on {found.rows} rows outputs differ by {off} ({MERGED:.0e} is allowed)"
    job.console.say(f"  merged: {said}; by itself: {folder}")
    return found.to_dict()
