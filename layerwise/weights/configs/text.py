"""`config.json` of language models: Hugging Face's settings as our Config, and ours as theirs.

Every setting is read, checked to be the one that our network has, or known to change nothing; any
other one is an error that names it, never a silent difference. Written are the older spellings
(`rope_theta`, `rope_scaling`), which every version of transformers and llama.cpp reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from layerwise.errors import WeightsError
from layerwise.models import config_from_dict, family
from layerwise.weights.cards import Card
from layerwise.weights.configs import rope
from layerwise.weights.configs.rope import Values, check, refused


@dataclass(frozen=True)
class Dialect:
    """How one `model_type` spells the fields of a Config of ours.

    names: theirs -> ours, with the same meaning. defaults: what a missing one of those means; one
    that has no default is required. only: the values of other settings that our network can have;
    the first of each is written. implied: fields whose value follows from the type. read, write:
    the rest.
    """

    family: str
    architecture: str
    names: Mapping[str, str]
    defaults: Mapping[str, Any]
    only: Mapping[str, tuple[Any, ...]]
    implied: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Values], Values] = lambda left: {}  # takes what it reads out of theirs
    write: Callable[[Values], Values] = lambda fields: {}
    format: str = "huggingface"


# of no effect on what comes out of the network
HARMLESS = """architectures model_type torch_dtype dtype transformers_version use_cache
initializer_range bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id tokenizer_class
_name_or_path _attn_implementation_autoset n_ctx task_specific_params pretraining_tp auto_map
cache_implementation max_window_layers output_router_logits return_dict chunk_size_feed_forward
problem_type id2label label2id _sliding_window_pattern sliding_window_size summary_type
summary_use_proj summary_proj_to_labels summary_first_dropout summary_activation"""


# ---- the dialects ------------------------------------------------------------------------------
SIZES = {
    "vocab_size": "vocab_size", "max_position_embeddings": "max_seq_len", "hidden_size": "dim",
    "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads", "head_dim": "head_dim", "intermediate_size": "mlp_dim",
    "rms_norm_eps": "norm_eps",
}  # fmt: skip
LLAMA = {**SIZES, "tie_word_embeddings": "tied_head"}
WINDOW = {"sliding_window": "window"}
AS_HEADS = {"num_key_value_heads": None, "head_dim": None}  # as many as heads; dim / heads
DEFAULTS = {**AS_HEADS, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
PLAIN = {"hidden_act": ("silu",), "attention_bias": (False,), "attention_dropout": (0.0,)}


def _llama(architecture: str, implied: Values, **changes: object) -> Dialect:
    said = {"qkv_bias": False, "qk_norm": False, "window": 0, **implied}
    given = {
        "names": LLAMA,
        "defaults": DEFAULTS,
        "only": PLAIN,
        "read": rope.read_all_full,
        **changes,
    }
    return Dialect("llama", architecture, implied=said, write=rope.write_rope, **given)


def _moe(architecture: str, implied: Values, **changes: Any) -> Dialect:
    names = {**LLAMA, "num_experts_per_tok": "n_active", "router_aux_loss_coef": "balance_weight"}
    names |= changes.pop("names")
    defaults = DEFAULTS | {"router_aux_loss_coef": 0.001} | changes.pop("defaults")
    given = {"names": names, "defaults": defaults, "write": rope.write_rope, **changes}
    return Dialect("moe", architecture, implied=implied, **given)


GEMMA = {**SIZES, **WINDOW, "query_pre_attn_scalar": "query_scalar",
         "final_logit_softcapping": "logit_softcap"}  # fmt: skip
GEMMA_ONLY = {
    "hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False,),
    "attention_dropout": (0.0,), "tie_word_embeddings": (True,),
    "use_bidirectional_attention": (False, None),
}  # fmt: skip
GEMMA_DEFAULTS = {  # of both; text_config of a multimodal Gemma 3 says little else
    "vocab_size": 256_000, "max_position_embeddings": 8192, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
}  # fmt: skip


def _write_gemma2(fields: Values) -> Values:
    layers = rope.pattern(fields["n_layers"], fields["global_every"])
    return {"rope_theta": fields["rope_theta"], "layer_types": layers}


def _write_gemma3(fields: Values) -> Values:
    scaling = {"rope_type": "linear", "factor": fields["rope_factor"]}
    return _write_gemma2(fields) | {
        "rope_scaling": scaling if fields["rope_factor"] != 1 else None,
        "rope_local_base_freq": fields["local_rope_theta"],
        "sliding_window_pattern": fields["global_every"],
    }


GPT2 = {
    "vocab_size": "vocab_size", "n_positions": "max_seq_len", "n_embd": "dim",
    "n_layer": "n_layers", "n_head": "n_heads", "n_inner": "mlp_dim",
    "layer_norm_epsilon": "norm_eps", "resid_pdrop": "dropout", "embd_pdrop": "embed_dropout",
    "attn_pdrop": "attn_dropout",
}  # fmt: skip
GPT2_DEFAULTS = {
    "n_inner": None,  # 4 x dim
    "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
}  # fmt: skip
GPT2_ONLY = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,), "tie_word_embeddings": (True,),
}  # fmt: skip

GEMMA3_DEFAULTS = GEMMA_DEFAULTS | {
    "vocab_size": 262_208, "max_position_embeddings": 131_072, "final_logit_softcapping": None,
}  # fmt: skip
QWEN3_MOE = {"num_experts": "n_experts", "moe_intermediate_size": "mlp_dim",
             "norm_topk_prob": "norm_active"}  # fmt: skip
DIALECTS: dict[str, Dialect] = {  # in the order in which a Config of ours is offered to them
    "gpt2": Dialect("gpt", "GPT2LMHeadModel", GPT2, GPT2_DEFAULTS, GPT2_ONLY),
    "llama": _llama("LlamaForCausalLM", {}, only={**PLAIN, "mlp_bias": (False,)}),
    "mistral": _llama(
        "MistralForCausalLM",
        {},
        names={**LLAMA, **WINDOW},
        defaults={**DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096},
        read=rope.read_rope,
    ),
    "qwen2": _llama("Qwen2ForCausalLM", {"qkv_bias": True}),
    "qwen3": _llama("Qwen3ForCausalLM", {"qk_norm": True}, defaults={**DEFAULTS, "head_dim": 128}),
    "mixtral": _moe(
        "MixtralForCausalLM",
        {"qk_norm": False, "norm_active": True},
        names={**WINDOW, "num_local_experts": "n_experts"},
        defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "sliding_window": None},
        only={**PLAIN, "router_jitter_noise": (0.0,)},
        read=partial(rope.read_rope, theta=1_000_000.0),
        format="huggingface_mixtral",
    ),
    "qwen3_moe": _moe(
        "Qwen3MoeForCausalLM",
        {"qk_norm": True, "window": 0},
        names=QWEN3_MOE,
        defaults={"norm_topk_prob": False},
        only={**PLAIN, "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
        read=rope.read_all_full,
    ),
    "gemma2": Dialect(
        "gemma",
        "Gemma2ForCausalLM",
        names={**GEMMA, "attn_logit_softcapping": "attn_softcap"},
        defaults=GEMMA_DEFAULTS,
        only=GEMMA_ONLY,
        implied={"qk_norm": False, "rope_factor": 1.0},
        read=rope.read_gemma2,
        write=_write_gemma2,
    ),
    "gemma3_text": Dialect(
        "gemma",
        "Gemma3ForCausalLM",
        names=GEMMA,
        defaults=GEMMA3_DEFAULTS,
        only={**GEMMA_ONLY, "attn_logit_softcapping": (None,)},
        implied={"qk_norm": True, "attn_softcap": 0.0},
        read=rope.read_gemma3,
        write=_write_gemma3,
    ),
}


# ---- both directions ---------------------------------------------------------------------------
def read_config(values: Values) -> tuple[str, Any, str]:
    """The family, its Config and the naming of the tensors that a `config.json` describes.

    Errors: WeightsError naming the setting that is missing, unknown or not one that we do.
    """
    if values.get("model_type") == "gemma3":  # with a vision tower: the text part of it
        text = read_config({**values.get("text_config", {}), "model_type": "gemma3_text"})
        return *text[:2], "huggingface_multimodal"
    dialect = DIALECTS.get(values.get("model_type", ""))
    if dialect is None:
        raise refused("model_type", values.get("model_type"), tuple(DIALECTS))
    left = {k: v for k, v in values.items() if k not in HARMLESS.split()}
    if "num_experts" in dialect.names and "num_local_experts" in left:  # as transformers 5 writes
        left["num_experts"] = left.pop("num_local_experts")
    for theirs in dialect.names:
        if left.get(theirs) is None and not (theirs in left and theirs in NULLABLE):
            if theirs not in dialect.defaults:
                raise WeightsError(f"config.json: {theirs} is missing")
            left[theirs] = dialect.defaults[theirs]
    fields = {**dialect.implied, **dialect.read(left)}
    fields |= {ours: left.pop(theirs) for theirs, ours in dialect.names.items()}
    check(left, dialect.only, ())
    return dialect.family, config_from_dict(dialect.family, _filled(fields)), dialect.format


NULLABLE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")  # null: none


def _filled(fields: Values) -> Values:
    """The fields with each null replaced by what it stands for."""
    dim, n_heads = fields["dim"], fields["n_heads"]
    meant = {"n_kv_heads": n_heads, "head_dim": dim // n_heads, "mlp_dim": 4 * dim}
    return {k: meant.get(k, 0) if v is None else v for k, v in fields.items()}


def _can_say(dialect: Dialect, name: str, fields: Values) -> bool:
    """Whether our fields have the values that follow from this model type."""
    said = {k: v for k, v in dialect.implied.items() if k not in dialect.names.values()}
    return dialect.family == name and said.items() <= fields.items()


def write_config(name: str, config: Any) -> Values:
    """The `config.json` with which transformers builds the same network.

    Errors: WeightsError when no `model_type` of theirs can express this Config.
    """
    fields = asdict(config)
    kind = next((k for k, d in DIALECTS.items() if _can_say(d, name, fields)), "")
    if not kind:
        raise WeightsError(f"transformers has no {name} with these settings: {config}")
    dialect = DIALECTS[kind]
    values = {"architectures": [dialect.architecture], "model_type": kind}
    values |= {theirs: fields[ours] for theirs, ours in dialect.names.items()}
    values |= {key: values[key] or None for key in NULLABLE if key in values}
    values |= {theirs: allowed[0] for theirs, allowed in dialect.only.items()}
    values |= dialect.write(fields)
    back = asdict(read_config(values)[1])
    for name, value in fields.items():
        if back[name] != value:
            raise WeightsError(f"transformers' {kind} has no setting for {name} = {value!r}")
    return values


def decoder_card(name: str, config: Any, naming: str, source: str, licence: str = "") -> Card:
    """The card of a decoder. naming: of its tensors, a key of the family's PUBLISHED."""
    variant = next(iter(family(name).VARIANTS))  # of which every field is replaced
    return Card(
        *(source, name, variant, naming, source),
        licence=licence or "unknown",
        processor={"max_length": config.max_seq_len},
        labels=(),
        config=vars(config),
    )
