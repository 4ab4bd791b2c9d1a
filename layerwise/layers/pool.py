"""One vector for a text, from the vectors of its positions.

Source: Reimers and Gurevych, "Sentence-BERT", arXiv:1908.10084, section 3.

Shapes: B texts, T positions, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

POOLINGS = ("mean", "cls")


def pool(x: Tensor, mask: Tensor | None, how: str = "mean", normalise: bool = True) -> Tensor:
    """(B, T, D) to (B, D), fp32 at least: the mean of the tokens ("mean") or the first ("cls").

    mask: (B, T) bool, True for tokens, False for padding. normalise: to length 1.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    pooled = x[:, 0] if how == "cls" else mean_over(x, mask)
    return F.normalize(pooled, dim=-1) if normalise else pooled


def mean_over(x: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the positions that are not padding; (B, T, D) and (B, T) to (B, D)."""
    if mask is None:
        return x.mean(dim=1)
    weights = mask.to(x.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    with torch.autocast(x.device.type, enabled=False):  # a product, but not for bf16
        return (weights[:, None] @ x)[:, 0]
