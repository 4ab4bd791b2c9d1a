"""A trained network rewritten for inference on the CPU: fewer passes over memory, the same outputs.

From outside and for any family whose forward pass `torch.fx` can follow: batch normalisation is
folded into the convolution before it, in fp32; oneDNN then compiles the traced network, once for a
shape of inputs: activations, norms and residual additions go into the kernels before them, weights
are laid out once as these want them, and what lies between two kernels stays in their own layout.

The result is for `eval` only, in the dtype asked for, or in fp32 where the CPU has no kernels for
it: there a graph in bf16 took minutes for what takes seconds in fp32. Without oneDNN the norms are
folded all the same. The network given is not changed.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from layerwise.models.network import Network
from layerwise.runtime import kernel_dtype, without_autocast

WARM = 3  # runs until the compiler has seen the shapes, built its kernels and kept the weights


class Compiled(nn.Module):
    """float32 in and out, `dtype` and channels-last inside; for images of one size."""

    def __init__(self, network: Any, example: Tensor, dtype: torch.dtype, reads: Sequence[str]):
        super().__init__()
        self.dtype, self.READS = dtype, reads
        network = network.to(dtype, memory_format=torch.channels_last)
        x = self.cast(example)
        with torch.no_grad(), onednn_graphs():
            frozen = torch.jit.freeze(torch.jit.trace(network, x, check_trace=False))
            for _ in range(WARM):
                frozen(x)
        self.inner = partial(frozen)  # not as a part: a frozen network knows no `eval`

    def cast(self, x: Tensor) -> Tensor:
        return x.to(self.dtype, memory_format=torch.channels_last)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        (x,) = (*inputs, *named.values())
        with without_autocast(self.dtype):
            return self.inner(self.cast(x)).float()


@contextmanager
def onednn_graphs() -> Iterator[None]:
    """Inside, traced networks are compiled by oneDNN; afterwards torch's switches are as before."""
    there = torch.backends.mkldnn.is_available()
    fusing, casting = torch.jit.onednn_fusion_enabled(), torch._C._jit_set_autocast_mode(False)
    if there:
        torch.jit.enable_onednn_fusion(True)
    try:
        with warnings.catch_warnings():  # its successor makes slower code for the CPU
            for kind in (DeprecationWarning, torch.jit.TracerWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        if there:
            torch.jit.enable_onednn_fusion(fusing)
        torch._C._jit_set_autocast_mode(casting)


def fused(network: Network, example: Tensor, dtype: torch.dtype) -> Network:
    """The same network for inference on inputs like `example` (b, 3, h, w), on the CPU.

    Returns a module that takes float32 inputs and gives float32 outputs. Errors: those of
    `torch.fx` for a forward pass that depends on values.
    """
    own = copy.deepcopy(network).eval()
    graph = fx.GraphModule(own, LeafConv().trace(own))
    drop_identities(graph)
    fold_norms(graph)
    graph.recompile()
    return cast(Network, Compiled(graph, example, kernel_dtype(dtype), network.READS))


class LeafConv(fx.Tracer):
    """Follows the forward pass, every kind of convolution being one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def module_of(graph: fx.GraphModule, node: object) -> nn.Module | None:
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


def drop_identities(graph: fx.GraphModule) -> None:
    """Leave out what returns its input in `eval`, so that a norm comes right after its layer."""
    for node in list(graph.graph.nodes):
        if isinstance(module_of(graph, node), nn.Identity | nn.Dropout | nn.Dropout2d):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def fold_norms(graph: fx.GraphModule) -> None:
    """Batch normalisation right after a convolution becomes part of its weight and bias."""
    for node in list(graph.graph.nodes):
        norm, conv = module_of(graph, node), module_of(graph, node.args[0] if node.args else None)
        if (
            isinstance(norm, nn.BatchNorm2d)
            and isinstance(conv, nn.Conv2d)
            and len(node.args[0].users) == 1
        ):
            graph.set_submodule(str(node.args[0].target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
