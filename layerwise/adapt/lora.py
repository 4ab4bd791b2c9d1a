"""LoRA: train a small low-rank update beside each frozen matrix, and add it in when done.

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
y = W x + (alpha / rank) B A x, with A (rank, n_in) random and B (n_out, rank) zero at the start, so
the adapted network first equals the base.

Departures from the paper
- Every linear layer below the head is adapted, not two of the attention's four; 1 x 1 convolutions
  too when asked. The head, fresh for a new task, trains whole.
- A module is adapted in place, by giving it a class that adds the update to what its own class
  computes. So tensor names, hooks and every reference to it stay as they are; `lora_a` and `lora_b`
  come beside `weight`.

Shapes: b rows, r rank.
"""

import fnmatch
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise import runtime
from layerwise.errors import OptionError, WeightsError

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
HEAD = "head"


@dataclass(frozen=True)
class Certificate:
    """The merged network was run beside the adapted one: `largest` is the largest difference of an
    output, relative to the largest output."""

    modules: tuple[str, ...]
    largest: float
    tolerance: float


class LowRank(nn.Module):
    """Put before a linear or 1 x 1 convolution class: adds the update to its output."""

    lora_a: nn.Parameter  # (r, n_in)
    lora_b: nn.Parameter  # (n_out, r)
    lora_scale: float

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.lora_scale * self.update_of(x)

    def update_of(self, x: Tensor) -> Tensor:
        if isinstance(self, nn.Linear):
            return F.linear(F.linear(x, self.lora_a), self.lora_b)
        a, b = self.lora_a[:, :, None, None], self.lora_b[:, :, None, None]
        return F.conv2d(F.conv2d(x, a, stride=self.stride), b)  # type: ignore[arg-type]

    def delta(self) -> Tensor:
        """What merging adds to the weight, in its shape."""
        product = self.lora_b.double() @ self.lora_a.double()
        return (self.lora_scale * product).view(self.weight.shape)  # type: ignore[arg-type]


@cache
def adapted(kind: type[nn.Module]) -> type[nn.Module]:
    """The class `kind` with a low-rank update."""
    return type(f"LoRA{kind.__name__}", (LowRank, kind), {})


# ---- set up ----------------------------------------------------------------------------------


def add_lora(
    network: nn.Module,
    rank: int = 8,
    alpha: float | None = None,
    where: str = "*",
    convs: bool = False,
    seed: int = 0,
) -> list[str]:
    """Adapt the linear layers below the head, freeze the rest but the head; their names.

    alpha: scale of the update, times 1 / rank; 2 x rank when left out. where: a pattern of module
    names, e.g. "*.q_proj". convs: 1 x 1 convolutions (groups 1) as well. A rank above the smaller
    side of a matrix is taken as that side.
    Errors: OptionError for a rank below 1 or when nothing fits; the network is left as it was.
    """
    if rank < 1:
        raise OptionError(f"--lora-rank must be 1 or more; {rank} was given")
    if adapters(network):
        raise OptionError("the network has LoRA updates already; merge or remove them first")
    found = {n: m for n, m in candidates(network, convs) if fnmatch.fnmatch(n, where)}
    if not found:
        kinds = "linear layer or 1 x 1 convolution" if convs else "linear layer"
        raise OptionError(
            f"no {kinds} below the head is called '{where}', so LoRA has nothing to adapt; use "
            "--method full"
        )
    network.requires_grad_(False)
    network.get_submodule(HEAD).requires_grad_(True)
    for i, module in enumerate(found.values()):
        adapt(module, rank, 2.0 * rank if alpha is None else alpha, runtime.generator(seed, i))
    return list(found)


def candidates(network: nn.Module, convs: bool) -> Iterator[tuple[str, nn.Module]]:
    """Modules below the head that can be adapted."""
    for name, module in network.named_modules():
        if name == HEAD or name.startswith(HEAD + "."):
            continue
        if isinstance(module, nn.Linear) or (convs and is_pointwise(module)):
            yield name, module


