"""Families by name: an explicit table, each module imported only when asked for.

A family module has `Config`, `Model`, `VARIANTS` (named sizes) and `PUBLISHED` (published tensor
names per source format). See `alexnet.py` for how one reads. Where its training asks for it, it may
have `prepare(network, inputs)`, called with training inputs before the first step, and
`muon_groups(network, batch_size)`, its parameter groups for Muon.
"""

import dataclasses
import importlib
from types import ModuleType
from typing import Any

from layerwise.errors import OptionError, unknown
from layerwise.models.network import Network

NAMES = """mlp alexnet resnet vit mobilenet mobilenetv3 squeezenet airbench gpt llama moe gemma bert
tc_resnet"""
FAMILIES = {name: f"layerwise.models.{name}" for name in NAMES.split()}


def family(name: str) -> ModuleType:
    """The module of a family, e.g. `family("resnet")`."""
    if name not in FAMILIES:
        raise unknown("family", name, FAMILIES)
    return importlib.import_module(FAMILIES[name])


def variants() -> dict[str, str]:
    """Every named size and its family: {"resnet50": "resnet", ...}."""
    return {variant: name for name in FAMILIES for variant in family(name).VARIANTS}


def resolve(variant: str, **overrides: object) -> tuple[str, Any]:
    """The family name and config of a named size, with fields replaced.

    Errors: an unknown size or an unknown config field, each with the nearest known name.
    """
    known = variants()
    if variant not in known:
        raise unknown("model", variant, known)
    config = family(known[variant]).VARIANTS[variant]
    return known[variant], replace_fields(config, overrides)


def replace_fields(config: Any, overrides: dict[str, Any]) -> Any:
    """A config with some fields replaced; an unknown field is an error."""
    fields = {f.name for f in dataclasses.fields(config)}
    for key in overrides:
        if key not in fields:
            raise unknown(f"field of {type(config).__module__}.Config", key, fields)
    return dataclasses.replace(config, **overrides)


def config_from_dict(family_name: str, values: dict[str, Any]) -> Any:
    """A family's Config from saved scalars (lists become tuples); unknown keys are an error."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return replace_fields(family(family_name).Config(), values)
    except TypeError as e:
        raise OptionError(f"config of {family_name}: {e}") from e


def build(family_name: str, config: object) -> Network:
    """A network with fresh weights (on whatever device is the default: `meta` costs nothing)."""
    return family(family_name).Model(config)


def reads(family_name: str) -> tuple[str, ...]:
    """The tensors that networks of this family take."""
    return family(family_name).Model.READS


def heads(family_name: str) -> tuple[str, ...]:
    """What networks of this family can end in."""
    return family(family_name).Model.HEADS
