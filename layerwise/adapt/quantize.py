"""Frozen linear layers packed in 8 or 4 bits: the base of QLoRA.

Paper: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314.
8 bits: each row of the weight as integers in -127 .. 127 and a step size. 4 bits:
NormalFloat (section 3 and appendix E), blocks of 64 with a scale each, the scales in 8 bits by
groups of 256 (double quantisation): 4.13 bits a weight.
A packed weight is unpacked for one product at a time, forward and backward, and never kept. It lies
in buffers, so it is saved and moved with the network, and no optimiser sees it.

Departures: scales are signed 8-bit integers around their mean, not 8-bit floats.

Shapes: n blocks.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.errors import OptionError, WeightsError
from layerwise.layers.linear import PLAIN

HEADS = ("head", "transform")  # fresh for a new task, so they train whole
BLOCK, GROUP = 64, 256
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
BUFFERS = ("codes", "scales", "steps", "mean")  # the last two in 4 bits alone


# ---- numbers ---------------------------------------------------------------------------------


def pack(weight: Tensor, bits: int) -> list[Tensor]:
    """The weight (n_out, n_in) in 8 or 4 bits: what BUFFERS names."""
    weight = weight.detach().float()
    if bits == 8:
        return list(to_int8(weight))
    blocks = in_rows(weight.flatten(), BLOCK)  # (n, 64)
    largest = blocks.abs().amax(1)
    unit = blocks / largest.clamp_min(1e-30)[:, None]
    codes = torch.zeros_like(unit, dtype=torch.uint8)
    for low, high in pairwise(NF4):  # faster than bucketize
        codes += unit > (low + high) / 2
    codes, mean = codes.flatten(), largest.mean()
    steps, scales = to_int8(in_rows(largest - mean, GROUP))
    return [codes[::2] * 16 + codes[1::2], scales, steps, mean]


def to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Integers in -127 .. 127, and the step size of each row, (rows, 1)."""
    step = rows.abs().amax(1, keepdim=True) / 127
    return (rows / step.clamp_min(1e-30)).round().to(torch.int8), step


def in_rows(flat: Tensor, width: int) -> Tensor:
    """(rows, width), padded with zeros."""
    return F.pad(flat, (0, -len(flat) % width)).view(-1, width)


def unpack(packed: Iterable[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight again, of this shape."""
    codes, scales, *more = packed
    if not more:
        return (codes * scales).to(dtype)
    steps, mean = more
    table = torch.tensor(NF4, device=codes.device)
    pairs = torch.stack([table.repeat_interleave(16), table.repeat(16)], 1)  # (256, 2)
    blocks = F.embedding(codes.int(), pairs).view(-1, BLOCK)
    blocks = blocks * (steps * scales + mean).flatten()[: len(blocks), None]
    return blocks.flatten()[: shape.numel()].view(shape).to(dtype)


class Product(torch.autograd.Function):
    """x (.., n_in) times a packed weight: (.., n_out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: torch.Size, *packed: Tensor) -> Tensor:
        ctx.shape = shape
        ctx.save_for_backward(*packed)
        return F.linear(x, unpack(packed, shape, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        packed = ctx.saved_tensors
        return grads[0] @ unpack(packed, ctx.shape, grads[0].dtype), *[None] * (1 + len(packed))


# ---- modules ---------------------------------------------------------------------------------


class Packed(nn.Module):
    """Put before nn.Linear: its weight lies packed in buffers."""

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.out_features, self.in_features))

    @property
    def n_packed(self) -> int:
        """How many weights are packed; the plan counts them."""
        return self.shape.numel()

    @property
    def packed(self) -> list[Tensor]:
        return [self.get_buffer(n) for n in BUFFERS if n in self._buffers]

    @property
    def weight(self) -> Tensor:
        """Unpacked, in float32."""
        return unpack(self.packed, self.shape, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = Product.apply(x, self.shape, *self.packed)
        return y if self.bias is None else y + self.bias.to(y.dtype)


@cache
def packed_class(kind: type[nn.Linear]) -> type[nn.Linear]:
    return type(f"Packed{kind.__name__}", (Packed, kind), {})


def linears_below_head(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in network.named_modules():
        if name.split(".")[0] not in HEADS and isinstance(module, nn.Linear):
            yield name, module


def quantize(network: nn.Module, bits: int) -> int:
    """Pack every linear layer below the head in 8 or 4 bits; how many there were.

    Nothing but what is put on top of them (LoRA) trains then. Embeddings and norms stay.
    Errors: OptionError for another number of bits or without such a layer; WeightsError for
    weights that are not finite.
    """
    if bits not in (4, 8):
        raise OptionError(f"--quantize takes 8 or 4 bits; {bits} was given")
    found = {n: m for n, m in linears_below_head(network) if type(m) in PLAIN}
    if not found:
        raise OptionError("no plain linear layer below the head to quantize; leave --quantize out")
    for name, module in found.items():
        if not module.weight.isfinite().all():
            raise WeightsError(f"{name}.weight is not finite, so {bits} bits cannot hold it")
    for module in found.values():
        packed = pack(module.weight, bits)
        del module.weight
        for name, tensor in zip(BUFFERS, packed, strict=False):
            module.register_buffer(name, tensor)
        module.__class__ = packed_class(type(module))
    return len(found)


def unpack_module(module: Packed) -> None:
    """Back to its own class, with the weight as packing left it."""
    weight = module.weight
    for name in BUFFERS:
        module._buffers.pop(name, None)
    module.__class__ = type(module).__mro__[2]
    module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
