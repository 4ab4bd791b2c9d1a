"""PEFT's adapters, read and written: `adapter_config.json` and `adapter_model.safetensors`.

Format: github.com/huggingface/peft. Modules go by their published names, which the family's
PUBLISHED table gives, and what trains whole beside them (the head) is stored by those names too.
Where one module of theirs is several of ours side by side (GPT-2's `c_attn`), their A serves each
of ours; ours, with an A each, are written as one update of their joint rank, block by block.
A setting that is not supported here is an error that names the field.

Shapes: r rank.
"""

import json
import re
from collections import Counter
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.adapt import lora
from layerwise.adapt.lora import LowRank, Update
from layerwise.errors import WeightsError
from layerwise.layers.head import TiedHead
from layerwise.models.network import Network, head_kind, reads_tokens
from layerwise.storage import read_json, replacing
from layerwise.weights.files import read_tensors, save_tensors
from layerwise.weights.names import Rules, dropped, locate, mismatch, publish, rename, respelled

FRONT = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
LEAVES = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "lora_m"}
DEFAULTS = {
    "r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False,
    "rank_pattern": None, "alpha_pattern": None, "base_model_name_or_path": "", "task_type": "",
}  # fmt: skip
TASK_TYPES = {"class": "SEQ_CLS", "tag": "TOKEN_CLS", "span": "QUESTION_ANS", "causal": "CAUSAL_LM"}
LAST = ("classifier.weight", "classifier.out_proj.weight", "qa_outputs.weight")  # of heads
ONLY = {  # the supported values of these
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # the base left as it was
}
# of use in training alone, or given by the tensors themselves
HARMLESS = """auto_mapping revision inference_mode peft_version target_modules
exclude_modules layers_to_transform layers_pattern modules_to_save fan_in_fan_out loftq_config
eva_config megatron_core qalora_group_size runtime_config"""


def places(network: nn.Module, rules: Rules) -> dict[str, list[nn.Linear]]:
    """The linear modules by their published name, several where one of theirs is ours in parts."""
    found: dict[str, dict[int, nn.Linear]] = {}
    for name, module in network.named_modules():
        source = locate(f"{name}.weight", rules)
        if source is None or not isinstance(module, nn.Linear) or isinstance(module, TiedHead):
            continue
        if set(source.transforms) <= {"transpose"}:
            found.setdefault(source.name.removesuffix(".weight"), {})[source.part] = module
    return {name: [parts[i] for i in sorted(parts)] for name, parts in found.items()}


# ---- writing ---------------------------------------------------------------------------------


def save_adapter(network: Network, rules: Rules, folder: Path | str, base: str = "") -> None:
    """Write the updates, and what else trains, as a folder that PEFT loads onto the base.

    rules: the family's PUBLISHED naming of the base. base: its hub id or folder.
    Errors: WeightsError where the naming has no name for an adapted module.
    """
    named = places(network, rules)
    found = {n: p for n, p in named.items() if any(isinstance(m, LowRank) for m in p)}
    known = {m for parts in found.values() for m in parts}
    nameless = [n for n, m in lora.adapters(network).items() if m not in known]
    if nameless or not found:
        what = ", ".join(nameless[:8]) or "a network without updates"
        raise WeightsError(f"PEFT's format has no name for {what}")
    tensors, updates = {}, {}
    for theirs, parts in found.items():
        updates[theirs], own = joined(parts)
        held = ((leaf, own[ours]) for leaf, ours in LEAVES.items() if ours in own)
        tensors |= {f"{FRONT}{theirs}.{leaf}": tensor for leaf, tensor in held}
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    updated = [n for n in trained if n.rsplit(".", 1)[-1] in LEAVES.values()]
    whole = publish({n: p for n, p in trained.items() if n not in updated}, rules)
    save_tensors(Path(folder) / WEIGHTS[0], tensors | {FRONT + n: t for n, t in whole.items()})
    kind = head_kind(network) if reads_tokens(network) else ""
    values = config_of(updates, set(named) - set(found)) | {
        "task_type": TASK_TYPES.get(kind),
        "base_model_name_or_path": base,
        "modules_to_save": sorted({n.rsplit(".", 1)[0] for n in whole}) or None,
        # whether their linear modules hold (n_in, n_out), as GPT-2's
        "fan_in_fan_out": any("| transpose" in theirs for theirs in rules.values()),
    }
    with replacing(Path(folder) / CONFIG) as path:
        path.write_text(json.dumps(values, indent=1), "utf-8")


