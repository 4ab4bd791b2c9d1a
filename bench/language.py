"""Training throughput on text: this package's own loop beside the Trainer, nanoGPT's code and JAX.

    python bench/language.py [--quick] [--nanogpt FOLDER]

Work: GPT-2 124M at 8 x 256 tokens, a 10M model at 16 x 256, and a fine-tuning step of BERT-base on
16 texts of 128 tokens. Tokens lie in memory, so that only the step is timed; weights are random,
the optimiser is AdamW everywhere. "torch bf16" is the best setting of a plain loop: autocast, fused
AdamW, and the memory allocator tuned as this package tunes it; its network is nanoGPT's own where
--nanogpt names the folder with its model.py, else transformers'. It is compared step by step, its
steps and ours by turns in one process; the others are processes of their own, in turn. MFU is
against the matrix product in the same dtype, measured in the same child process.
"""

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import sidebyside

WORK = {"gpt2": (8, 256), "gpt10m": (16, 256), "bert": (16, 128)}  # texts, tokens of each
SMALL = {
    "vocab_size": 65, "max_seq_len": 256, "dim": 384, "n_layers": 6, "n_heads": 6, "mlp_dim": 1536,
}  # fmt: skip
CONTENDERS = ("ours", "trainer", "trainer bf16", "torch bf16", "by turns", "jax")


def tokens(name: str):
    import torch

    generator = torch.Generator().manual_seed(0)
    most = 65 if name == "gpt10m" else 30_000
    return torch.randint(most, WORK[name], generator=generator)


# ---- ours --------------------------------------------------------------------------------------


def ours(name: str, seconds: float, between: Callable[[], Any] = lambda: None) -> dict:
    """The product's loop, as `fit` runs it. between: called before each step, and not counted."""
    import numpy as np
    import torch

    from layerwise import models, runtime
    from layerwise.adapt.groups import parameter_groups
    from layerwise.data.examples import Batch
    from layerwise.tasks.causal import Causal
    from layerwise.tasks.classify import Classify
    from layerwise.train.checkpoint import State
    from layerwise.train.loop import Course, Hooks, train
    from layerwise.train.optim import build_optimizer
    from layerwise.train.run import fresh

    machine = runtime.start(threads=2)
    x = tokens(name)
    if name == "bert":
        family, config = models.resolve("bert-base-uncased", head_kind="class")
        tensors, task = {"inputs": x, "targets": torch.arange(len(x)) % 2}, Classify(("a", "b"))
    else:
        family, config = models.resolve("gpt2", **({} if name == "gpt2" else SMALL))
        tensors, task = {"inputs": x, "targets": x.roll(-1, 1)}, Causal()
    network = fresh(lambda: models.build(family, config), 0)
    optimizer = build_optimizer("adamw", parameter_groups(network, 0.1, 1.0), 1e-4)
    batch, ends, starts = Batch(tensors, np.arange(len(x))), [], []
    ended = time.perf_counter() + seconds + 4

    class Same:
        def __getitem__(self, step: int) -> Batch:
            ends.append(time.perf_counter())
            if ends[-1] > ended and len(ends) > 6:
                raise StopIteration
            between()
            starts.append(time.perf_counter())
            return batch

    with contextlib.suppress(StopIteration):
        train(network, task, Same(), optimizer, Course(10**6, 1e-4), State(), machine, Hooks())
    steps = np.subtract(ends[1:], starts)
    rate = as_rate(name, float(np.median(steps[2:])), network, machine.dtype)
    return rate | {"steps": steps.tolist()}


def by_turns(name: str, seconds: float, nanogpt: str) -> dict:
    """How many times a step of ours a step of the plain loop takes, by turns in one process."""
    import numpy as np

    step, theirs = plain_step(name, nanogpt), []

    def timed() -> None:
        started = time.perf_counter()
        step()
        theirs.append(time.perf_counter() - started)

    found = ours(name, 4 * seconds, timed)
    return {"ratio": float(np.median(np.divide(theirs, found["steps"])[2:]))}