def is_pointwise(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    plain = module.groups == 1 and module.padding in ((0, 0), "same", "valid")
    return module.kernel_size == (1, 1) and plain


def adapt(module: nn.Module, rank: int, alpha: float, generator: torch.Generator) -> None:
    """Turn one module into its adapted self."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    n_out, n_in = weight.shape[:2]
    rank = min(rank, n_out, n_in)
    a = torch.rand(rank, n_in, generator=generator).mul(2).sub(1) / math.sqrt(n_in)
    module.lora_a = nn.Parameter(a.to(weight))
    module.lora_b = nn.Parameter(weight.new_zeros(n_out, rank))
    module.lora_scale = alpha / rank  # type: ignore[assignment]
    module.__class__ = adapted(type(module))


def restore(module: nn.Module) -> None:
    """Back to the module's own class, without the update."""
    del module.lora_a, module.lora_b, module.lora_scale
    module.__class__ = type(module).__mro__[2]  # (adapted, LowRank, kind, ...)


def adapters(network: nn.Module) -> dict[str, LowRank]:
    """The adapted modules by name."""
    return {n: m for n, m in network.named_modules() if isinstance(m, LowRank)}


def remove_lora(network: nn.Module) -> None:
    """Drop all updates: the base as it was (the head keeps what it learned)."""
    for module in adapters(network).values():
        restore(module)


# ---- merge -----------------------------------------------------------------------------------


def merge(network: nn.Module, inputs: Tensor, tolerance: float | None = None) -> Certificate:
    """Add the updates to the weights, and prove on `inputs` that the network says the same.

    inputs: a batch as `forward` takes it. tolerance: relative; 1e-5 in fp32 when left out.
    Errors: WeightsError when an output differs by more; the network then is adapted as before.
    """

    def run() -> Tensor:
        with runtime.evaluating(network):
            return network(inputs).double()

    return merge_checked(network, run, tolerance)


def merge_all(network: nn.Module, tolerance: float | None = None) -> Certificate:
    """As `merge`, without inputs: each module is proved by itself, on random inputs."""
    modules = [network.get_submodule(name) for name in adapters(network)]
    scales = [probe(m, i).abs().max().clamp_min(1e-12) for i, m in enumerate(modules)]

    def run() -> Tensor:
        return torch.cat([probe(m, i) / scales[i] for i, m in enumerate(modules)])

    return merge_checked(network, run, tolerance)


@torch.no_grad()
def probe(module: nn.Module, seed: int, rows: int = 16) -> Tensor:
    """Outputs of one module on random inputs, flat."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    shape = (rows, weight.shape[1]) + (1, 1) * isinstance(module, nn.Conv2d)
    x = torch.randn(shape, generator=runtime.generator(seed)).to(weight)
    return module(x).double().flatten()


def merge_checked(
    network: nn.Module, run: Callable[[], Tensor], tolerance: float | None
) -> Certificate:
    found = adapters(network)
    if not found:
        raise OptionError("the network has no LoRA updates to merge")
    dtype = next(iter(found.values())).weight.dtype
    if tolerance is None:
        tolerance = TOLERANCE[dtype]  # type: ignore[index]
    before = run()
    with undone_on_error(found):
        after = run()
        largest = float((after - before).abs().max() / before.abs().max().clamp_min(1e-12))
        if not largest <= tolerance:
            raise WeightsError(
                f"merging the LoRA updates changes an output by {largest:.2g} of the largest one, "
                f"more than {tolerance:.2g}: the network was left unmerged. Weights in {dtype} "
                "round the update away; merge in fp32, or allow a larger tolerance"
            )
    return Certificate(tuple(found), largest, tolerance)


@contextmanager
def undone_on_error(found: dict[str, LowRank]) -> Iterator[None]:
    """Merged inside; if the body fails, everything is as before."""
    kept: list[tuple[nn.Module, Tensor, dict[str, Any]]] = []
    for module in found.values():
        weight: Tensor = module.weight  # type: ignore[assignment]
        update = {key: getattr(module, key) for key in ("lora_a", "lora_b", "lora_scale")}
        kept.append((module, weight.detach().clone(), update))
        with torch.no_grad():
            weight.copy_(weight.double() + module.delta())
        restore(module)
    try:
        yield
    except BaseException:
        for module, weight, update in kept:
            with torch.no_grad():
                module.weight.copy_(weight)  # type: ignore[operator, union-attr]
            for key, value in update.items():
                setattr(module, key, value)
            module.__class__ = adapted(type(module))
        raise


# ---- keep ------------------------------------------------------------------------------------


def adapter_tensors(network: nn.Module) -> dict[str, Tensor]:
    """What training changed, a few percent of the network: the updates and the head."""
    chosen = [*(f"{n}.lora_{x}" for n in adapters(network) for x in "ab")]
    state = network.state_dict()
    return {n: t for n, t in state.items() if n in chosen or n.startswith(HEAD + ".")}


def load_adapter(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put saved `adapter_tensors` into a network with the same LoRA set-up and head.

    Errors: WeightsError that lists what is missing, left over, or of another shape.
    """
    wanted = adapter_tensors(network)
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    other = [
        f"{n} {tuple(tensors[n].shape)} instead of {tuple(wanted[n].shape)}"
        for n in sorted(wanted.keys() & tensors.keys())
        if tensors[n].shape != wanted[n].shape
    ]
    if missing or extra or other:
        raise WeightsError(
            "the adapter belongs to another set-up: "
            f"missing {missing or 'nothing'}, left over {extra or 'nothing'}, "
            f"of another shape {other or 'nothing'}; give the same rank, pattern and head"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
