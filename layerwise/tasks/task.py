"""The task contract: what is learned, from raw rows to the score and what a person is shown of it.

A task knows its loss; it knows nothing of optimisers, checkpoints or ranks. `Task` has the usual
answer to every question that has one; a task overrides what is special about it.

Legend: B rows of a batch, n rows, C labels, D features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from layerwise.data.examples import Batch, Examples, TargetKind
from layerwise.data.sources import Draw, Tensors
from layerwise.errors import DataError
from layerwise.kinds.contract import PlainFeatures, Processor
from layerwise.models.network import Network
from layerwise.tasks.scores.metrics import Arrays, Metric

Processors = Mapping[str, Processor]  # by the kind that they read
Plain = Callable[[], PlainFeatures | None]  # features of rows without a network, where asked for
Marked = list[tuple[Any, bool]]  # a token (its number or text), and whether it carries loss


@dataclass(frozen=True)
class Options:
    """What a user may ask of a task when it is made for some rows."""

    label_smoothing: float = 0.0
    dims: str = ""  # sizes of vectors that also have to work, as in "64,128"


class Prediction(Protocol):
    """What a network says of one row: a typed dataclass of the task's own."""

    name: str

    def of_row(self, name: str, row: dict[str, Any], top: int, level: float | None) -> Self:
        """The same with what it is said of. top: likeliest labels that are listed; level: of the
        conformal set or interval."""
        return replace(self, name=name)  # type: ignore[type-var]  # all are dataclasses
        ...

    def row(self) -> dict[str, Any]:
        """As a row of a CSV or JSON file; what does not apply is left out."""
        ...

    def show(self) -> str:
        """As a line for a person."""
        ...


@dataclass(frozen=True)
class Mistake:
    """A row that was answered wrongly. text: what was asked, where rows do not show it."""

    row: int
    truth: str
    predicted: str
    probability: float | None = None
    text: str | None = None


@dataclass(frozen=True)
class Calibration:
    """What held-out rows say of probabilities: a temperature for them, and how badly the truth
    fitted each row (sorted), for conformal sets."""

    temperature: float = 1.0
    conformal: tuple[float, ...] = ()


@dataclass(frozen=True)
class Baseline:
    """What needs no network: its predictions for the test rows, or only its score."""

    what: str
    value: float | None = None
    predictions: Sequence[Any] | None = None


DTYPES = {"class": np.int64, "classes": np.float32, "number": np.float32}
Probe = Callable[[np.ndarray, np.ndarray, int], Arrays]


