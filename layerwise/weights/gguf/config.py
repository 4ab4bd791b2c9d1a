"""A GGUF file's settings as a Config of ours, and ours as a file's.

Every setting of the file is read, or known to change nothing; any other is an error that names it.
What llama.cpp would compute otherwise than our network (a window in Llama, another scale of
Gemma's queries) has no architecture here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from layerwise.errors import WeightsError
from layerwise.layers.rope import RopeFields, make_rope
from layerwise.models import config_from_dict
from layerwise.models import family as family_module
from layerwise.weights.gguf.names import ARCHITECTURES, Architecture

SCALING = {"linear": {"factor": "rope_factor"}}
SCALING["yarn"] = {
    **SCALING["linear"],
    "original_context_length": "rope_original_len",
    "yarn_beta_slow": "rope_low",
    "yarn_beta_fast": "rope_high",
}
YARN = {"rope_low": 1.0, "rope_high": 32.0}
HARMLESS = ("rope.scaling.finetuned", "rope.scaling.type")  # the latter is read above
ONLY = {"attention.causal": (True,), "expert_gating_func": (0, 1)}  # unsaid, or softmax
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers; its queries are scaled by dim / heads


# ---- a file's settings as a Config ---------------------------------------------------------------
def config_of(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    divisors: np.ndarray | None = None,
    what: str = "the file",
) -> tuple[Architecture, Any]:
    """Which architecture the keys of a file describe, and the Config of our family for it.

    shapes: of its tensors. divisors: Llama 3.1's, (Dh/2,), where the file has them.
    """
    name = metadata.get("general.architecture")
    routed = bool(metadata.get(f"{name}.expert_count"))
    found = [a for a in ARCHITECTURES if a.name == name and (a.family == "moe") == routed]
    if not found:
        known = ", ".join(dict.fromkeys(a.name for a in ARCHITECTURES))
        raise WeightsError(f"{what}: the architecture {name!r} is not read here (only {known})")
    architecture = found[0]
    given = {
        key.removeprefix(f"{name}."): _shortest(value)
        for key, value in metadata.items()
        if key.startswith(f"{name}.") and not (key.endswith("expert_count") and not routed)
    }
    fields = _fields(architecture, given, what)
    fields |= {k: v for k, v in architecture.implied.items() if k not in fields}
    fields |= _from_tensors(architecture, shapes, what)
    if "head_dim" in _names(architecture) and not fields.get("head_dim"):
        fields["head_dim"] = fields["dim"] // fields["n_heads"]
    if architecture.family == "gemma":
        fields |= _gemma_fields(architecture, given, fields, what)
    else:
        fields |= _scaling(given, what)
    config = config_from_dict(architecture.family, fields)
    if divisors is not None:
        config = _with_divisors(config, divisors, what)
    _refuse_unknown(architecture, given, config, what)
    return architecture, config


def _shortest(value: Any) -> Any:
    """A float32 of the file as it was meant: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _names(architecture: Architecture) -> set[str]:
    module = family_module(architecture.family)
    return {f.name for f in dataclasses.fields(module.Config)}


def _fields(architecture: Architecture, given: Mapping[str, Any], what: str) -> dict[str, Any]:
    fields = {}
    for key, ours in architecture.keys.items():
        if key in given:
            fields[ours] = given[key]
        elif architecture.defaults.get(key) is not None:
            fields[ours] = architecture.defaults[key]
        elif ours not in ("head_dim", "n_kv_heads", "window", "mlp_dim"):
            raise WeightsError(f"{what}: the key '{architecture.name}.{key}' is missing")
        if isinstance(fields.get(ours), list) and ours != "global_every":
            raise WeightsError(f"{what}: '{architecture.name}.{key}' differs between the layers")
    if architecture.family != "gpt":
        fields.setdefault("n_kv_heads", fields["n_heads"])
    else:
        fields.setdefault("mlp_dim", 4 * fields["dim"])
    return fields


def _from_tensors(
    architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], what: str
) -> dict[str, Any]:
    """What no key says: the size of the vocabulary, whether the head is tied, biases."""
    if len(shapes.get("token_embd.weight", ())) != 2:
        raise WeightsError(f"{what}: no tensor 'token_embd.weight': a vocabulary without weights?")
    fields: dict[str, Any] = {"vocab_size": shapes["token_embd.weight"][0]}
    if architecture.tied == "may be":
        fields["tied_head"] = "output.weight" not in shapes
    if architecture.family == "llama":
        fields["qkv_bias"] = "blk.0.attn_q.bias" in shapes
    return fields


