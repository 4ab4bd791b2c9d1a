"""Parameter groups: a smaller learning rate further down, no weight decay where it does harm.

Layer-wise decay: Howard and Ruder 2018; Clark et al., "ELECTRA", 2020: the lower layers of a
pre-trained network know what carries over, so they should move less. Weight decay pulls towards 0,
which does not make a scale, a bias or a position embedding simpler.
"""

from typing import Any

from torch.nn.parameter import Parameter

from layerwise.adapt.freeze import parameters_by_layer
from layerwise.errors import OptionError
from layerwise.models.network import Network

EMBEDDINGS = ("pos_embed", "_token")  # endings of parameters that are added to what flows through


def parameter_groups(
    network: Network, weight_decay: float = 0.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for an optimiser, from input to head: only what trains, each parameter once.

    layer_decay: the head has the whole rate, each layer below it this much of the one above.
    Returns dicts with "params", "names" (of the parameters), "layer", "lr_scale", "weight_decay".
    Errors: OptionError for a decay outside (0, 1], or when nothing trains.
    """
    if not 0 < layer_decay <= 1:
        raise OptionError(f"--layer-decay must be above 0 and at most 1; {layer_decay} was given")
    layers, layered = parameters_by_layer(network), layer_decay < 1
    groups: dict[tuple[int, bool], dict[str, Parameter]] = {}
    for depth, parameters in enumerate(layers.values()):
        for name, p in parameters.items():
            if p.requires_grad:  # without layer decay two groups are enough, and faster when fused
                place = (depth if layered else 0, not takes_decay(name, p))
                groups.setdefault(place, {})[name] = p
    if not groups:
        raise OptionError("every parameter is frozen, so nothing can train; unfreeze a layer")
    return [
        {
            "params": list(named.values()),
            "names": list(named),
            "layer": list(layers)[depth] if layered else "",
            "lr_scale": layer_decay ** (len(layers) - 1 - depth),
            "weight_decay": 0.0 if plain else weight_decay,
        }
        for (depth, plain), named in sorted(groups.items(), key=lambda item: item[0])
    ]


def takes_decay(name: str, parameter: Parameter) -> bool:
    """Matrices and filters do; scales, biases and embeddings do not."""
    return parameter.ndim > 1 and not name.endswith(EMBEDDINGS)
