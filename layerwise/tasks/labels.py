"""What the tasks with a set of labels share: how they are made and kept, and read off a network.

Shapes: B rows, C labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from layerwise.data.examples import Batch, Examples
from layerwise.kinds.sources import batch_of


class Labels:
    """Learn about `labels`, which the network has an output for each."""

    name: str
    higher_is_better = True
    batch = staticmethod(batch_of)

    def __init__(self, labels: Sequence[str]):
        self.labels = tuple(labels)

    @classmethod
    def of(cls, examples: Examples, **options: Any) -> Any:
        return cls(examples.labels)

    @property
    def n_outputs(self) -> int:
        return len(self.labels)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "labels": list(self.labels)}

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        return network(batch["inputs"], **batch.context).float()  # (B, C) logits

    def scored(self, outputs: np.ndarray) -> np.ndarray:
        """What `metric` takes of the raw outputs (B, C): all of them."""
        return outputs
