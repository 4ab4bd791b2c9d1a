"""Weights, inputs and stored outputs for comparing a network with an independent reference.

The weights are a function of each tensor's published name and shape, and of nothing else: so the
reference and the network get the same ones, and the reference's stored outputs hold without it.
With LAYERWISE_GOLDEN=write in the environment, stored values are replaced instead of compared.
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerwise.models import build, family
from layerwise.weights.files import load_into, save_tensors
from layerwise.weights.names import publish, rename

MODELS = Path(__file__).parent / "models"
TOLERANCE = 1e-5  # relative to the largest output, in fp32


def seeded(shape: tuple[int, ...], name: str, low: float | None = None) -> np.ndarray:
    """Standard normal numbers, or uniform ones in low .. low + 1: the same everywhere, for ever."""
    stream = np.random.RandomState(zlib.crc32(name.encode()))  # the legacy stream never changes
    values = stream.standard_normal(shape) if low is None else low + stream.random_sample(shape)
    return values.astype(np.float32)


def seeded_weights(wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as after training: no scale at 1, no statistic at 0, signals of unit size."""
    return {name: torch.from_numpy(_seeded(name, t)) for name, t in wanted.items()}


def _seeded(name: str, tensor: Tensor) -> np.ndarray:
    shape, leaf = tuple(tensor.shape), name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.array(5)
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        return seeded(shape, name, low=0.5)
    if len(shape) == 1 or leaf != "weight":  # biases, means, tokens, positions
        return 0.1 * seeded(shape, name)
    return seeded(shape, name) * math.sqrt(2 / math.prod(shape[1:]))


def images(*shape: int) -> Tensor:
    return torch.from_numpy(seeded(shape, "images"))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def stored(file: str, key: str, value: Any) -> Any:
    """What tests/models/`file` holds under `key`; `value` itself when values are being written."""
    path = MODELS / file
    table = json.loads(path.read_text()) if path.exists() else {}
    if os.environ.get("LAYERWISE_GOLDEN") == "write" and value is not None:
        table[key] = value
        rows = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(table.items())]
        path.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    assert key in table, f"{file} has no '{key}': run this test once with LAYERWISE_GOLDEN=write"
    return table[key]


def _short(values: Tensor) -> list[list[float]]:
    return [[float(f"{v:.8g}") for v in row] for row in values.tolist()]


Load = Callable[[dict[str, Tensor]], nn.Module]  # published weights to the reference with them


def into(theirs: nn.Module) -> Load:
    """Weights straight into a reference, strictly: one too many or too few is an error."""

    def load(weights: dict[str, Tensor]) -> nn.Module:
        theirs.load_state_dict(weights)
        return theirs

    return load


def through_files(kind: Any, config: Any, folder: Path) -> Load:
    """Weights through a model folder that transformers opens, whatever it calls them inside."""

    def load(weights: dict[str, Tensor]) -> nn.Module:
        config.save_pretrained(folder)
        save_tensors(folder / "model.safetensors", weights)
        theirs, report = kind.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), f"transformers and we disagree on names: {report}"
        return theirs

    return load


def check_against_reference(
    key: str, load: Load, name: str, config: Any, source: str, x: Tensor
) -> None:
    """Same weights, same outputs; and the stored outputs are those of the reference."""
    ours, weights = _ours(name, config, source)
    with torch.no_grad():
        expected = load(weights).eval()(x)
        expected = getattr(expected, "logits", expected)
        assert relative_error(ours(x), expected) <= TOLERANCE
    golden = torch.tensor(stored("golden.json", key, _short(expected)))
    assert relative_error(expected, golden) <= allowed(expected, golden, ours, x)


def check_against_stored(key: str, name: str, config: Any, source: str, x: Tensor) -> None:
    """The same without the reference: its outputs were stored."""
    ours, _ = _ours(name, config, source)
    golden = torch.tensor(stored("golden.json", key, None))
    with torch.no_grad():
        found = ours(x)
    assert relative_error(found, golden) <= allowed(found, golden, ours, x)


def allowed(found: Tensor, golden: Tensor, ours: nn.Module, x: Tensor) -> float:
    """What outputs may differ from those stored on another machine, whose kernels round otherwise.

    Where that is more than TOLERANCE, the network is asked how much it makes of rounding: its
    outputs in fp32 beside those in float64. `ours` is in float64 afterwards.
    """
    if relative_error(found, golden) <= TOLERANCE:
        return TOLERANCE
    with torch.no_grad():
        single = ours(x).double()
        exact = ours.double()(x.double() if x.is_floating_point() else x)
    return 2 * relative_error(single, exact)


def _ours(name: str, config: Any, source: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Our network with the weights that belong to its published names, and those weights."""
    rules = family(name).PUBLISHED[source]
    with torch.device("meta"):
        network = build(name, config)
    weights = seeded_weights(publish(network.state_dict(), rules))
    load_into(network, rename(weights, rules, network.state_dict()))
    return network.eval(), weights
