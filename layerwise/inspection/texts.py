"""Texts as rows of numbers, for probes that are too simple to be at fault.

Shapes: B texts, T tokens, D width, N tokens that have a label, n rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from layerwise.data.examples import Batch
from layerwise.kinds.text.corpus import NO_LOSS
from layerwise.layers.pool import mean_over

WORDS = 512  # columns that token numbers are counted in


def is_text(batch: Batch) -> bool:
    return "tokens" in batch.tensors


def tokenwise(batch: Batch) -> bool:
    """Whether the tokens have the labels, not the texts: then a row is a token."""
    found = batch.tensors.get("targets")
    if found is None or found.is_floating_point():
        return False
    return is_text(batch) and found.shape == batch["tokens"].shape


def legible(batch: Batch, token_targets: Callable[[Batch], Tensor | None]) -> Batch:
    """A batch as probes and rules read it: a text or window per row, tags at their words.

    token_targets: of its task.
    """
    if (tags := token_targets(batch)) is not None:
        tags = tags.view_as(batch["tokens"])
        batch = Batch(batch.tensors | {"targets": tags}, batch.rows)
    return batch.flat


def thinned(batch: Batch) -> Batch:
    """Where tokens have the labels: of the commonest class as many as of all others together.

    Nine words of ten are not names, and a probe that says so of every word would seem to know.
    """
    if not tokenwise(batch):
        return batch
    targets = batch["targets"].clone()
    labelled = targets[targets >= 0]
    if not len(labelled):
        return batch
    common = labelled.mode().values
    where = (targets == common).nonzero()
    keep = max(1, len(labelled) - len(where))
    if keep < len(where):
        spare = torch.ones(len(where), dtype=torch.bool)
        spare[torch.linspace(0, len(where) - 1, keep).long()] = False
        targets[tuple(where[spare].T)] = NO_LOSS
    return Batch(batch.tensors | {"targets": targets}, batch.rows)


def rows_of_text(x: Tensor, batch: Batch) -> Tensor:
    """(n, D) fp32 of tokens (B, T), of a layer's outputs for them (B, T, D), or of outputs (B, D).

    A text is the mean over its tokens beside its first one, or counts of its tokens.
    """
    if x.is_floating_point() and x.ndim == 2:
        return x.float()
    if tokenwise(batch):
        rows = x[batch["targets"] >= 0]
        return rows.float() if rows.ndim == 2 else counts(rows[:, None])
    mask = batch.tensors.get("mask")
    if x.ndim == 2:
        return counts(x, mask)
    return torch.cat([mean_over(x.float(), mask), x[:, 0].float()], 1)


def counts(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, T) token numbers to (B, WORDS): log(1 + how often), rare tokens sharing a column."""
    weights = torch.ones_like(tokens, dtype=torch.float32) if mask is None else mask.float()
    found = weights.new_zeros(len(tokens), WORDS).scatter_add_(1, tokens % WORDS, weights)
    return found.log1p()