def joined(parts: list[nn.Linear]) -> tuple[Update, dict[str, Tensor]]:
    """One update for several modules of ours that are one of theirs, not all of them adapted."""
    own = [m for m in parts if isinstance(m, LowRank)]
    update, r = own[0].lora, own[0].lora.rank
    a = own[0].lora_a
    blank = {m: m.weight.new_zeros(m.out_features, 0) for m in parts if m not in own}
    if all(torch.equal(m.lora_a, a) for m in own[1:]):
        wide = {m: b.new_zeros(len(b), r) for m, b in blank.items()}
        b = torch.cat([m.lora_b if isinstance(m, LowRank) else wide[m] for m in parts])
    else:
        a = torch.cat([m.lora_a for m in own])
        b = torch.block_diag(*(m.lora_b if isinstance(m, LowRank) else blank[m] for m in parts))
        more = len(a) / r
        alpha = update.alpha * (sqrt(more) if update.rs else more)
        update = replace(update, rank=len(a), alpha=alpha)
    tensors = {"lora_a": a, "lora_b": b}
    if update.dora:
        known = (m.lora_m if isinstance(m, LowRank) else None for m in parts)
        lengths = [
            m.weight.norm(dim=1) if k is None else k for m, k in zip(parts, known, strict=True)
        ]
        tensors["lora_m"] = torch.cat(lengths)
    return update, tensors


def config_of(updates: dict[str, Update], others: set[str]) -> dict[str, Any]:
    """adapter_config.json for these modules of theirs, beside linear ones without an update."""
    usual = Counter(updates.values()).most_common(1)[0][0]
    tails = {name: re.split(r"\.\d+\.", name)[-1] for name in updates}
    taken = {t for t in tails.values() if any(f".{n}".endswith(f".{t}") for n in others)}
    return {
        "peft_type": "LORA",
        "r": usual.rank,
        "lora_alpha": usual.alpha,
        "lora_dropout": usual.dropout,
        "use_rslora": usual.rs,
        "use_dora": usual.dora,
        "rank_pattern": {n: u.rank for n, u in updates.items() if u.rank != usual.rank},
        "alpha_pattern": {n: u.alpha for n, u in updates.items() if u.alpha != usual.alpha},
        "target_modules": sorted({n if t in taken else t for n, t in tails.items()}),
        "bias": "none",
        "inference_mode": True,
    }


# ---- reading ---------------------------------------------------------------------------------


def load_adapter(network: nn.Module, rules: Rules, folder: Path | str) -> list[str]:
    """Put a PEFT adapter onto the network of its base; the published names of what it adapts.

    rules: the PUBLISHED naming of the base that the adapter was made for.
    Errors: WeightsError for a config with settings that are not supported, and for an adapter of
    another base; the network is left as it was.
    """
    folder = Path(folder)
    lora.refuse_adapted(network)
    values = read_adapter_config(folder)
    updates, whole = read_adapter(folder, rules)
    chosen, misshapen = [], []
    for theirs, parts in places(network, rules).items():
        if theirs in updates:
            update, own = update_of(theirs, values), updates.pop(theirs)
            chosen.append((theirs, parts, update, own))
            misshapen += wrong_shapes(theirs, parts, update, own)
    base = values["base_model_name_or_path"] or "a base that it does not name"
    what = f"{folder}, an adapter for {base}"
    unused = [f"update of {n}" for n in updates] + [n for n in whole if dropped(n, rules)]
    if unused or misshapen:
        raise mismatch(what, unused, [], misshapen)
    state = network.state_dict(keep_vars=True)
    sources = {n: locate(n, rules) for n in state}
    wanted = {n: t for n, t in state.items() if (s := sources[n]) and s.name in whole}
    refuse_new_tokens(wanted, sources, whole, what)
    ours = rename(whole, rules, wanted, what)
    network.requires_grad_(False)
    for _, parts, update, own in chosen:
        put(parts, update, own)
    with torch.no_grad():
        for name, tensor in ours.items():
            state[name].copy_(tensor).requires_grad_(True)
    return [theirs for theirs, *_ in chosen]


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The fields that are read, defaults filled in. Errors: WeightsError naming the field."""
    path = folder / CONFIG
    if not path.is_file():
        raise WeightsError(f"{folder}: no {CONFIG} in it, so this is not a PEFT adapter")
    given = read_json(path)
    for field, value in given.items():
        allowed = ONLY.get(field, (None,))
        if field in DEFAULTS or field in HARMLESS.split() or value in allowed or not value:
            continue
        known = f"; only {', '.join(map(repr, allowed))}" if field in ONLY else ""
        raise WeightsError(
            f"{path}: {field} = {value!r} is not supported here{known}. Merge the adapter with "
            "PEFT (merge_and_unload, save_pretrained) and take the merged model as the base"
        )
    return DEFAULTS | {k: v for k, v in given.items() if k in DEFAULTS and v is not None}


def head_of(folder: Path) -> tuple[str, int]:
    """The kind of head that an adapter's task has and how many outputs it brings; "" for none."""
    asked = read_adapter_config(folder)["task_type"]
    kind = next((ours for ours, theirs in TASK_TYPES.items() if theirs == asked), "")
    rows = [len(t) for n, t in read_tensors(weights_of(folder)).items() if n.endswith(LAST)]
    return (kind, rows[0]) if rows else ("", 0)


