"""Encoders of text: who reads the texts, with fresh weights or a base's.

Legend: n rows, T tokens of a text, V vocabulary.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from layerwise import models
from layerwise.data.examples import Examples
from layerwise.errors import OptionError
from layerwise.kinds.contract import Choice, Ends
from layerwise.kinds.text.documents import texts_of
from layerwise.kinds.text.language import corpus_of
from layerwise.kinds.text.processor import TextProcessor
from layerwise.kinds.text.readers import READERS
from layerwise.models.network import Network
from layerwise.settings import Settings
from layerwise.tokens.training import train_wordpiece

VOCABULARY = 8192  # at most: whole words carry most of what a class hangs on
LONGEST = 512  # tokens of a text that are read, where nobody says it
COVERED = 0.99  # of the texts are read whole, if that is within LONGEST
WHOLE = 1 << 30  # tokens: nothing is cut
LADDER = ("bert-tiny", "bert-mini", "bert-small", "bert-medium", "bert-base-uncased")


def read_by(
    processor: TextProcessor, network: Network, ends: Ends, settings: Settings
) -> TextProcessor:
    """A base's processor as this task asks for it.

    Errors: OptionError for a base that cannot do this, or reads less than `--max-seq-len`.
    """
    if ends.kind not in network.HEADS:
        what = "continues text" if "causal" in network.HEADS else "does not do this"
        cure = "name a base that reads whole texts, such as BERT or MiniLM"
        raise OptionError(f"the base {what}; {cure}")
    if ends.kind in ("causal", "masked"):  # windows of any length, by the base's tokenizer
        return processor
    most, types = network.config.max_seq_len, network.config.n_token_types > 1
    length = settings.max_seq_len or min(processor.max_seq_len, most)
    if length > most:
        raise OptionError(f"--max-seq-len {length}: this base reads at most {most} tokens")
    return READERS[ends.reader](processor.tokenizer, length, types)


def token_lengths(examples: Examples, processor: TextProcessor, whole: bool = False) -> np.ndarray:
    """Tokens of every row (n,), after cutting; whole: before anything is cut."""
    processor = replace(processor, max_seq_len=WHOLE) if whole else processor
    return np.array([processor.length(row) for row in processor.encode(examples.rows())])


# ---- without a base ------------------------------------------------------------------------------
def fresh_reader(train: Examples, ends: Ends, settings: Settings) -> Any:
    """A processor whose words are of these texts, and which reads nearly all of them whole."""
    tokenizer, make = train_wordpiece(texts_of(train), VOCABULARY), READERS[ends.reader]
    lengths = token_lengths(train, make(tokenizer), whole=True)
    usual = min(LONGEST, 8 * -(-int(np.quantile(lengths, COVERED)) // 8))
    return make(tokenizer, settings.max_seq_len or max(16, usual))


def choose_encoder(train: Examples, ends: Ends, settings: Settings) -> Choice:
    """An encoder with fresh weights, small enough to learn from these rows alone.

    Errors: OptionError for a network by name that does not read whole texts.
    """
    processor = fresh_reader(train, ends, settings)
    name = "bert-tiny" if settings.model == "auto" else settings.model
    # classes from the mean of the tokens: a first token that gathers a text has to be pre-trained
    kind = "pooled" if ends.kind == "class" else ends.kind
    n = ends.n_outputs
    config = encoder_of(name, processor, n_classes=n, head_kind=kind, normalise=False)
    processor = replace(processor, token_types=config.n_token_types > 1)
    small = f"{len(train):,} rows and no base: a small encoder"
    why = "as asked" if name == settings.model else small
    return Choice(name, "bert", config, {"text": processor}, why)


def encoder_of(name: str, processor: TextProcessor, **fields: Any) -> Any:
    """The config of this size for the processor's words and length.

    Errors: OptionError for a network that does not read whole texts.
    """
    family, config = models.resolve(name)
    if "embed" not in models.heads(family):
        cure = "name one such as bert-mini, or leave it out"
        raise OptionError(f"--model {name} does not read whole texts; {cure}")
    sizes = {"vocab_size": processor.tokenizer.vocab_size, "max_seq_len": processor.max_seq_len}
    return replace(config, **sizes, **fields)


def choose_for_words(train: Examples, processor: TextProcessor, settings: Settings) -> Choice:
    """An encoder with fresh weights for masked words: as named, or as large as the text has tokens.

    Without dropout: a few passes, each masked anew, are not learned by heart (Geiping and
    Goldstein, arXiv:2212.14034, section 4.3). Errors: see `encoder_of`.
    """
    n_tokens = len(corpus_of(train).tokens)
    configs = [models.resolve(name)[1] for name in LADDER]
    sizes = np.array([12 * c.n_layers * c.dim**2 for c in configs])
    nearest = LADDER[int(abs(np.log(sizes / n_tokens)).argmin())]
    name = nearest if settings.model == "auto" else settings.model
    config = encoder_of(name, processor, head_kind="masked", dropout=0.0, attn_dropout=0.0)
    why = "as asked" if name == settings.model else f"{name} for {n_tokens:,} tokens"
    return Choice(name, "bert", config, {"text": processor}, why)
