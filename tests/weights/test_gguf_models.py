"""Networks to GGUF and back, for every architecture; and what llama.cpp would compute otherwise."""

import warnings

import pytest
import torch

from layerwise.errors import WeightsError
from layerwise.models import config_from_dict, family
from layerwise.weights.gguf.models import load_gguf, save_gguf
from layerwise.weights.gguf.names import ARCHITECTURES
from layerwise.weights.gguf.read import read_gguf, read_metadata
from layerwise.weights.gguf.write import write_gguf
from tests.oracles import import_transformers

SMALL = {"vocab_size": 96, "max_seq_len": 64, "dim": 64, "n_layers": 2, "n_heads": 4, "mlp_dim": 96}
GROUPED = {**SMALL, "n_kv_heads": 2, "head_dim": 32}
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_len": 8192}
YARN = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_len": 32, "rope_high": 32.0}
GEMMA = {**GROUPED, "query_scalar": 32.0, "window": 8}
CASES = {
    "gpt2": ("gpt", SMALL),
    "llama": ("llama", {**GROUPED, "head_dim": 16}),
    "llama tied": ("llama", {**GROUPED, "tied_head": True, "rope_theta": 5e5}),
    "llama3": ("llama", {**GROUPED, **LLAMA3}),
    "linear": ("llama", {**GROUPED, "rope_scaling": "linear", "rope_factor": 2.0}),
    "yarn": ("llama", {**GROUPED, **YARN, "qk_norm": True}),
    "qwen2": ("llama", {**GROUPED, "qkv_bias": True}),
    "qwen3": ("llama", {**GROUPED, "qk_norm": True, "norm_eps": 1e-6}),
    "mixtral": ("moe", {**GROUPED, "n_experts": 3, "n_active": 2, "mlp_dim": 32}),
    "qwen3moe": ("moe", {**GROUPED, "n_experts": 3, "n_active": 2, "mlp_dim": 32, "qk_norm": True}),
    "gemma2": ("gemma", {**GEMMA, "global_every": 2}),
    "gemma3": (
        "gemma",
        {**GEMMA, "n_layers": 3, "global_every": 3, "attn_softcap": 0.0, "logit_softcap": 0.0,
         "qk_norm": True, "rope_theta": 1e6, "rope_factor": 8.0},
    ),
}  # fmt: skip
NAMES = {a.name for a in ARCHITECTURES}
TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(90))],
    "tokenizer.ggml.scores": [0.0] * 93,
    "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 90,
    "tokenizer.chat_template": "{{ messages }}",
}


