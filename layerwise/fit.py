"""`fit`: from raw files to a trained, scored, explained and saved model.

Understand, audit, split, plan, climb the ladder, score on rows never seen, calibrate, probe the
depth, report. Every phase leaves its result in the run's folder, so a run can be resumed.

Legend: n rows, C classes.
"""

import pathlib
import time
from typing import Any

import numpy as np
import torch

from layerwise import labelled, language, runtime
from layerwise.bundle import Model, load, read_json, write_json
from layerwise.choose import Choice, choose_scratch, mirror_safe
from layerwise.console import Console, duration
from layerwise.contenders import Contender, Job, Rung
from layerwise.cure import apply_cure, diagnoses, some_rows
from layerwise.data.audit import AuditReport, audit, audit_labels
from layerwise.data.examples import Examples
from layerwise.data.open import open_data
from layerwise.data.splits import place_of, split, val_share
from layerwise.data.text_matches import matches
from layerwise.data.text_processor import TextProcessor
from layerwise.errors import DataError, OptionError
from layerwise.frozen import ENOUGH, PROBES, Features, affordable_rows, some_features
from layerwise.ladder import climb
from layerwise.plan import Plan
from layerwise.proxies import choose_by_law
from layerwise.result import Result, Rows
from layerwise.settings import Settings, seconds, settings
from layerwise.tasks import task_for, task_name
from layerwise.train.checkpoint import storage_error
from layerwise.weights import published

GOLDEN = 16  # rows on which a merged network is proved
MERGED = 1e-4  # and by how much it may differ, relative to the largest output: fp32 adds up so
TRAINING_SHARE = 0.85  # of the budget; the rest is for scoring, probing and the report


