"""Keys and values of the tokens so far, so that each is computed once: prefill, then decode.

Buffers are allocated whole at the start, and no gradient flows through them. A layer with a sliding
window keeps only the last `window` tokens, as a ring: token p lies at place p modulo window.

Shapes: B batch, K key and value heads, T new tokens, S tokens to attend to, Dh head width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from layerwise.errors import OptionError


class LayerCache:
    """The cache of one layer. `n_seen`: how many tokens have passed, kept or not."""

    def __init__(self, keys: Tensor, values: Tensor, length: int):
        """keys, values: buffers (B, K, places, Dh); fewer places than `length` make a ring."""
        self.keys, self.values, self.length = keys, values, length
        self.n_seen, self.n_places = 0, keys.shape[2]

    def order(self, n_new: int, device: torch.device | None = None) -> Tensor:
        """The tokens, (S,), whose keys `update` with `n_new` tokens will return."""
        start, places = self.n_seen, self.n_places
        if start + n_new <= places:
            return torch.arange(start + n_new, device=device)
        if n_new == 1:
            return start - (start - torch.arange(places, device=device)) % places
        return torch.arange(max(0, start - places + 1), start + n_new, device=device)

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add new keys and values (B, K, T, Dh); returns those to attend to (B, K, S, Dh).

        Errors: OptionError when more tokens come than the cache was made for.
        """
        start, n_new, places = self.n_seen, k.shape[2], self.n_places
        if start + n_new > self.length:
            raise OptionError(
                f"the cache was made for {self.length} tokens; {start} are in it and {n_new} more "
                f"came: make_cache(batch, length) with a larger length"
            )
        self.n_seen += n_new
        k, v = k.detach(), v.detach()
        if n_new == 1 or self.n_seen <= places:
            new, kept = slice(start % places, start % places + n_new), min(self.n_seen, places)
            self.keys[:, :, new], self.values[:, :, new] = k, v
            return self.keys[:, :, :kept], self.values[:, :, :kept]
        old = torch.arange(max(0, start - places + 1), start, device=k.device) % places
        k = torch.cat([self.keys[:, :, old], k.to(self.keys)], dim=2)
        v = torch.cat([self.values[:, :, old], v.to(self.values)], dim=2)
        n_kept = min(places, k.shape[2])
        new = torch.arange(self.n_seen - n_kept, self.n_seen, device=k.device) % places
        self.keys[:, :, new] = k[:, :, -n_kept:]
        self.values[:, :, new] = v[:, :, -n_kept:]
        return k, v


class Cache:
    """One LayerCache per block. `n_seen`: the position of the next token."""

    def __init__(self, like: Tensor, shape: tuple[int, int, int, int], windows: list[int]):
        """like: gives precision and device. shape: (B, K, tokens, Dh), prompt and continuation.

        windows: per layer how many tokens back it sees, itself included; 0 for all.
        """
        B, K, length, Dh = shape
        self.layers = []
        for window in windows:
            place = (B, K, min(length, window or length), Dh)
            keys, values = (like.detach().new_zeros(place) for _ in range(2))
            self.layers.append(LayerCache(keys, values, length))

    @property
    def n_seen(self) -> int:
        return self.layers[0].n_seen

    def __iter__(self) -> Iterator[LayerCache]:
        return iter(self.layers)

    def __getitem__(self, layer: int) -> LayerCache:
        return self.layers[layer]
