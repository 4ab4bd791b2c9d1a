"""Words that were hidden from the network, from what stands around them (BERT, arXiv:1810.04805).

The score is bits per masked token: training lowers it directly, and it moves before accuracy does,
which counts first places only. Both depend on the tokenizer: they compare models that share
one. Only positions that are asked for reach the head, which is most of a small encoder's work.
Which words are hidden follows from the window and the step, see `kinds.text.masked`.

Shapes: B windows, T positions, N positions asked for, D width, V vocabulary, n windows to score.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from layerwise.data.examples import Batch, Examples
from layerwise.kinds.text.corpus import NO_LOSS
from layerwise.kinds.text.masked import LEARNED
from layerwise.layers.loss import chunks, token_loss
from layerwise.models.network import Network
from layerwise.tasks.causal import Causal, LossPrediction, Predictions, bits
from layerwise.tasks.scores.metrics import Weights


def bits_per_masked_token(
    outputs: np.ndarray, targets: object = None, weights: Weights = None
) -> Any:
    """outputs: (n, 2) summed loss in nats, masked tokens; weights as in `bits_per_byte`."""
    return bits(outputs[:, 0], outputs[:, 1], weights)


class Masked(Causal):
    """Learn to fill in words; batches and counts are those of continuing text."""

    name = "masked"
    score = "bits_per_masked_token"
    metric = staticmethod(bits_per_masked_token)
    head_kind = "masked"
    follows_law = False
    with_lora = False
    top = "hidden words"
    usual = 1

    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        hidden, wanted = asked(network, batch)
        total = token_loss(network.transform(hidden), network.head, wanted)
        return total, {"cross_entropy": total.detach()}

    def predict(self, network: Network, batch: Batch) -> list[LossPrediction]:
        hidden, wanted = asked(network, batch)
        rows = (batch["targets"] != NO_LOSS).nonzero()[:, 0]  # (N,) of the batch
        out = torch.zeros(len(batch), 3, device=hidden.device)
        for part in chunks(len(hidden), network.config.vocab_size):
            scores = network.score(hidden[part]).float()  # (n, V)
            loss = F.cross_entropy(scores, wanted[part], reduction="none")
            right = (scores.argmax(1) == wanted[part]).float()
            out.index_add_(0, rows[part], torch.stack([loss, torch.ones_like(loss), right], 1))
        return [LossPrediction(loss, int(n), n, right) for loss, n, right in out.tolist()]

    def metrics(self, predictions: Predictions, examples: Examples) -> dict[str, float]:
        sums = np.array([(p.loss, p.tokens, p.right) for p in predictions]).sum(0)
        loss, _, right = sums / max(sums[1], 1)
        bits = bits_per_masked_token(*self.scored(predictions, examples))
        found = {"masked_accuracy": float(right), "loss": float(loss)}
        return {"bits_per_masked_token": bits, **found}

    def next(self, model: str, data: str) -> list[tuple[str, str]]:
        command = f"layerwise fit LABELLED_TEXTS --base {model}"
        first = ("learn labels with it as the base", command)
        return [first, *super().next(model, data)[1:]]


def asked(network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """What is known at the positions that are asked for, (N, D), and their words, (N,)."""
    hidden = network.features(**batch.select(network.READS))
    wanted = batch["targets"]
    if isinstance(hidden, FakeTensor):  # whose values are unknown: as many as expected
        some = math.ceil(LEARNED * wanted.shape[1])
        return hidden[:, :some].flatten(0, 1), wanted[:, :some].flatten()
    keep = wanted != NO_LOSS
    return hidden[keep], wanted[keep]