def fit(
    data: str | pathlib.Path = "",
    resume: str | pathlib.Path = "",
    console: Console | None = None,
    **options: Any,
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
    examples = understand(data, chosen, console)
    base = find_base(chosen, examples, console)
    budget = seconds(chosen.budget) if chosen.budget else float("inf")
    most = rows_probed(examples, base, chosen, machine, folder)
    rows = prepare_rows(examples, chosen, console, base, machine, most)
    reader = None
    if examples.form == "plain":
        rows, reader = language.as_tokens(rows, chosen, console, base)
    task = task_of(rows.train, chosen)
    job = Job(
        chosen,
        folder,
        task,
        rows.train,
        rows.val,
        machine_for(machine, examples.kind, chosen),
        console,
        mirror=kind_allows_mirror(rows.train, console),
        features=rows.features,
        most_features=most,
        deadline=started + TRAINING_SHARE * budget,
        reserved=(1 - TRAINING_SHARE) * budget,
        n_test=len(rows.test),
        on_plan=lambda plan, way: note_plan(plan, way, console),
    )
    winner, rungs = climb(job, base, lambda: choose_fresh(job, reader))
    found = diagnoses(job, winner)
    if found and chosen.cure and base is None:
        winner = apply_cure(job, winner, found, rungs)
    show_ladder(job, rungs)
    from layerwise.report.collect import finish

    return finish(
        job=job,
        examples=examples,
        rows=rows,
        winner=winner,
        rungs=rungs,
        diagnoses=found,
        model=as_model(winner, job, base, data, examples.target_name),
        seconds_so_far=time.monotonic() - started,
        data=str(data),
        base=None if winner.way == "scratch" or winner.outcome is None else base,
    )


def rows_probed(
    examples: Examples,
    base: Model | None,
    chosen: Settings,
    machine: runtime.Runtime,
    folder: pathlib.Path,
) -> int:
    """Of how many rows the base's features are worth their time; 0 where none are of use."""
    probes = examples.targets is not None and task_name(examples, chosen.task) in PROBES
    if base is None or not probes:
        return 0
    if not chosen.budget:
        return ENOUGH
    return affordable_rows(base, examples, machine, seconds(chosen.budget), folder)


def understand(data: str, chosen: Settings, console: Console) -> Examples:
    """The rows of the data, and in a line what they are.

    Errors: DataError for forms of text that are recognised and not learned from yet.
    """
    examples = open_chosen(data, chosen)
    if examples.form == "plain":
        examples = language.in_stretches(examples, chosen.val, chosen.test)
    if examples.form and task_name(examples, chosen.task) == "embed":
        examples = matches(examples)
    console.say(examples.understood)
    return examples


def task_of(train: Examples, chosen: Settings) -> Any:
    """What is learned; classes with their labels smoothed, by a tenth where nothing is asked."""
    smoothing = 0.1 if chosen.label_smoothing < 0 else chosen.label_smoothing
    name = task_name(train, chosen.task)
    if chosen.dims and name != "embed":
        raise OptionError(f"--dims is for vectors (--task embed); the task here is {name}")
    sizes = {"dims": chosen.dims} if chosen.dims else {}
    return task_for(train, chosen.task, label_smoothing=smoothing, **sizes)


def choose_fresh(job: Job, reader: TextProcessor | None) -> Choice:
    """The network to train from nothing."""
    if job.train.kind == "text":
        return labelled.choose_encoder(job.train, job.task, job.settings)
    if reader is None:
        return choose_scratch(job.train, job.task, job.settings)
    if job.task.name == "masked":
        return labelled.choose_for_words(job.train, reader, job.settings)
    if job.settings.model == "auto" and job.settings.budget:
        return choose_by_law(job, reader, job.deadline - time.monotonic())
    return language.choose_decoder(job.train, reader, job.settings)


def show_ladder(job: Job, rungs: list[Rung]) -> None:
    job.console.head("ladder")
    job.console.table(
        ["rung", job.task.score, "95% interval", "time", "peak MB", ""],
        [
            [r.name, f"{r.score:.4f}", f"{r.low:.4f} to {r.high:.4f}", duration(r.seconds),
             f"{r.peak_mb:.0f}", "kept" if r.chosen else r.note]
            for r in rungs
        ],
    )  # fmt: skip


# ---- the run's folder ------------------------------------------------------------------------


def open_run(data: Any, resume: Any, options: dict[str, Any]) -> tuple[pathlib.Path, str, Settings]:
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
    write_json(
        folder / "run.json",
        {"data": str(pathlib.Path(data).resolve()), "settings": chosen.to_dict()},
    )
    write_json(folder / "environment.json", runtime.environment())
    return folder, str(data), chosen


def new_folder(output: str, data: pathlib.Path) -> pathlib.Path:
    """Errors: StorageError without permission; OptionError for a folder that holds a run."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = pathlib.Path(output) if output else pathlib.Path("runs") / f"{stamp}-{data.stem}"
    if (folder / "run.json").exists():
        raise OptionError(
            f"{folder} holds a run already; go on with it by `layerwise fit --resume {folder}`, or "
            "choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").write_text("")
        (folder / ".writable").unlink()
    except OSError as e:
        raise storage_error(e, folder) from e
    return folder


# ---- rows ------------------------------------------------------------------------------------


def open_chosen(data: str, chosen: Settings) -> Examples:
    """The data, read as the settings say where they overrule what is recognised."""
    kind, target_kind = (None if v == "auto" else v for v in (chosen.kind, chosen.target_kind))
    return open_data(
        data,
        target=chosen.target or None,
        kind=kind,
        target_kind=target_kind,  # type: ignore[arg-type]
        split_column=chosen.split_column or None,
    )


def prepare_rows(
    examples: Examples,
    chosen: Settings,
    console: Console,
    base: Model | None,
    machine: runtime.Runtime,
    most: int = ENOUGH,
) -> Rows:
    """Audit and split; rows that cannot be used are set aside, and said."""
    if examples.targets is None and not examples.form:
        raise DataError(
            f"{examples.source} holds {len(examples)} {examples.kind}s but no labels to learn: put "
            "the images of each class in a folder of its own, or add metadata.csv with the columns "
            "file_name and label; to use a trained model on them, `layerwise predict MODEL DATA`"
        )
    parts = split(examples, chosen.seed, val_share(len(examples), chosen.val), chosen.test)
    examples.findings += [f for f in parts.findings if f.kind != "leak"]  # the audit tells of those
    for finding in examples.findings:
        say_finding(finding, console)
    found, clean, features = None, None, None
    if chosen.audit:
        found = audit(examples, parts)
        parts = {name: rows[found.keep[rows]] for name, rows in parts.items()}
        clean = np.isin(parts["test"], found.clean_test)
        train = parts["train"]
        features = judge_labels(examples, found, train, base, machine, chosen.seed, most)
        for finding in found.findings:
            say_finding(finding, console)
    for name in ("train", "val", "test"):
        if not len(parts[name]):
            raise DataError(
                f"no usable row is left for {name}: {len(examples)} rows were read from "
                f"{examples.source}; add rows, or change --val and --test"
            )
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in parts.items())
    console.say(f"rows: {sizes}")
    train, val, test = (examples.subset(parts[n]) for n in ("train", "val", "test"))
    return Rows(train, val, test, found, clean, features)


def judge_labels(
    examples: Examples,
    found: AuditReport,
    rows: np.ndarray,
    base: Model | None,
    machine: runtime.Runtime,
    seed: int,
    most: int = ENOUGH,
) -> Features | None:
    """Add the finding of labels among `rows` that look wrong; the base's features of these rows."""
    features = None
    if base is not None and most and examples.target_kind == "class":
        features = some_features(base, examples.subset(rows), machine, seed, most)
        rows = rows[features.rows]
    values = None if features is None else features.values
    suspects = audit_labels(examples, found, rows, values, seed)
    found.findings += [suspects] if suspects else []
    return features


def say_finding(finding: Any, console: Console) -> None:
    console.say(f"  {finding.severity}: {finding.message}")


# ---- what to train with ----------------------------------------------------------------------


def machine_for(machine: runtime.Runtime, kind: str, chosen: Settings) -> runtime.Runtime:
    """fp32 on one thread for tables: their matrices are too small for bf16 or a second thread.

    Beside other work, two threads that wait for each other thousands of times a second are many
    times slower than one.
    """
    if kind == "table" and not chosen.threads:
        torch.set_num_threads(1)
    if kind == "table" and chosen.dtype == "auto":
        return runtime.Runtime(
            machine.device, runtime.DTYPES["fp32"], machine.threads, machine.notes
        )
    return machine


def kind_allows_mirror(train: Examples, console: Console) -> bool:
    """Whether augmentation may mirror these rows; said when it may not."""
    if train.kind != "image" or mirror_safe(train):
        return True
    console.say("augmentation: no mirroring, because mirrored images look like other classes")
    return False


BASES = {"image": "timm/resnet18.a1_in1k", "text": "sentence-transformers/all-MiniLM-L6-v2"}


def find_base(chosen: Settings, examples: Examples, console: Console) -> Model | None:
    """The pre-trained base: the one named, or the best one on this machine; None to go without.

    Errors: OptionError for a base that reads another kind of data, or does not do this task.
    """
    kind = examples.kind
    if chosen.base == "none" or chosen.method == "scratch" or kind not in BASES:
        return without_base(chosen)
    if chosen.base == "auto" and (chosen.model != "auto" or examples.form == "plain"):
        return without_base(chosen)  # a network was named: train that one
    found = published.in_reach(kind) if chosen.base == "auto" else [chosen.base]
    if not found:
        console.say(
            f"base: none in reach (nothing is downloaded unless named: --base {BASES[kind]}); "
            "training from scratch"
        )
        return without_base(chosen)
    base = load(found[0])
    if base.kind != kind:
        raise OptionError(f"the base {found[0]} reads {base.kind}s, but the data holds {kind}s")
    here = ", found on this machine" if chosen.base == "auto" else ""
    console.say(f"base: {found[0]} ({base.variant}){here}")
    if examples.form == "plain":
        language.check_base(base, task_name(examples, chosen.task))
    elif kind == "text":
        base = labelled.read_by(base, examples, task_of(examples, chosen), chosen)
    return base


def without_base(chosen: Settings) -> None:
    """Errors: OptionError when the method asked for needs a base."""
    if chosen.method not in ("auto", "scratch"):
        raise OptionError(
            f"--method {chosen.method} needs a pre-trained base of images or texts: name one with "
            "--base (a path, a published name such as resnet18.a1_in1k, or a hub id)"
        )


def note_plan(plan: Plan, way: str, console: Console) -> None:
    """Print the plan of a training; refuse what cannot fit."""
    console.head(f"plan ({way})")
    for line in plan.lines():
        console.say("  " + line)
    plan.require_fit()


def as_model(winner: Contender, job: Job, base: Model | None, data: str, target: str = "") -> Model:
    """The winner as it will travel."""
    network, choice = winner.network.to("cpu").eval(), winner.choice
    card: dict[str, Any] = {"trained_on": str(data), "why": winner.choice.why, "way": winner.way}
    card["split"] = {place_of(data): [job.settings.seed, job.settings.val, job.settings.test]}
    card["dtype"] = "fp32" if job.machine.dtype == torch.float32 else "auto"
    if target:
        card["target"] = target
    if base is not None and winner.way != "scratch":
        card["base"] = base.card.get("name", base.variant)
        card["base_licence"] = base.card.get("licence", "")
    model = Model(network, choice.family, choice.processor, job.task, choice.variant, card=card)
    if base is not None and winner.way == "lora":
        model.card["merged"] = merge_adapter(model, job, base.card.get("source", ""))
    return model


def merge_adapter(model: Model, job: Job, base: str) -> dict[str, Any]:
    """Merge what LoRA learned, after keeping it by itself as PEFT reads it; the certificate.

    Errors: WeightsError when the merged network differs on validation rows; the adapter is kept.
    """
    from layerwise.adapt import lora, peft

    folder = job.folder / "adapter"
    peft.save_adapter(model.network, model.published_names, folder, base or job.settings.base)
    golden = job.task.batch(some_rows(job.val, GOLDEN), model.processor)
    run = lambda: job.task.predict(model.network, golden)  # noqa: E731
    found = lora.merge(model.network, run, len(golden.rows), MERGED)
    job.console.say(
        f"  merged: on {found.rows} rows outputs differ by {found.largest:.1e} at most, "
        f"{found.relative:.1e} of the largest ({MERGED:.0e} is allowed); by itself: {folder}"
    )
    return found.to_dict()
