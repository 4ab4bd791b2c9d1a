"""Texts longer than the context: one row, read in windows that overlap.

Shapes: B rows, N windows of the row with the most, T tokens of the longest window (rounded up),
n places.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from layerwise.tokens.tokenizer import padded_length


def stack(rows: Sequence[Sequence[np.ndarray]], fill: int, most: int) -> Tensor:
    """Windows (t, ...) of each row as (B, T, ...); as (B, N, T, ...) where a row has several.

    most: tokens that a window may have; T is `padded_length`.
    """
    N, longest = max(map(len, rows)), max(len(w) for row in rows for w in row)
    T = padded_length(longest, most, len(rows))
    like = rows[0][0]
    out = np.full((len(rows), N, T, *like.shape[1:]), fill, like.dtype)
    for b, row in enumerate(rows):
        for n, window in enumerate(row):
            out[b, n, : len(window)] = window
    return torch.from_numpy(out[:, 0] if N == 1 else out)


def mask_of(rows: Sequence[Sequence[np.ndarray]], most: int) -> dict[str, Tensor]:
    """The mask of `stack`, True for tokens; nothing where no row has padding."""
    mask = stack([[np.ones(len(w), bool) for w in row] for row in rows], False, most)
    return {} if bool(mask.all()) else {"mask": mask}


def owners(starts: np.ndarray, size: int, n: int) -> np.ndarray:
    """Of the windows of `size` places from `starts`, which shows most around each place: (n,)."""
    place = np.arange(n)
    around = np.minimum(place - starts[:, None], (starts[:, None] + size).clip(max=n) - 1 - place)
    return around.argmax(0)
