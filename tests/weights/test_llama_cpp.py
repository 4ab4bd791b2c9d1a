"""llama.cpp and we continue one file with the same tokens: ours, and those its own code packed.

The reference is xllamacpp, llama.cpp's own server in a wheel. It keeps keys and values, and with
small kinds of weights the activations too, in fewer bits than we compute with, so the networks are
trained for a moment, with noise on their weights, to know what comes next: what is likeliest is
then not decided by rounding.
"""

import dataclasses
import pathlib
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from layerwise.generation.greedy import generate
from layerwise.models import config_from_dict, family
from layerwise.tokens.tokenizer import Tokenizer
from layerwise.tokens.training import train_bpe
from layerwise.weights.gguf import quants
from layerwise.weights.gguf.models import load_gguf, save_gguf
from layerwise.weights.gguf.read import read_gguf
from tests.oracles import LlamaCpp

pytestmark = pytest.mark.oracle
WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "one", "dog", "ran", "over", "hill", "far"]
SIZES = {"vocab_size": 320, "max_seq_len": 128, "dim": 64, "n_layers": 2, "n_heads": 4,
         "mlp_dim": 96}  # fmt: skip
GROUPED = {**SIZES, "n_kv_heads": 2, "head_dim": 16}
GEMMA = {**GROUPED, "head_dim": 32, "query_scalar": 32.0, "window": 8}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt", SIZES),
    "llama": ("llama", {**GROUPED, "rope_theta": 500.0}),
    "llama3": ("llama", {**GROUPED, "tied_head": True, "rope_scaling": "llama3",
                         "rope_factor": 8.0, "rope_original_len": 8192, "rope_theta": 100.0}),
    "mistral": ("llama", {**GROUPED, "window": 128, "rope_theta": 1e6}),
    "qwen2": ("llama", {**GROUPED, "qkv_bias": True, "tied_head": True}),
    "qwen3": ("llama", {**GROUPED, "head_dim": 32, "qk_norm": True, "tied_head": True}),
    "yarn": ("llama", {**GROUPED, "qk_norm": True, "rope_scaling": "yarn", "rope_factor": 4.0,
                       "rope_original_len": 32, "rope_high": 32.0}),
    "mixtral": ("moe", {**GROUPED, "n_experts": 4, "n_active": 2, "mlp_dim": 64}),
    "qwen3moe": ("moe", {**GROUPED, "n_experts": 4, "n_active": 2, "mlp_dim": 64, "qk_norm": True}),
    "gemma2": ("gemma", {**GEMMA, "global_every": 2}),
    "gemma3": ("gemma", {**GEMMA, "n_layers": 3, "global_every": 3, "attn_softcap": 0.0,
                         "logit_softcap": 0.0, "qk_norm": True, "rope_theta": 1e6,
                         "rope_factor": 8.0}),
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m.content }}{% endfor %}"
PROMPT, NEW = 6, 24


@cache
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 40)) for _ in range(12)]


@cache
def tokenizer() -> Tokenizer:
    return train_bpe(texts(), 320)


@cache
def knowing(case: str, dim: int = 64) -> tuple[str, nn.Module]:
    """A network that knows the texts by heart, however its weights are rounded, and its family."""
    name, fields = CASES[case]
    torch.manual_seed(0)
    config = dataclasses.replace(config_from_dict(name, fields), dim=dim)
    network = family(name).Model(config).train()
    rows = torch.tensor([tokenizer().encode(text)[:36] for text in texts()])
    with torch.no_grad():
        for parameter in network.parameters():  # biases and norms too are unlike each other
            parameter.add_(torch.randn_like(parameter) * 0.02)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.0)
    matrices = [p for p in network.parameters() if p.ndim > 1]
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 400)
        noise = [0.05 * p.detach().std() * torch.randn_like(p) for p in matrices]
        change(matrices, noise, 1)
        logits = network(rows[:, :-1])[:, PROMPT - 1 :]  # before it several texts may be meant
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, PROMPT:].flatten())
        optimizer.zero_grad()
        loss.backward()
        change(matrices, noise, -1)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if loss < 0.02:
            break
    assert loss < 0.05
    return name, network.eval()


@torch.no_grad()
def change(parameters: list[nn.Parameter], by: list[torch.Tensor], sign: int) -> None:
    torch._foreach_add_(parameters, by, alpha=sign)


def keys() -> dict[str, Any]:
    return tokenizer().to_gguf() | {"tokenizer.chat_template": TEMPLATE, "general.name": "ours"}


def agree(path: pathlib.Path, gap: float) -> None:
    """The same tokens from a few prompts, and scores that are at most `gap` apart in the mean."""
    network, _, metadata = load_gguf(path, torch.float32)
    words = Tokenizer.from_gguf(metadata)
    with LlamaCpp(path) as llama_cpp:
        for text in texts()[:3]:
            agree_on(text, network, words, llama_cpp, gap)


def agree_on(
    text: str, network: nn.Module, words: Tokenizer, llama_cpp: LlamaCpp, gap: float
) -> None:
    ids = llama_cpp.tokens(text)
    assert ids == words.encode(text)
    prompt = torch.tensor([ids[:PROMPT]])
    ours = generate(network, prompt, NEW)
    theirs, scores = llama_cpp.continued(prompt[0].tolist(), NEW, network.config.vocab_size)
    assert theirs == ours[0, PROMPT:].tolist()
    with torch.inference_mode():
        logits = network(ours[:, :-1])[0, PROMPT - 1 :]
    assert (scores - logits.log_softmax(-1)).abs().mean() < gap


@pytest.mark.parametrize("case", CASES)
def test_it_continues_our_files(tmp_path, case):
    name, network = knowing(case)
    save_gguf(tmp_path / "a.gguf", name, network, "F32", keys())
    agree(tmp_path / "a.gguf", 0.02)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("case", ["gpt2", "llama", "qwen3", "gemma3"])
def test_it_continues_our_smaller_files(tmp_path, case, kind):
    name, network = knowing(case)
    save_gguf(tmp_path / "a.gguf", name, network, kind, keys())
    agree(tmp_path / "a.gguf", {"F16": 0.02}.get(kind, 0.2))


def test_it_finds_our_chat_template(tmp_path):
    name, network = knowing("qwen3")
    save_gguf(tmp_path / "a.gguf", name, network, "Q8_0", keys())
    with LlamaCpp(tmp_path / "a.gguf") as llama_cpp:
        said = llama_cpp.chat([{"role": "user", "content": "the cat"}])
    assert said == "<|endoftext|>the cat"


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0", "Q4_0"])
def test_we_continue_what_its_own_code_packed(tmp_path, kind, monkeypatch):
    """The numbers packed by llama.cpp's `ggml_quantize_chunk`, then opened by both."""
    with LlamaCpp() as llama_cpp:

        def packed(numbers: np.ndarray, out: np.ndarray) -> None:
            raw = llama_cpp.quantized(numbers, out.nbytes, quants.KINDS[kind].number)
            out[:] = raw.view(out.dtype)

        monkeypatch.setitem(quants.PACK, kind, packed)
        monkeypatch.setattr(quants, "WRITTEN", (*quants.WRITTEN, kind))
        name, network = knowing("qwen3", dim=256)
        save_gguf(tmp_path / "a.gguf", name, network, kind, keys())
    assert kind in {e.kind.name for e in read_gguf(tmp_path / "a.gguf")[1].entries.values()}
    agree(tmp_path / "a.gguf", 0.2)
