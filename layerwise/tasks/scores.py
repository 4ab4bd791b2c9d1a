"""How good, how sure, how honest: every number a score is made of, under one name.

The metrics are in `metrics.py`, intervals and tests in `intervals.py`, temperature, reliability and
conformal sets in `calibration.py`. Pure numpy.
"""

from layerwise.tasks.calibration import (
    Calibration,
    Conformal,
    calibrate,
    conformal_margin,
    ece,
    fit_conformal,
    fit_temperature,
    reliability,
)
from layerwise.tasks.intervals import Comparison, Interval, compare, interval
from layerwise.tasks.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    confusion,
    log_loss,
    macro_f1,
    mae,
    mean_average_precision,
    pearson,
    r2,
    rmse,
    sigmoid,
    softmax,
    spearman,
    top_k,
)

__all__ = [
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
    "confusion",
    "ece",
    "fit_conformal",
    "fit_temperature",
    "interval",
    "log_loss",
    "macro_f1",
    "mae",
    "mean_average_precision",
    "pearson",
    "r2",
    "reliability",
    "rmse",
    "sigmoid",
    "softmax",
    "spearman",
    "top_k",
]
