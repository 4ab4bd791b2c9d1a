"""What the phases of a fit hand to each other, and what it gives back.

Legend: n rows.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerwise.data.examples import Examples
from layerwise.fitting.probes import Features
from layerwise.kinds.audit import AuditReport
from layerwise.model.model import Model


@dataclass
class Rows:
    """The rows of the three splits, and what the audit found."""

    train: Examples
    val: Examples
    test: Examples
    audit: AuditReport | None
    clean_test: np.ndarray | None  # (n_test,) True: no copy of this row was trained on
    features: Features | None = None  # of the base, where labels were judged by them


@dataclass
class Result:
    """What a fit came to. `score`, `low`, `high` are of the test rows."""

    folder: str
    model: Model
    score_name: str
    score: float
    low: float
    high: float
    metrics: dict[str, float]
    ladder: list[dict[str, Any]]
    report: str
    finished: bool = True
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        values = {k: v for k, v in vars(self).items() if k not in ("model", "details")}
        return values | {"variant": self.model.variant, **self.details}
