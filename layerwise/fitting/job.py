"""A fit as its phases hand it to each other: job, rows, contenders, rungs; and its result.

Legend: n rows.
"""

import pathlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerwise.console import Console
from layerwise.data.examples import Examples
from layerwise.fitting.lens import Lens
from layerwise.fitting.probes import ENOUGH, Features
from layerwise.inspection.diagnosis import Diagnosis
from layerwise.kinds.audit import AuditReport
from layerwise.kinds.contract import Choice
from layerwise.model.model import Model
from layerwise.models.network import Network
from layerwise.planning import Plan
from layerwise.planning.scaling import Forecast
from layerwise.runtime import Runtime
from layerwise.settings import Settings
from layerwise.tasks.task import Task
from layerwise.train.run import Outcome, Recipe


@dataclass
class Rows:
    """The rows of the three splits, and what the audit found. read: all that were read."""

    read: Examples
    train: Examples
    val: Examples
    test: Examples
    audit: AuditReport | None
    clean_test: np.ndarray | None  # (n_test,) True: no copy of this row was trained on
    features: Features | None = None  # of the base, where labels were judged by them


def some_rows(examples: Examples, most: int) -> Examples:
    """At most `most` rows, evenly spaced."""
    n = min(most, len(examples))
    return examples.subset(np.unique(np.linspace(0, len(examples) - 1, n).astype(int)))


@dataclass
class Rung:
    """One way that was tried: its score on the validation rows, and what it cost."""

    name: str
    score: float
    low: float
    high: float
    seconds: float
    peak_mb: float
    note: str = ""
    chosen: bool = False


@dataclass
class Job:
    """What every rung needs."""

    settings: Settings
    folder: pathlib.Path
    task: Task
    train: Examples
    val: Examples
    machine: Runtime
    console: Console
    data: str = ""  # as it was named
    started: float = field(default_factory=time.monotonic)
    studied: dict[str, Any] = field(default_factory=dict)  # by kind, what augmentation has to know
    reader: Any = None  # the processor that made task rows of these, where a task asks for one
    features: Features | None = None  # of training rows on the base, where known
    most_features: int = ENOUGH  # rows whose features are worth their time
    deadline: float = float("inf")  # time.monotonic() when the training budget ends
    reserved: float = 0.0  # seconds of the budget after it, for scoring, probing and the report
    n_test: int = 0  # rows that are scored then
    on_plan: Callable[[Plan, str], None] = lambda plan, way: None
    lens: Lens | None = None  # what carries loss, once it was looked at
    rungs: list[Rung] = field(default_factory=list)  # the ladder so far
    diagnoses: list[Diagnosis] = field(default_factory=list)  # of its winner

    @property
    def seconds_left(self) -> float:
        """Of the whole budget."""
        return self.deadline + self.reserved - time.monotonic()


@dataclass
class Contender:
    """A network on its way up."""

    way: str  # "lora", "full", "scratch"
    network: Network
    choice: Choice
    recipe: Recipe
    forecast: Forecast | None = None  # of the loss, where a law was fitted
    plan: Plan | None = None
    outcome: Outcome | None = None
    rung: Rung | None = None
    said: Sequence[Any] | None = None  # of the validation rows, by the network as it is


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
