"""The next token, at every position: cross-entropy, and bits per byte of text.

Bits per byte do not depend on the tokenizer, so models with different vocabularies compare.
Scores of tokens are never held whole: `token_loss` works through them in chunks.

Shapes: B windows, T positions, D width, V vocabulary, n windows to score.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor

from layerwise.data.examples import Batch, Examples
from layerwise.errors import DataError
from layerwise.kinds.text.corpus import NO_LOSS
from layerwise.kinds.text.language import in_stretches, unigram_bits, windows_of
from layerwise.layers.loss import n_with_loss, token_loss, token_losses
from layerwise.models.network import Decoder, Network
from layerwise.tasks.scores.metrics import Arrays, Weights, scalar
from layerwise.tasks.task import Baseline, Marked, Options, Plain, Prediction, Processors, Task


@dataclass(frozen=True)
class LossPrediction(Prediction):
    """How well the tokens of a window were predicted. units: what the loss is divided by: bytes of
    text, or hidden tokens; right: of these."""

    loss: float  # summed, in nats
    tokens: int  # that carry loss
    units: float
    right: float = 0.0
    name: str = ""

    def row(self) -> dict[str, Any]:
        return {"name": self.name, "loss": self.loss, "tokens": self.tokens}

    def show(self) -> str:
        return f"{self.name}  loss {self.loss:.3f} over {self.tokens} tokens"


Predictions = Sequence[LossPrediction]


def bits_per_byte(outputs: np.ndarray, targets: object = None, weights: Weights = None) -> Any:
    """outputs: (n, 2) summed loss in nats, bytes of text.

    weights: (..., n), how often each row counts; the result has their leading shape.
    """
    return bits(outputs[:, 0], outputs[:, 1], weights)


def bits(loss: np.ndarray, units: np.ndarray, weights: Weights) -> Any:
    """The loss in bits for each unit: of (n,) nats and how many units they are of."""
    weights = np.ones(len(loss)) if weights is None else weights
    found = weights @ loss.astype(float) / np.maximum(weights @ units.astype(float), 1e-9)
    return scalar(found / math.log(2))


class Causal(Task):
    """Learn to continue text."""

    name = "causal"
    score = "bits_per_byte"
    metric = staticmethod(bits_per_byte)
    higher_is_better = False
    n_outputs = 3
    head_kind = "causal"
    every_position = True
    follows_law = True
    answers = False
    top = "next token"
    usual: ClassVar[int] = 2  # what `fits` says of plain text

    @classmethod
    def fits(cls, examples: Examples) -> int:
        plain = examples.has("text") and len(examples.kinds) == 1 and examples.targets is None
        return cls.usual * (plain or examples.has("windows"))

    @classmethod
    def of(cls, examples: Examples, options: Options) -> Self:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    @classmethod
    def whole_rows(cls, examples: Examples, val: float, test: float) -> Examples:
        return in_stretches(examples, val, test)

    def task_rows(self, examples: Examples, processors: Processors) -> Examples:
        """Documents as windows of tokens."""
        return windows_of(examples, processors["text"], masked=self.head_kind == "masked")  # type: ignore[arg-type]  # texts' own

    def count(self, batch: Batch) -> int:
        n = n_with_loss(batch["targets"])
        if not n:
            raise DataError("no token of this batch carries loss; look at the data")
        return n

    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Where experts are routed to, their balance within this batch counts, too."""
        decoder = cast(Decoder, network)
        balances = network.training and decoder.BALANCES
        routed: dict[str, list[Tensor]] = {"routed": []} if balances else {}
        hidden = network.features(**batch.select(network.READS), **routed)
        total = token_loss(hidden, network.head, batch["targets"])
        parts = {"cross_entropy": total.detach()}
        if balances:
            keep = (batch["targets"] != NO_LOSS).flatten()
            total = total + keep.sum() * decoder.balance(routed["routed"], keep)
        return total, parts

    def lens(self, batch: Batch) -> list[Marked]:
        """A token carries loss where it is to be predicted; padding is left out."""
        out = []
        for seen, wanted in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
            n = max((t for t, w in enumerate(wanted) if w != NO_LOSS), default=len(wanted) - 1) + 1
            tokens = [*seen[:n], seen[n] if wanted[n - 1] == NO_LOSS else wanted[n - 1]][: n + 1]
            out.append(list(zip(tokens, [False, *(w != NO_LOSS for w in wanted[:n])], strict=True)))
        return out

    # ---- predictions and their scores ----------------------------------------------------------
    def predict(self, network: Network, batch: Batch) -> list[LossPrediction]:
        hidden = network.features(**batch.select(network.READS))
        each = token_losses(hidden, network.head, batch["targets"])
        carried = (batch["targets"] != NO_LOSS).sum(1)
        rows = torch.stack([each.sum(1), carried, batch["n_bytes"]], 1).float().tolist()
        return [LossPrediction(loss, int(tokens), n_bytes) for loss, tokens, n_bytes in rows]

    def scored(self, predictions: Predictions, examples: Examples) -> Arrays:
        return np.array([(p.loss, p.units) for p in predictions]), np.zeros(len(predictions))

    def metrics(self, predictions: Predictions, examples: Examples) -> dict[str, float]:
        loss, tokens = np.array([(p.loss, p.tokens) for p in predictions]).sum(0)
        mean = float(loss / max(tokens, 1))
        bits = bits_per_byte(*self.scored(predictions, examples))
        return {"bits_per_byte": bits, "loss": mean, "perplexity": math.exp(min(mean, 700.0))}

    def baseline(self, train: Examples, test: Examples, plain: Plain) -> Baseline:
        return Baseline("tokens by their frequency alone", unigram_bits(train, test))

    def next(self, model: str, data: str) -> list[tuple[str, str]]:
        go_on = ("go on with a text", f"layerwise generate {model} 'A PROMPT'")
        return [go_on, *super().next(model, data)[1:]]
