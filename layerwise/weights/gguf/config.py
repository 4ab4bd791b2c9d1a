"""A GGUF file's settings as a Config of ours, and ours as a file's.

Every setting of the file is read, or known to change nothing; any other is an error that names it.
What llama.cpp would compute otherwise than our network (a window in Llama, another scale of
Gemma's queries) has no architecture here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from layerwise.errors import WeightsError
from layerwise.layers.rope import RopeFields, make_rope
from layerwise.models import config_from_dict
from layerwise.weights.gguf.names import ARCHITECTURES, Architecture, Keys

T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]
SCALING = {"linear": {"factor": "rope_factor"}}
SCALING["yarn"] = SCALING["linear"] | {
    "original_context_length": "rope_original_len", "yarn_beta_slow": "rope_low",
    "yarn_beta_fast": "rope_high",
}  # fmt: skip
YARN = {"rope_low": 1.0, "rope_high": 32.0}
HARMLESS = ("rope.scaling.finetuned", "rope.scaling.type")  # the latter is read above
ONLY = {"attention.causal": (True,), "expert_gating_func": (0, 1)}  # unsaid, or softmax
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers; its queries are scaled by dim / heads


# ---- a file's settings as a Config ---------------------------------------------------------------
def config_of(
    metadata: Keys, shapes: Shapes, divisors: np.ndarray | None
) -> tuple[Architecture, Any]:
    """Which architecture the keys of a file describe, and the Config of our family for it.

    shapes: of its tensors. divisors: Llama 3.1's, (Dh/2,), where the file has them.
    """
    name = metadata.get("general.architecture")
    routed = bool(metadata.get(f"{name}.expert_count"))
    wanted = name, routed
    architecture = next((a for a in ARCHITECTURES if (a.name, a.family == "moe") == wanted), None)
    if architecture is None:
        known = ", ".join(dict.fromkeys(a.name for a in ARCHITECTURES))
        raise WeightsError(f"the architecture {name!r} is not one that layerwise reads ({known})")
    own = {k: v for k, v in metadata.items() if routed or not k.endswith("expert_count")}
    start = f"{name}."
    given = {k.removeprefix(start): _shortest(v) for k, v in own.items() if k.startswith(start)}
    fields = _fields(architecture, given)
    fields |= {k: v for k, v in architecture.implied.items() if k not in fields}
    fields |= _from_tensors(architecture, shapes)
    if architecture.family != "gpt" and not fields.get("head_dim"):
        fields["head_dim"] = fields["dim"] // fields["n_heads"]
    gemma = architecture.family == "gemma"
    fields |= _gemma_fields(architecture, given, fields) if gemma else _scaling(given)
    config = config_from_dict(architecture.family, fields)
    if divisors is not None:
        config = _with_divisors(config, divisors)
    _refuse_unknown(architecture, given, vars(config))
    return architecture, config


def _shortest(value: T) -> T | float:
    """A float32 of the file in the fewest digits: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _fields(architecture: Architecture, given: Keys) -> dict[str, Any]:
    fields = {}
    for key, ours in architecture.keys.items():
        value = given.get(key, architecture.defaults.get(key))
        if value is not None:
            fields[ours] = value
        elif ours not in ("head_dim", "n_kv_heads", "window", "mlp_dim"):
            raise WeightsError(f"the key '{architecture.name}.{key}' is missing")
        if isinstance(fields.get(ours), list) and ours != "global_every":
            raise WeightsError(f"'{architecture.name}.{key}' differs between the layers")
    if architecture.family == "gpt":
        return {"mlp_dim": 4 * fields["dim"], **fields}
    return {"n_kv_heads": fields["n_heads"], **fields}


def _from_tensors(architecture: Architecture, shapes: Shapes) -> dict[str, Any]:
    """What no key says: the size of the vocabulary, whether the head is tied, biases."""
    if len(shapes.get("token_embd.weight", ())) != 2:
        raise WeightsError("no tensor 'token_embd.weight': a vocabulary without weights?")
    fields: dict[str, Any] = {"vocab_size": shapes["token_embd.weight"][0]}
    if architecture.tied == "may be":
        fields["tied_head"] = "output.weight" not in shapes
    if architecture.family == "llama":
        fields["qkv_bias"] = "blk.0.attn_q.bias" in shapes
    return fields


def _gemma_fields(architecture: Architecture, given: Keys, fields: Keys) -> dict[str, Any]:
    """The scale of queries, which no key says; no window means that all layers see everything."""
    out: dict[str, Any] = {"query_scalar": _query_scalar(architecture, fields)}
    if not fields.get("window"):
        out |= {"window": fields["max_seq_len"], "global_every": 1}
    scaling, second = _scaling(given), architecture.name == "gemma2"
    if second:
        out["local_rope_theta"] = fields["rope_theta"]
    if scaling.pop("rope_scaling", "linear") != "linear" or (scaling and second):
        raise WeightsError(f"{architecture.name} has no such rope.scaling.type")
    pattern = fields.get("global_every")
    if isinstance(pattern, list):  # True for each layer with a window
        out["global_every"] = every = [*pattern, False].index(False) + 1
        if pattern != [bool((i + 1) % every) for i in range(len(pattern))]:
            raise WeightsError(f"the layers with a window follow no regular pattern: {pattern}")
    return out | scaling


