"""What a network is made of, read off the graph that its forward pass leaves behind.

However a forward pass is written, PyTorch records every operation for the backward pass. From that
record: how many weights the longest and the shortest way from input to output pass (they differ
where there are shortcuts), which non-linearities there are, and which parameters it reaches.
"""

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import Node

from layerwise.inspection.taps import eager

COMBINE = ("AddBack", "MulBack", "CatBack", "Expand", "StackBack")  # what enters here is no matrix
PASSING = ("TBack", "ToCopy", "View", "Permute", "Transpose", "Unsafe", "Reshape", "Clone", "Alias")
NONLINEAR = ("relu", "sigmoid", "tanh", "gelu", "silu", "hardtanh", "hardswish", "elu", "clamp")
NORMS = ("batchnorm", "batch_norm", "layernorm", "layer_norm", "groupnorm", "group_norm", "rmsnorm")


@dataclass(frozen=True)
class Structure:
    """Facts of one forward pass; `longest` and `shortest` are 0 where no way leads to the input."""

    longest: int  # weight layers on the longest way from input to output
    shortest: int  # and on the shortest: fewer where shortcuts skip some
    nonlinear: dict[str, int]  # {"relu": 29}
    norms: int

    @property
    def residual(self) -> bool:
        return self.shortest < 0.5 * self.longest

    @property
    def squashing(self) -> str:
        """ "sigmoid" or "tanh" where one of them is the main non-linearity, else ""."""
        main = max(self.nonlinear, key=self.nonlinear.__getitem__, default="")
        return main if main in ("sigmoid", "tanh") else ""


def structure(network: nn.Module, inputs: Tensor, **beside: Tensor) -> Structure:
    """Read the structure from a forward pass on a few rows, in evaluation mode.

    inputs: (B, ...) floating point; two rows are enough. beside: what else the network reads.
    """
    flags = [(p, p.requires_grad) for p in network.parameters()]
    try:
        network.requires_grad_(True)
        start = inputs.detach().clone().requires_grad_(True)
        with eager(network, gradients=True):
            return read(ordered(network(start, **beside).grad_fn), start)
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def ordered(root: Node | None) -> list[Node]:
    """Every node of the graph below `root`, each after all that it depends on."""
    done: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node | None, bool]] = [(root, False)]
    while stack:
        node, finished = stack.pop()
        if node is None:
            continue
        if finished:
            done.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(n, False) for n, _ in node.next_functions]
    return done


def read(nodes: list[Node], start: Tensor) -> Structure:
    ways: dict[Node, tuple[int, int]] = {}  # node -> weights on the (longest, shortest) way down
    for node in nodes:
        if getattr(node, "variable", None) is start:
            ways[node] = (0, 0)
            continue
        below = [ways[n] for n, _ in node.next_functions if n in ways]
        if below:
            own = int(is_weight_node(node, start))
            ways[node] = (max(b[0] for b in below) + own, min(b[1] for b in below) + own)
    longest, shortest = ways.get(nodes[-1], (0, 0)) if nodes else (0, 0)
    kinds = [n.name().lower() for n in nodes]
    counts = Counter(k for name in kinds for k in NONLINEAR if name.startswith(k))
    return Structure(
        longest,
        shortest,
        {k.replace("clamp", "relu6").replace("hardtanh", "relu6"): c for k, c in counts.items()},
        sum(any(k in name for k in NORMS) for name in kinds),
    )


def is_weight_node(node: Node, start: Tensor) -> bool:
    """Whether a matrix or filter enters here, straight or through a transpose or cast."""
    if node.name().startswith(COMBINE + PASSING):
        return False
    for child, _ in node.next_functions:
        while child is not None and child.name().startswith(PASSING):
            child = child.next_functions[0][0]
        variable = getattr(child, "variable", None)
        if variable is not None and variable is not start and variable.ndim >= 2:
            return True
    return False
