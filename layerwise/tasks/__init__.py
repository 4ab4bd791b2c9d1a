"""What is learned: batch, loss, metrics, predictions; one file per task.

A task has
    name, score (its primary metric), higher_is_better, n_outputs
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
"""

from typing import Any

from layerwise.errors import unknown

TASKS = ("classify", "tag", "regress", "causal")


def task_from_dict(values: dict[str, Any]) -> Any:
    """A task from what its `to_dict` gave."""
    from layerwise.tasks.causal import Causal
    from layerwise.tasks.classify import Classify
    from layerwise.tasks.regress import Regress
    from layerwise.tasks.tag import Tag

    classes = {"classify": Classify, "tag": Tag, "regress": Regress, "causal": Causal}
    values = dict(values)
    name = values.pop("name")
    if name not in classes:
        raise unknown("task", name, classes)
    return classes[name](**values)


def task_for(examples: Any, **options: Any) -> Any:
    """The task that these examples ask for: one class, several labels, a number, or more text."""
    from layerwise.tasks.causal import Causal
    from layerwise.tasks.classify import Classify
    from layerwise.tasks.regress import Regress
    from layerwise.tasks.tag import Tag

    if examples.kind == "tokens":
        return Causal()
    if examples.target_kind == "class":
        return Classify(examples.labels, **options)
    if examples.target_kind == "classes":
        return Tag(examples.labels)
    return Regress.fit(examples.targets)