def _query_scalar(architecture: Architecture, fields: Keys) -> float:
    largest = fields["n_layers"] == LARGEST_GEMMA[architecture.name]
    return float(fields["dim"] // fields["n_heads"] if largest else fields["head_dim"])


def _scaling(given: Keys) -> dict[str, Any]:
    kind = given.get("rope.scaling.type", "none")
    if kind == "none":
        return {}
    if kind not in SCALING:
        raise WeightsError(f"rope.scaling.type {kind!r} is not one of {list(SCALING)}")
    fields = {ours: given.get(f"rope.scaling.{key}") for key, ours in SCALING[kind].items()}
    fields = {**(YARN if kind == "yarn" else {}), **{k: v for k, v in fields.items() if v}}
    return fields | {"rope_scaling": kind}


def _with_divisors(config: Any, divisors: np.ndarray) -> Any:
    """Llama 3.1's scaling, of which a file holds the outcome alone: found again, and checked."""
    scaling = {"rope_scaling": "llama3", "rope_factor": round(float(divisors.max()), 4)}
    if np.allclose(divisors, 1):
        return config
    for length in (8192, 4096, 2048, 16384, 32768):
        found = dataclasses.replace(config, rope_original_len=length, **scaling)
        wanted = divisors_of(vars(found))
        if len(wanted) == len(divisors) and np.allclose(wanted, divisors, 1e-5):
            return found
    raise WeightsError("'rope_freqs.weight' is not the scaling of a Llama 3.1")


def divisors_of(fields: Keys) -> np.ndarray:
    """What Llama 3.1's scaling divides each frequency by: (Dh/2,) float32."""
    rope = RopeFields(**{f.name: fields[f.name] for f in dataclasses.fields(RopeFields)})
    plain = np.array(make_rope(fields["head_dim"], RopeFields(rope.rope_theta)).frequencies)
    return (plain / np.array(make_rope(fields["head_dim"], rope).frequencies)).astype("f4")


def _refuse_unknown(architecture: Architecture, given: Keys, fields: Keys) -> None:
    """Errors: a key that nothing here reads, or one that contradicts the rest."""
    scaling = {f"rope.scaling.{key}" for key in SCALING["yarn"]}
    known = {*architecture.keys, *HARMLESS, *ONLY, *scaling}
    if architecture.family == "moe":  # of dense layers, of which there are none
        known |= {"feed_forward_length", "expert_feed_forward_length"}
    for key, value in given.items():
        ours = architecture.same.get(key)
        if ours and value != fields[ours]:
            raise WeightsError(
                f"'{architecture.name}.{key}' is {value}, but the rest of the file says "
                f"{fields[ours]}; no network of ours has both"
            )
        if not ours and (key not in known or value not in ONLY.get(key, (value,))):
            raise WeightsError(
                f"the setting '{architecture.name}.{key}' = {value!r} is not one that the "
                f"family '{architecture.family}' has; its results would differ"
            )


# ---- a Config as a file's settings ---------------------------------------------------------------
def architecture_for(family: str, fields: Keys) -> Architecture:
    """The architecture as which llama.cpp computes what a network of this config does.

    Errors: WeightsError naming the setting that llama.cpp has no way to say.
    """
    reason = ""
    for architecture in (a for a in ARCHITECTURES if a.family == family):
        wanted = {"rope_magnitude": 0.0, **architecture.implied}
        if family == "gemma":
            wanted["query_scalar"] = _query_scalar(architecture, fields)
        if architecture.name == "gemma2":
            wanted["local_rope_theta"] = fields["rope_theta"]
        if fields.get("window", 0) >= fields["max_seq_len"]:
            wanted.pop("window", None)  # it hides nothing
        others = {k: fields[k] for k, v in wanted.items() if fields.get(k, v) != v}
        reason = ", ".join(f"{k}={value}" for k, value in others.items())
        if not reason:
            return architecture
    if not reason:
        raise WeightsError(f"the family '{family}' has no GGUF form here")
    raise WeightsError(
        f"llama.cpp has no way to compute {reason} in this family, so a GGUF file would give "
        f"other results; save in Hugging Face's layout"
    )


def metadata_of(architecture: Architecture, fields: Keys) -> dict[str, Any]:
    """The keys that say what the network is."""
    spelled = {**architecture.keys, **architecture.same}
    values = {key: fields[ours] for key, ours in spelled.items()}
    values.setdefault("feed_forward_length", fields["mlp_dim"])
    kind = fields.get("rope_scaling", "")
    if architecture.family == "gemma" and fields["rope_factor"] != 1:
        factor = float(fields["rope_factor"])
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
    elif kind in SCALING:
        values["rope.scaling.type"] = kind
        values |= {f"rope.scaling.{k}": fields[ours] for k, ours in SCALING[kind].items()}
    name = architecture.name
    return {"general.architecture": name} | {f"{name}.{key}": v for key, v in values.items()}
