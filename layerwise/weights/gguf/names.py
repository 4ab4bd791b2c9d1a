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

_EMBED = {"token_embed": "token_embd", "norm": "output_norm"}
_HEAD = {"head": "output", "(copy)": "output.weight=token_embd.weight", "(drop)": "rope_freqs.*"}
_ATTN = {
    "blocks.{}.attn_norm": "blk.{}.attn_norm",
    "blocks.{}.attn.q_proj": "blk.{}.attn_q",
    "blocks.{}.attn.k_proj": "blk.{}.attn_k",
    "blocks.{}.attn.v_proj": "blk.{}.attn_v",
    "blocks.{}.attn.o_proj": "blk.{}.attn_output",
    "blocks.{}.attn.q_norm": "blk.{}.attn_q_norm",
    "blocks.{}.attn.k_norm": "blk.{}.attn_k_norm",
    "blocks.{}.mlp_norm": "blk.{}.ffn_norm",
}
_META_ROWS = {
    "blocks.{}.attn.q_proj": "blk.{}.attn_q | permute_rope(<head_dim>)",
    "blocks.{}.attn.k_proj": "blk.{}.attn_k | permute_rope(<head_dim>)",
}
_MLP = {
    "blocks.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "blocks.{}.mlp.up_proj": "blk.{}.ffn_up",
    "blocks.{}.mlp.down_proj": "blk.{}.ffn_down",
}
_EXPERTS = {
    "blocks.{}.moe.router": "blk.{}.ffn_gate_inp",
    "blocks.{}.moe.experts.{}.gate_proj": "blk.{}.ffn_gate_exps[{}/<n_experts>] | unstack",
    "blocks.{}.moe.experts.{}.up_proj": "blk.{}.ffn_up_exps[{}/<n_experts>] | unstack",
    "blocks.{}.moe.experts.{}.down_proj": "blk.{}.ffn_down_exps[{}/<n_experts>] | unstack",
}
_QWEN = {**_EMBED, **_HEAD, **_ATTN, **_MLP}
_GEMMA = {
    **_EMBED,
    **_ATTN,
    **_MLP,
    "(copy)": "output.weight=token_embd.weight",
    "norm": "output_norm | minus_one",
    "blocks.{}.attn_norm": "blk.{}.attn_norm | minus_one",
    "blocks.{}.attn_post_norm": "blk.{}.post_attention_norm | minus_one",
    "blocks.{}.mlp_norm": "blk.{}.ffn_norm | minus_one",
    "blocks.{}.mlp_post_norm": "blk.{}.post_ffw_norm | minus_one",
    "blocks.{}.attn.q_norm": "blk.{}.attn_q_norm | minus_one",
    "blocks.{}.attn.k_norm": "blk.{}.attn_k_norm | minus_one",
}
_GPT2 = {
    **_EMBED,
    "pos_embed": "position_embd",
    "blocks.{}.attn_norm": "blk.{}.attn_norm",
    "blocks.{}.attn.q_proj": "blk.{}.attn_qkv[0/3]",
    "blocks.{}.attn.k_proj": "blk.{}.attn_qkv[1/3]",
    "blocks.{}.attn.v_proj": "blk.{}.attn_qkv[2/3]",
    "blocks.{}.attn.o_proj": "blk.{}.attn_output",
    "blocks.{}.mlp_norm": "blk.{}.ffn_norm",
    "blocks.{}.mlp.fc1": "blk.{}.ffn_up",
    "blocks.{}.mlp.fc2": "blk.{}.ffn_down",
    "(copy)": "output.weight=token_embd.weight",
}

# ---- settings: key of the file, after "<architecture>.", and field of the Config ----------------
_SIZES = {
    "context_length": "max_seq_len",
    "embedding_length": "dim",
    "block_count": "n_layers",
    "feed_forward_length": "mlp_dim",
    "attention.head_count": "n_heads",
}
_ROTARY = {
    **_SIZES,
    "attention.head_count_kv": "n_kv_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "rope.freq_base": "rope_theta",
}
_ROUTED = {**_ROTARY, "expert_count": "n_experts", "expert_used_count": "n_active"}
_WINDOWED = {
    **_ROTARY,
    "final_logit_softcapping": "logit_softcap",
    "attention.sliding_window": "window",
    "attention.sliding_window_pattern": "global_every",
}
_GEMMA3_IMPLIED = {"attn_softcap": 0.0, "qk_norm": True}


@dataclass(frozen=True)
class Architecture:
    """One value of "general.architecture" and what it means here.

    keys: theirs -> our field. defaults: what a missing key means. implied: fields that the
    architecture itself says, and that a Config must have to be written as it. same: keys that only
    repeat a field. tied: whether the head may be, or always is, the table of tokens.
    """

    name: str
    family: str
    tensors: Rules
    keys: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    tied: str = "may be"


_SAME = {
    "vocab_size": "vocab_size",
    "rope.dimension_count": "head_dim",
    "attention.value_length": "head_dim",
}
_THETA = {"rope.freq_base": 10_000.0}
_EVERY_TOKEN = {"window": 0}
_PLAIN = {**_EVERY_TOKEN, "qkv_bias": False, "qk_norm": False}
_ROUTED_PLAIN = {**_EVERY_TOKEN, "norm_active": True}

ARCHITECTURES = (  # the first whose implied fields a Config has is the one it is written as
    Architecture(
        "gpt2",
        "gpt",
        _GPT2,
        {**_SIZES, "attention.layer_norm_epsilon": "norm_eps"},
        {"feed_forward_length": None},
        tied="is",
    ),
    Architecture("llama", "llama", {**_QWEN, **_META_ROWS}, _ROTARY, _THETA, _PLAIN, _SAME),
    Architecture("qwen2", "llama", _QWEN, _ROTARY, _THETA, {**_PLAIN, "qkv_bias": True}, _SAME),
    Architecture("qwen3", "llama", _QWEN, _ROTARY, _THETA, {**_PLAIN, "qk_norm": True}, _SAME),
    Architecture(
        "llama",
        "moe",
        {**_EMBED, **_HEAD, **_ATTN, **_META_ROWS, **_EXPERTS},
        _ROUTED,
        _THETA,
        {**_ROUTED_PLAIN, "qk_norm": False},
        _SAME,
    ),
    Architecture(
        "qwen3moe",
        "moe",
        {**_EMBED, **_HEAD, **_ATTN, **_EXPERTS},
        {k: v for k, v in _ROUTED.items() if v != "mlp_dim"}
        | {"expert_feed_forward_length": "mlp_dim"},
        _THETA,
        {**_ROUTED_PLAIN, "qk_norm": True},
        _SAME,
    ),
    Architecture(
        "gemma2",
        "gemma",
        _GEMMA,
        {**_WINDOWED, "attn_logit_softcapping": "attn_softcap"},
        {
            **_THETA,
            "attention.sliding_window": 4096,
            "attention.sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        {"qk_norm": False, "rope_factor": 1.0},
        _SAME,
        tied="is",
    ),
    Architecture(
        "gemma3",
        "gemma",
        _GEMMA,
        {**_WINDOWED, "rope.freq_base_swa": "local_rope_theta"},
        {
            "rope.freq_base": 1_000_000.0,
            "rope.freq_base_swa": 10_000.0,
            "attention.sliding_window_pattern": 6,
            "final_logit_softcapping": 0.0,
        },
        _GEMMA3_IMPLIED,
        _SAME,
        tied="is",
    ),
)