def as_rate(name: str, step: float, network: Any = None, dtype: Any = None) -> dict:
    """Tokens per second of a step of so many seconds; of ours also how near the limit that is."""
    n = WORK[name][0] * WORK[name][1]
    out = {"tokens": n / step}
    if network is not None:
        sizes = {k: p.numel() for k, p in network.named_parameters() if p.ndim == 2}
        tied = name == "bert"  # there the embedding is only looked up, in the decoders multiplied
        N = sum(v for k, v in sizes.items() if "embed" not in k or ("token" in k and not tied))
        out["mfu"] = 6 * N * n / step / sidebyside.product_rate(dtype)
    return out


# ---- transformers ------------------------------------------------------------------------------


def reference(name: str):
    """The same network in transformers, with random weights."""
    tf = sidebyside.import_transformers()
    if name == "bert":
        return tf.BertForSequenceClassification(tf.BertConfig())
    small = {"vocab_size": 65, "n_positions": 256, "n_embd": 384, "n_layer": 6, "n_head": 6}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return tf.GPT2LMHeadModel(tf.GPT2Config(**(small if name == "gpt10m" else {}), **none))


def trainer(name: str, seconds: float, bf16: bool) -> dict:
    """The Hugging Face Trainer as its documentation starts it, but for the batch size."""
    import statistics

    import torch

    tf = sidebyside.import_transformers()
    torch.set_num_threads(2)
    x = tokens(name)
    labels = torch.arange(len(x)) % 2 if name == "bert" else x
    rows = [{"input_ids": x[i], "labels": labels[i]} for i in range(len(x))] * 10_000
    stamps: list[float] = []

    class Stop(tf.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            stamps.append(time.perf_counter())
            long = stamps[-1] - stamps[0] > seconds + 4
            control.should_training_stop = long and len(stamps) > 5
            return control

    arguments = tf.TrainingArguments(
        output_dir="/tmp/trainer", per_device_train_batch_size=len(x), use_cpu=True, bf16=bf16,
        report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    network = reference(name).train()
    tf.Trainer(network, arguments, train_dataset=rows, callbacks=[Stop()]).train()
    steps = [b - a for a, b in itertools.pairwise(stamps[1:])]
    return as_rate(name, statistics.median(steps))


def plain_step(name: str, nanogpt: str) -> Callable[[], None]:
    """A step of a plain loop with the best settings known for it."""
    import torch

    from layerwise.runtime import tune_allocator

    tune_allocator()
    torch.set_num_threads(2)
    x = tokens(name)
    if nanogpt and name != "bert":
        sys.path.insert(0, nanogpt)
        from model import GPT, GPTConfig  # type: ignore[import-not-found]

        sizes = dict(n_layer=6, n_head=6, n_embd=384, vocab_size=65) if name == "gpt10m" else {}
        with contextlib.redirect_stdout(sys.stderr):
            network = GPT(GPTConfig(block_size=256, **sizes))
        loss_of = lambda: network(x, x.roll(-1, 1))[1]  # noqa: E731
    else:
        network = reference(name).train()
        labels = torch.arange(len(x)) % 2 if name == "bert" else x
        loss_of = lambda: network(input_ids=x, labels=labels).loss  # noqa: E731
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    bf16 = sidebyside.multiplies_in_bf16()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


# ---- JAX ---------------------------------------------------------------------------------------


def jax_child(name: str, seconds: float) -> dict:
    """A decoder and AdamW in plain jax.numpy, compiled whole."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    if name == "bert":
        raise SystemExit("measured on decoders only")
    V, D, L, H = (65, 384, 6, 6) if name == "gpt10m" else (50257, 768, 12, 12)
    x = jnp.asarray(tokens(name).numpy())
    B, T = x.shape
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.normal(0, 0.02, shape), jnp.float32)  # noqa: E731
    params: dict[str, Any] = {"wte": make(V, D), "wpe": make(T, D), "ln": jnp.ones(D)}
    params["blocks"] = [
        {"ln1": jnp.ones(D), "qkv": make(D, 3 * D), "o": make(D, D), "ln2": jnp.ones(D),
         "up": make(D, 4 * D), "down": make(4 * D, D)}
        for _ in range(L)
    ]  # fmt: skip
    causal = jnp.tril(jnp.ones((T, T), bool))

    def norm(h, scale):
        h = h - h.mean(-1, keepdims=True)
        return h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-5) * scale

    def loss_of(p):
        h = p["wte"][x] + p["wpe"]
        for b in p["blocks"]:
            q, k, v = jnp.split(norm(h, b["ln1"]) @ b["qkv"], 3, -1)
            q, k, v = (t.reshape(B, T, H, -1).transpose(0, 2, 1, 3) for t in (q, k, v))
            scores = q @ k.transpose(0, 1, 3, 2) / (D // H) ** 0.5
            weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), -1)
            h = h + (weights @ v).transpose(0, 2, 1, 3).reshape(B, T, D) @ b["o"]
            h = h + jax.nn.gelu(norm(h, b["ln2"]) @ b["up"]) @ b["down"]
        logits = jax.nn.log_softmax(norm(h, p["ln"]) @ p["wte"].T, -1)
        return -jnp.take_along_axis(logits, jnp.roll(x, -1, 1)[..., None], -1).mean()

    @jax.jit
    def step(p, m, s, n):
        loss, g = jax.value_and_grad(loss_of)(p)
        tree = jax.tree_util.tree_map
        m = tree(lambda a, b: 0.9 * a + 0.1 * b, m, g)
        s = tree(lambda a, b: 0.95 * a + 0.05 * b * b, s, g)
        move = lambda w, a, b: (  # noqa: E731
            w * (1 - 1e-5) - 1e-4 * (a / (1 - 0.9**n)) / (jnp.sqrt(b / (1 - 0.95**n)) + 1e-8)
        )
        return tree(move, p, m, s), m, s, loss

    zeros = jax.tree_util.tree_map(jnp.zeros_like, params)
    state = [params, zeros, zeros, 1.0]

    def go() -> None:
        state[0], state[1], state[2], loss = step(state[0], state[1], state[2], state[3])
        state[3] += 1.0
        loss.block_until_ready()

    return as_rate(name, 1 / sidebyside.rate(go, 1, seconds))


def child(contender: str, name: str, seconds: float, nanogpt: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if contender == "ours":
        out = ours(name, seconds)
    elif contender == "jax":
        out = jax_child(name, seconds)
    elif contender == "by turns":
        out = by_turns(name, seconds, nanogpt)
    elif contender == "torch bf16":
        out = as_rate(name, 1 / sidebyside.rate(plain_step(name, nanogpt), 1, seconds))
    else:
        out = trainer(name, seconds, "bf16" in contender)
    print(json.dumps(out | {"peak_mb": sidebyside.peak_mb()}))


def main() -> None:
    quick = "--quick" in sys.argv
    nanogpt = sys.argv[sys.argv.index("--nanogpt") + 1] if "--nanogpt" in sys.argv else ""
    for name in WORK:
        names = CONTENDERS[:-1] if name == "bert" else CONTENDERS
        runs = sidebyside.rounds(
            __file__, names, [name, "4" if quick else "10", nanogpt], 1 if quick else 3, 600
        )
        rows, turns = [], runs.pop("by turns", [])
        for contender, r in runs.items():
            faster = sidebyside.ratio(runs["ours"], r, "tokens")
            if contender == "torch bf16" and turns:
                faster = sidebyside.median(turns, "ratio")
            mfu = f"{100 * sidebyside.median(r, 'mfu'):.0f}%" if "mfu" in r[0] else ""
            n, peak = (f"{sidebyside.median(r, k):,.0f}" for k in ("tokens", "peak_mb"))
            rows.append([name, contender, n, f"{faster:.2f}x", mfu, peak])
        head = ["network", "who", "tokens/s", "ours is faster by", "MFU", "peak MB"]
        sidebyside.markdown(head, rows)


if __name__ == "__main__":
    if "--child" in sys.argv:
        i = sys.argv.index("--child") + 1
        child(sys.argv[i], sys.argv[i + 1], float(sys.argv[i + 2]), sys.argv[i + 3])
    else:
        main()
