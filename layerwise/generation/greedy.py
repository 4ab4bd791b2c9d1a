"""Greedy decoding: the most likely token, again and again, with a cache of keys and values."""

from collections.abc import Collection

import torch
from torch import Tensor, nn


@torch.inference_mode()
def generate(network: nn.Module, tokens: Tensor, n_new: int, stop: Collection[int] = ()) -> Tensor:
    """Prompts and their continuations: (B, T + n), n at most `n_new`.

    tokens: (B, T), every row as long as the others. stop: tokens that end a row; it is filled up
    with its own until all rows have ended. Errors: DataError where positions do not reach so far.
    """
    training = network.training
    network.eval()
    try:
        return _continued(network, tokens, n_new, torch.tensor(sorted(stop), dtype=torch.int64))
    finally:
        network.train(training)


def _continued(network: nn.Module, tokens: Tensor, n_new: int, stop: Tensor) -> Tensor:
    B, T = tokens.shape
    cache = network.make_cache(B, T + n_new)  # type: ignore[operator]
    stop, ended = stop.to(tokens.device), torch.zeros_like(tokens[:, 0], dtype=torch.bool)
    new, last = tokens, tokens[:, -1]
    for _ in range(n_new):
        features = network.features(new, cache=cache)[:, -1]  # type: ignore[operator]  # (B, D)
        best = network.head(features).argmax(-1)  # type: ignore[operator]  # (B,)
        last = torch.where(ended, last, best)
        new = last[:, None]
        tokens = torch.cat([tokens, new], dim=1)
        ended |= torch.isin(last, stop)
        if ended.all():
            break
    return tokens
