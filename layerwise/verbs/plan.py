"""`plan`: what training would take, from tracing the real network without allocating it."""

import pathlib
import tempfile

import numpy as np
import torch

from layerwise import kinds, models, runtime
from layerwise.console import Console
from layerwise.data.examples import Batch
from layerwise.data.splits import split
from layerwise.errors import DataError, OptionError
from layerwise.fitting.job import Job
from layerwise.fitting.ladder import new_contender
from layerwise.fitting.run import TRAINING_SHARE, as_task_rows, prepare_rows, understand
from layerwise.fitting.scaling import choose_by_law
from layerwise.kinds.opening import open_data
from layerwise.planning import Plan, make_plan
from layerwise.settings import seconds, settings
from layerwise.tasks import task_for
from layerwise.tasks.causal import Causal
from layerwise.tasks.classify import Classify
from layerwise.tasks.task import Options, Task
from layerwise.train.loop import parts_of


def plan(
    model: str = "auto",
    data: str = "",
    budget: str = "",
    rows: int = 0,
    batch: int = 32,
    grad_accum_steps: int = 1,
    epochs: float = 10.0,
    image_size: int = 0,
    max_seq_len: int = 0,
    classes: int = 0,
    optimizer: str = "adamw",
    dtype: str = "auto",
    checkpointing: bool = False,
    hardware: str = "cpu",
) -> Plan:
    """What training `model` would take, from tracing the real network without allocating it.

    model: a name; "auto" with a text corpus as `data` and a `budget`: the decoder that a scaling
    law chooses for that time, by small runs on that corpus (a share of it).
    batch: rows per step, in `grad_accum_steps` micro-batches, or in more where the run would take
    more; rows: of training data, where no `data` is given; hardware: "cpu" (this machine, measured)
    or a named accelerator.
    Returns a Plan. Errors: an unknown model or hardware, with the nearest known name.
    """
    if model == "auto" or budget:
        return plan_corpus(model, data, budget)
    machine = runtime.start()
    family, config = models.resolve(model)
    writes = "causal" in models.heads(family)
    n_classes = classes or vars(config).get("n_classes", 0)
    task: Task = Causal() if writes else Classify([str(i) for i in range(n_classes)])
    if data and not writes:
        examples = open_data(data)
        task, rows = task_for(examples), len(split(examples)["train"])
    if batch % grad_accum_steps:
        raise OptionError(f"--batch {batch} does not divide into {grad_accum_steps} micro-batches")
    if not writes:
        head = {"head_kind": task.head_kind} if task.head_kind != "class" else {}
        head = {"head_kind": task.head_kind} if len(models.heads(family)) > 1 else head
        config = models.replace_fields(config, {"n_classes": task.n_outputs} | head)
    chosen = runtime.choose_dtype("cuda" if hardware != "cpu" else machine.device, dtype)[0]
    if hardware != "cpu" and dtype == "auto":
        chosen = torch.bfloat16
    with torch.device("meta"):
        network = models.build(family, config)
    size = image_size or max_seq_len
    example = example_batch(family, config, model, size, 2, task)
    parts = parts_of(task, example, batch, grad_accum_steps, hardware)
    steps = max(1, round(epochs * max(rows, batch) / batch))
    setting = {"device_batch_size": -(-batch // parts), "grad_accum_steps": parts, "steps": steps,
               "optimizer": optimizer, "dtype": chosen, "checkpointing": checkpointing}  # fmt: skip
    return make_plan(network, example, task, hardware=hardware, **setting)


def plan_corpus(model: str, data: str, budget: str) -> Plan:
    """The plan of pre-training on a corpus, with the forecast of its loss.

    Errors: OptionError where a part of the question is missing; DataError for other data than text.
    """
    if model != "auto" or not data or not budget:
        sized = "to have the size chosen for a time: `layerwise plan --data CORPUS --budget 30m`"
        raise OptionError(f"to plan a network, name it: `layerwise plan resnet50`; {sized}")
    chosen, machine, quiet = settings(budget=budget), runtime.start(), Console(quiet=True)
    examples, learned = understand(data, chosen, quiet)
    if not learned.follows_law:
        raise DataError(f"{data}: a plain text was expected; {examples.understood}")
    task = learned.of(examples, Options())
    rows = prepare_rows(examples, chosen, quiet)
    rows, reader = as_task_rows(rows, task, None, chosen, quiet)
    left = TRAINING_SHARE * seconds(budget)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(chosen, pathlib.Path(folder), task, rows.train, rows.val, machine, quiet)
        scratch = lambda: choose_by_law(job, reader, left)  # noqa: E731
        found = new_contender(job, "scratch", None, scratch).plan
    assert found is not None, "a contender is planned when it starts"
    return found


def example_batch(
    family: str, config: object, variant: str, size: int, rows: int, task: Task
) -> Batch:
    """A batch of the shapes that the network takes, on the meta device.

    size: of an image in pixels, or of a text in tokens; 0 for the network's natural one.
    """
    with torch.device("meta"):
        reads = models.reads(family)
        tensors = kinds.read_by(reads).example(family, variant, config, size, rows)
        tensors |= task.example_targets(rows, next(iter(tensors.values())))
    return Batch(tensors, np.zeros(rows, np.int64))
