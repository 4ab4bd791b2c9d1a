"""Plain text as what a language model learns from: stretches of documents, windows of tokens, and
a decoder of the right size.

What is trained is a standard architecture (Qwen3's: rotary positions, RMSNorm, norms of query and
key, gated mlp, tied head), so the result opens in other tools.

Legend: n documents, T tokens of a window, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from layerwise import models
from layerwise.data.examples import Examples, listed
from layerwise.errors import DataError
from layerwise.kinds.contract import Choice, Ends
from layerwise.kinds.text.corpus import Corpus, Windows, tokenise
from layerwise.kinds.text.documents import plain_examples, texts_of
from layerwise.kinds.text.masked import MaskedWindows
from layerwise.kinds.text.processor import TextProcessor
from layerwise.kinds.text.source import windows_in
from layerwise.settings import Settings
from layerwise.tokens.training import train_bpe, train_wordpiece

FEW_DOCUMENTS = 20  # below which documents are split within, not among each other
LEAST_VOCABULARY, MOST_VOCABULARY = 512, 32_768
HEAD_DIM = 64
WIDTHS = (32, 64, 96, *range(128, 2049, 64))
LENGTHS = (128, 256, 512)  # windows, for a corpus from small to large


def in_stretches(examples: Examples, val: float, test: float) -> Examples:
    """A few long documents as stretches for training, choosing and scoring, the last ones held out.

    Unchanged where the data brings splits of its own, or documents enough to divide.
    """
    if len(examples) >= FEW_DOCUMENTS or any(examples.given):
        return examples
    test = min(test, 0.1)
    shares = {"train": 1 - val - test, "val": val, "test": test}
    rows = []
    for name, text in zip(examples.names, listed(examples["text"]), strict=True):
        start = 0
        for split, share in shares.items():
            end = start + round(share * len(text))  # or behind a line that ends not far above
            end = text.rfind("\n", (start + end) // 2, end) + 1 or end
            end = len(text) if split == "test" else end
            rows.append((text[start:end], f"{name} ({split})", split))
            start = end
    said = f"{examples.understood}; the end of each document is held out"
    out = plain_examples(*map(list, zip(*rows, strict=True)))
    return replace(out, understood=said, source=examples.source, findings=examples.findings)


def reader_for(
    train: Examples, ends: Ends, settings: Settings, known: TextProcessor | None
) -> TextProcessor:
    """What cuts these documents into windows. known: a base's; else a tokenizer is trained."""
    texts = texts_of(train)
    if known is None:
        n_bytes = sum(len(t.encode("utf-8", "surrogatepass")) for t in texts)
        learn = train_wordpiece if ends.kind == "masked" else train_bpe
        known = TextProcessor(learn(texts, vocabulary_for(n_bytes)), LENGTHS[-1])
    n_tokens = len(tokenise(texts, known.tokenizer).tokens)
    length = settings.max_seq_len or min(known.max_seq_len, length_for(n_tokens))
    return TextProcessor(known.tokenizer, length)


def windows_of(examples: Examples, reader: TextProcessor, masked: bool = False) -> Examples:
    """Documents as windows of the reader's length; masked: with hidden words to learn.

    Errors: DataError where there is too little text for a single prediction, or other rows.
    """
    if examples.has("windows"):
        return examples
    if not examples.has("text") or examples.targets is not None:
        raise DataError(f"{examples.understood}: a plain text was expected, to score the words of")
    length, words, source = reader.max_seq_len, reader.tokenizer, examples.source
    corpus = tokenise(texts_of(examples), words)
    windows = MaskedWindows(corpus, length, words) if masked else Windows(corpus, length)
    names = [f"window {i} of {source}" for i in range(len(windows))]
    given, said = np.full(len(windows), "", "U5"), examples.understood
    return Examples({"windows": windows}, {"windows": "text"}, names, given, said, source=source)


def windows_said(parts: Mapping[str, Examples], reader: TextProcessor) -> str:
    """The tokens of each split, the vocabulary and the windows in a line."""
    corpora = {name: corpus_of(part) for name, part in parts.items()}
    said = ", ".join(f"{len(c.tokens):,} {name}" for name, c in corpora.items())
    said += f"; a vocabulary of {reader.tokenizer.vocab_size:,}"
    rate = f"{corpora['train'].bytes_per_token:.2f} bytes per token"
    return f"tokens: {said}, {rate}, windows of {reader.max_seq_len}"


def vocabulary_for(n_bytes: int) -> int:
    """A power of two, about the root of the text: 1,024 for a megabyte, 32,768 for 1 GB."""
    wanted = 1024 * (n_bytes / 1e6) ** 0.5
    return int(np.clip(2 ** round(np.log2(max(wanted, 1))), LEAST_VOCABULARY, MOST_VOCABULARY))


def length_for(n_tokens: int) -> int:
    return LENGTHS[0] if n_tokens < 100_000 else LENGTHS[1] if n_tokens < 5e7 else LENGTHS[2]


def choose_decoder(train: Examples, reader: TextProcessor, settings: Settings) -> Choice:
    """A decoder with fresh weights: as named, or as large as the text has tokens.

    Errors: DataError for a network that does not continue text.
    """
    V, T = reader.tokenizer.vocab_size, reader.max_seq_len
    if settings.model != "auto":
        family, config = models.resolve(settings.model)
        if "causal" not in models.heads(family):
            cure = "name a decoder such as gpt2, or leave --model out"
            raise DataError(f"{settings.model} does not continue text; {cure}")
        config = replace(config, vocab_size=V, max_seq_len=max(T, config.max_seq_len))
        return Choice(settings.model, family, config, {"text": reader}, "as asked")
    n_tokens = len(corpus_of(train).tokens)
    config = decoder_of(width_for(n_tokens), V, T)
    why = f"{config.n_layers} layers of {config.dim} for {n_tokens:,} tokens"
    return Choice(name_of(config), "llama", config, {"text": reader}, why)


def name_of(config: Any) -> str:
    """The variant of a decoder of ours."""
    return f"qwen3_{config.dim}x{config.n_layers}"


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
    return windows_in(rows).corpus


def unigram_bits(train: Examples, test: Examples) -> float:
    """Bits per byte, or per masked word, by the frequencies of the training tokens alone."""
    windows, seen = windows_in(test), corpus_of(train).tokens
    asked, units = windows.corpus.tokens, windows.corpus.n_bytes
    if isinstance(windows, MaskedWindows):
        seen, asked = (t[np.isin(t, windows.words)] for t in (seen, asked))
        units = len(asked)
    counts = np.bincount(seen, minlength=1 + int(max(seen.max(), asked.max()))) + 1.0
    return float(-np.log2(counts / counts.sum())[asked].sum() / max(1, units))
