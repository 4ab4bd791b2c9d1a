"""A trained network rewritten for inference: fewer passes over memory, the same outputs.

From outside and for any family whose forward pass `torch.fx` can follow: batch normalisation is
folded into the convolution before it, activations and residual additions become part of the
convolution's own kernel (oneDNN post-operations), and weights are laid out once as the kernel
wants them. On the CPU in bf16 this is what separates a network from a runtime's compiled graph.

The result is for `eval` only, in the dtype asked for; the network given is not changed.
"""

import copy
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from layerwise.layers.conv import SameConv2d, same_padding

POST = {  # what oneDNN can do to a convolution's result before it is written
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
    nn.SiLU: ("swish", []),
}


class PackedConv(nn.Module):
    """A convolution with its weight in the kernel's own layout, and what follows it inside.

    post: an activation ("none" for no). With a second input the kernel adds it first:
    y = post(conv(x) + other), written over `other`.
    """

    def __init__(self, conv: nn.Conv2d, post: tuple[str, list], dtype: torch.dtype, size: Any):
        super().__init__()
        self.pad, padding = padding_of(conv, size)
        self.geometry = (padding, list(conv.stride), list(conv.dilation), conv.groups)
        self.post, self.scalars = post
        weight = conv.weight.detach().to(dtype)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight, *self.geometry[:3], conv.groups, size
        )
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        args = (self.weight, self.bias, *self.geometry)
        if self.pad:
            x = F.pad(x, self.pad)
        if other is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *args, self.post, self.scalars, "")
        unary = None if self.post == "none" else self.post
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            other, x, *args, "add", 1.0, unary, self.scalars, ""
        )


def padding_of(conv: nn.Conv2d, size: list[int]) -> tuple[tuple[int, ...], list[int]]:
    """What to pad before the kernel, if anything, and what the kernel pads itself on both sides."""
    if not isinstance(conv, SameConv2d):
        return (), [int(p) for p in conv.padding]
    top, bottom = same_padding(size[-2], conv.kernel_size[0], conv.stride[0])
    left, right = same_padding(size[-1], conv.kernel_size[1], conv.stride[1])
    if (top, left) == (bottom, right):
        return (), [top, left]
    return (left, right, top, bottom), [0, 0]


class PackedLinear(nn.Module):
    """A linear layer through oneDNN, its weight laid out once for batches of `rows`.

    post: an activation ("none" for no). With a second input the kernel adds it instead.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, rows: int, post: str = "none"):
        super().__init__()
        self.post = post
        weight = linear.weight.detach().to(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype, copy=True)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        args = (self.weight, self.bias)
        if other is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, *args, "add")
        exact = "none" if self.post == "gelu" else ""  # not its approximation by tanh
        return torch.ops.mkldnn._linear_pointwise(x, *args, self.post, [], exact)


def fused(network: nn.Module, example: Tensor, dtype: torch.dtype) -> nn.Module:
    """The same network for inference on inputs like `example` (b, 3, h, w), on the CPU.

    Returns a module that takes float32 inputs and gives float32 outputs. Errors: whatever
    `torch.fx` says of a forward pass that depends on values.
    """
    network = copy.deepcopy(network).eval()
    graph = fx.GraphModule(network, LeafConv().trace(network))
    drop_nothings(graph)
    fold_norms(graph)
    shapes = record_shapes(graph, example)
    absorb(graph, shapes, dtype)
    graph.to(dtype).eval()
    return Cast(graph, dtype)


class LeafConv(fx.Tracer):
    """Follows the forward pass, every kind of convolution being one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


