"""How good, how sure, how honest: every number a score is made of, under one name.

The metrics are in `metrics.py`, intervals and tests in `intervals.py`, temperature, reliability and
conformal sets in `calibration.py`. Here they meet a task. Pure numpy.

Shapes: n rows.
"""

from typing import Any

from numpy import ndarray

from layerwise.errors import unknown
from layerwise.tasks.calibration import (
    Calibration,
    Conformal,
    calibrate,
    conformal_margin,
    conformal_threshold,
    ece,
    fit_conformal,
    fit_temperature,
    reliability,
)
from layerwise.tasks.intervals import Comparison, Interval, compare, interval
from layerwise.tasks.metrics import (
    METRICS,
    Metric,
    accuracy,
    auc,
    balanced_accuracy,
    confusion,
    log_loss,
    macro_f1,
    mae,
    mean_average_precision,
    r2,
    rmse,
    sigmoid,
    softmax,
    top_k,
)

__all__ = [
    "METRICS",
    "Calibration",
    "Comparison",
    "Conformal",
    "Interval",
    "accuracy",
    "auc",
    "balanced_accuracy",
    "calibrate",
    "compare",
    "conformal_margin",
    "conformal_threshold",
    "confusion",
    "ece",
    "fit_conformal",
    "fit_temperature",
    "interval",
    "log_loss",
    "macro_f1",
    "mae",
    "mean_average_precision",
    "paired",
    "r2",
    "reliability",
    "rmse",
    "score_interval",
    "sigmoid",
    "softmax",
    "top_k",
]


def score_metric(task: Any) -> Metric:
    """The function behind a task's primary metric."""
    if task.score not in METRICS:
        raise unknown("metric", task.score, METRICS)
    return METRICS[task.score]


def score_interval(
    task: Any, outputs: ndarray, targets: ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """A task's score on raw outputs (n, n_outputs): value, low, high of its 95% interval."""
    found = interval(score_metric(task), outputs, targets, seed=seed)
    return found.value, found.low, found.high


def paired(
    task: Any, outputs_a: ndarray, outputs_b: ndarray, targets: ndarray, seed: int = 0
) -> dict[str, Any]:
    """Whether B is better than A by a task's score: see `intervals.compare`.

    Returns the values a, b, difference (b - a), low, high, p_value, and a sentence.
    """
    found = compare(
        score_metric(task), outputs_a, outputs_b, targets, task.higher_is_better, seed=seed
    )
    return {
        "a": found.a,
        "b": found.b,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p_value": found.p,
        "sentence": found.sentence,
    }
