"""A linear layer whose bias costs nothing in training.

Equation: y = x W^T + b.

In bf16 on the CPU PyTorch copies b into every row of y and has the product added to that. Here
oneDNN adds b as it writes y, with the same result: at 2,048 to 4,096 rows the product is 1.02 to
1.13 times as fast (two Zen 4 cores), most where there are few inputs to many outputs.

Shapes: D inputs, F outputs, R rows.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from layerwise.runtime import multiplies_in


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As F.linear. x: (.., D), weight: (F, D), bias: (F,); returns (.., F)."""
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not learns or bias is None or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if dtype != torch.bfloat16 or not multiplies_in(dtype):
        return F.linear(x, weight, bias)
    return cast(Tensor, Biased.apply(x.to(dtype), weight.to(dtype), bias.to(dtype)))


class Biased(torch.autograd.Function):
    """The product with its bias by oneDNN; backward the three products and sums as they are."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        rows = upstream[0].flatten(0, -2)  # (R, F)
        return (
            upstream[0] @ weight if to_x else None,  # (.., D)
            rows.t() @ x.flatten(0, -2) if to_weight else None,  # (F, D)
            rows.sum(0) if to_bias else None,
        )


class Linear(nn.Linear):
    """`linear` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


PLAIN = (nn.Linear, Linear)  # neither adapted nor packed
