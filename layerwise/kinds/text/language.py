"""Plain text for `fit`: tokenised once, cut into windows, and a decoder of the right size for it.

What is trained is a standard architecture (Qwen3's: rotary positions, RMSNorm, norms of query and
key, gated mlp, tied head), so the result opens in other tools.

Legend: n documents, T tokens of a window, N parameters that multiply, D tokens trained on.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from layerwise import models
from layerwise.console import Console
from layerwise.data.examples import Examples
from layerwise.errors import DataError, OptionError
from layerwise.fitting.choose import Choice
from layerwise.fitting.result import Rows
from layerwise.kinds.text.corpus import Corpus, Windows, tokenise
from layerwise.kinds.text.documents import texts_of
from layerwise.kinds.text.masked import MaskedWindows
from layerwise.kinds.text.processor import TextProcessor
from layerwise.model.model import Model
from layerwise.runtime import Runtime
from layerwise.settings import Settings
from layerwise.tasks import task_name
from layerwise.tokens.training import train_bpe, train_wordpiece

FEW_DOCUMENTS = 20  # below which documents are split within, not among each other
LEAST_VOCABULARY, MOST_VOCABULARY = 512, 32_768
HEAD_DIM = 64
WIDTHS = (32, 64, 96, *range(128, 2049, 64))
LENGTHS = (128, 256, 512)  # windows, for a corpus from small to large
EFFICIENCY = 0.3  # of the rate of large products that small networks reach, validation included


def in_stretches(examples: Examples, val: float, test: float) -> Examples:
    """A few long documents as stretches for training, choosing and scoring, the last ones held out.

    Unchanged where the data brings splits of its own, or documents enough to divide.
    """
    if len(examples) >= FEW_DOCUMENTS or any(examples.given):
        return examples
    test = min(test, 0.1)
    shares = {"train": 1 - val - test, "val": val, "test": test}
    rows, names, given = [], [], []
    for name, text in zip(examples.names, texts_of(examples), strict=True):
        start = 0
        for i, (split, share) in enumerate(shares.items()):
            end = len(text) if i == len(shares) - 1 else start + round(share * len(text))
            if i < len(shares) - 1:  # behind a line, where there is one not far above
                end = text.rfind("\n", (start + end) // 2, end) + 1 or end
            rows.append({"text": text[start:end]})
            names.append(f"{name} ({split})")
            given.append(split)
            start = end
    said = f"{examples.understood}; the end of each document is held out"
    out = replace(examples, inputs=rows, names=names, understood=said)
    return replace(out, given=np.array(given, "U5"))


def check_base(base: Model, task: str) -> None:
    """Errors: OptionError for a base that does not do this; masked words any encoder can learn."""
    if task == "masked" and hasattr(base.network, "pooled"):
        return
    if base.task is None or base.task.name != task:
        raise OptionError(
            f"the base {base.variant} is not of the task {task}; name one that is, or leave it out"
        )


def as_tokens(
    rows: Rows, chosen: Settings, console: Console, base: Model | None = None
) -> tuple[Rows, TextProcessor]:
    """The documents of each split as windows of tokens, by the base's tokenizer or one of train.

    Errors: DataError where a split has too little text for a single prediction.
    """
    parts = {name: getattr(rows, name) for name in ("train", "val", "test")}
    texts = {name: texts_of(part) for name, part in parts.items()}
    n_bytes = sum(len(t.encode("utf-8", "surrogatepass")) for t in texts["train"])
    masked = task_name(rows.train, chosen.task) == "masked"
    if base is None:
        learn = train_wordpiece if masked else train_bpe
        tokenizer, longest = learn(texts["train"], vocabulary_for(n_bytes)), LENGTHS[-1]
    else:
        tokenizer, longest = base.processor.tokenizer, base.processor.max_seq_len
    corpora = {name: tokenise(part, tokenizer) for name, part in texts.items()}
    length = chosen.max_seq_len or min(longest, length_for(len(corpora["train"].tokens)))
    said = ", ".join(f"{len(c.tokens):,} {name}" for name, c in corpora.items())
    console.say(
        f"tokens: {said}; a vocabulary of {tokenizer.vocab_size:,}, "
        f"{corpora['train'].bytes_per_token:.2f} bytes per token, windows of {length}"
    )
    reader = TextProcessor(tokenizer, length)
    cut = {name: windows_of(parts[name], c, reader, masked) for name, c in corpora.items()}
    out = replace(rows, train=cut["train"], val=cut["val"], test=cut["test"], clean_test=None)
    return out, reader


def windows_of(
    examples: Examples, corpus: Corpus, reader: TextProcessor, masked: bool = False
) -> Examples:
    """A corpus as windows of the reader's length; masked: with hidden words to learn."""
    length, words = reader.max_seq_len, reader.tokenizer
    windows = MaskedWindows(corpus, length, words) if masked else Windows(corpus, length)
    return Examples(
        kind="tokens",
        inputs=windows,  # type: ignore[arg-type]
        targets=np.zeros(len(windows)),
        target_kind="none",
        labels=(),
        names=[f"window {i} of {examples.source}" for i in range(len(windows))],
        given=np.full(len(windows), "", "U5"),
        understood=examples.understood,
        source=examples.source,
    )


