"""What is learned: batch, loss, metrics, predictions; one file per task.

A task has
    name, score (its primary metric), higher_is_better, n_outputs
    target_kind, head_kind                      of the rows it learns from; of a text encoder's head
    of(examples, label_smoothing)               the task for these rows
    batch(examples, processor) -> Batch         raw rows to tensors: training, evaluation, serving
    count(batch) -> int                         how many terms carry loss
    loss(network, batch) -> (sum, parts)        their sum, and what it is made of
    predict(network, batch) -> Tensor           raw outputs (B, n_outputs)
    metrics(outputs, targets) -> dict           numpy in, floats out
    metric, scored(outputs)                     the primary metric, and what it takes of the outputs
    lens(batch) -> list                         per row what carries loss, for a person to look at:
                                                its answer, or of text [(token id or word, whether
                                                it carries loss), ...]
    to_dict()                                   what rebuilds it beside a saved model
and where a row's answer is more than a label
    read(row, output) -> dict                   one row of outputs as a `Prediction` has it
    mistakes(inputs, outputs, targets) -> list  (row, truth, said, probability), the worst first
    yardstick(train, test)                      what it is called, outputs of what needs no network
"""

import importlib
from typing import Any

from layerwise.errors import DataError, OptionError, unknown

TASKS = {
    "classify": "Classify", "tag": "Tag", "regress": "Regress", "causal": "Causal",
    "masked": "Masked", "words": "Words", "span": "Span", "embed": "Embed",
}  # fmt: skip
BY_TARGET = {"class": "classify", "classes": "tag", "number": "regress"}
FORMS: dict[str, dict[str, str]] = {  # of text: task -> which processor reads it; the usual first
    "plain": {"causal": "text", "masked": "text"},
    "labelled": {"classify": "text", "tag": "text", "regress": "text"},
    "pairs": {"classify": "text", "tag": "text", "regress": "text", "embed": "each"},
    "scored_pairs": {"embed": "each", "regress": "text"},
    "triples": {"embed": "each"},
    "tagged": {"words": "words"},
    "spans": {"span": "spans"},
}

HEADS = {  # of published networks, or their problem_type
    "class": "classify",
    "multi_label_classification": "tag",
    "regression": "regress",
    "pooled": "classify",
    "causal": "causal",
    "tag": "words",
    "span": "span",
    "embed": "embed",
}


def task_class(name: str) -> Any:
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return getattr(importlib.import_module(f"layerwise.tasks.{name}"), TASKS[name])


def reader_of_head(head_kind: str) -> str:
    """Which processor reads for a published network with such a head."""
    name = HEADS.get(head_kind, "")
    return next((by[name] for by in FORMS.values() if name in by), "text")


def task_from_dict(values: dict[str, Any]) -> Any:
    """A task from what its `to_dict` gave."""
    values = dict(values)
    return task_class(values.pop("name"))(**values)


def task_of_head(head_kind: str, labels: tuple[str, ...]) -> Any:
    """What a published network with such a head does; None where it is only a base."""
    if head_kind not in HEADS:
        return None
    return task_class(HEADS[head_kind])(*([labels] if labels else []))


def task_for(examples: Any, asked: str = "auto", **options: Any) -> Any:
    """The task that these examples ask for, or the one asked for where they allow it.

    Errors: see `task_name`.
    """
    return task_class(task_name(examples, asked)).of(examples, **options)


def task_name(examples: Any, asked: str = "auto") -> str:
    """By what the rows' targets are; of texts, the usual task of their form that these fit.

    Errors: DataError for a form that nothing learns from yet; OptionError for a task that these
    rows do not allow, with those they do.
    """
    form = "plain" if examples.kind == "tokens" else examples.form
    allowed = FORMS.get(form, ()) if form else BY_TARGET.values()
    if not allowed:
        raise DataError(
            f"{examples.understood}: `fit` does not learn from this form of text yet; `layerwise "
            "audit` looks at it, and --kind table reads rows with columns as a table"
        )
    kinds = (examples.target_kind, "none")  # "none": what is learned lies in the rows themselves
    fitting = [name for name in allowed if task_class(name).target_kind in kinds]
    if not fitting or asked not in ("auto", *fitting):
        wanted = "no label to learn" if asked == "auto" else f"--task {asked} does not fit"
        allows = ", ".join(fitting) or "none"
        raise OptionError(f"{examples.understood}: {wanted}; tasks that these rows allow: {allows}")
    return fitting[0] if asked == "auto" else asked
