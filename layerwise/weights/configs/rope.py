"""Settings of `config.json`, in the spellings of every version: which are known, rotary positions
and windows.

Readers take what they understand out of a table of settings and return fields of our Config; a
setting that the family does not have is a WeightsError that names it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from layerwise.errors import WeightsError

Values = dict[str, Any]


def refused(
    key: str, value: object, known: Iterable[object], where: object = "config.json"
) -> WeightsError:
    """The error for a setting that asks for a network we do not have."""
    only = " or ".join(repr(k) for k in known)
    return WeightsError(f"{where}: {key} = {value!r} is not supported, only {only}")


def check(
    values: Mapping[str, Any], only: Mapping[str, Sequence], read: Collection[str] | None = None
) -> None:
    """only: settings that our network has in these ways alone, the first where nothing is said.
    read: the others that are known. Errors: WeightsError for any other value or setting."""
    for key, known in only.items():
        if values.get(key, known[0]) not in known:
            raise refused(key, values[key], known)
    for key, value in values.items():
        if read is not None and key not in read and key not in only and value:
            raise WeightsError(f"config.json: {key} = {value!r} is not a setting that we know")


# ---- rotary positions --------------------------------------------------------------------------
SCALED = {"factor": "rope_factor"}
TRAINED = {**SCALED, "original_max_position_embeddings": "rope_original_len"}
ROPE: dict[str, dict[str, str]] = {  # kind -> theirs -> ours
    "default": {},
    "linear": SCALED,
    "llama3": TRAINED | {"low_freq_factor": "rope_low", "high_freq_factor": "rope_high"},
    "yarn": TRAINED | {"beta_slow": "rope_low", "beta_fast": "rope_high",
                       "attention_factor": "rope_magnitude"},
}  # fmt: skip
OPTIONAL = {"beta_slow": 1.0, "beta_fast": 32.0, "attention_factor": 0.0}
NEUTRAL = {"truncate": True, "partial_rotary_factor": 1.0}


def read_rope(left: Values, theta: float = 10_000.0) -> Values:
    """Our rope fields; takes what says them out of `left`, in its older or newer form.

    theta: what a missing base means.
    """
    given = {**(left.pop("rope_parameters", None) or {}), **(left.pop("rope_scaling", None) or {})}
    theta = left.pop("rope_theta", None) or theta
    theta = given.pop("rope_theta", None) or theta
    older = given.pop("type", None)
    kind = given.pop("rope_type", None) or older or "default"
    if kind not in ROPE:
        raise refused("rope_scaling", kind, tuple(ROPE))
    missing = {**OPTIONAL, "original_max_position_embeddings": left.get("max_position_embeddings")}
    fields: Values = {} if kind == "default" else {"rope_scaling": kind}
    for theirs, ours in ROPE[kind].items():
        value = given.pop(theirs, None)
        fields[ours] = missing.get(theirs) if value is None else value
        if fields[ours] is None:
            raise WeightsError(f"config.json: rope_scaling of type {kind!r} lacks {theirs}")
    for key, value in given.items():
        if value is not None and value != NEUTRAL.get(key):
            raise refused(f"rope_scaling.{key}", value, (NEUTRAL.get(key),))
    return fields | {"rope_theta": theta}


def write_rope(fields: Values) -> Values:
    kind = fields["rope_scaling"] or "default"
    scaling = {theirs: fields[ours] for theirs, ours in ROPE[kind].items()}
    if not scaling.get("attention_factor", 1):
        del scaling["attention_factor"]
    theirs = {"rope_theta": fields["rope_theta"]}
    return theirs | ({"rope_scaling": {"rope_type": kind, **scaling}} if scaling else {})


def read_gemma2(left: Values) -> Values:
    left.pop("hidden_act", None)  # a former name of hidden_activation, which wins
    fields = read_pattern(left, 2) | read_rope(left)
    if "rope_scaling" in fields:
        raise refused("rope_scaling", fields["rope_scaling"], (None,))
    return fields | {"local_rope_theta": fields["rope_theta"]}


def read_gemma3(left: Values) -> Values:
    """Two bases: of the global layers, with their linear scaling, and of the local ones."""
    both = left.pop("rope_parameters", None) or {}
    local = both.get("sliding_attention") or {}
    theta = local.get("rope_theta", left.pop("rope_local_base_freq", None) or 10_000.0)
    if local.get("rope_type", "default") != "default":
        raise refused("rope_parameters.sliding_attention", local, ("default",))
    scaling = left.get("rope_scaling") or {}
    left["rope_scaling"] = {**(both.get("full_attention") or {}), **scaling}
    fields = read_pattern(left, 6) | read_rope(left, 1_000_000.0) | {"local_rope_theta": theta}
    if fields.pop("rope_scaling", "linear") != "linear":
        raise refused("rope_scaling", "not linear", ("linear",))
    return fields


# ---- which layers see everything ---------------------------------------------------------------
FULL, LOCAL = "full_attention", "sliding_attention"


def read_all_full(left: Values) -> Values:
    """For families whose layers all see everything, whatever window stands unused in the file."""
    if left.pop("use_sliding_window", False):
        raise refused("use_sliding_window", True, (False,))
    left.pop("sliding_window", None)
    kinds = set(left.pop("layer_types", None) or [FULL])
    if kinds != {FULL}:
        raise refused("layer_types", sorted(kinds), (FULL,))
    return read_rope(left)


def pattern(n_layers: int, every: int) -> list[str]:
    return [LOCAL if (i + 1) % every else FULL for i in range(n_layers)]


def read_pattern(left: Values, default: int) -> Values:
    """Gemma's order of local and global layers, as the number of layers per global one."""
    n_layers, types = left["num_hidden_layers"], left.pop("layer_types", None)
    every = left.pop("sliding_window_pattern", None) or default
    if types and FULL in types:
        every = types.index(FULL) + 1
    if types and list(types) != pattern(n_layers, every):
        raise refused("layer_types", types, (pattern(n_layers, every),))
    return {"global_every": every}
