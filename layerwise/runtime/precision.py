"""Which library multiplies fp32 matrices: `F.linear`, mm and bmm, forward and backward alike.

PyTorch's default on x86 is MKL, whose fast kernels are reserved to Intel's processors. PyTorch can
send the same products to oneDNN instead, but only through a switch that permits bf16 inside. oneDNN
makes use of that permission where the processor has AMX tiles; without them it computes in fp32.
So the switch is set only on processors of other vendors without AMX, and only after products in
every layout of a training step agreed with float64.

The choice follows from the processor and the arithmetic alone, never from a timing: a run that is
resumed must not change its library, and with it the last bits of its results.

Shapes: M rows, K inputs, N outputs.
"""

import os
import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layerwise.runtime import cpu_field

TOLERANCE = 1e-6  # relative to the norm of the exact result; bf16 inside would give about 3e-3
SHAPES = ((96, 256, 160), (33, 515, 67), (256, 64, 128))  # M, K, N: whole tiles and ragged ones


def choose_fp32_matmul() -> str:
    """Send fp32 matrix products to the faster exact library of this processor; say which and why.

    Sets PyTorch's process-wide switch, to be called once at start. `LAYERWISE_FP32_MATMUL=default`
    leaves everything as PyTorch has it. Returns a sentence, or "" where there is nothing to choose.
    """
    if os.environ.get("LAYERWISE_FP32_MATMUL") == "default":
        return "fp32 products by PyTorch's default: as asked"
    reason = why_not()
    if reason is not None:
        return reason
    switch: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 - added as it is imported
    before, switch.fp32_precision = switch.fp32_precision, "bf16"
    error = largest_error()
    if error < TOLERANCE:
        return f"fp32 products by oneDNN, exact to {error:.0e} against float64 (MKL is slow here)"
    switch.fp32_precision = before
    return f"fp32 products by PyTorch's default: oneDNN's error of {error:.0e} is not that of fp32"


def why_not() -> str | None:
    """Why oneDNN is not to be tried on this machine; None when it is."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return ""
    if not torch.backends.mkl.is_available() or vendor() == "GenuineIntel":
        return ""  # MKL is fast on Intel's; a build without MKL has its own reasons
    if not torch.cpu._is_avx512_supported():
        return ""  # then PyTorch does not honour the switch
    if torch.cpu._is_amx_tile_supported():
        return "fp32 products by PyTorch's default: with AMX, oneDNN would round to bf16"
    return None


def vendor() -> str:
    """The processor's vendor as it names itself ("AuthenticAMD", "GenuineIntel"), "" if unknown."""
    return cpu_field("vendor_id") or ("GenuineIntel" if "Intel" in platform.processor() else "")


def largest_error() -> float:
    """Of forward and backward over `SHAPES`: the largest relative error against float64."""
    generator = torch.Generator().manual_seed(0)
    return max(step_error(*shape, generator) for shape in SHAPES)


def step_error(M: int, K: int, N: int, generator: torch.Generator) -> float:
    """The largest relative error of a linear layer's result and of its gradients, and of bmm."""
    shapes = ((M, K), (N, K), (N,), (M, N))  # inputs, weight, bias, gradient of the outputs
    given = [torch.randn(*shape, generator=generator) for shape in shapes]
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        ours, exact = products(*given), products(*(t.double() for t in given))
    errors = [(o.double() - e).norm() / e.norm() for o, e in zip(ours, exact, strict=True)]
    worst = torch.stack(errors).max()
    return float(worst) if worst.isfinite() else float("inf")


def products(inputs: Tensor, weight: Tensor, bias: Tensor, upstream: Tensor) -> list[Tensor]:
    """What a step computes: outputs, gradients of inputs and weight, and a batch of products."""
    pair = torch.stack((inputs, inputs.flip(0)))  # (2, M, K)
    return [
        F.linear(inputs, weight, bias),  # (M, N)
        upstream @ weight,  # (M, K)
        upstream.T @ inputs,  # (N, K)
        torch.bmm(pair, weight.T.expand(2, -1, -1)),  # (2, M, N)
    ]
