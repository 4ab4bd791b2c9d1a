"""`evaluate` and `predict`: how good a model is, with its noise, and what it says of new rows.

Legend: n rows.
"""

import pathlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from layerwise.data.examples import Examples
from layerwise.data.splits import place_of, split, val_share
from layerwise.errors import DataError
from layerwise.kinds.opening import TARGET_KINDS, open_data
from layerwise.kinds.text.corpus import tokenise
from layerwise.kinds.text.documents import texts_of
from layerwise.kinds.text.language import in_stretches, windows_of
from layerwise.kinds.text.matches import matches
from layerwise.model.model import Model, Prediction, load
from layerwise.tasks import FORMS
from layerwise.tasks.scores import intervals
from layerwise.tasks.scores.calibration import ece
from layerwise.tasks.scores.metrics import softmax

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


def as_model(model: Model | str | pathlib.Path) -> Model:
    return model if isinstance(model, Model) else load(model)


def predict(model: Any, data: Any, confidence: float = 0.0, top: int = 3) -> list[Prediction]:
    """What `model` (or the one at this path) says of every row of `data`; see `Model.predict`."""
    return as_model(model).predict(data, confidence=confidence, top=top)


def rows_to_score(model: Model, data: Any, target: str, which: str) -> tuple[Examples, str]:
    """Rows with answers, their classes in the model's order. `which`: a split or another word.

    "all" takes every row, "unseen" those outside the training split, "auto" the test split. A split
    is what the data gives or, for the data the model was fitted on, what `fit` made of it; where
    there is none, these take every row.
    """
    rows = data if isinstance(data, Examples) else open_rows(model, data, target)
    rows = matches(rows) if model.task.name == "embed" else rows
    here = "" if isinstance(data, Examples) else place_of(data)
    if which != "all" and here in model.card.get("split", {}):
        rows = as_fitted(rows, *model.card["split"][here])
    if rows.targets is None and model.task.target_kind != "none":
        raise DataError(
            f"{rows.source} has no labels to score against: name their column with --target, or "
            "`layerwise predict` it"
        )
    given = {str(s) for s in np.unique(rows.given)}
    if which == "auto":
        which = next((s for s in ("test", "val") if s in given), "all")
    if which == "unseen" and (unseen := rows.given != "train").any():
        rows = rows.subset(unseen)
    elif which not in ("all", "unseen"):
        if which not in given:
            raise DataError(f"{rows.source} has no split '{which}'; it has {sorted(given - {''})}")
        rows = rows.subset(rows.given == which)
    rows = in_order_of(model, rows)
    return (in_windows(model, rows) if model.task.name in FORMS["plain"] else rows), which


def as_fitted(rows: Examples, seed: int, val: float, test: float) -> Examples:
    """The rows with the split into which `fit` with these settings divides them."""
    if rows.form == "plain":
        rows = in_stretches(rows, val, test)
    given = np.full(len(rows), "", "U5")
    for name, some in split(rows, seed, val_share(len(rows), val), test).items():
        given[some] = name
    return replace(rows, given=given)


def in_windows(model: Model, rows: Examples) -> Examples:
    """Texts as the windows of tokens that a model of text is scored on. Errors: other rows."""
    if rows.kind == "tokens":
        return rows
    if rows.form != "plain":
        raise DataError(f"{rows.understood}: a plain text was expected, to score the words of")
    corpus = tokenise(texts_of(rows), model.processor.tokenizer)
    return windows_of(rows, corpus, model.processor, model.task.name == "masked")


def open_rows(model: Model, data: Any, target: str) -> Examples:
    """Rows as this model was taught to read them: its target column, and what that column is.

    For a model of vectors whatever pairs or triples there are.
    """
    if model.task.name == "embed":
        return open_data(data, target=target or None, kind="text")
    kind = model.task.target_kind
    wanted: dict[str, Any] = {"target_kind": kind if kind in TARGET_KINDS else None}
    asked = {"image": {}, "table": wanted, "text": wanted | {"kind": "text"}}[model.kind]
    return open_data(data, target=target or model.card.get("target"), learn=False, **asked)


