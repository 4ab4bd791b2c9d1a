"""Where the tokens of a decoder stand, and its attention mask: each token sees those before it, in
its window, in its document.

Shapes: B batch, T query positions, S key positions.
"""

from typing import TypedDict

import torch
from torch import Tensor

from layerwise.layers.cache import Cache

Mask = tuple[Tensor | None, bool]  # `mask` and `causal` of `layers.attention.attention`


class Given(TypedDict, total=False):
    """What a decoder takes beside its tokens (B, T).

    positions: (T,) or (B, T), where they do not follow from the rest. mask: bool, True for tokens
    and False for padding, (B, S), or broadcast to (B, 1, T, S), which token may see which; S counts
    all tokens from the first, and causality is kept; every token sees itself. documents: (B, T),
    equal where two tokens of a packed row belong together. cache: from `make_cache`, grows by T.
    """

    positions: Tensor | None
    mask: Tensor | None
    documents: Tensor | None
    cache: Cache | None


def positions_of(tokens: Tensor, given: Given) -> Tensor:
    """Of each token, (T,) or (B, T): as given, or after the cache, from 0 in each document."""
    unknown = given.keys() - Given.__annotations__.keys()
    assert not unknown, f"a decoder takes no {', '.join(unknown)}"
    positions, documents, cache = given.get("positions"), given.get("documents"), given.get("cache")
    if positions is not None:
        return positions
    start = 0 if cache is None else cache.n_seen
    places = torch.arange(start, start + tokens.shape[1], device=tokens.device)
    if documents is None:
        return places
    assert not start, "documents are packed for one pass; a cache continues one document per row"
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - (places * begins).cummax(dim=1).values


def attention_mask(tokens: Tensor, given: Given, window: int = 0, layer: int = 0) -> Mask:
    """The mask of a layer in the cheapest form that `attention` takes; before its cache grows.

    window: how many tokens back each one sees, itself included; 0 for all.
    """
    mask, documents, cache = given.get("mask"), given.get("documents"), given.get("cache")
    T, seen = tokens.shape[1], 0 if cache is None else cache.n_seen
    if mask is None and documents is None:
        if T == 1:
            return None, False  # all that the cache holds
        if not seen and not 0 < window < T:
            return None, True
    queries = torch.arange(seen, seen + T, device=tokens.device)
    keys = queries if cache is None else cache[layer].order(T, tokens.device)
    back = queries[:, None] - keys  # (T, S)
    allowed = back >= 0
    if window:
        allowed = allowed & (back < window)
    if documents is not None:
        allowed = allowed & (documents[:, None, :, None] == documents[:, None, None, :])
    if mask is not None:
        mask = mask[:, None, None] if mask.ndim == 2 else mask  # (B or 1, 1, T or 1, S)
        allowed = allowed & mask[..., keys] | (back == 0)
    return allowed, False