def network(name: str, fields: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    built = family(name).Model(config_from_dict(name, fields)).eval()
    with torch.no_grad():
        for parameter in built.parameters():  # no tensor is like another, norms and biases neither
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return built


def outputs(built: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return built(torch.arange(40).reshape(2, 20) % 90)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(tmp_path, case):
    name, fields = CASES[case]
    built = network(name, fields)
    save_gguf(tmp_path / "a.gguf", name, built, "F32", TOKENIZER)
    again, its_family, metadata = load_gguf(tmp_path / "a.gguf")
    assert its_family == name
    assert again.config == built.config
    written = {"yarn": "qwen3"}.get(case, case if case in NAMES else "llama")
    assert metadata["general.architecture"] == written
    gap = 1e-6 if case.startswith("gemma") else 0  # 1 is added to its norms and taken off again
    for key, tensor in built.state_dict().items():
        assert (again.state_dict()[key] - tensor).abs().max() <= gap, key
    assert torch.allclose(outputs(again), outputs(built), atol=1e-4 if gap else 0, rtol=0)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert (len(tokens), tokens[-1]) == (96, "[PAD95]")
    assert metadata["tokenizer.chat_template"] == "{{ messages }}"


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_smaller_kinds_stay_near(tmp_path, kind):
    built = network(*CASES["llama"])
    save_gguf(tmp_path / "a.gguf", "llama", built, kind)
    again, _, _ = load_gguf(tmp_path / "a.gguf", torch.float32)
    gap = (outputs(again) - outputs(built)).norm() / outputs(built).norm()
    assert gap < {"F16": 1e-3, "BF16": 1e-2, "Q8_0": 4e-2, "Q4_0": 0.4}[kind]
    assert read_gguf(tmp_path / "a.gguf")[1].entries["blk.0.attn_norm.weight"].kind.name == "F32"


@pytest.mark.oracle
@pytest.mark.parametrize(
    "case", ["gpt2", "llama", "llama tied", "qwen2", "qwen3", "gemma2", "gemma3"]
)
def test_transformers_reads_the_same_network(tmp_path, case):
    """Its own config, as from GGUF it reads only a part of the settings; the file's tensors."""
    transformers = import_transformers()
    name, fields = CASES[case]
    built = network(name, fields)
    file = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    save_gguf(tmp_path / "a.gguf", name, built, "F32", {**TOKENIZER, **file})
    kind = transformers.CONFIG_MAPPING[case.split()[0].replace("gemma3", "gemma3_text")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path,
            gguf_file="a.gguf",
            config=kind(**as_theirs(built.config)),
            dtype=torch.float32,
            attn_implementation="eager",
        )
    with torch.inference_mode():
        logits = theirs.eval()(torch.arange(40).reshape(2, 20) % 90).logits
    ours = outputs(built)
    assert (logits - ours).abs().max() / ours.abs().max() < 1e-5


def as_theirs(c) -> dict:
    if not hasattr(c, "head_dim"):
        return {"vocab_size": c.vocab_size, "n_positions": c.max_seq_len, "n_embd": c.dim,
                "n_layer": c.n_layers, "n_head": c.n_heads, "n_inner": c.mlp_dim}  # fmt: skip
    theirs = {
        "vocab_size": c.vocab_size, "max_position_embeddings": c.max_seq_len,
        "head_dim": c.head_dim, "hidden_size": c.dim,
        "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads, "intermediate_size": c.mlp_dim,
        "rms_norm_eps": c.norm_eps, "rope_theta": c.rope_theta,
        "tie_word_embeddings": getattr(c, "tied_head", True),
    }  # fmt: skip
    if hasattr(c, "query_scalar"):
        layers = [
            "full_attention" if c.is_global(i) else "sliding_attention" for i in range(c.n_layers)
        ]
        theirs |= {"layer_types": layers, "query_pre_attn_scalar": int(c.query_scalar),
                   "sliding_window": c.window, "final_logit_softcapping": c.logit_softcap or None,
                   "attn_logit_softcapping": c.attn_softcap or None}  # fmt: skip
    if getattr(c, "rope_factor", 1) != 1:
        theirs["rope_local_base_freq"] = c.local_rope_theta
        theirs["rope_scaling"] = {"rope_type": "linear", "factor": c.rope_factor}
    return theirs


def test_what_llama_cpp_would_compute_otherwise_is_not_written(tmp_path):
    for name, fields, said in (
        ("llama", {**GROUPED, "window": 16}, "window=16"),
        ("llama", {**GROUPED, **YARN, "rope_magnitude": 1.5}, "rope_magnitude=1.5"),
        ("llama", {**GROUPED, "qkv_bias": True, "qk_norm": True}, "qkv_bias=True"),
        ("moe", {**GROUPED, "n_experts": 2, "norm_active": False}, "norm_active=False"),
        ("gemma", {**GEMMA, "query_scalar": 100.0}, "query_scalar=100.0"),
    ):
        with pytest.raises(WeightsError, match=f"no way to compute .*{said}.* other results"):
            save_gguf(tmp_path / "a.gguf", name, network(name, fields))
    assert not (tmp_path / "a.gguf").exists()
    small = network("llama", {**GROUPED, "vocab_size": 50})
    with pytest.raises(WeightsError, match="the tokenizer has 93 tokens, the network 50 rows"):
        save_gguf(tmp_path / "a.gguf", "llama", small, metadata=TOKENIZER)
    save_gguf(tmp_path / "a.gguf", "llama", network("llama", {**GROUPED, "window": 64}))


def test_files_that_ask_for_something_else(tmp_path):
    path, (name, fields) = tmp_path / "a.gguf", CASES["llama"]
    save_gguf(path, name, network(name, fields))
    metadata, tensors = read_metadata(path), dict(read_gguf(path)[1])

    def refused(changes: dict, said: str, drop: str = "") -> None:
        changed = {k: v for k, v in (metadata | changes).items() if k != drop}
        write_gguf(tmp_path / "b.gguf", changed, tensors)
        with pytest.raises(WeightsError, match=f"b.gguf: .*{said}"):
            load_gguf(tmp_path / "b.gguf")

    refused(
        {"general.architecture": "mamba"},
        "the architecture 'mamba' is not one that layerwise reads",
    )
    refused({"llama.attention.scale": 0.5}, "the setting 'llama.attention.scale' = 0.5 is not one")
    refused({"llama.rope.scaling.type": "longrope"}, "rope.scaling.type 'longrope'")
    refused({"llama.rope.dimension_count": 8}, "'llama.rope.dimension_count' is 8, but")
    refused({"llama.attention.head_count_kv": [1, 2]}, "differs between the layers")
    refused({}, "the key 'llama.block_count' is missing", "llama.block_count")
    refused({"llama.attention.causal": False}, "'llama.attention.causal' = False is not one")
    tensors["blk.0.attn_output.bias"] = torch.zeros(64)
    refused({}, "these are not the weights of this network")


def test_gemma_files_that_ask_for_something_else(tmp_path):
    path, (name, fields) = tmp_path / "a.gguf", CASES["gemma3"]
    save_gguf(path, name, network(name, fields))
    metadata, tensors = read_metadata(path), dict(read_gguf(path)[1])

    def written(changes: dict) -> None:
        write_gguf(path, metadata | changes, tensors)

    pattern = "gemma3.attention.sliding_window_pattern"
    written({pattern: [True, True, False]})
    assert load_gguf(path)[0].config.global_every == 3
    for changes, said in (
        ({pattern: [False, True, False]}, "the layers with a window follow no regular pattern"),
        ({"gemma3.rope.scaling.type": "yarn"}, "gemma3 has no such rope.scaling.type"),
        ({"gemma3.rope.scaling.type": "su"}, "rope.scaling.type 'su' is not one of"),
    ):
        written(changes)
        with pytest.raises(WeightsError, match=f"a.gguf: .*{said}"):
            load_gguf(path)
