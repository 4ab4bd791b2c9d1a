"""Greedy decoding: the most likely token, again and again, with a cache of keys and values."""

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor

from layerwise.models.network import Decoder, Network
from layerwise.runtime import evaluating


def generate(network: Network, tokens: Tensor, n_new: int, stop: Collection[int] = ()) -> Tensor:
    """Prompts and their continuations: (B, T + n), n at most `n_new`.

    tokens: (B, T), every row as long as the others. stop: tokens that end a row; it is filled up
    with its own until all rows have ended. Errors: DataError where positions do not reach so far.
    """
    B, T = tokens.shape
    with evaluating(network):
        cache = cast(Decoder, network).make_cache(B, T + n_new)
        ends = torch.tensor(sorted(stop), dtype=torch.int64, device=tokens.device)
        ended = torch.zeros_like(tokens[:, 0], dtype=torch.bool)
        new, last = tokens, tokens[:, -1]
        for _ in range(n_new):
            features = network.features(new, cache=cache)[:, -1]  # (B, D)
            last = torch.where(ended, last, network.head(features).argmax(-1))  # (B,)
            new = last[:, None]
            tokens = torch.cat([tokens, new], dim=1)
            ended |= torch.isin(last, ends)
            if ended.all():
                break
    return tokens