class Cast(nn.Module):
    """float32 in and out, `dtype` and channels-last inside."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return self.inner(x).float()


def module_of(graph: fx.GraphModule, node: Any) -> nn.Module | None:
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


def drop_nothings(graph: fx.GraphModule) -> None:
    """Leave out what hands its input on in `eval`, so that no two nodes are the same tensor."""
    for node in list(graph.graph.nodes):
        if isinstance(module_of(graph, node), nn.Identity | nn.Dropout | nn.Dropout2d):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()


def fold_norms(graph: fx.GraphModule) -> None:
    """Batch normalisation right after a convolution becomes part of its weight and bias."""
    for node in list(graph.graph.nodes):
        norm, conv = module_of(graph, node), module_of(graph, node.args[0] if node.args else None)
        if (
            isinstance(norm, nn.BatchNorm2d)
            and isinstance(conv, nn.Conv2d)
            and used_once(node.args[0])
        ):
            graph.set_submodule(str(node.args[0].target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()


def used_once(node: fx.Node) -> bool:
    return len(node.users) == 1


def record_shapes(graph: fx.GraphModule, example: Tensor) -> dict[fx.Node, list[int]]:
    """The shape of what goes into every convolution and linear layer, for `example`."""
    shapes: dict[fx.Node, list[int]] = {}

    class Recorder(fx.Interpreter):
        def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
            shapes[self.current] = list(args[0].shape)
            return super().call_module(target, args, kwargs)

        def run_node(self, n: fx.Node) -> Any:
            self.current = n
            return super().run_node(n)

    with torch.inference_mode():
        Recorder(graph).run(example)
    return shapes


def activation_after(
    graph: fx.GraphModule, node: fx.Node
) -> tuple[fx.Node, tuple[str, list]] | None:
    """The activation that alone uses this node, as an oneDNN post-operation."""
    if not used_once(node):
        return None
    user = next(iter(node.users))
    module = module_of(graph, user)
    if type(module) in POST:
        return user, POST[type(module)]
    is_relu = user.target in (F.relu, torch.relu) or (user.op, user.target) == (
        "call_method",
        "relu",
    )
    return (user, POST[nn.ReLU]) if is_relu else None


def addition_after(node: fx.Node, order: dict[fx.Node, int]) -> tuple[fx.Node, fx.Node] | None:
    """The addition that alone uses this node, and its other side, where that may be overwritten.

    It may when it was computed before this node into memory of its own (no view, no input of the
    network) and nothing reads it after the addition.
    """
    if not used_once(node):
        return None
    user = next(iter(node.users))
    if user.target not in (operator.add, operator.iadd, torch.add) or len(user.args) != 2:
        return None
    other = user.args[1] if user.args[0] is node else user.args[0]
    if not isinstance(other, fx.Node) or other is node or order[other] > order[node]:
        return None
    last = max(order[u] for u in other.users)
    own = other.op == "call_module" or other.target in (F.relu, operator.add, torch.add)
    return (user, other) if last == order[user] and own else None


def absorb(graph: fx.GraphModule, shapes: dict[fx.Node, list[int]], dtype: torch.dtype) -> None:
    """Replace every convolution and linear layer by its packed form with what follows it."""
    order = {n: i for i, n in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        module = module_of(graph, node)
        if (
            isinstance(module, nn.Conv2d)
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        ):
            take_conv(graph, node, module, shapes[node], dtype, order)
        elif type(module) is nn.Linear and len(shapes[node]) == 2:
            graph.set_submodule(str(node.target), PackedLinear(module, dtype, shapes[node][0]))
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()


def take_conv(
    graph: fx.GraphModule,
    node: fx.Node,
    conv: nn.Conv2d,
    size: list[int],
    dtype: torch.dtype,
    order: dict[fx.Node, int],
) -> None:
    last, other = node, None
    if (added := addition_after(node, order)) is not None:
        last, other = added
    post: tuple[str, list] = ("none", [])
    if (found := activation_after(graph, last)) is not None:
        last, post = found
    graph.set_submodule(str(node.target), PackedConv(conv, post, dtype, size))
    if other is not None:
        node.args = (node.args[0], other)
    if last is node:
        return
    last.replace_all_uses_with(node)
    for doomed in [last, *(n for n in [added[0]] if added and n is not last)] if added else [last]:
        graph.graph.erase_node(doomed)
