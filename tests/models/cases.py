"""Tiny networks of every family, one case for each way that its config can go."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from layerwise.models import build, family, heads, reads, replace_fields
from layerwise.models.bert import HEADS, STYLES
from layerwise.models.network import Network

C, V, T = 5, 64, 24  # classes, tokens of the vocabulary, tokens of a text


@dataclass(frozen=True)
class Case:
    """A tiny network. shape: of an image or of a row of values; () for texts."""

    name: str
    family: str
    fields: dict[str, Any]
    shape: tuple[int, ...] = ()

    @property
    def reads_tokens(self) -> bool:
        return reads(self.family)[0] == "tokens"

    @property
    def continues_text(self) -> bool:
        return "causal" in heads(self.family)

    def config(self, **more: Any) -> Any:
        own = {} if self.continues_text else {"n_classes": C}
        return replace_fields(family(self.family).Config(), {**own, **self.fields, **more})

    def network(self, **more: Any) -> Network:
        torch.manual_seed(0)
        return build(self.family, self.config(**more))

    def without_dropout(self) -> Network:
        names = [f.name for f in fields(family(self.family).Config) if f.name.endswith("dropout")]
        return self.network(**dict.fromkeys(names, 0.0))

    def inputs(self, n: int = 3) -> dict[str, Tensor]:
        """What the network mainly reads, by its name."""
        seeded = torch.Generator().manual_seed(1)
        if self.reads_tokens:
            return {"tokens": torch.randint(V, (n, T), generator=seeded)}
        names = reads(self.family)
        name = "image" if len(self.shape) == 3 and "image" in names else names[0]
        return {name: torch.randn(n, *self.shape, generator=seeded)}


MLP = {"n_in": 48, "dim": 16, "n_layers": 4}
RESIDUAL = {**MLP, "residual": True, "activation": "gelu", "norm": "layer", "dropout": 0.1}
ALEXNET = {"channels": (8, 8, 8, 8, 8)}
ONE_TOWER = {**ALEXNET, "groups": 1, "response_norm": False, "stem_padding": 2}
RESNET = {"depths": (2, 1, 1), "widths": (8, 16, 24)}
RESNET_PAD = {**RESNET, "small_stem": True, "pad_shortcut": True}
VIT = {"image_size": 32, "patch_size": 8, "dim": 24, "n_layers": 3, "n_heads": 3, "mlp_dim": 48}
SEPARABLE = {"expansion": 0, "width": 0.25, "same_padding": True, "last_channels": 0}
SEPARABLE |= {"channels": (64, 128), "repeats": (1, 2), "strides": (1, 2)}
INVERTED = {"width": 0.25, "channels": (16, 32), "repeats": (1, 2), "strides": (1, 2)}
V3 = {"stem_channels": 8, "kernel": (3, 5, 3), "inner": (8, 24, 32), "channels": (8, 16, 16)}
V3 |= {"excite": (1, 0, 1), "hard_swish": (0, 1, 1), "stride": (2, 2, 1)}
V3 |= {"last_channels": 24, "n_features": 32}
SQUEEZE = {"stem_channels": 16, "stem_kernel": 3, "squeeze": (4, 6), "pool_after": (1, 2)}

SIZES = {"vocab_size": V, "max_seq_len": 128, "dim": 32, "n_layers": 3, "n_heads": 4}
GPT = {**SIZES, "mlp_dim": 64}
ROTARY = {**SIZES, "n_kv_heads": 2, "head_dim": 8, "mlp_dim": 48}
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_len": 16}
YARN = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_len": 32, "rope_high": 32.0}
LINEAR = {"rope_scaling": "linear", "rope_factor": 2.0}
QWEN3 = {**ROTARY, "head_dim": 12, "qk_norm": True, "norm_eps": 1e-6, "rope_theta": 1e6}
MIXTRAL = {**ROTARY, "mlp_dim": 24, "n_experts": 4, "n_active": 2}
QWEN3_MOE = {**QWEN3, "mlp_dim": 16, "n_experts": 8, "n_active": 3, "balance_weight": 0.001}
GEMMA = {**ROTARY, "head_dim": 12, "query_scalar": 20, "window": 5}
CAPS = {"attn_softcap": 0.0, "logit_softcap": 0.0, "qk_norm": True}
GEMMA3 = {**GEMMA, **CAPS, "rope_theta": 1e6, "global_every": 3, "rope_factor": 8.0}
BERT = {**GPT, "n_layers": 2}
OF_STYLE = {
    "bert": {},
    "roberta": {"n_token_types": 1, "norm_eps": 1e-5},
    "distilbert": {"n_token_types": 0, "head_dropout": 0.2},
}

SEEING = [
    Case("mlp", "mlp", MLP, (48,)),
    Case("mlp_batch", "mlp", {**MLP, "norm": "batch", "activation": "tanh"}, (3, 4, 4)),
    Case("mlp_residual", "mlp", RESIDUAL, (48,)),
    Case("alexnet", "alexnet", ALEXNET, (3, 67, 67)),
    Case("alexnet_owt", "alexnet", ONE_TOWER, (3, 63, 63)),
    Case("resnet", "resnet", RESNET, (3, 64, 48)),
    Case("resnet_bottleneck", "resnet", {**RESNET, "bottleneck": True}, (3, 64, 64)),
    Case("resnet_pad", "resnet", RESNET_PAD, (3, 32, 32)),
    Case("vit", "vit", VIT, (3, 32, 32)),
    Case("mobilenet_v1", "mobilenet", SEPARABLE, (3, 33, 33)),
    Case("mobilenet_v2", "mobilenet", INVERTED, (3, 32, 32)),
    Case("mobilenet_v3", "mobilenetv3", V3, (3, 32, 32)),
    Case("squeezenet", "squeezenet", SQUEEZE, (3, 48, 48)),
    Case("tc_resnet", "tc_resnet", {"n_mels": 8, "channels": (4, 4, 6, 8)}, (1, 8, 20)),
    Case("airbench", "airbench", {"channels": (8, 12, 12)}, (3, 32, 32)),
    Case("airbench_residual", "airbench", {"channels": (8, 12, 12), "n_convs": 3}, (3, 32, 32)),
]
DECODERS = [
    Case("gpt2", "gpt", GPT),
    Case("llama2", "llama", {**ROTARY, "n_kv_heads": 4}),
    Case("llama3", "llama", {**ROTARY, **LLAMA3, "rope_theta": 5e5}),
    Case("llama3_tied", "llama", {**ROTARY, **LLAMA3, "tied_head": True}),
    Case("linear", "llama", {**ROTARY, **LINEAR}),
    Case("mistral", "llama", {**ROTARY, "window": 7}),
    Case("qwen2", "llama", {**ROTARY, "qkv_bias": True, "tied_head": True}),
    Case("qwen2_yarn", "llama", {**ROTARY, **YARN, "qkv_bias": True}),
    Case("qwen3", "llama", QWEN3),
    Case("qwen3_tied", "llama", {**QWEN3, "tied_head": True}),
    Case("mixtral", "moe", MIXTRAL),
    Case("mixtral_window", "moe", {**MIXTRAL, "window": 7}),
    Case("qwen3_moe", "moe", QWEN3_MOE),
    Case("qwen3_moe_raw", "moe", {**QWEN3_MOE, "norm_active": False}),
    Case("gemma2", "gemma", GEMMA),
    Case("gemma3", "gemma", GEMMA3),
]
ENCODERS = [
    Case(f"{style}-{kind}", "bert", {**BERT, **OF_STYLE[style], "style": style, "head_kind": kind})
    for style in STYLES
    for kind in HEADS
]
CASES = [*SEEING, *DECODERS, *ENCODERS]
