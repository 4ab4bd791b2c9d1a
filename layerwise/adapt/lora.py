"""LoRA: train a small low-rank update beside each frozen matrix, and add it in when done.

Papers: LoRA, Hu et al., arXiv:2106.09685; rsLoRA, Kalajdzievski, arXiv:2312.03732; DoRA, Liu et
al., arXiv:2402.09353.
y = W x + s B A x, with A (rank, n_in) random and B (n_out, rank) zero at the start, so the adapted
network first equals the base. s is alpha / rank, in rsLoRA alpha / sqrt(rank). DoRA also learns
the length of each row of W + s B A; the length it had is taken as constant in backward (4.3).

Departures from the papers
- Every linear layer below the head is adapted, not two of the attention's four. The head, fresh
  for a new task, trains whole.
- A module is adapted in place, by giving it a class that adds the update to what its own class
  computes. So tensor names, hooks and every reference to it stay as they are; `lora_a`, `lora_b`
  and DoRA's `lora_m` come beside `weight`, which may be packed in few bits (adapt/quantize.py).

Shapes: r rank.
"""

import fnmatch
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise import runtime
from layerwise.adapt.quantize import HEADS, Packed, linears_below_head, unpack_module
from layerwise.errors import OptionError, WeightsError, unknown
from layerwise.layers.dropout import dropout

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
VARIANTS = ("lora", "rslora", "dora")
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Update:
    """What one module's update is, beside its tensors."""

    rank: int
    alpha: float
    rs: bool = False  # alpha is over sqrt(rank), not rank
    dora: bool = False
    dropout: float = 0.0  # of what enters A, in training

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rs else self.rank)


@dataclass(frozen=True)
class Certificate:
    """The merged network was run beside the adapted one on `rows` golden inputs: the largest
    difference of an output, and that relative to the largest output."""

    modules: int
    rows: int
    largest: float
    relative: float
    tolerance: float  # of `relative`

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class LowRank(nn.Module):
    """Put before a linear class: adds the update to its output."""

    weight: Tensor  # of that class, and so is the bias
    bias: Tensor | None
    lora: Update
    lora_a: nn.Parameter  # (r, n_in)
    lora_b: nn.Parameter  # (n_out, r)
    lora_m: nn.Parameter | None  # (n_out,) lengths of the rows, DoRA's

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        x = dropout(x, self.lora.dropout, self.training)
        added = self.lora.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)
        if self.lora_m is None:
            return y + added
        bias = 0 if self.bias is None else self.bias.to(y.dtype)
        gain = self.lora_m / self.lengths()  # (n_out,)
        return (y - bias + added) * gain.to(y.dtype) + bias

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """Of the rows of W + s B A, (n_out,)."""
        with torch.autocast(self.lora_a.device.type, enabled=False):
            a, b, scale = self.lora_a, self.lora_b, self.lora.scale
            return torch.addmm(self.weight, b, a, alpha=scale).norm(dim=1)

    def merged(self) -> Tensor:
        """The weight that does the same without an update, (n_out, n_in), in float64."""
        delta = self.lora.scale * (self.lora_b.double() @ self.lora_a.double())
        weight = self.weight.double() + delta
        if self.lora_m is not None:
            weight *= (self.lora_m.double() / weight.norm(dim=1))[:, None]
        return weight


@cache
def adapted(kind: type[nn.Linear]) -> type[nn.Linear]:
    """The class `kind` with a low-rank update."""
    return type(f"LoRA{kind.__name__}", (LowRank, kind), {})


# ---- set up ----------------------------------------------------------------------------------


def add_lora(
    network: nn.Module,
    rank: int = 8,
    alpha: float = 0.0,
    variant: str = "lora",
    dropout: float = 0.0,
    where: str = "*",
    train_head: bool = True,
    seed: int = 0,
) -> list[str]:
    """Adapt the linear layers below the head, freeze the rest but the head; their names.

    alpha: see the top; 0 for 2 x rank, in rsLoRA for 16. variant: "lora", "rslora" or "dora".
    where: patterns of module names with commas between, of the whole name or its last part, e.g.
    "q_proj,v_proj". train_head: False freezes the head as well, where it is not fresh. A rank above
    the smaller side of a matrix is taken as that side.
    Errors: OptionError for a rank below 1 or when nothing fits; the network is left as it was.
    """
    if rank < 1:
        raise OptionError(f"--lora-rank must be 1 or more; {rank} was given")
    if variant not in VARIANTS:
        raise unknown("value of --lora-variant", variant, VARIANTS)
    refuse_adapted(network)
    patterns = where.split(",")
    below = linears_below_head(network)
    found = {n: m for n, m in below if any(fits(n, p.strip()) for p in patterns)}
    if not found:
        raise OptionError(
            f"no linear layer below the head is called '{where}', so LoRA has nothing to adapt; "
            "use --method full"
        )
    network.requires_grad_(False)
    for name in HEADS:
        if train_head and name in dict(network.named_children()):
            network.get_submodule(name).requires_grad_(True)
    alpha = alpha or (16.0 if variant == "rslora" else 2.0 * rank)
    for i, module in enumerate(found.values()):
        own = min(rank, module.in_features, module.out_features)
        update = Update(own, alpha, variant == "rslora", variant == "dora", dropout)
        adapt(module, update, runtime.generator(seed, i))
    return list(found)