def weights_of(folder: Path) -> Path:
    return next((folder / n for n in WEIGHTS if (folder / n).is_file()), folder / WEIGHTS[0])


def read_adapter(folder: Path, rules: Rules) -> tuple[dict[str, dict], dict[str, Tensor]]:
    """Updates by module and ours for each leaf, and the tensors that it holds whole."""
    path = weights_of(folder)
    updates: dict[str, dict[str, Tensor]] = {}
    whole = {}
    for name, tensor in read_tensors(path).items():
        if not name.startswith(FRONT):
            raise WeightsError(f"{path}: {name} was expected to begin with {FRONT}")
        name = respelled(name.removeprefix(FRONT), rules)
        leaf = next((leaf for leaf in LEAVES if name.endswith(f".{leaf}")), "")
        if leaf:
            updates.setdefault(name.removesuffix(f".{leaf}"), {})[LEAVES[leaf]] = tensor
        else:
            whole[name] = tensor
    return updates, whole


def update_of(theirs: str, values: dict[str, Any]) -> Update:
    def pattern(field: str, usual: object) -> Any:
        own = (values[field] or {}).items()
        return next((v for k, v in own if re.match(rf"(.*\.)?({k})$", theirs)), usual)

    rank = pattern("rank_pattern", values["r"])
    alpha = pattern("alpha_pattern", values["lora_alpha"])
    return Update(rank, alpha, *(values[k] for k in ("use_rslora", "use_dora", "lora_dropout")))


def wrong_shapes(
    theirs: str, parts: list[nn.Linear], update: Update, own: dict[str, Tensor]
) -> list[str]:
    n_out = sum(m.out_features for m in parts)
    wanted = {"lora_a": (update.rank, parts[0].in_features), "lora_b": (n_out, update.rank)}
    wanted |= {"lora_m": (n_out,)} if update.dora else {}
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    return [
        f"{theirs}.{leaf} {wanted.get(n, 'none')}: the adapter's is {shapes.get(n, 'missing')}"
        for leaf, n in LEAVES.items()
        if shapes.get(n) != wanted.get(n)
    ]


def refuse_new_tokens(
    wanted: dict[str, Tensor], sources: dict[str, Any], whole: dict[str, Tensor], what: str
) -> None:
    """Errors: WeightsError for an adapter that was trained with a vocabulary of another size."""
    for name, tensor in wanted.items():
        came = len(whole[sources[name].name])
        if name.endswith("token_embed.weight") and came != len(tensor):
            raise WeightsError(
                f"{what}: it brings embeddings of {came} tokens, this base has {len(tensor)}: "
                "tokens were added to the vocabulary before it was trained. Merge it there (PEFT: "
                "resize_token_embeddings, merge_and_unload, save_pretrained, and the tokenizer "
                "beside it) and take the merged model as the base"
            )


@torch.no_grad()
def put(parts: list[nn.Linear], update: Update, own: dict[str, Tensor]) -> None:
    """Adapt these modules, which are side by side one of theirs, with its update."""
    for i, linear in enumerate(parts):
        module = lora.adapt(linear, update)
        module.lora_a.copy_(own["lora_a"])
        module.lora_b.copy_(own["lora_b"].chunk(len(parts))[i])
        if module.lora_m is not None:
            module.lora_m.copy_(own["lora_m"].chunk(len(parts))[i])
