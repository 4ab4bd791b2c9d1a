"""Which layers train, and when: all, the head alone, the top k, or one after the other.

Progressive unfreezing: Howard and Ruder, "Universal Language Model Fine-tuning", ACL 2018: the head
first, then each layer below it, so that the first steps of a random head do not spoil what the
base knows.

Parameters outside every entry of `layers()` (class token, position embedding) belong to the first
layer. What is frozen is also in eval mode: batch normalisation keeps the base's statistics instead
of drifting with data that its weights can no longer follow, and dropout is off.
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import Parameter

from layerwise.errors import OptionError, unknown
from layerwise.models.network import Network

MODES = ("all", "head", "progressive")
UNFREEZE_SHARE = 0.5  # of the steps: by then progressive unfreezing has reached the first layer


def parameters_by_layer(network: Network) -> dict[str, dict[str, Parameter]]:
    """Every parameter once, {layer: {full name: parameter}}, in the order of `layers()`."""
    stack = network.layers()
    layer_of = {id(p): name for name, layer in stack.items() for p in layer.parameters()}
    first = next(iter(stack))
    groups: dict[str, dict[str, Parameter]] = {name: {} for name in stack}
    for name, parameter in network.named_parameters():
        groups[layer_of.get(id(parameter), first)][name] = parameter
    return groups


def top_layers(network: Network, k: int) -> list[str]:
    """The names of the last k layers, the head among them."""
    names = list(network.layers())
    if not 1 <= k <= len(names):
        raise OptionError(f"--unfreeze top{k}: this network has {len(names)} layers")
    return names[-k:]


def progressive(step: int, steps: int, names: list[str]) -> list[str]:
    """The layers that train in `step` of `steps`: a pure function, so resuming needs no state.

    names: all layers from input to head. The head trains from step 0; the next lower layer joins
    after each equal share of the first half of the steps, until all train.
    """
    reached = len(names) * step / max(1.0, UNFREEZE_SHARE * steps)
    return names[-min(len(names), 1 + int(reached)) :]


class Freezing:
    """Freezes and unfreezes the layers of a network while it trains.

    mode: "all" (what is trainable stays so: LoRA stays as it was set up), "head", "top3" (the last
    three layers), or "progressive". From construction on, `requires_grad` marks what will train at
    some step, which is what the optimiser must hold; `before(step)` sets what trains now.
    Errors: OptionError for an unknown mode.
    """

    def __init__(self, network: Network, mode: str, steps: int):
        self.network, self.mode, self.steps = network, mode, steps
        groups = parameters_by_layer(network)
        self.names = list(groups)
        wanted = ((n, [p for p in own.values() if p.requires_grad]) for n, own in groups.items())
        self.trainable = dict(wanted)  # at some step, per layer
        self.now: list[str] = []
        if mode not in ("all", "progressive"):
            self.train_only(self.training_layers(0))

    def training_layers(self, step: int) -> list[str]:
        """The layers that train in this step."""
        if self.mode == "all":
            return self.names
        if self.mode == "progressive":
            return progressive(step, self.steps, self.names)
        if self.mode == "head":
            return top_layers(self.network, 1)
        if self.mode.startswith("top") and self.mode[3:].isdigit():
            return top_layers(self.network, int(self.mode[3:]))
        raise unknown("value of --unfreeze", self.mode, (*MODES, "top3"))

    def before(self, step: int) -> None:
        """Call before each step, after `network.train()`: it sets gradients and modes."""
        layers = self.training_layers(step)
        if layers != self.now:
            self.train_only(layers)
        for module in self.frozen:
            if module.training:
                module.eval()

    def release(self) -> None:
        """Make everything trainable again that was so at the start."""
        self.train_only(self.names)

    def train_only(self, layers: list[str]) -> None:
        """Let these layers alone train; a layer that was frozen goes back to training mode."""
        for name, parameters in self.trainable.items():
            for parameter in parameters:
                parameter.requires_grad_(name in layers)
        if self.now and self.network.training:
            self.network.train()
        self.now, self.frozen = layers, list(frozen_modules(self.network))


def frozen_modules(network: Network) -> Iterator[nn.Module]:
    """Layers without a trainable parameter, and such batch norms within layers that do train."""
    for layer in network.layers().values():
        if is_frozen(layer):
            yield layer
        else:
            yield from (m for m in layer.modules() if isinstance(m, _BatchNorm) and is_frozen(m))


def is_frozen(module: nn.Module) -> bool:
    """True when it has parameters and none of them trains."""
    trains = [p.requires_grad for p in module.parameters()]
    return bool(trains) and not any(trains)
