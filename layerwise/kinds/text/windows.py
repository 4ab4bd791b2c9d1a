"""Texts longer than the context: one row, read in windows that overlap.

Shapes: B rows, N windows of the row with the most, T tokens of the longest window (rounded up),
n places.
"""

from collections.abc import Mapping, Sequence

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


def stacked(
    rows: Sequence[Mapping[str, list[np.ndarray]]], fill: Mapping[str, int], most: int
) -> dict[str, Tensor]:
    """The windows of each row as tensors by name, see `stack`; and their mask, True for tokens,
    where some are padding. fill: the values of padding."""
    out = {name: stack([row[name] for row in rows], value, most) for name, value in fill.items()}
    mask = stack([[np.ones(len(w), bool) for w in row["tokens"]] for row in rows], False, most)
    return out if bool(mask.all()) else out | {"mask": mask}


def owners(starts: np.ndarray, size: int, n: int) -> np.ndarray:
    """Of the windows of `size` places from `starts`, which shows most around each place: (n,)."""
    place = np.arange(n)
    around = np.minimum(place - starts[:, None], (starts[:, None] + size).clip(max=n) - 1 - place)
    return around.argmax(0)
