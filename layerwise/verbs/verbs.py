"""The verbs that need no file of their own: plan, inspect, audit, models, demo."""

import importlib.util
import pathlib
import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from layerwise import models, runtime
from layerwise.console import Console
from layerwise.data.examples import Batch, Examples
from layerwise.errors import DataError, OptionError
from layerwise.settings import seconds, settings
from layerwise.tasks import task_for
from layerwise.tasks.causal import Causal
from layerwise.tasks.classify import Classify

DEFAULT_SIDE = 224
TEXT_LENGTH = 512  # tokens of a text, where none is given
DEMO_STEPS = 150


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
) -> Any:
    """What training `model` would take, from tracing the real network without allocating it.

    model: a name; "auto" with a text corpus as `data` and a `budget`: the decoder that a scaling
    law chooses for that time, by small runs on that corpus (a share of it).
    batch: rows per step, in `grad_accum_steps` micro-batches, or in more where the run would take
    more; rows: of training data, where no `data` is given; hardware: "cpu" (this machine, measured)
    or a named accelerator.
    Returns a Plan. Errors: an unknown model or hardware, with the nearest known name.
    """
    from layerwise.planning import make_plan
    from layerwise.train.loop import parts_of

    if model == "auto" or budget:
        return plan_corpus(model, data, budget)
    machine = runtime.start()
    family, config = models.resolve(model)
    writes = hasattr(config, "vocab_size") and not hasattr(config, "head_kind")
    n_classes = classes or getattr(config, "n_classes", 0)
    task: Any = Causal() if writes else Classify([str(i) for i in range(n_classes)])
    if data and not writes:
        task, rows = task_of_data(data)
    if batch % grad_accum_steps:
        raise OptionError(f"--batch {batch} does not divide into {grad_accum_steps} micro-batches")
    if not writes:
        head = {"head_kind": task.head_kind} if hasattr(config, "head_kind") else {}
        config = models.replace_fields(config, {"n_classes": task.n_outputs} | head)
    chosen = runtime.choose_dtype("cuda" if hardware != "cpu" else machine.device, dtype)[0]
    if hardware != "cpu" and dtype == "auto":
        chosen = torch.bfloat16
    with torch.device("meta"):
        network = models.build(family, config)
    size = image_size or max_seq_len
    example = sample_batch(family, config, model, size, 2, task)
    parts = parts_of(task, example, batch, grad_accum_steps, hardware)
    steps = max(1, round(epochs * max(rows, batch) / batch))
    return make_plan(
        network,
        example,
        task,
        optimizer=optimizer,
        dtype=chosen,
        device_batch_size=-(-batch // parts),
        grad_accum_steps=parts,
        steps=steps,
        checkpointing=checkpointing,
        hardware=hardware,
    )


def plan_corpus(model: str, data: str, budget: str) -> Any:
    """The plan of pre-training on a corpus, with the forecast of its loss.

    Errors: OptionError where a part of the question is missing; DataError for other data than text.
    """
    from layerwise.fitting.contenders import Job
    from layerwise.fitting.ladder import start
    from layerwise.fitting.run import TRAINING_SHARE, prepare_rows, understand
    from layerwise.fitting.scaling import choose_by_law
    from layerwise.kinds.text import language

    if model != "auto" or not data or not budget:
        raise OptionError(
            "to plan a network, name it: `layerwise plan resnet50`; to have the size chosen for a "
            "time: `layerwise plan --data CORPUS --budget 30m`"
        )
    chosen, machine, quiet = settings(budget=budget), runtime.start(), Console(quiet=True)
    examples = understand(data, chosen, quiet)
    if examples.form != "plain":
        raise DataError(f"{data}: a plain text was expected; {examples.understood}")
    rows = prepare_rows(examples, chosen, quiet, None, machine)
    rows, reader = language.as_tokens(rows, chosen, quiet)
    left = TRAINING_SHARE * seconds(budget)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(chosen, pathlib.Path(folder), Causal(), rows.train, rows.val, machine, quiet)
        return start(job, "scratch", None, lambda: choose_by_law(job, reader, left)).plan


def task_of_data(data: str) -> tuple[Any, int]:
    from layerwise.data.splits import split
    from layerwise.kinds.opening import open_data

    examples = open_data(data)
    return task_for(examples), len(split(examples)["train"])


def sample_batch(family: str, config: Any, variant: str, side: int, rows: int, task: Any) -> Batch:
    """A batch of the shapes that the network takes, on the meta device; side: or tokens."""
    with torch.device("meta"):
        if hasattr(config, "vocab_size"):
            inputs = torch.zeros(rows, side or TEXT_LENGTH, dtype=torch.int64)
        else:
            side = side or natural_side(family, variant)
            shape = (rows, config.n_in) if family == "mlp" else (rows, 3, side, side)
            inputs = torch.zeros(shape)
        targets = {
            "class": torch.zeros(rows, dtype=torch.int64),
            "classes": torch.zeros(rows, task.n_outputs),
            "number": torch.zeros(rows),
            "none": inputs,
            "tags": inputs,
            "answers": torch.zeros(rows, 2, dtype=torch.int64),
        }[task.target_kind]
        own = {"tags": ("words",), "answers": ("starts", "ends")}.get(task.target_kind, ())
        places = {name: inputs.to(torch.bool if len(own) > 1 else inputs.dtype) for name in own}
    return Batch({"inputs": inputs, "targets": targets, **places}, np.zeros(rows, np.int64))


def natural_side(family: str, variant: str) -> int:
    """The side of the images that a named size was published for."""
    small = family == "airbench" or "cifar" in variant
    small |= family == "resnet" and variant in (
        "resnet20",
        "resnet32",
        "resnet44",
        "resnet56",
        "resnet110",
    )
    return 32 if small else DEFAULT_SIDE


def list_models(family: str = "") -> list[dict[str, Any]]:
    """Every named size with its parameters, FLOPs per sample, and where weights are published."""
    from layerwise.weights.cards import CARDS

    wanted = [family] if family else list(models.FAMILIES)
    out = []
    for name in wanted:
        module = models.family(name)
        for variant, config in module.VARIANTS.items():
            params, flops = sizes_of(name, config, variant)
            out.append(
                {
                    "name": variant,
                    "family": name,
                    "params": params,
                    "flops": flops,
                    "formats": list(module.PUBLISHED),
                    "weights": [c.name for c in CARDS.values() if c.variant == variant],
                }
            )
    return out


def sizes_of(family: str, config: Any, variant: str) -> tuple[int, int]:
    """Parameters and FLOPs per sample, from the network itself on the meta device.

    Of deep stacks of equal layers two are built, and the rest follows: a text of TEXT_LENGTH.
    """
    from layerwise.planning import forward_flops

    def measured(config: Any) -> np.ndarray:
        with torch.device("meta"):
            network = models.build(family, config)
        batch = sample_batch(family, config, variant, 0, 1, Classify(["a"]))
        n_params = sum(p.numel() for p in network.parameters())
        return np.array([n_params, forward_flops(network, batch["inputs"])], np.int64)

    if not hasattr(config, "vocab_size"):
        found = measured(config)
    else:
        one, two = (measured(replace(config, n_layers=n)) for n in (1, 2))
        found = one + (config.n_layers - 1) * (two - one)
    return int(found[0]), int(found[1])


def inspect(model: Any, data: Any, rows: int = 1500, seed: int = 0, base: Any = "") -> Any:
    """What each layer of a trained model learned, measured on rows it was not trained on.

    base: of a text model, what it was fine-tuned from, to see which layers that changed.
    Returns a DepthReport (probe accuracy, effective rank and similarity by layer) or, of texts, a
    Reading; both have `sentences()`, `table()` and `to_dict()`.
    """
    from layerwise.data.loader import in_order
    from layerwise.inspection.depth import depth_report
    from layerwise.model.evaluation import as_model, rows_to_score

    runtime.start()
    loaded = as_model(model)
    held, _ = rows_to_score(loaded, data, "", "unseen")
    some = held.subset(np.linspace(0, len(held) - 1, min(rows, len(held))).astype(int))
    if loaded.kind == "text":
        from layerwise.fitting.inside import read_text

        return read_text(loaded, some, as_model(base) if base else None, seed)
    batches = in_order(some, loaded.processor)
    return depth_report(loaded.network, batches, loaded.labels, seed=seed)


def audit(data: Any, base: str = "auto", seed: int = 0, **options: Any) -> tuple[Examples, Any]:
    """What was understood of the data, and an AuditReport of what is wrong with it.

    base: the pre-trained base by whose features labels are judged, as in `fit`.
    options: target, kind, target_kind, split_column, as in `fit`.
    """
    from layerwise.data.splits import split
    from layerwise.fitting.run import find_base, judge_labels, open_chosen
    from layerwise.kinds.audit import audit

    chosen = settings(base=base, seed=seed, **options)
    examples = data if isinstance(data, Examples) else open_chosen(data, chosen)
    parts = split(examples, seed) if examples.targets is not None else None
    report = audit(examples, parts)
    if parts is not None:
        by_class = examples.target_kind == "class"
        judge = find_base(chosen, examples, Console(quiet=True)) if by_class else None
        judge_labels(examples, report, np.flatnonzero(report.keep), judge, runtime.start(), seed)
    return examples, report


def demo(console: Console | None = None, output: str = "") -> dict[str, Any]:
    """The whole way on scikit-learn's 1,797 scanned digits: the same path that user data takes."""
    from layerwise.fitting.run import fit

    console = console or Console()
    images, targets = bundled_digits()
    folder = pathlib.Path(output).parent if output else pathlib.Path("runs")
    folder.mkdir(parents=True, exist_ok=True)
    path, one = folder / "digits.npz", folder / "scan.png"
    np.savez(path, images=images, labels=targets)
    Image.fromarray(images[42]).save(one)
    options = {"output": output} if output else {}
    result = fit(path, console=console, base="none", steps=DEMO_STEPS, threads=1, **options)
    console.head("one prediction")
    said = result.model.predict(one)[0]
    console.say(
        f"  {one}: {said.label} with probability {said.probability:.3f}; it is a {targets[42]}"
    )
    console.head("next")
    for line in result.details["next"]:
        console.say(f"  {line['what']}\n    {line['command']}")
    console.say("  the same, on your own data\n    layerwise fit YOUR_FOLDER")
    return result.to_dict()


def bundled_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's scanned digits, uint8 (1797, 8, 8), and what they are (1797,).

    Read where they lie: importing scikit-learn takes longer than the demo's first steps.
    """
    found = importlib.util.find_spec("sklearn")
    assert found is not None, "scikit-learn is a dependency"
    assert found.submodule_search_locations is not None
    file = pathlib.Path(found.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",")  # 64 shades of 0 to 16, then the digit
    images = np.round(rows[:, :-1] * (255 / 16)).astype(np.uint8)
    return images.reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