def refuse_adapted(network: nn.Module) -> None:
    if adapters(network):
        raise OptionError("the network has LoRA updates already; merge them first")


def fits(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(n, pattern) for n in (name, name.rsplit(".", 1)[-1]))


def adapt(module: nn.Linear, update: Update, generator: torch.Generator | None = None) -> LowRank:
    """Give one module the class that adds an update, which adds nothing yet."""
    weight, (n_out, n_in) = module.weight, module.weight.shape
    a = torch.rand(update.rank, n_in, generator=generator).mul(2).sub(1) / math.sqrt(n_in)
    lengths = nn.Parameter(weight.detach().norm(dim=1)) if update.dora else None
    module.__class__ = adapted(type(module))
    assert isinstance(module, LowRank)
    module.lora, module.lora_a = update, nn.Parameter(a.to(weight))
    module.lora_b = nn.Parameter(weight.new_zeros(n_out, update.rank))
    module.register_parameter("lora_m", lengths)
    return module


def adapters(network: nn.Module) -> dict[str, LowRank]:
    """The adapted modules by name."""
    return {n: m for n, m in network.named_modules() if isinstance(m, LowRank)}


# ---- merge -----------------------------------------------------------------------------------


def merge(
    network: nn.Module, run: Run | None = None, rows: int = 16, tolerance: float | None = None
) -> Certificate:
    """Add the updates to the weights, and prove that the network says the same.

    Packed weights are unpacked, since an update would be rounded away on them.

    run: gives the network's outputs on `rows` golden inputs; without it each module is proved by
    itself, on random inputs. tolerance: relative; 1e-5 in fp32 when left out.
    Errors: WeightsError when an output differs by more; the network then is adapted as before.
    """
    found = adapters(network)
    if not found:
        raise OptionError("the network has no LoRA updates to merge")
    if tolerance is None:
        tolerance = TOLERANCE[next(iter(found.values())).lora_a.dtype]
    run = run or proof(list(found.values()), rows)
    packed = [m for m in network.modules() if isinstance(m, Packed) and not isinstance(m, LowRank)]
    touched = [*found.values(), *packed]
    with runtime.evaluating(network, gradients=True), torch.no_grad(), undone_on_error(touched):
        before = run().double()
        scale = before.abs().max().clamp_min(1e-12)
        for module in found.values():
            absorb(module)
        for module in packed:
            unpack_module(module)
        largest = float((run().double() - before).abs().max())
        certificate = Certificate(len(found), rows, largest, largest / float(scale), tolerance)
        if not certificate.relative <= tolerance:
            raise WeightsError(
                f"merging the LoRA updates changes an output by {largest:.2g}, "
                f"{certificate.relative:.2g} of the largest one, more than {tolerance:.2g}: the "
                "network was left unmerged. The dtype of its weights rounds the update away; merge "
                "in fp32, or allow a larger tolerance"
            )
    return certificate


def proof(modules: list[LowRank], rows: int) -> Run:
    """Runs each module by itself on random inputs; its outputs relative to their largest."""
    inputs = [
        torch.randn(rows, a.shape[1], generator=runtime.generator(i)).to(a.detach())
        for i, a in enumerate(m.lora_a for m in modules)
    ]

    def outputs() -> list[Tensor]:
        return [m(x).double().flatten() for m, x in zip(modules, inputs, strict=True)]

    with torch.no_grad():
        scales = [y.abs().max().clamp_min(1e-12) for y in outputs()]
    return lambda: torch.cat([y / s for y, s in zip(outputs(), scales, strict=True)])


def absorb(module: LowRank) -> None:
    """Back to the module's own class, with the update in its weight."""
    weight = module.merged().to(module.lora_a.dtype)
    del module.lora_a, module.lora_b, module.lora_m, module.lora
    module.__class__ = type(module).__mro__[2]  # (adapted, LowRank, kind, ...)
    if isinstance(module, Packed):
        unpack_module(module)
    module.weight = nn.Parameter(weight, requires_grad=False)


@contextmanager
def undone_on_error(modules: list[nn.Module]) -> Iterator[None]:
    """If the body fails, these modules are as before."""
    kept = [
        (m, type(m), {**vars(m), "_parameters": dict(m._parameters), "_buffers": dict(m._buffers)})
        for m in modules
    ]
    try:
        yield
    except BaseException:
        for module, kind, before in kept:
            module.__class__ = kind
            vars(module).update(before)
        raise