class Task(Protocol):
    """What is learned. `labels` are the classes in their saved order, () where there are none."""

    name: ClassVar[str]
    score: str  # its primary metric
    metric: Metric
    higher_is_better: ClassVar[bool] = True
    head_kind: ClassVar[str]  # what a network for it ends in, see `models.network`
    target_kind: ClassVar[TargetKind] = "none"  # of `Examples.targets` that it learns
    reader: ClassVar[str] = "text"  # how its texts are read, a name of `kinds.text.READERS`
    labels: tuple[str, ...] = ()
    n_outputs: int  # of the network for each row, or token
    joint: bool = False  # whether the rows of a step are learned together, so never split
    every_position: ClassVar[bool] = False  # whether a row is text, learned at every token
    follows_law: ClassVar[bool] = False  # whether a scaling law forecasts its loss
    each_token: ClassVar[bool] = False  # whether a label is learned for tokens, see token_targets
    reads_lines: ClassVar[bool] = False  # whether each line of a text file is a row of its own
    answers: ClassVar[bool] = True  # whether a row has an answer that can be predicted
    named_by_classes: ClassVar[bool] = False  # whether each row has one class
    with_lora: ClassVar[bool] = True
    works_untrained: ClassVar[bool] = False  # a base's own head does it already
    learns_from_itself: ClassVar[bool] = False  # whether its batches depend on the network
    top: ClassVar[str] = "labels"  # what a report calls its outputs
    probe: Probe | None = None  # (features (n, D), targets, seed) -> weight (C, D), bias (C,)

    # ---- which rows ----------------------------------------------------------------------------
    @classmethod
    def fits(cls, examples: Examples) -> int:
        """Whether these rows can be learned from so: 0 no, 1 where it is asked for, 2 as usual."""
        ...

    @classmethod
    def of(cls, examples: Examples, options: Options) -> Self:
        """The task for these rows."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """What rebuilds it beside a saved model."""
        ...

    @classmethod
    def whole_rows(cls, examples: Examples, val: float, test: float) -> Examples:
        """The rows that are divided into splits, of those that were read. val, test: shares."""
        return examples

    def task_rows(self, examples: Examples, processors: Processors) -> Examples:
        """The rows that are learned from and scored, of those of a split."""
        return examples

    def judging(self, examples: Examples) -> "Task":
        """The task as these rows judge it, where they can do so in another way."""
        return self

    def aligned(self, examples: Examples) -> Examples:
        """The rows with their targets as this task counts them. Errors: they ask something else."""
        return examples

    # ---- tensors -------------------------------------------------------------------------------
    def learned(self, examples: Examples) -> Callable[[np.ndarray], Tensors]:
        """A function from rows to the tensors that are learned, by name: usually the targets that
        rows came with, (B,) classes or numbers, (B, C) labels."""
        if examples.targets is None:
            return lambda rows: {}
        targets = torch.from_numpy(np.array(examples.targets, DTYPES[examples.target_kind]))
        return lambda rows: {"targets": targets[torch.from_numpy(rows)]}

    def draw(self, batch: Batch, draw: Draw | None) -> Batch:
        """What is random in each row: masks, noise, timesteps. For a step as a whole, before it is
        split. draw: what it follows from; None for scoring, which is always the same."""
        return batch

    def act(self, network: Network, batch: Batch, draw: Draw) -> Batch:
        """Where `learns_from_itself`: the batch to learn from, a function of the network, too."""
        return batch

    def count(self, batch: Batch) -> int:
        """How many terms carry loss. Errors: DataError for none."""
        if not len(batch):
            raise DataError("a batch without rows carries no loss; is the data set empty?")
        return len(batch)

    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss, and what it is made of."""
        ...

    def lens(self, batch: Batch) -> list[str] | list[Marked]:
        """Of each row what carries loss, for a person to look at: its answer, or its tokens."""
        ...

    def example_targets(self, rows: int, main: Tensor) -> Tensors:
        """What is learned, in the shapes of a batch, for a plan. main: what the network reads."""
        return {"targets": main}

    def token_targets(self, batch: Batch) -> Tensor | None:
        """What is learned at each token (B, T), negative where nothing is; None for whole rows."""
        return None

    # ---- predictions and their scores ----------------------------------------------------------
    def predict(self, network: Network, batch: Batch) -> Sequence[Any]:
        """What the network says of each row, as a Prediction of this task."""
        ...

    def of_outputs(self, outputs: np.ndarray) -> Sequence[Any]:
        """Predictions of raw outputs (n, C), as of a linear probe; of tasks with a `probe`."""
        assert False, f"{self.name} has no probe"  # noqa: B011, PT015

    def before_units(self, weight: np.ndarray, bias: np.ndarray) -> Arrays:
        """A linear layer onto outputs, as one onto what a network gives: (C, D) and (C,) each."""
        return weight, bias

    def scored(self, predictions: Sequence[Any], examples: Examples) -> Arrays:
        """(outputs, targets) for `metric`, n of each."""
        ...

    def metrics(self, predictions: Sequence[Any], examples: Examples) -> dict[str, float]: ...

    def calibrate(self, predictions: Sequence[Any], examples: Examples) -> Calibration:
        return Calibration()

    def calibrated(self, predictions: Sequence[Any], temperature: float) -> Sequence[Any]:
        return predictions

    def mistakes(self, predictions: Sequence[Any], examples: Examples) -> list[Mistake]:
        """Rows that were answered wrongly, the worst first."""
        return []

    def figures(
        self, predictions: Sequence[Any], examples: Examples, calibration: Calibration
    ) -> dict[str, Any]:
        """What the report draws beside the metrics, in plain values."""
        return {}

    def calibration_error(self, predictions: Sequence[Any], examples: Examples) -> float | None:
        return None

    def baseline(self, train: Examples, test: Examples, plain: Plain) -> Baseline:
        """The strongest answer that needs no network. plain: gives features that need none."""
        ...

    def votes(self, known: np.ndarray, targets: np.ndarray, asked: np.ndarray) -> Any:
        """Predictions by the nearest of `known` features; None where neighbours do not vote."""
        return None

    def next(self, model: str, data: str) -> list[tuple[str, str]]:
        """What to do with the model: (what, command). model, data: quoted for a shell."""
        return [
            ("predict new files", f"layerwise predict {model} NEW_FILES"),
            ("score on other data", f"layerwise evaluate {model} OTHER_DATA"),
            ("what each layer learned", f"layerwise inspect {model} {data}"),
        ]
