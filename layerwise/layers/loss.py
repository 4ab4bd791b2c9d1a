"""Cross-entropy over a large vocabulary without the scores ever being held whole.

The last layer and the loss are one function: scores come in chunks of rows, and the gradient of a
chunk is taken while it is at hand. Memory is that of one chunk instead of three times N x V, the
time that of the plain way. (PyTorch 2.13's `F.linear_cross_entropy` does the same; on the CPU in
bf16 it takes three times as long, since it multiplies in fp32 there.)

Shapes: N rows, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

CHUNK_SCORES = 1 << 22  # of one chunk: 16 MB in fp32, what caches and allocator like


def token_loss(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """The summed cross-entropy of head(hidden) (..., V); targets (...), negative ones left out.

    Computes in autocast's dtype where that is on, sums in fp32 at least. A `softcap` is kept.
    """
    cap = getattr(head, "softcap", 0.0)
    rows, wanted = hidden.flatten(0, -2), targets.flatten()
    if not isinstance(hidden, FakeTensor):  # of which nobody knows how many are left
        keep = wanted >= 0
        rows, wanted = rows[keep], wanted[keep]  # (N, D), (N,)
    return TokenLoss.apply(rows, head.weight, head.bias, wanted, cap, working_dtype(hidden))


@torch.no_grad()
def token_losses(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """The cross-entropy of every position, float32 in the shape of targets; 0 for negative ones."""
    cap = getattr(head, "softcap", 0.0)
    dtype, keep = working_dtype(hidden), targets >= 0
    rows, wanted = hidden[keep].to(dtype), targets[keep]
    weight, bias = head.weight.to(dtype), head.bias
    parts = []
    for part in chunks(len(rows), len(weight)):
        scores = capped(scores_of(rows[part], weight, bias), cap)
        own = scores.gather(1, wanted[part, None])[:, 0]
        parts.append(torch.logsumexp(scores, 1) - own)
    out = torch.zeros(targets.shape, device=hidden.device)
    out[keep] = torch.cat(parts) if parts else out.new_zeros(0)
    return out


def n_with_loss(targets: Tensor) -> int:
    """How many targets carry loss; of tensors without values, all."""
    return targets.numel() if isinstance(targets, FakeTensor) else int((targets >= 0).sum())


def working_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def chunks(n: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_SCORES // vocabulary)
    return [slice(i, i + size) for i in range(0, n, size)]


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums of this dtype are taken in."""
    return torch.promote_types(dtype, torch.float32)


def scores_of(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    scores = (rows @ weight.T).to(wide(rows.dtype))  # (n, V)
    return scores if bias is None else scores.add_(bias)


def capped(scores: Tensor, cap: float) -> Tensor:
    return scores.div_(cap).tanh_().mul_(cap) if cap else scores


class TokenLoss(torch.autograd.Function):
    """The gradients of hidden, weight and bias are those of the sum, taken during the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        cap: float,
        dtype: torch.dtype,
    ) -> Tensor:
        x, w = rows.to(dtype), weight.to(dtype)
        learns = [rows.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad]
        d_rows = torch.empty_like(x)
        sums = {"dtype": wide(dtype), "device": x.device}
        d_weight = torch.zeros(weight.shape, **sums) if learns[1] else None
        d_bias, total = torch.zeros(len(weight), **sums), torch.zeros((), **sums)
        for part in chunks(len(x), len(w)):
            scores = capped(scores_of(x[part], w, bias), cap)
            own = targets[part, None]
            norm = torch.logsumexp(scores, 1, keepdim=True)
            total += (norm - scores.gather(1, own)).sum()
            slope = 1 - (scores / cap).square() if cap else None
            d = scores.sub_(norm).exp_()  # the softmax, then its difference to the target
            d.scatter_add_(1, own, d.new_full(own.shape, -1.0))
            if slope is not None:
                d *= slope
            if learns[2]:
                d_bias += d.sum(0)
            d = d.to(dtype)
            d_rows[part] = d @ w
            if d_weight is not None:
                d_weight += d.T @ x[part]
        ctx.save_for_backward(d_rows, d_weight, d_bias if learns[2] else None)
        ctx.dtypes = rows.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (up,) = upstream
        given = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        grads = [None if g is None else (g * up).to(dtype) for g, dtype in given]
        return (*grads, None, None, None)
