"""What one operation costs: FLOPs, bytes moved, and which unit of the hardware it keeps busy.

FLOPs follow the field's convention: 2 per multiply-accumulate of a matrix product, convolution or
attention, padding taps counted, everything else 0. The rules are `torch.utils.flop_counter`'s but
for the backward of convolutions: PyTorch counts the weight gradient of a grouped convolution once
per group too often (a depthwise layer of 512 channels 512 times), while it is exactly the forward
count. Bytes are what the operation reads and writes once: an ideal cache.
"""

import functools
from collections.abc import Callable, Iterable
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from layerwise.runtime import DTYPES, evaluating

Unit = Literal["matmul", "conv", "depthwise", "attention", "memory"]
Args = tuple[Any, ...]
Rule = Callable[[Args, Any], int]


def _convolution(x: Tensor, weight: Tensor, out: Tensor, transposed: bool) -> int:
    """x (b, c_in, ...), weight (c_out, c_in / groups, ...), out (b, c_out, ...)."""
    pixels = (x if transposed else out).shape[2:]
    return 2 * x.shape[0] * prod(pixels) * prod(weight.shape)


def _convolution_backward(args: Args, out: object) -> int:
    grad_out, x, weight, transposed, mask = args[0], args[1], args[2], args[7], args[10]
    forward = _convolution(x, weight, grad_out, transposed)
    return forward * (int(mask[0]) + int(mask[1]))


def _attention(args: Args, out: object) -> int:
    q, k, v = args[:3]  # (B, H, T, Dh), (B, H, S, Dh)
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _attention_backward(args: Args, out: object) -> int:
    grad, q, k, v = args[:4]
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


RULES: dict[str, tuple[Unit, Rule]] = {
    "aten.convolution": ("conv", lambda a, out: _convolution(a[0], a[1], out, a[6])),
    "aten.convolution_backward": ("conv", _convolution_backward),
    "aten.mv": ("matmul", lambda a, out: 2 * a[0].numel()),
    "aten.addmv": ("matmul", lambda a, out: 2 * a[1].numel()),
    "aten.dot": ("matmul", lambda a, out: 2 * a[0].numel()),
    "mkldnn._linear_pointwise": ("matmul", lambda a, out: 2 * out.numel() * a[0].shape[-1]),
    "aten._scaled_dot_product_flash_attention_for_cpu": ("attention", _attention),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": ("attention", _attention_backward),
}


@functools.cache
def rule(packet: OpOverloadPacket) -> tuple[Unit, Rule | None]:
    """The unit an operation keeps busy and its FLOP formula (None: no arithmetic to speak of)."""
    name = str(packet)
    if name in RULES:
        return RULES[name]
    if packet not in flop_registry:
        return "memory", None
    counter = flop_registry[packet]
    unit: Unit = "attention" if "attention" in name else "conv" if "conv" in name else "matmul"
    return unit, lambda args, out: counter(*args, out_val=out)


def flops_and_unit(func: OpOverload, args: Args, out: object) -> tuple[int, Unit]:
    unit, formula = rule(func.overloadpacket)
    if formula is None:
        return 0, "memory"
    if unit == "conv" and _is_depthwise(func, args):
        unit = "depthwise"
    return int(formula(args, out)), unit


def forward_flops(network: nn.Module, inputs: Tensor) -> int:
    """FLOPs of one forward pass; with a network and inputs on the meta device it costs nothing."""
    counter = _Counter()
    with evaluating(network, gradients=True), torch.no_grad(), counter:
        network(inputs)
    return counter.flops


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: OpOverload, types, args: Args = (), kwargs=None) -> object:
        out = func(*args, **(kwargs or {}))
        if func.namespace not in ("prim", "profiler"):
            self.flops += flops_and_unit(func, args, out)[0]
        return out


def _is_depthwise(func: OpOverload, args: Args) -> bool:
    """One input channel per group: bound by memory, not by the matrix units."""
    weight = args[2] if "backward" in str(func) else args[1]
    return weight.shape[1] == 1 and weight.shape[0] > 1


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments or results, also inside lists and tuples."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(tensors_in(value))
    return found


def nbytes(tensor: Tensor) -> int:
    """Bytes an operation touches of a tensor: expanded axes (stride 0) are there once."""
    shape = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return prod(shape) * tensor.itemsize


@functools.cache
def mutates(func: OpOverload) -> bool:
    return func._schema.is_mutable


def dtype_name(tensors: list[Tensor]) -> str:
    """The arithmetic of an operation: the dtype of its first floating-point tensor."""
    floating = (t.dtype for t in tensors if t.dtype.is_floating_point)
    return next((_NAMES.get(dtype, "fp32") for dtype in floating), "int")


_NAMES = {dtype: name for name, dtype in DTYPES.items()}
