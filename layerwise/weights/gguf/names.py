"""How GGUF files name what our decoder families have: tensors and settings, as data.

Source: gguf-py/gguf/constants.py, conversion/ and src/models/ of github.com/ggml-org/llama.cpp.
In files of the architecture "llama" the rows of query and key are in the order of Meta's code,
pairs (2i, 2i+1); the others have ours. Gemma's norms are stored with 1 added.

TENSORS are rules of `weights/names.py`; `<field>` in them is a field of the Config.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from layerwise.weights.names import Rules


def _blocks(parts: Mapping[str, str]) -> dict[str, str]:
    """Rules for what every block has."""
    return {f"blocks.{{}}.{ours}": f"blk.{{}}.{theirs}" for ours, theirs in parts.items()}


Keys = Mapping[str, Any]  # a file's settings
_EMBED = {"token_embed": "token_embd", "norm": "output_norm"}
_TIED = {"(copy)": "output.weight=token_embd.weight"}
_HEAD = {"head": "output", **_TIED, "(drop)": "rope_freqs.*"}
_ATTN = _blocks({
    "attn_norm": "attn_norm", "attn.q_proj": "attn_q", "attn.k_proj": "attn_k",
    "attn.v_proj": "attn_v", "attn.o_proj": "attn_output", "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm", "mlp_norm": "ffn_norm",
})  # fmt: skip
_META_ROWS = _blocks({
    "attn.q_proj": "attn_q | permute_rope(<head_dim>)",
    "attn.k_proj": "attn_k | permute_rope(<head_dim>)",
})  # fmt: skip
_MLP = _blocks({"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"})
_EXPERTS = _blocks({
    "moe.router": "ffn_gate_inp",
    "moe.experts.{}.gate_proj": "ffn_gate_exps[{}/<n_experts>] | unstack",
    "moe.experts.{}.up_proj": "ffn_up_exps[{}/<n_experts>] | unstack",
    "moe.experts.{}.down_proj": "ffn_down_exps[{}/<n_experts>] | unstack",
})  # fmt: skip
_QWEN = {**_EMBED, **_HEAD, **_ATTN, **_MLP}
_AFTER = _blocks({"attn_post_norm": "post_attention_norm", "mlp_post_norm": "post_ffw_norm"})
_GEMMA = _TIED | {
    ours: f"{theirs} | minus_one" if ours.endswith("norm") else theirs
    for ours, theirs in (_EMBED | _ATTN | _MLP | _AFTER).items()
}
_GPT2 = {**_EMBED, **_TIED, "pos_embed": "position_embd"} | _blocks({
    "attn_norm": "attn_norm", "attn.q_proj": "attn_qkv[0/3]", "attn.k_proj": "attn_qkv[1/3]",
    "attn.v_proj": "attn_qkv[2/3]", "attn.o_proj": "attn_output", "mlp_norm": "ffn_norm",
    "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
})  # fmt: skip

# ---- settings: key of the file, after "<architecture>.", and field of the Config ----------------
_SIZES = {
    "context_length": "max_seq_len", "embedding_length": "dim", "block_count": "n_layers",
    "feed_forward_length": "mlp_dim", "attention.head_count": "n_heads",
}  # fmt: skip
_ROTARY = _SIZES | {
    "attention.head_count_kv": "n_kv_heads", "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "norm_eps", "rope.freq_base": "rope_theta",
}  # fmt: skip
_ROUTED = {**_ROTARY, "expert_count": "n_experts", "expert_used_count": "n_active"}
_WINDOWED = _ROTARY | {
    "final_logit_softcapping": "logit_softcap", "attention.sliding_window": "window",
    "attention.sliding_window_pattern": "global_every",
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """One value of "general.architecture" and what it means here.

    keys: theirs -> our field. defaults: what a missing key means. implied: fields that the
    architecture itself says, and that a Config must have to be written as it. same: keys that only
    repeat a field. tied: whether the head "may be", or always "is", the token embedding.
    """

    name: str
    family: str
    tensors: Rules
    keys: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    tied: str = "may be"


_SAME = {"vocab_size": "vocab_size", "rope.dimension_count": "head_dim",
         "attention.value_length": "head_dim"}  # fmt: skip
_THETA = {"rope.freq_base": 10_000.0}
_EVERY_TOKEN = {"window": 0}
_PLAIN = {**_EVERY_TOKEN, "qkv_bias": False, "qk_norm": False}
_ROUTED_PLAIN = {**_EVERY_TOKEN, "norm_active": True}

_GEMMA2_DEFAULTS = {
    **_THETA, "attention.sliding_window": 4096, "attention.sliding_window_pattern": 2,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip
_GEMMA3_DEFAULTS = {
    "rope.freq_base": 1_000_000.0, "rope.freq_base_swa": 10_000.0,
    "attention.sliding_window_pattern": 6, "final_logit_softcapping": 0.0,
}  # fmt: skip
_QWEN3_MOE = {k: v for k, v in _ROUTED.items() if v != "mlp_dim"}

ARCHITECTURES = (  # the first whose implied fields a Config has is the one it is written as
    Architecture("gpt2", "gpt", _GPT2, {**_SIZES, "attention.layer_norm_epsilon": "norm_eps"},
                 {"feed_forward_length": None}, tied="is"),
    Architecture("llama", "llama", {**_QWEN, **_META_ROWS}, _ROTARY, _THETA, _PLAIN, _SAME),
    Architecture("qwen2", "llama", _QWEN, _ROTARY, _THETA, {**_PLAIN, "qkv_bias": True}, _SAME),
    Architecture("qwen3", "llama", _QWEN, _ROTARY, _THETA, {**_PLAIN, "qk_norm": True}, _SAME),
    Architecture("llama", "moe", {**_EMBED, **_HEAD, **_ATTN, **_META_ROWS, **_EXPERTS}, _ROUTED,
                 _THETA, {**_ROUTED_PLAIN, "qk_norm": False}, _SAME),
    Architecture("qwen3moe", "moe", {**_EMBED, **_HEAD, **_ATTN, **_EXPERTS},
                 {**_QWEN3_MOE, "expert_feed_forward_length": "mlp_dim"}, _THETA,
                 {**_ROUTED_PLAIN, "qk_norm": True}, _SAME),
    Architecture("gemma2", "gemma", _GEMMA, {**_WINDOWED, "attn_logit_softcapping": "attn_softcap"},
                 _GEMMA2_DEFAULTS, {"qk_norm": False, "rope_factor": 1.0}, _SAME, "is"),
    Architecture("gemma3", "gemma", _GEMMA, {**_WINDOWED, "rope.freq_base_swa": "local_rope_theta"},
                 _GEMMA3_DEFAULTS, {"attn_softcap": 0.0, "qk_norm": True}, _SAME, "is"),
)  # fmt: skip
