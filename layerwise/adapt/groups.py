"""Parameter groups: a smaller learning rate further down, no weight decay where it does harm.

Layer-wise decay: Howard and Ruder 2018; Clark et al., "ELECTRA", 2020: the lower layers of a
pre-trained network know what carries over, so they should move less. Weight decay pulls towards 0,
which for a scale, a bias or a position embedding is no simpler a function.
"""

from typing import Any

from torch import nn
from torch.nn.parameter import Parameter

from layerwise.adapt.freeze import parameters_by_layer
from layerwise.errors import OptionError

EMBEDDINGS = ("pos_embed", "_token")  # endings of parameters that are added to what flows through


def parameter_groups(
    network: nn.Module, weight_decay: float = 0.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for an optimiser, from input to head: only what trains, each parameter once.

    layer_decay: the head has the whole rate, each layer below it this much of the one above.
    Returns dicts with "params", "names" (of the parameters), "layer", "lr_scale", "weight_decay".
    Errors: OptionError for a decay outside (0, 1], or when nothing trains.
    """
    if not 0 < layer_decay <= 1:
        raise OptionError(f"--layer-decay is above 0 and at most 1; {layer_decay} was given")
    layers = parameters_by_layer(network)
    groups = []
    for depth, (layer, parameters) in enumerate(layers.items()):
        scale = layer_decay ** (len(layers) - 1 - depth)
        for decays in (True, False):
            chosen = {
                n: p
                for n, p in parameters.items()
                if p.requires_grad and takes_decay(n, p) == decays
            }
            if chosen:
                groups.append(
                    {
                        "params": list(chosen.values()),
                        "names": list(chosen),
                        "layer": layer,
                        "lr_scale": scale,
                        "weight_decay": weight_decay if decays else 0.0,
                    }
                )
    if not groups:
        raise OptionError("every parameter is frozen, so nothing can train; unfreeze a layer")
    return merged(groups) if layer_decay == 1 else groups


def takes_decay(name: str, parameter: Parameter) -> bool:
    """Matrices and filters do; scales, biases and embeddings do not."""
    return parameter.ndim > 1 and not name.endswith(EMBEDDINGS)


def merged(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without layer decay two groups are enough, and fused optimisers are faster so."""
    out = []
    for decays in (True, False):
        alike = [g for g in groups if takes_decay(g["names"][0], g["params"][0]) == decays]
        if alike:
            out.append(
                {
                    "params": [p for g in alike for p in g["params"]],
                    "names": [n for g in alike for n in g["names"]],
                    "layer": "",
                    "lr_scale": 1.0,
                    "weight_decay": alike[0]["weight_decay"],
                }
            )
    return out
