"""`models`: every named size with its parameters, FLOPs, and where weights are published."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from layerwise import kinds, models
from layerwise.planning import forward_flops
from layerwise.weights.cards import CARDS


def list_models(family: str = "") -> list[dict[str, Any]]:
    """Every named size with its parameters, FLOPs per sample, and where weights are published."""
    out = []
    for name in [family] if family else models.FAMILIES:
        module = models.family(name)
        for variant, config in module.VARIANTS.items():
            params, flops = sizes_of(name, config, variant)
            size = {"name": variant, "family": name, "params": params, "flops": flops}
            weights = [c.name for c in CARDS.values() if c.variant == variant]
            out.append({**size, "formats": list(module.PUBLISHED), "weights": weights})
    return out


def sizes_of(family: str, config: Any, variant: str) -> tuple[int, int]:
    """Parameters and FLOPs per sample, from the network itself on the meta device.

    Of deep stacks of equal layers two are built, and the rest follows: a text of the usual length.
    """

    def measured(config: object) -> np.ndarray:
        with torch.device("meta"):
            network = models.build(family, config)
            example = kinds.read_by(network.READS).example(family, variant, config, 0, 1)
        n_params = sum(p.numel() for p in network.parameters())
        x = next(iter(example.values()))
        return np.array([n_params, forward_flops(network, x)], np.int64)

    if models.reads(family)[0] != "tokens":
        found = measured(config)
    else:
        one, two = (measured(replace(config, n_layers=n)) for n in (1, 2))
        found = one + (config.n_layers - 1) * (two - one)
    return int(found[0]), int(found[1])
