"""Which layer is running: in forward, and in backward too.

In forward it is the layer of `layers()` whose call is under way. In backward it is the one that was
running when the autograd node was made, which the node's sequence number tells; a gradient that is
added up belongs to its parameter's layer. What runs between two layers belongs to the one before;
"(input)" is what precedes the first, "(loss)" what follows the network, "(update)" the optimiser.
"""

import bisect
from typing import Any

import torch
from torch import Tensor, nn

INPUT, LOSS, UPDATE = "(input)", "(loss)", "(update)"


class Owners:
    """Follows the network through a step by hooks on its layers; `phase` is set from outside."""

    def __init__(self, network: nn.Module, layers: dict[str, nn.Module]):
        self.phase, self.layer = "build", INPUT
        self._births: list[int] = []  # sequence numbers at which the running layer changed ...
        self._names: list[str] = []  # ... and to which
        self._stack: list[str] = []
        self._of_param = {id(p): name for name, m in layers.items() for p in m.parameters()}
        self._hooks: list[Any] = []
        for name, layer in layers.items():
            enter = lambda *_, name=name: self._enter(name)  # noqa: E731
            self._hooks.append(layer.register_forward_pre_hook(enter))
            leave = layer.register_forward_hook(lambda *_: self._leave(), always_call=True)
            self._hooks.append(leave)
        self._hooks.append(network.register_forward_pre_hook(lambda *_: self._turn(INPUT)))
        self._hooks.append(network.register_forward_hook(lambda *_: self._turn(LOSS)))

    def running(self) -> str:
        """The layer to which the operation that runs now belongs."""
        node = torch._C._current_autograd_node() if self.phase == "backward" else None
        if node is None:
            return UPDATE if self.phase == "update" else self.layer
        variable = getattr(node, "variable", None)  # a node that adds up a gradient
        if variable is not None:
            return self.of_param(variable)
        place = bisect.bisect_right(self._births, node._sequence_nr()) - 1
        return self._names[place] if place >= 0 else INPUT

    def of_param(self, param: Tensor) -> str:
        return self._of_param.get(id(param), INPUT)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _turn(self, layer: str) -> None:
        self.layer = layer
        if self.phase == "forward":
            self._births.append(torch.autograd._get_sequence_nr())
            self._names.append(layer)

    def _enter(self, name: str) -> None:
        self._stack.append(name)
        self._turn(name)

    def _leave(self) -> None:
        self._stack.pop()
        if self._stack:
            self._turn(self._stack[-1])