def in_order_of(model: Model, rows: Examples) -> Examples:
    """The same rows with class indices as the model counts them.

    Errors: classes the model does not know, or a number where it names classes.
    """
    wanted = model.task.target_kind
    if wanted == "none":
        return rows
    if rows.target_kind != wanted:
        raise DataError(
            f"this model answers with a {wanted}; {rows.source} asks a {rows.target_kind}"
        )
    if wanted == "number" or rows.labels == model.labels:
        return rows
    strange = [name for name in rows.labels if name not in model.labels]
    numbered, named = (all(x.isdigit() for x in m.labels) for m in (rows, model))
    if strange and len(rows.labels) == len(model.labels) and numbered and not named:
        return rows  # classes given by number alone
    if strange:
        raise DataError(
            f"{rows.source} has classes the model does not know: {', '.join(strange[:5])}; "
            f"it knows {', '.join(model.labels[:8])}"
        )
    place = np.array([model.labels.index(name) for name in rows.labels])
    targets = np.asarray(rows.targets)
    if wanted in ("class", "tags"):
        return replace(rows, targets=np.where(targets < 0, -1, place[targets]), labels=model.labels)
    full = np.zeros((len(targets), len(model.labels)), targets.dtype)
    full[:, place] = targets
    return replace(rows, targets=full, labels=model.labels)


def evaluate(
    model: Any, data: Any, target: str = "", split: str = "auto", threads: int = 0
) -> Evaluation:
    """Score a model on the rows of `data` that have answers.

    Returns an Evaluation: the task's score with a bootstrap 95% interval, all metrics, and the
    calibration error. Errors: DataError for rows without answers or with unknown classes.
    """
    model = as_model(model)
    rows, which = rows_to_score(model, data, target, split)
    model = judged(model, rows)
    outputs = model.outputs(rows, model.machine(threads))
    return evaluation_of(model, outputs, rows, which)


def judged(model: Model, rows: Examples) -> Model:
    """The model with the task that these rows judge: vectors by scores, or by matches."""
    return replace(model, task=model.task.of(rows)) if model.task.name == "embed" else model


def evaluation_of(model: Model, outputs: np.ndarray, rows: Examples, which: str) -> Evaluation:
    targets = np.asarray(rows.targets)
    found = intervals.interval(model.task.metric, model.task.scored(outputs), targets)
    error, wrong = None, []
    if model.task.name == "classify":
        error = ece(softmax(outputs), targets)
        wrong = worst_mistakes(model, outputs, rows)
    elif hasattr(model.task, "mistakes"):
        keys = ("row", "truth", "predicted", "probability", "text")
        found_wrong = model.task.mistakes(rows.inputs, outputs, targets)[:WORST]
        wrong = [dict(zip(keys, m, strict=True)) | {"name": rows.names[m[0]]} for m in found_wrong]
    metrics = model.task.metrics(outputs, targets)
    return Evaluation(
        model.task.score,
        found.value,
        found.low,
        found.high,
        len(rows),
        metrics,
        error,
        which,
        wrong,
    )


def worst_mistakes(model: Model, outputs: np.ndarray, rows: Examples, limit: int = WORST) -> list:
    """The rows that the model is most sure of and wrong about."""
    shares = softmax(outputs)
    said = shares.argmax(1)
    wrong = np.flatnonzero(said != rows.targets)
    order = wrong[np.argsort(-shares[wrong, said[wrong]], kind="stable")][:limit]
    return [
        {
            "name": str(rows.names[int(i)]),
            "row": int(i),
            "truth": model.labels[int(rows.targets[i])],  # type: ignore[index]
            "predicted": model.labels[int(said[i])],
            "probability": float(shares[i, said[i]]),
        }
        for i in order
    ]


def compare(
    a: Any, b: Any, data: Any, target: str = "", split: str = "auto"
) -> intervals.Comparison:
    """Whether model B is better than model A on the same rows, by a paired test.

    Returns a Comparison with the difference B - A, its 95% interval, and the p-value.
    """
    model_a, model_b = as_model(a), as_model(b)
    rows, _ = rows_to_score(model_a, data, target, split)
    model_a, model_b = judged(model_a, rows), judged(model_b, rows)
    words = [m.processor.tokenizer.fingerprint for m in (model_a, model_b) if rows.kind == "tokens"]
    if len(set(words)) > 1:
        raise DataError(
            "these models cut text into other tokens, so there are no pairs of scores to test; "
            "`layerwise evaluate` each: bits per byte compare"
        )
    if other := set(model_a.labels) ^ set(model_b.labels):
        raise DataError(
            f"only one of the models knows {', '.join(sorted(other)[:8])}, so their scores make no "
            "pairs; `layerwise evaluate` each"
        )
    task, out_a, out_b = model_a.task, model_a.outputs(rows), model_b.outputs(rows)
    if model_a.labels != model_b.labels:
        place = [model_b.labels.index(name) for name in model_a.labels]
        if task.name == "words":
            said = out_b[..., 0].astype(int)
            out_b[..., 0] = np.where(said < 0, -1, np.argsort(place)[said])
        else:
            out_b = out_b[:, place]
    return intervals.compare(
        task.metric,
        task.scored(out_a),
        task.scored(out_b),
        np.asarray(rows.targets),
        task.higher_is_better,
    )
