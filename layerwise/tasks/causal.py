"""The next token, at every position: cross-entropy, and bits per byte of text.

Bits per byte do not depend on the tokenizer, so models with different vocabularies compare.
Scores of tokens are never held whole: `token_loss` works through them in chunks.

Shapes: B windows, T positions, D width, V vocabulary.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerwise.data.examples import Batch, Examples
from layerwise.errors import DataError
from layerwise.kinds.sources import batch_of
from layerwise.kinds.text.corpus import NO_LOSS
from layerwise.layers.loss import n_with_loss, token_loss, token_losses
from layerwise.tasks.scores.metrics import scalar


def bits_per_byte(
    outputs: np.ndarray, targets: Any = None, weights: np.ndarray | None = None
) -> Any:
    """outputs: (n, 3) summed loss in nats, tokens with loss, bytes of text.

    weights: (..., n), how often each row counts; the result has their leading shape.
    """
    return bits(outputs[:, 0], outputs[:, 2], weights)


def bits(loss: np.ndarray, units: np.ndarray, weights: np.ndarray | None) -> Any:
    """The loss in bits for each unit: of (n,) nats and how many units they are of."""
    weights = np.ones(len(loss)) if weights is None else weights
    found = weights @ loss.astype(float) / np.maximum(weights @ units.astype(float), 1e-9)
    return scalar(found / math.log(2))


class Causal:
    """Learn to continue text."""

    name = "causal"
    score = "bits_per_byte"
    metric = staticmethod(bits_per_byte)
    higher_is_better = False
    labels: tuple[str, ...] = ()
    n_outputs = 3
    target_kind = "none"
    head_kind = "causal"
    batch = staticmethod(batch_of)

    @classmethod
    def of(cls, examples: Examples, **options: Any) -> "Causal":
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    def count(self, batch: Batch) -> int:
        n = n_with_loss(batch["targets"])
        if not n:
            raise DataError("no token of this batch carries loss; look at the data")
        return n

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Where experts are routed to, their balance within this batch counts, too."""
        balance = getattr(network, "balance", None) if network.training else None
        routed: dict[str, list[Tensor]] = {"routed": []} if balance else {}
        hidden = network.features(batch["inputs"], **batch.context, **routed)  # type: ignore[operator]
        total = token_loss(hidden, network.head, batch["targets"])  # type: ignore[arg-type]
        parts = {"cross_entropy": total.detach()}
        if balance:
            keep = (batch["targets"] != NO_LOSS).flatten()
            total = total + keep.sum() * balance(routed["routed"], keep)
        return total, parts

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """(B, 3): loss in nats, tokens with loss, bytes."""
        hidden = network.features(batch["inputs"], **batch.context)  # type: ignore[operator]
        each = token_losses(hidden, network.head, batch["targets"])  # type: ignore[arg-type]
        carried = (batch["targets"] != NO_LOSS).sum(1)
        return torch.stack([each.sum(1), carried, batch["n_bytes"]], 1)

    def scored(self, outputs: np.ndarray) -> np.ndarray:
        return outputs

    def metrics(self, outputs: np.ndarray, targets: Any = None) -> dict[str, float]:
        loss, tokens, _ = outputs.sum(0, dtype=np.float64)
        mean = float(loss / max(tokens, 1))
        return {
            "bits_per_byte": bits_per_byte(outputs),
            "loss": mean,
            "perplexity": math.exp(min(mean, 700.0)),
        }

    def lens(self, batch: Batch) -> list[list[tuple[int, bool]]]:
        """A token carries loss where it is to be predicted; padding behind the last is left out."""
        out = []
        for seen, wanted in zip(batch["inputs"].tolist(), batch["targets"].tolist(), strict=True):
            n = max((t for t, w in enumerate(wanted) if w != NO_LOSS), default=len(wanted) - 1) + 1
            tokens = [*seen[:n], seen[n] if wanted[n - 1] == NO_LOSS else wanted[n - 1]][: n + 1]
            out.append(list(zip(tokens, [False, *(w != NO_LOSS for w in wanted[:n])], strict=True)))
        return out
