"""`audit`: what is wrong with the data, before any time is spent on it."""

from typing import Any

import numpy as np

from layerwise import runtime
from layerwise.console import Console
from layerwise.data.examples import Examples
from layerwise.data.splits import split
from layerwise.errors import DataError, OptionError
from layerwise.fitting.run import find_base, judge_labels, judge_of, open_chosen, options_of
from layerwise.kinds.audit import AuditReport
from layerwise.kinds.audit import audit as look_through
from layerwise.settings import settings
from layerwise.tasks import class_for


def audit(
    data: Any, base: str = "auto", seed: int = 0, **options: Any
) -> tuple[Examples, AuditReport]:
    """What was understood of the data, and an AuditReport of what is wrong with it.

    base: the pre-trained base by whose features labels are judged, as in `fit`.
    options: target, kind, target_kind, split_column, as in `fit`.
    """
    chosen = settings(base=base, seed=seed, **options)
    examples = data if isinstance(data, Examples) else open_chosen(data, chosen)
    parts = split(examples, seed) if has_answers(examples) else None
    report = look_through(examples, parts)
    if examples.target_kind == "class":
        learned = class_for(examples)
        base_found = find_base(chosen, examples, learned, Console(quiet=True))
        task = learned.of(examples, options_of(chosen))
        judge = base_found and judge_of(base_found, task, runtime.start(), seed)
        judge_labels(examples, report, np.flatnonzero(report.keep), seed, judge)
    return examples, report


def has_answers(examples: Examples) -> bool:
    """Whether something is learned of each row beside what is read."""
    try:
        return not class_for(examples).every_position
    except (DataError, OptionError):
        return False
