"""Tasks by name: an explicit table, each imported only when asked for. See `task.py`."""

import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layerwise import kinds
from layerwise.errors import DataError, OptionError, unknown

if TYPE_CHECKING:  # the command line reads the names without loading torch
    from layerwise.data.examples import Examples
    from layerwise.tasks.task import Options, Task

TASKS = {
    "classify": "layerwise.tasks.classify:Classify",
    "tag": "layerwise.tasks.tag:Tag",
    "regress": "layerwise.tasks.regress:Regress",
    "causal": "layerwise.tasks.causal:Causal",
    "masked": "layerwise.tasks.masked:Masked",
    "words": "layerwise.tasks.words:Words",
    "span": "layerwise.tasks.span:Span",
    "embed": "layerwise.tasks.embed:Embed",
}
PROBLEMS = {"multi_label_classification": "tag", "regression": "regress"}  # of published configs
HEADS = {  # what a published network with such a head does
    "class": "classify", "pooled": "classify", "causal": "causal", "tag": "words", "span": "span",
    "embed": "embed",
}  # fmt: skip


def task_class(name: str) -> "type[Task]":
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return pkgutil.resolve_name(TASKS[name])


def task_from_dict(values: dict[str, Any]) -> "Task":
    """A task from what its `to_dict` gave."""
    values = dict(values)
    return task_class(values.pop("name"))(**values)


def task_of_head(head_kind: str, labels: Sequence[str], problem: str = "") -> "Task | None":
    """What a published network with such a head does; None where it is only a base."""
    name = PROBLEMS.get(problem) or HEADS.get(head_kind)
    if name is None:
        return None
    values = {"name": name} | ({"labels": list(labels)} if labels else {})
    return task_from_dict(values)


def task_for(examples: "Examples", asked: str = "auto", options: "Options | None" = None) -> "Task":
    """The task that these examples ask for, or the one asked for where they allow it.

    Errors: see `class_for`.
    """
    from layerwise.tasks.task import Options

    return class_for(examples, asked).of(examples, options or Options())


def class_for(examples: "Examples", asked: str = "auto") -> "type[Task]":
    """The usual task of such rows, or the one asked for where they allow it.

    Errors: DataError for rows that nothing learns from; OptionError for a task that these rows do
    not allow, with those they do.
    """
    found = [(task_class(name).fits(examples), name) for name in TASKS]
    fitting = [name for fits, name in sorted(found, key=lambda x: -x[0]) if fits]
    if not fitting and asked == "auto":
        raise DataError(kinds.of(examples).unlearnable(examples))
    if asked not in ("auto", *fitting):
        allows = ", ".join(fitting) or "none"
        what = f"--task {asked} does not fit; tasks that these rows allow: {allows}"
        raise OptionError(f"{examples.understood}: {what}")
    return task_class(fitting[0] if asked == "auto" else asked)
