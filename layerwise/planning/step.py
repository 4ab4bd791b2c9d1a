"""What one step of a plan is: its setting, and the step itself, for rehearsals and measurements.

The same function runs on fake tensors (to count) and on real ones (to time); forward and backward
of a step are the training loop's own.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from layerwise.data.examples import Batch
from layerwise.errors import OptionError, unknown
from layerwise.models.network import Network
from layerwise.planning.optimizers import NAMES, Optimizer
from layerwise.runtime import DTYPES

Builder = Callable[[], Network]


@dataclass(frozen=True)
class Setting:
    """What decides the cost of a step beside the network and its loss."""

    device_batch_size: int
    grad_accum_steps: int = 1
    optimizer: Optimizer = "adamw"  # a name, or a function of the network that makes one
    dtype: str = "fp32"  # of the arithmetic: "fp32", "bf16" or "fp16"; weights stay in fp32
    checkpointing: bool = False  # keep each layer's input only, compute the rest again in backward
    freeze: bool = False  # train the head alone
    grad_clip: bool = True
    ema: bool = False  # a running mean of the weights beside them

    def __post_init__(self) -> None:
        if self.device_batch_size < 1 or self.grad_accum_steps < 1:
            raise OptionError(
                f"device_batch_size {self.device_batch_size} and grad_accum_steps "
                f"{self.grad_accum_steps} must both be at least 1"
            )
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        if isinstance(self.optimizer, str) and self.optimizer not in NAMES:
            raise unknown("optimizer", self.optimizer, NAMES)

    @property
    def global_batch_size(self) -> int:
        return self.device_batch_size * self.grad_accum_steps

    def with_device_batch(self, size: int) -> "Setting":
        """Smaller micro-batches, as many as keep the global batch (rounded up)."""
        parts = -(-self.global_batch_size // size)
        return replace(self, device_batch_size=size, grad_accum_steps=parts)


def built(network: Network | Builder) -> Network:
    return network if isinstance(network, nn.Module) else network()  # type: ignore[return-value]  # families do not inherit from Network


def prepare(network: Network, setting: Setting) -> None:
    """Bring a network that nobody else uses into the state that the setting asks for."""
    network.train()
    layers = network.layers()
    if setting.freeze:
        network.requires_grad_(False)
        list(layers.values())[-1].requires_grad_(True)
    if setting.checkpointing:
        checkpoint_layers(layers)


def checkpoint_layers(layers: dict[str, nn.Module]) -> None:
    """From now on these layers keep their input only and compute the rest again in backward."""
    from torch.utils.checkpoint import checkpoint

    for layer in layers.values():
        run = layer.forward
        layer.forward = lambda *args, run=run, **kwargs: checkpoint(
            run, *args, use_reentrant=False, **kwargs
        )


def stretched(batch: Batch, setting: Setting, device: str = "cpu") -> Batch:
    """The example batch with as many rows as one whole step has, over and over; same memory layout.

    An example without values (on the meta device, or fake) gives tensors without, or zeros.
    """
    rows = setting.global_batch_size
    tensors = {}
    for name, t in batch.tensors.items():
        like = torch.zeros((rows, *t.shape[1:]), dtype=t.dtype, device=device)
        last = t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last)
        tensors[name] = like.to(memory_format=torch.channels_last) if last else like
        if not t.is_meta and not isinstance(like, FakeTensor):
            tensors[name].copy_(t[torch.arange(rows) % len(t)])
    return Batch(tensors, np.arange(rows))


class Learned(Protocol):
    """What a step needs of a task."""

    joint: bool

    def count(self, batch: Batch) -> int: ...
    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...


def accumulate(
    network: Network,
    task: Learned,
    micros: Sequence[Batch],
    count: float,
    context: Callable[[], AbstractContextManager[object]],
    entering: Callable[[str], None] = lambda phase: None,
) -> Tensor:
    """Add the gradients of a step's mean loss to those of the parameters; returns the summed loss.

    count: terms that carry loss in the whole step, by which every micro-batch's sum is divided.
    context: the forward pass runs inside it. entering: called with "forward" and "backward" as
    these begin.
    """
    total = None
    for micro in micros:
        entering("forward")
        with context():
            loss = task.loss(network, micro)[0]
        mean = loss / count
        entering("backward")
        mean.backward()
        total = loss.detach() if total is None else total + loss.detach()
        del loss, mean  # and their graph, whose nodes would keep freed memory from being used again
    assert total is not None, "a step has micro-batches"
    return total


def train_step(
    network: Network,
    batch: Batch,
    task: Learned,
    setting: Setting,
    optimizer: torch.optim.Optimizer,
    micro_batches: int | None = None,
    entering: Callable[[str], None] = lambda phase: None,
) -> None:
    """One optimiser update; `entering` is called with "forward", "backward" and "update" as these
    begin.

    micro_batches: run only so many of the `grad_accum_steps`, None for all.
    """
    device = next(iter(batch.tensors.values())).device.type
    micros = batch.split(setting.grad_accum_steps, task.joint)[:micro_batches]
    context = functools.partial(autocast, setting, device)
    accumulate(network, task, micros, task.count(batch), context, entering)
    entering("update")
    if setting.grad_clip:
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def autocast(setting: Setting, device: str = "cpu") -> torch.autocast:
    on = setting.dtype != "fp32"
    return torch.autocast(device, DTYPES[setting.dtype] if on else torch.bfloat16, enabled=on)
