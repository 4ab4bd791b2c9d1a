"""Cross-entropy over a large vocabulary that never holds all scores at once.

The last layer and the loss are one function: scores come for a large group of rows, in the
precision of the products, and a few rows at a time their gradients take their place while they lie
in the cache. Large groups, because the gradient of a large vocabulary's weight is then added up a
few times only; for every few rows it took half of a step of GPT-2. (PyTorch 2.13's
`F.linear_cross_entropy` is chunked too; on the CPU in bf16 it takes three times as long as the
plain way, since it multiplies in fp32 there.)

Shapes: N rows, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

CHUNK_SCORES = 1 << 25  # of one chunk: 134 MB in fp32; smaller products are slower
CACHED_SCORES = 1 << 20  # that go through the steps of a softmax together, in a processor's cache
GROUP_BYTES = 1 << 28  # of the scores of one group, and then of their gradients
COLUMNS = 4096  # of scores, for one product of their weights' gradients; on a CPU all is slower


def token_loss(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """The summed cross-entropy of head(hidden) (..., V); targets (...), negative ones left out.

    Computes in autocast's dtype where that is on, sums in fp32 at least. A `softcap` is kept.
    """
    cap = getattr(head, "softcap", 0.0)
    rows, wanted = hidden.flatten(0, -2), targets.flatten()
    fake = isinstance(hidden, FakeTensor)  # of which nobody knows how many are left: all, copied
    if fake or not bool((wanted >= 0).all()):
        keep = torch.arange(len(wanted)) if fake else (wanted >= 0).nonzero()[:, 0]
        rows, wanted = rows.index_select(0, keep), wanted.index_select(0, keep)  # (N, D), (N,)
    return TokenLoss.apply(rows, head.weight, head.bias, wanted, cap, working_dtype(hidden))


@torch.no_grad()
def token_losses(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """The cross-entropy of every position, float32 in the shape of targets; 0 for negative ones."""
    cap = getattr(head, "softcap", 0.0)
    dtype, keep = working_dtype(hidden), targets >= 0
    rows, wanted = hidden[keep].to(dtype), targets[keep]
    weight, bias = head.weight.to(dtype), head.bias
    parts = []
    for group in chunks(len(rows), len(weight)):
        products = rows[group] @ weight.T
        for part in slices(len(products), at_once(products) // len(weight)):
            scores = scores_of(products[part], bias, cap)
            own = scores.gather(1, wanted[group][part, None])[:, 0]
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
    """n rows in parts whose scores are few enough to hold."""
    return slices(n, CHUNK_SCORES // vocabulary)


def at_once(x: Tensor) -> int:
    """How many scores are turned into gradients together."""
    return CACHED_SCORES if x.device.type == "cpu" else CHUNK_SCORES


def slices(n: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(i, min(n, i + size)) for i in range(0, n, size)]


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums of this dtype are taken in."""
    return torch.promote_types(dtype, torch.float32)


def scores_of(products: Tensor, bias: Tensor | None, cap: float) -> Tensor:
    """(n, V) in the dtype of sums; the products themselves may become them."""
    scores = products.to(wide(products.dtype))
    scores = scores if bias is None else scores.add_(bias)
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
        x, w, V = rows.to(dtype), weight.to(dtype), len(weight)
        needs_bias = bias is not None and bias.requires_grad
        sums: dict[str, Any] = {"dtype": wide(dtype), "device": x.device}
        d_rows = torch.empty_like(x)
        d_weight = torch.zeros(w.shape, **sums) if weight.requires_grad else None
        d_bias = torch.zeros(V, **sums) if needs_bias else None
        total = torch.zeros((), **sums)
        for group in slices(len(x), GROUP_BYTES // (V * x.itemsize)):
            d_scores = x[group] @ w.T  # the scores, until their gradients take their place
            for part in slices(len(d_scores), at_once(x) // V):
                scores = scores_of(d_scores[part], bias, cap)
                own = targets[group][part, None]
                slope = 1 - (scores / cap).square() if cap else None
                d = scores.sub_(scores.amax(1, keepdim=True))
                total -= d.gather(1, own).sum()
                sums_of_rows = d.exp_().sum(1, keepdim=True)
                total += sums_of_rows.log().sum()
                d.div_(sums_of_rows)  # the softmax, then its difference to the target
                d.scatter_add_(1, own, d.new_full(own.shape, -1.0))
                d = d if slope is None else d.mul_(slope)
                if d_bias is not None:
                    d_bias += d.sum(0)
                d_scores[part] = d
            torch.mm(d_scores, w, out=d_rows[group])
            if d_weight is not None:
                for part in slices(V, COLUMNS if x.device.type == "cpu" else V):
                    d_weight[part] += d_scores[:, part].T @ x[group]
        ctx.grads = d_rows, d_weight, d_bias
        ctx.dtypes = rows.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (up,) = upstream
        assert ctx.grads is not None, "the gradients of this loss were taken already"
        given = zip(ctx.grads, ctx.dtypes, strict=True)
        ctx.grads = None  # scaled in place, and handed on without a copy
        grads = [None if g is None else g.mul_(up).to(dtype) for g, dtype in given]
        return (*grads, None, None, None)
