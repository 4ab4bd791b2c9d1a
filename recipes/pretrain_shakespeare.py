"""Tiny Shakespeare on two processor cores: nanoGPT's GPU result, from nothing, in under an hour.

Command    python recipes/pretrain_shakespeare.py tinyshakespeare.txt [--seeds 3] [--quick]
Hardware   CPU with AVX512-bf16, 1 or 2 cores
Aim        1.4697 nats per character on the last tenth of the text (the figure of nanoGPT's
           character model of 10.6 million parameters), under 11 million parameters, mean of 3
           seeds, in at most 60 minutes each
Result     1.4325 (1.4301 to 1.4340), 4.95 million parameters, 27 minutes on one core (Zen 4);
           docs/benchmarks.md

A decoder as Qwen3's (rotary positions, RMSNorm, norms of query and key, gated mlp, tied head) whose
residual branches begin at zero, Muon for its matrices and AdamW for the rest, bf16. The text is cut
into byte-level BPE tokens learned on the first nine tenths, so that a window holds more of it and a
pass costs less than with characters; the loss is in nats per character all the same: summed over
every token of the last tenth, divided by its characters. `--vocab 257` trains on bytes. A megabyte
is read several times, so what attention and mlp add is dropped out, and each reading but one cuts
the text differently: merges of the tokenizer are left out at random (BPE-dropout, Provilkov et al.,
arXiv:1910.13267), and it begins at another place. The windows of all readings are shuffled
together. The best of the validations counts, as in nanoGPT.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tokenizers
import torch
from torch import nn

from layerwise import models, runtime
from layerwise.adapt.groups import parameter_groups
from layerwise.data.examples import Examples
from layerwise.data.loader import Batches, Prefetch
from layerwise.kinds.opening import open_data
from layerwise.kinds.text import language
from layerwise.kinds.text.corpus import Corpus, Windows, tokenise
from layerwise.kinds.text.documents import texts_of
from layerwise.kinds.text.processor import TextProcessor
from layerwise.layers.dropout import dropout
from layerwise.models import llama
from layerwise.models.network import Network
from layerwise.tasks.causal import Causal
from layerwise.tasks.feed import Feed
from layerwise.tokens.tokenizer import Tokenizer
from layerwise.tokens.training import train_bpe
from layerwise.train.checkpoint import State
from layerwise.train.loop import Hooks, LoopConfig, train
from layerwise.train.optim import build_optimizer
from layerwise.train.predicting import predict_rows
from layerwise.train.run import fresh

HELD = 0.1  # of the text, its end
NANOGPT = 1.4697


@dataclass(frozen=True)
class Choices:
    """What distinguishes one training from another."""

    vocab: int = 512
    dim: int = 256
    layers: int = 6
    length: int = 256  # tokens of a window
    batch: int = 16  # windows
    readings: float = 8.0  # of the whole text
    lr: float = 4e-3
    evaluations: int = 20
    weight_decay: float = 0.1
    dropout: float = 0.1
    merge_dropout: float = 0.1  # of merges, in all readings but one


QUICK = Choices(dim=64, layers=2, readings=0.5)


@dataclass(frozen=True)
class Score:
    """What one training came to."""

    seed: int
    nats: float  # per character of the held-out text, at the best validation
    last: float  # at the end
    seconds: float  # training and validations
    params: int


def windows(corpus: Corpus, length: int) -> Examples:
    """A tokenised text as windows of tokens."""
    found = Windows(corpus, length)
    names, given = [f"window {i}" for i in range(len(found))], np.full(len(found), "", "U5")
    return Examples({"windows": found}, {"windows": "text"}, names, given)


def read_often(text: str, tokenizer: Tokenizer, choices: Choices, seed: int) -> Corpus:
    """The text as often as it is read, cut into other tokens each time but one."""
    rng, cut = np.random.default_rng(seed), tokenizers.Tokenizer.from_str(tokenizer.inner.to_str())
    readings, many = [], math.ceil(choices.readings)
    for i in range(many):
        last = i == many - 1
        cut.model.dropout = None if last else choices.merge_dropout or None
        start = int(rng.integers(choices.length))
        ids = cut.encode(text[start:], add_special_tokens=False).ids
        readings.append(np.asarray(ids, np.uint16))
    starts = np.cumsum([0, *map(len, readings)])
    return Corpus(np.concatenate(readings), starts, many * len(text.encode()))


def network_of(choices: Choices, vocab_size: int, seed: int) -> Network:
    """The decoder, its residual branches silent at the start, and dropout behind them."""
    config = replace(
        language.decoder_of(choices.dim, vocab_size, choices.length), n_layers=choices.layers
    )
    network = fresh(lambda: models.build("llama", config), seed)
    assert isinstance(network, llama.Llama)

    def drop(module: nn.Module, inputs: object, out: torch.Tensor) -> torch.Tensor:
        return dropout(out, choices.dropout, module.training)

    for block in network.blocks:
        assert isinstance(block, llama.Block)
        for part, last in ((block.attn, block.attn.o_proj), (block.mlp, block.mlp.down_proj)):
            nn.init.zeros_(last.weight)
            part.register_forward_hook(drop)
    return network


def train_once(
    rows: Examples, held: Examples, n_chars: int, seed: int, tokenizer: Tokenizer, choices: Choices
) -> Score:
    """One training and its loss on the held-out text."""
    started, machine, task = time.perf_counter(), runtime.start(), Causal()
    network = network_of(choices, tokenizer.vocab_size, seed)
    params = sum(p.numel() for p in network.parameters())
    processors = {"text": TextProcessor(tokenizer, choices.length)}
    batches = Batches(Feed(task, rows, processors), choices.batch, seed)
    unseen = Feed(task, held, processors)
    share = choices.readings / math.ceil(choices.readings)
    steps = max(4, round(share * batches.steps_per_epoch))
    found: list[float] = []

    def evaluate(network: Network) -> float:
        said = predict_rows(network, unseen, machine, choices.batch)
        found.append(sum(p.loss for p in said) / n_chars)
        spent = time.perf_counter() - started
        print(f"  {spent:5.0f} s: {found[-1]:.4f} nats per character", flush=True)
        return found[-1]

    every = max(1, steps // choices.evaluations)
    config = LoopConfig(steps, choices.lr, "linear", warmup_steps=steps // 20, evaluate_every=every)
    groups = parameter_groups(network, choices.weight_decay)
    with Prefetch(batches, stop=steps) as feed:
        optimizer, state = build_optimizer("muon", groups, choices.lr), State(seed=seed)
        hooks = Hooks(evaluate=evaluate, higher_is_better=False)
        train(network, task, feed, optimizer, config, state, machine, hooks)
    return Score(seed, min(found), found[-1], time.perf_counter() - started, params)


def main(arguments: Sequence[str] | None = None) -> list[Score]:
    parser = argparse.ArgumentParser(description="tiny Shakespeare on two cores")
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small network for half a reading")
    for name, default in vars(Choices()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=None)
    options = vars(parser.parse_args(arguments))
    asked = {n: options[n] for n in vars(Choices()) if options[n] is not None}
    choices = replace(QUICK if options["quick"] else Choices(), **asked)
    text = "".join(texts_of(open_data(options["data"])))
    cut = int((1 - HELD) * len(text))
    tokenizer = train_bpe([text[:cut]], choices.vocab)
    held = windows(tokenise([text[cut:]], tokenizer), choices.length)
    scores = []
    seeds = 1 if options["quick"] else options["seeds"]
    for seed in range(options["first_seed"], options["first_seed"] + seeds):
        rows = windows(read_often(text[:cut], tokenizer, choices, seed), choices.length)
        scores.append(train_once(rows, held, len(text) - cut, seed, tokenizer, choices))
        s = scores[-1]
        print(f"seed {seed}: {s.nats:.4f} nats per character (at the end {s.last:.4f}), "
              f"{s.params:,} parameters, {s.seconds:.0f} s", flush=True)  # fmt: skip
    mean = float(np.mean([s.nats for s in scores]))
    print(f"mean of {len(scores)}: {mean:.4f}; nanoGPT's GPU configuration: {NANOGPT}")
    return scores


if __name__ == "__main__":
    main()
