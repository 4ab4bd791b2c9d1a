"""What the tasks with a set of labels share: how they are made and kept, and read off a network.

Shapes: B rows, n rows, C labels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from torch import Tensor

from layerwise.data.examples import Batch, Examples, TargetKind
from layerwise.errors import DataError
from layerwise.models.network import Network
from layerwise.tasks.task import Options, Task


def has_target(examples: Examples, kind: TargetKind) -> int:
    """`Task.fits` for rows with a label or a number."""
    return 2 * (examples.target_kind == kind)


def outputs_of(network: Network, batch: Batch) -> Tensor:
    """What the network says of each row: (B, C) fp32."""
    return network(**batch.select(network.READS)).float()


def same_question(examples: Examples, kind: TargetKind) -> None:
    """Errors: DataError where rows ask for something else than this kind of target."""
    if examples.targets is None:
        cure = "name their column with --target, or `layerwise predict` it"
        raise DataError(f"{examples.source} has no labels to score against: {cure}")
    if examples.target_kind != kind:
        asked = f"{examples.source} asks for a {examples.target_kind}"
        raise DataError(f"this model answers with a {kind}; {asked}")


class Labels(Task):
    """Learn about `labels`; the network has an output for each."""

    def __init__(self, labels: Sequence[str]):
        self.labels = tuple(labels)
        self.n_outputs = len(self.labels)

    @classmethod
    def fits(cls, examples: Examples) -> int:
        return has_target(examples, cls.target_kind)

    @classmethod
    def of(cls, examples: Examples, options: Options) -> Self:
        return cls(examples.labels)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "labels": list(self.labels)}

    def predict(self, network: Network, batch: Batch) -> Sequence[Any]:
        return self.of_outputs(outputs_of(network, batch).cpu().numpy())

    def aligned(self, examples: Examples) -> Examples:
        """Errors: classes that the model does not know."""
        same_question(examples, self.target_kind)
        if examples.labels == self.labels:
            return examples
        strange = [name for name in examples.labels if name not in self.labels]
        numbered, named = (all(map(str.isdigit, x)) for x in (examples.labels, self.labels))
        if strange and len(examples.labels) == len(self.labels) and numbered and not named:
            return examples  # classes given by number alone
        require_known(strange, examples.source, self.labels)
        place = np.array([self.labels.index(name) for name in examples.labels])
        return replace(examples, targets=self.moved(examples, place), labels=self.labels)

    def moved(self, examples: Examples, place: np.ndarray) -> np.ndarray:
        """The targets where label i of the examples is label `place[i]` here."""
        return place[np.asarray(examples.targets)]


def require_known(strange: Sequence[str], source: str, labels: Sequence[str]) -> None:
    """Errors: DataError for labels that the model does not know."""
    if strange:
        first, known = ", ".join(strange[:5]), ", ".join(labels[:8])
        raise DataError(f"{source} has classes the model does not know: {first}; it knows {known}")


def in_order(values: np.ndarray, labels: tuple[str, ...], wanted: tuple[str, ...]) -> np.ndarray:
    """Values of labels (C,) in the order that another model has them."""
    return values if labels == wanted else values[[labels.index(name) for name in wanted]]
