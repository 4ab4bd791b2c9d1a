"""A decoder's attention mask: each token sees those before it, in its window, in its document.

Shapes: B batch, T query positions, S key positions.
"""

import torch
from torch import Tensor

from layerwise.layers.cache import Cache, LayerCache

Mask = tuple[Tensor | None, bool]  # `mask` and `causal` of `layers.attention.attention`


def positions_of(
    tokens: Tensor, documents: Tensor | None, cache: Cache | None, given: Tensor | None = None
) -> Tensor:
    """Positions of the tokens, (T,) or (B, T): as given, or counted from the end of the cache and
    from 0 in each packed document."""
    if given is not None:
        return given
    start = 0 if cache is None else cache.n_seen
    places = torch.arange(start, start + tokens.shape[1], device=tokens.device)
    if documents is None:
        return places
    assert not start, "documents are packed for one pass; a cache continues one document per row"
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - (places * begins).cummax(dim=1).values


def attention_mask(
    tokens: Tensor,
    mask: Tensor | None = None,
    documents: Tensor | None = None,
    window: int = 0,
    cache: LayerCache | None = None,
) -> Mask:
    """The mask in the cheapest form that `attention` takes.

    tokens: (B, T), the new ones. mask: bool, broadcast to (B, 1, T, S), S counting all tokens from
    the first: True where attending is allowed, besides causality (padding, say); every token sees
    itself. documents: (B, T), equal where two tokens belong together. window: how many tokens
    back, itself included; 0 for all. cache: of the layer, before its `update`.
    """
    T, seen = tokens.shape[1], 0 if cache is None else cache.n_seen
    if mask is None and documents is None:
        if T == 1:
            return None, False  # all that the cache holds
        if not seen and not 0 < window < T:
            return None, True
    queries = torch.arange(seen, seen + T, device=tokens.device)
    keys = queries if cache is None else cache.order(T, tokens.device)
    back = queries[:, None] - keys  # (T, S)
    allowed = back >= 0
    if window:
        allowed = allowed & (back < window)
    if documents is not None:
        allowed = allowed & (documents[:, None, :, None] == documents[:, None, None, :])
    if mask is not None:
        allowed = allowed & mask[..., keys] | (back == 0)
    return allowed, False
