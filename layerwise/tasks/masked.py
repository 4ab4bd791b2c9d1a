"""Words that were hidden from the network, from what stands around them (BERT, arXiv:1810.04805).

The score is bits per masked token: it is what training lowers, and it changes where accuracy, which
counts first places only, does not yet. Both depend on the tokenizer: they compare models that share
one. Only positions that are asked for reach the head, which is most of a small encoder's work.

Shapes: B windows, T positions, N positions asked for, D width, V vocabulary.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from layerwise.data.examples import Batch
from layerwise.kinds.text.corpus import NO_LOSS
from layerwise.kinds.text.masked import LEARNED
from layerwise.layers.loss import chunks, token_loss
from layerwise.tasks.causal import Causal, bits


def bits_per_masked_token(
    outputs: np.ndarray, targets: Any = None, weights: np.ndarray | None = None
) -> Any:
    """outputs: (n, 3) summed loss in nats, masked tokens, how many of them were right.

    weights: (..., n), how often each row counts; the result has their leading shape.
    """
    return bits(outputs[:, 0], outputs[:, 1], weights)


class Masked(Causal):
    """Learn to fill in words; batches and counts are those of continuing text."""

    name = "masked"
    score = "bits_per_masked_token"
    metric = staticmethod(bits_per_masked_token)
    head_kind = "masked"

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        hidden, wanted = asked(network, batch)
        total = token_loss(network.transform(hidden), network.head, wanted)  # type: ignore[operator, arg-type]
        return total, {"cross_entropy": total.detach()}

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """(B, 3): loss in nats, masked tokens, those of them that were right."""
        hidden, wanted = asked(network, batch)
        rows = (batch["targets"] != NO_LOSS).nonzero()[:, 0]  # (N,) of the batch
        out = torch.zeros(len(batch), 3, device=hidden.device)
        head: Any = network.head
        for part in chunks(len(hidden), head.out_features):
            scores = network.score(hidden[part]).float()  # type: ignore[operator]  # (n, V)
            loss = F.cross_entropy(scores, wanted[part], reduction="none")
            right = (scores.argmax(1) == wanted[part]).float()
            out.index_add_(0, rows[part], torch.stack([loss, torch.ones_like(loss), right], 1))
        return out

    def metrics(self, outputs: np.ndarray, targets: Any = None) -> dict[str, float]:
        loss, _, right = outputs.sum(0, dtype=np.float64) / max(outputs[:, 1].sum(), 1)
        return {
            "bits_per_masked_token": bits_per_masked_token(outputs),
            "masked_accuracy": float(right),
            "loss": float(loss),
        }


def asked(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """What is known at the positions that are asked for, (N, D), and their words, (N,)."""
    hidden = network.features(batch["inputs"], **batch.context)  # type: ignore[operator]
    wanted = batch["targets"]
    if isinstance(hidden, FakeTensor):  # of which nobody knows where they are: as many of them
        some = math.ceil(LEARNED * wanted.shape[1])
        return hidden[:, :some].flatten(0, 1), wanted[:, :some].flatten()
    keep = wanted != NO_LOSS
    return hidden[keep], wanted[keep]