def vocabulary_for(n_bytes: int) -> int:
    """A power of two, about the root of the text: 1,024 for a megabyte, 32,768 for 1 GB."""
    wanted = 1024 * (n_bytes / 1e6) ** 0.5
    return int(np.clip(2 ** round(np.log2(max(wanted, 1))), LEAST_VOCABULARY, MOST_VOCABULARY))


def length_for(n_tokens: int) -> int:
    return LENGTHS[0] if n_tokens < 100_000 else LENGTHS[1] if n_tokens < 5e7 else LENGTHS[2]


def choose_decoder(train: Examples, processor: TextProcessor, chosen: Settings) -> Choice:
    """A decoder with fresh weights: as named, or as large as the text has tokens."""
    V, T = processor.tokenizer.vocab_size, processor.max_seq_len
    if chosen.model != "auto":
        family, config = models.resolve(chosen.model)
        if not hasattr(config, "vocab_size") or family == "bert":
            raise DataError(
                f"{chosen.model} does not continue text; name a decoder such as gpt2, or leave "
                "--model out"
            )
        longer = max(T, config.max_seq_len)
        config = replace(config, vocab_size=V, max_seq_len=longer)
        return Choice(chosen.model, family, config, processor, "as asked")
    n_tokens = len(corpus_of(train).tokens)
    config = decoder_of(width_for(n_tokens), V, T)
    why = f"{config.n_layers} layers of {config.dim} for {n_tokens:,} tokens"
    return Choice(f"qwen3_{config.dim}x{config.n_layers}", "llama", config, processor, why)


def width_for(n_params: float) -> int:
    """The width whose blocks come nearest to this many parameters: about 12 L D^2."""
    sizes = np.array([12 * max(2, w // HEAD_DIM) * w * w for w in WIDTHS])
    return WIDTHS[int(np.argmin(abs(np.log(sizes / max(n_params, 1.0)))))]


def decoder_of(width: int, vocab_size: int, length: int) -> Any:
    """A decoder of this width, a multiple of 32, with a layer for every 64 of it."""
    from layerwise.models.llama import Config

    head_dim = HEAD_DIM if width >= 2 * HEAD_DIM else HEAD_DIM // 2
    return Config(
        vocab_size=vocab_size,
        max_seq_len=length,
        dim=width,
        n_layers=max(2, width // HEAD_DIM),
        n_heads=width // head_dim,
        n_kv_heads=width // head_dim,
        head_dim=head_dim,
        mlp_dim=HEAD_DIM * round(8 * width / 3 / HEAD_DIM),
        norm_eps=1e-6,
        qk_norm=True,
        tied_head=True,
    )


def corpus_of(rows: Examples) -> Corpus:
    """The tokens behind windows."""
    assert isinstance(rows.inputs, Windows)
    return rows.inputs.corpus


def unigram_bits(train: Examples, test: Examples) -> float:
    """Bits per byte, or per masked word, by the frequencies of the training tokens alone."""
    seen, asked, per = corpus_of(train).tokens, corpus_of(test).tokens, 0
    if isinstance(test.inputs, MaskedWindows):
        seen, asked = (t[np.isin(t, test.inputs.words)] for t in (seen, asked))
        per = len(asked)
    size = 1 + int(max(seen.max(), asked.max()))
    counts = np.bincount(seen, minlength=size) + 1.0
    bits = -np.log2(counts / counts.sum())
    return float(bits[asked].sum() / max(1, per or corpus_of(test).n_bytes))


def affordable(seconds: float, machine: Runtime) -> float:
    """FLOPs that a training budget pays for here, about, at the rate of large matrix products."""
    return EFFICIENCY * seconds * product_rate(machine)


def product_rate(machine: Runtime, side: int = 768) -> float:
    """FLOP/s of a matrix product of side x side in the arithmetic of this run, the best of five."""
    a, b = (torch.randn(side, side, dtype=machine.dtype, device=machine.device) for _ in "ab")
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        float((a @ b)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