def _gemma_fields(
    architecture: Architecture, given: Mapping[str, Any], fields: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """The scale of queries, which no key says; no window means that all layers see everything."""
    out: dict[str, Any] = {"query_scalar": _query_scalar(architecture, fields)}
    if not fields.get("window"):
        out |= {"window": fields["max_seq_len"], "global_every": 1}
    if architecture.name == "gemma2":
        out["local_rope_theta"] = fields["rope_theta"]
    scaling = _scaling(given, what)
    if scaling.pop("rope_scaling", "linear") != "linear" or (
        scaling and architecture.name == "gemma2"
    ):
        raise WeightsError(f"{what}: {architecture.name} has no such rope.scaling.type here")
    pattern = fields.get("global_every")
    if isinstance(pattern, list):  # True for each layer with a window
        every = pattern.index(False) + 1 if False in pattern else len(pattern) + 1
        out["global_every"] = every
        if pattern != [bool((i + 1) % every) for i in range(len(pattern))]:
            raise WeightsError(f"{what}: its windows follow no regular pattern: {pattern}")
    return out | scaling


def _query_scalar(architecture: Architecture, fields: Mapping[str, Any]) -> float:
    largest = fields["n_layers"] == LARGEST_GEMMA[architecture.name]
    return float(fields["dim"] // fields["n_heads"] if largest else fields["head_dim"])


def _scaling(given: Mapping[str, Any], what: str) -> dict[str, Any]:
    kind = given.get("rope.scaling.type", "none")
    if kind == "none":
        return {}
    if kind not in SCALING:
        raise WeightsError(f"{what}: rope.scaling.type {kind!r} is not one of {list(SCALING)}")
    fields = {ours: given.get(f"rope.scaling.{key}") for key, ours in SCALING[kind].items()}
    fields = {**(YARN if kind == "yarn" else {}), **{k: v for k, v in fields.items() if v}}
    return fields | {"rope_scaling": kind}


def _with_divisors(config: Any, divisors: np.ndarray, what: str) -> Any:
    """Llama 3.1's scaling, of which a file holds the outcome alone: found again, and checked."""
    scaling = {"rope_scaling": "llama3", "rope_factor": round(float(divisors.max()), 4)}
    if np.allclose(divisors, 1):
        return config
    for length in (8192, 4096, 2048, 16384, 32768):
        found = dataclasses.replace(config, rope_original_len=length, **scaling)
        if len(divisors) * 2 == config.head_dim and np.allclose(divisors_of(found), divisors, 1e-5):
            return found
    raise WeightsError(f"{what}: 'rope_freqs.weight' holds no scaling that Llama 3.1 would have")


def divisors_of(config: Any) -> np.ndarray:
    plain = np.array(make_rope(config.head_dim, RopeFields(config.rope_theta)).frequencies)
    return (plain / np.array(make_rope(config.head_dim, config).frequencies)).astype("f4")


def _refuse_unknown(
    architecture: Architecture, given: Mapping[str, Any], config: Any, what: str
) -> None:
    """Errors: a key that nothing here reads, or one that contradicts the rest."""
    scaling = {f"rope.scaling.{key}" for key in SCALING["yarn"]}
    known = {*architecture.keys, *HARMLESS, *ONLY, *scaling}
    if architecture.family == "moe":  # of dense layers, of which there are none
        known |= {"feed_forward_length", "expert_feed_forward_length"}
    for key, value in given.items():
        ours = architecture.same.get(key)
        if ours and value != getattr(config, ours):
            raise WeightsError(
                f"{what}: '{architecture.name}.{key}' is {value}, but the rest of the file says "
                f"{getattr(config, ours)}; no network of ours has both"
            )
        if not ours and (key not in known or value not in ONLY.get(key, (value,))):
            raise WeightsError(
                f"{what}: the setting '{architecture.name}.{key}' = {value!r} is not one that the "
                f"family '{architecture.family}' has; its results would differ"
            )


# ---- a Config as a file's settings ---------------------------------------------------------------
def architecture_for(family: str, config: Any) -> Architecture:
    """The architecture as which llama.cpp computes what a network of this config does.

    Errors: WeightsError naming the setting that llama.cpp has no way to say.
    """
    reason = ""
    for architecture in (a for a in ARCHITECTURES if a.family == family):
        wanted = {"rope_magnitude": 0.0, **architecture.implied}
        if family == "gemma":
            wanted["query_scalar"] = _query_scalar(architecture, vars(config))
        if architecture.name == "gemma2":
            wanted["local_rope_theta"] = config.rope_theta
        if getattr(config, "window", 0) >= config.max_seq_len:
            wanted.pop("window", None)  # it hides nothing
        given = {k: getattr(config, k, v) for k, v in wanted.items()}
        reason = ", ".join(f"{k}={given[k]}" for k, v in wanted.items() if given[k] != v)
        if not reason:
            return architecture
    if not reason:
        raise WeightsError(f"the family '{family}' has no GGUF form here")
    raise WeightsError(
        f"llama.cpp has no way to compute {reason} in this family, so a GGUF file would give "
        f"other results; save in Hugging Face's layout"
    )


def metadata_of(architecture: Architecture, config: Any) -> dict[str, Any]:
    """The keys that say what the network is."""
    name = architecture.name
    values = {key: getattr(config, ours) for key, ours in architecture.keys.items()}
    values |= {key: getattr(config, ours) for key, ours in architecture.same.items()}
    if "feed_forward_length" not in values:
        values["feed_forward_length"] = config.mlp_dim
    if architecture.family == "gemma" and config.rope_factor != 1:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_factor)}
    kind = getattr(config, "rope_scaling", "")
    if kind in SCALING:
        values["rope.scaling.type"] = kind
        values |= {f"rope.scaling.{k}": getattr(config, ours) for k, ours in SCALING[kind].items()}
    return {"general.architecture": name} | {f"{name}.{key}": v for key, v in values.items()}
