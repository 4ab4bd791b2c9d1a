"""What each part of the recipe for pre-training is worth: the recipe, and with one part another.

    python bench/ablation.py CORPUS [--seeds 2] [--passes 2] [--dim 128] [--only WORD ...]

A decoder of `--dim` on the first nine tenths of the corpus, scored on all of the last tenth in nats
per character. Every variant sees the same windows in the same order; what starts at random starts
from the same seeds. "more" is what the variant loses against the recipe, seed by seed: its mean and
half the distance of the extremes. Optimisers have rates of their own, so each is tried at several.
"""

import argparse
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sidebyside
from torch import Tensor, nn

from layerwise import models, runtime
from layerwise.adapt.groups import parameter_groups
from layerwise.data.examples import Examples
from layerwise.data.loader import Batches
from layerwise.kinds.opening import open_data
from layerwise.kinds.text import language
from layerwise.kinds.text.corpus import tokenise
from layerwise.kinds.text.documents import texts_of
from layerwise.kinds.text.processor import TextProcessor
from layerwise.tasks.causal import Causal
from layerwise.tokens.training import train_bpe
from layerwise.train.checkpoint import State
from layerwise.train.loop import Course, Hooks, train
from layerwise.train.optim import build_optimizer
from layerwise.train.run import fresh, predict_rows

HELD, LENGTH, ROWS = 0.1, 128, 16


@dataclass(frozen=True)
class Recipe:
    """As `fit CORPUS --base none` trains a decoder."""

    optimizer: str = "muon"
    lr: float = 4e-3
    schedule: str = "wsd"
    weight_decay: float = 0.1
    silent: bool = False  # what adds to the stream begins at zero
    qk_norm: bool = True
    mlp: str = "SwiGLU"
    family: str = "llama"


VARIANTS = {
    "the recipe": Recipe(),
    "half the rate": Recipe(lr=2e-3),
    "twice the rate": Recipe(lr=8e-3),
    "AdamW, 5e-4": Recipe(optimizer="adamw", lr=5e-4),
    "AdamW, 1e-3": Recipe(optimizer="adamw", lr=1e-3),
    "AdamW, 2e-3": Recipe(optimizer="adamw", lr=2e-3),
    "no norms of query and key": Recipe(qk_norm=False),
    "branches begin at zero": Recipe(silent=True),
    "cosine to 1%": Recipe(schedule="cosine"),
    "a line to 0": Recipe(schedule="linear"),
    "no weight decay": Recipe(weight_decay=0.0),
    "ReLU squared": Recipe(mlp="ReLU squared"),
    "GPT-2's layers": Recipe(family="gpt"),
    "GPT-2's layers, AdamW, 2e-3": Recipe(family="gpt", optimizer="adamw", lr=2e-3),
}


class SquaredMlp(nn.Module):
    """down(relu(up(x))^2), as many parameters as the gated one (So et al., arXiv:2109.08668)."""

    def __init__(self, dim: int, mlp_dim: int):
        super().__init__()
        self.up_proj = nn.Linear(dim, 3 * mlp_dim // 2, bias=False)
        self.down_proj = nn.Linear(3 * mlp_dim // 2, dim, bias=False)
        for part in (self.up_proj, self.down_proj):
            nn.init.normal_(part.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.up_proj(x).relu().square())


def network_of(recipe: Recipe, dim: int, vocab_size: int) -> nn.Module:
    config = replace(language.decoder_of(dim, vocab_size, LENGTH), qk_norm=recipe.qk_norm)
    if recipe.family == "gpt":
        sizes = {k: getattr(config, k) for k in ("vocab_size", "max_seq_len", "dim", "n_layers")}
        config = models.resolve("gpt2", **sizes, n_heads=config.n_heads, mlp_dim=4 * dim)[1]
    network: Any = models.build(recipe.family, config)
    for block in network.blocks:
        if recipe.mlp == "ReLU squared":
            block.mlp = SquaredMlp(dim, config.mlp_dim)
        if recipe.silent:
            for name, parameter in block.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight", "fc2.weight")):
                    nn.init.zeros_(parameter)
    return network


def trained(recipe: Recipe, rows: Examples, held: Examples, seed: int, options: Any) -> dict:
    """The nats of the whole held-out text, and the seconds."""
    started, machine, task = time.perf_counter(), runtime.start(), Causal()
    network = fresh(lambda: network_of(recipe, options.dim, options.vocab), seed)
    batches = Batches(rows, None, None, ROWS, seed)
    steps = max(4, round(options.passes * batches.steps_per_epoch))
    optimizer = build_optimizer(
        recipe.optimizer, parameter_groups(network, recipe.weight_decay), recipe.lr
    )
    course = Course(steps, recipe.lr, recipe.schedule, warmup_steps=steps // 20)
    train(network, task, batches, optimizer, course, State(seed=seed), machine, Hooks())
    nats = float(predict_rows(network, task, None, held, machine)[:, 0].sum(dtype=np.float64))
    params = sum(p.numel() for p in network.parameters())
    return {"nats": nats, "seconds": time.perf_counter() - started, "params": params}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus")
    for name, default in {"seeds": 2, "passes": 2.0, "dim": 128, "vocab": 512}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--only", nargs="*", default=[""], help="variants whose names hold a word")
    options = parser.parse_args()
    opened = open_data(options.corpus)
    text = "".join(texts_of(opened))
    cut = int((1 - HELD) * len(text))
    tokenizer = train_bpe([text[:cut]], options.vocab)
    options.vocab = tokenizer.vocab_size
    parts = []
    for part in (text[:cut], text[cut:]):
        of_part, reader = replace(opened, inputs=[{"text": part}]), TextProcessor(tokenizer, LENGTH)
        parts.append(language.windows_of(of_part, tokenise([part], tokenizer), reader))
    chosen = {k: v for k, v in VARIANTS.items() if any(word in k for word in options.only)}
    runs: dict[str, list[dict]] = {name: [] for name in {"the recipe": 0} | chosen}
    for seed in range(options.seeds):
        for name in runs:
            runs[name].append(trained(VARIANTS[name], parts[0], parts[1], seed, options))
            print(f"  seed {seed}, {name}: {runs[name][-1]}", flush=True)
    rows = []
    for name, found in runs.items():
        nats = np.array([r["nats"] for r in found]) / (len(text) - cut)
        more = nats - np.array([r["nats"] for r in runs["the recipe"]]) / (len(text) - cut)
        seconds = sidebyside.median(found, "seconds")
        rows.append([name, f"{found[0]['params']:,}", f"{nats.mean():.4f}",
                     f"{more.mean():+.4f} ± {np.ptp(more) / 2:.4f}", f"{seconds:.0f}"])  # fmt: skip
    sidebyside.markdown(["variant", "parameters", "nats per character", "more", "s"], rows)


if __name__ == "__main__":
    main()
