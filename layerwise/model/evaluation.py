"""How good a model is on rows with known answers, with its noise; which of two models is better.

Legend: n rows.
"""

import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from layerwise.data.examples import Examples
from layerwise.data.splits import place_of, split, val_share
from layerwise.errors import DataError
from layerwise.kinds.opening import open_data
from layerwise.model.model import Data, Model
from layerwise.model.saved import load
from layerwise.tasks.scores import intervals
from layerwise.tasks.scores.intervals import Comparison

WORST = 24  # mistakes that are shown


@dataclass
class Evaluation:
    """A model's score on rows with known answers: value and 95% interval, and all its metrics."""

    score_name: str
    score: float
    low: float
    high: float
    n: int
    metrics: dict[str, float]
    ece: float | None = None  # expected calibration error, where there are probabilities
    split: str = ""
    wrong: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Named = Model | str | pathlib.Path  # a model, or where it is or what it is called
Known = str | pathlib.Path | Examples  # rows with answers, or where they are


def as_model(model: Named) -> Model:
    return model if isinstance(model, Model) else load(model)


def predict(model: Named, data: Data, confidence: float = 0.0, top: int = 3) -> list[Any]:
    """What `model` (or the one at this path) says of every row of `data`; see `Model.predict`."""
    return as_model(model).predict(data, confidence=confidence, top=top)


def rows_to_score(model: Model, data: Known, target: str, which: str) -> tuple[Examples, str]:
    """Rows with answers, their classes in the model's order. `which`: a split or another word.

    "all" takes every row, "unseen" those outside the training split, "auto" the test split. A split
    is what the data gives or, for the data the model was fitted on, what `fit` made of it; where
    there is none, these take every row.
    """
    rows = data if isinstance(data, Examples) else open_rows(model, data, target)
    task = model.answers()
    here = "" if isinstance(data, Examples) else place_of(data)
    if which != "all" and here in model.card.get("split", {}):
        rows = as_fitted(model, rows, *model.card["split"][here])
    rows = task.aligned(rows)
    given = {str(s) for s in np.unique(rows.given)}
    if which == "auto":
        which = next((s for s in ("test", "val") if s in given), "all")
    if which == "unseen" and (unseen := rows.given != "train").any():
        rows = rows.subset(unseen)
    elif which not in ("all", "unseen"):
        if which not in given:
            raise DataError(f"{rows.source} has no split '{which}'; it has {sorted(given - {''})}")
        rows = rows.subset(rows.given == which)
    return task.task_rows(rows, model.processors), which


def as_fitted(model: Model, rows: Examples, seed: int, val: float, test: float) -> Examples:
    """The rows with the split into which `fit` with these settings divides them."""
    rows = model.answers().whole_rows(rows, val, test)
    given = np.full(len(rows), "", "U5")
    for name, some in split(rows, seed, val_share(len(rows), val), test).items():
        given[some] = name
    return replace(rows, given=given)


def open_rows(model: Model, data: str | pathlib.Path, target: str) -> Examples:
    """Rows as this model was taught to read them: its target column, and what that column is."""
    task = model.answers()
    column, kind = target or model.card.get("target"), model.kind
    asked = None if task.target_kind == "none" else task.target_kind
    learn = task.works_untrained  # then whatever the rows hold is judged
    name = kind.name if kind.insists else None
    return open_data(data, column, name, target_kind=asked, learn=learn)


def evaluate(
    model: Named, data: Known, target: str = "", split: str = "auto", threads: int = 0
) -> Evaluation:
    """Score a model on the rows of `data` that have answers.

    Returns an Evaluation: the task's score with a bootstrap 95% interval, all metrics, and the
    calibration error. Errors: DataError for rows without answers or with unknown classes.
    """
    model = as_model(model)
    rows, which = rows_to_score(model, data, target, split)
    model = replace(model, task=model.answers().judging(rows))
    return evaluation_of(model, model.predictions(rows, model.machine(threads)), rows, which)


def evaluation_of(
    model: Model, predictions: Sequence[Any], rows: Examples, which: str
) -> Evaluation:
    task = model.answers()
    found = intervals.interval(task.metric, *task.scored(predictions, rows))
    metrics, ece = task.metrics(predictions, rows), task.calibration_error(predictions, rows)
    score = task.score, found.value, found.low, found.high, len(rows)
    return Evaluation(*score, metrics, ece, which, wrong_rows(model, predictions, rows))


def wrong_rows(model: Model, predictions: Sequence[Any], rows: Examples) -> list[dict[str, Any]]:
    """The worst mistakes in plain values, each with the name of its row."""
    found = model.answers().mistakes(predictions, rows)[:WORST]
    named = [asdict(m) | {"name": str(rows.names[m.row])} for m in found]
    return [{k: v for k, v in m.items() if v is not None} for m in named]


def compare(a: Named, b: Named, data: Known, target: str = "", split: str = "auto") -> Comparison:
    """Whether model B is better than model A on the same rows, by a paired test.

    Returns a Comparison with the difference B - A, its 95% interval, and the p-value.
    """
    model_a, model_b = as_model(a), as_model(b)
    rows, _ = rows_to_score(model_a, data, target, split)
    if rows.has("windows") and model_a.tokenizer.fingerprint != model_b.tokenizer.fingerprint:
        what = "these models cut text into different tokens, so their scores cannot be paired"
        raise DataError(f"{what}; `layerwise evaluate` each: bits per byte compare")
    if other := set(model_a.labels) ^ set(model_b.labels):
        what = f"only one of the models knows {', '.join(sorted(other)[:8])}"
        raise DataError(f"{what}, so their scores cannot be paired; `layerwise evaluate` each")
    task = model_a.answers().judging(rows)
    pair = [replace(m, task=m.answers().judging(rows)) for m in (model_a, model_b)]
    (out_a, targets), (out_b, _) = (task.scored(m.predictions(rows), rows) for m in pair)
    return intervals.compare(task.metric, out_a, out_b, targets, task.higher_is_better)
