"""Encoders of text for `fit`: who reads the texts, with fresh weights or a base's; a yardstick.

Legend: n rows, C classes, T tokens of a text, V vocabulary.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from layerwise import models
from layerwise.data.examples import Examples
from layerwise.errors import OptionError
from layerwise.fitting.choose import Choice
from layerwise.kinds.text.documents import texts_of
from layerwise.model.model import READERS, Model
from layerwise.settings import Settings
from layerwise.tasks import FORMS
from layerwise.tokens.training import train_wordpiece

VOCABULARY = 8192  # at most: whole words carry most of what a class hangs on
LONGEST = 512  # tokens of a text that are read, where nobody says it
COVERED = 0.99  # of the texts are read whole, if that is within LONGEST
WHOLE = 1 << 30  # tokens: nothing is cut
LADDER = ("bert-tiny", "bert-mini", "bert-small", "bert-medium", "bert-base-uncased")


def reader_name(examples: Examples, task: Any) -> str:
    """Which processor reads rows of this form for this task."""
    return FORMS[examples.form][task.name]


def read_by(base: Model, examples: Examples, task: Any, chosen: Settings) -> Model:
    """The base with the processor that this task asks for.

    Errors: OptionError for a base that only continues text, or reads less than `--max-seq-len`.
    """
    config: Any = base.network.config
    if not hasattr(base.network, "pooled"):
        raise OptionError(
            f"{base.variant} continues text; name a base that reads whole texts, such as BERT or "
            "MiniLM"
        )
    length = chosen.max_seq_len or min(base.processor.max_seq_len, config.max_seq_len)
    if length > config.max_seq_len:
        raise OptionError(
            f"--max-seq-len {length}: this base reads at most {config.max_seq_len} tokens"
        )
    make = READERS[reader_name(examples, task)]
    processor = make(base.processor.tokenizer, length, config.n_token_types > 1)
    return replace(base, processor=processor)


def whole_lengths(examples: Examples, processor: Any) -> np.ndarray:
    """Tokens of every row (n,) before anything is cut."""
    uncut = replace(processor, max_seq_len=WHOLE)
    return np.array([uncut.length(row) for row in uncut.encode(list(examples.inputs))])


# ---- without a base ------------------------------------------------------------------------------
def choose_encoder(train: Examples, task: Any, chosen: Settings) -> Choice:
    """An encoder with fresh weights, small enough to learn from these rows alone.

    Errors: OptionError for a network by name that does not read whole texts.
    """
    tokenizer = train_wordpiece(texts_of(train), VOCABULARY)
    make = READERS[reader_name(train, task)]
    lengths = whole_lengths(train, make(tokenizer))
    usual = min(LONGEST, 8 * -(-int(np.quantile(lengths, COVERED)) // 8))
    length = chosen.max_seq_len or max(16, usual)
    name = "bert-tiny" if chosen.model == "auto" else chosen.model
    processor = make(tokenizer, length)
    # classes from the mean of the tokens: a first token that gathers a text has to be pre-trained
    head_kind = "pooled" if task.head_kind == "class" else task.head_kind
    fields = {"n_classes": task.n_outputs, "head_kind": head_kind, "normalise": False}
    config = encoder_of(name, processor, **fields)
    processor = replace(processor, token_types=config.n_token_types > 1)
    why = (
        "as asked" if name == chosen.model else f"{len(train):,} rows and no base: a small encoder"
    )
    return Choice(name, "bert", config, processor, why)


def encoder_of(name: str, processor: Any, **fields: Any) -> Any:
    """The config of this size for the processor's words and length.

    Errors: OptionError for a network that does not read whole texts.
    """
    config = models.resolve(name)[1]
    if not hasattr(config, "head_kind"):
        raise OptionError(
            f"--model {name} does not read whole texts; name one such as bert-mini, or leave it out"
        )
    sizes = {"vocab_size": processor.tokenizer.vocab_size, "max_seq_len": processor.max_seq_len}
    return replace(config, **sizes, **fields)


def choose_for_words(train: Examples, processor: Any, chosen: Settings) -> Choice:
    """An encoder with fresh weights for masked words: as named, or as large as the text has tokens.

    Without dropout: a few passes, each masked anew, are not learned by heart (Geiping and
    Goldstein, arXiv:2212.14034, section 4.3). Errors: see `encoder_of`.
    """
    n_tokens = len(train.inputs.corpus.tokens)  # type: ignore[attr-defined]
    configs = {name: models.resolve(name)[1] for name in LADDER}
    sizes = {name: 12 * c.n_layers * c.dim**2 for name, c in configs.items()}
    nearest = min(LADDER, key=lambda name: abs(np.log(sizes[name] / n_tokens)))
    name = nearest if chosen.model == "auto" else chosen.model
    none = {"dropout": 0.0, "attn_dropout": 0.0}
    config = encoder_of(name, processor, head_kind="masked", **none)
    why = "as asked" if name == chosen.model else f"{name} for {n_tokens:,} tokens"
    return Choice(name, "bert", config, processor, why)


# ---- the yardstick -------------------------------------------------------------------------------
MOST_TERMS = 100_000  # words and pairs of words
YARDSTICK = "TF-IDF of words with a linear model (of vectors: their cosine)"


def yardstick(train: Examples, test: Examples, task: Any) -> tuple[str, np.ndarray] | None:
    """What needs no network, and its raw outputs for the test rows (n, C); None for other tasks."""
    if hasattr(task, "yardstick"):
        return task.yardstick(train, test)
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    logistic = LogisticRegression(C=2.0, max_iter=300, tol=1e-3)
    makers = {"classify": logistic, "tag": OneVsRestClassifier(logistic), "regress": Ridge()}
    scored = task.name == "embed" and train.form == "scored_pairs"
    if task.name not in makers and not scored:
        return None
    words = TfidfVectorizer(
        ngram_range=(1, 2),
        token_pattern=r"(?u)\b\w+\b",
        sublinear_tf=True,
        min_df=2 if len(train) > 1000 else 1,
        max_features=MOST_TERMS,
    )
    if scored:  # the vectors are of length 1
        words.fit(texts_of(train))
        a, b = (words.transform([row[k] for row in test.inputs]) for k in ("text_a", "text_b"))
        return YARDSTICK, np.asarray(a.multiply(b).sum(1))
    model = makers[task.name].fit(words.fit_transform(texts_of(train)), train.targets)
    features = words.transform(texts_of(test))
    if task.name == "regress":
        return YARDSTICK, model.predict(features)[:, None]
    outputs = model.decision_function(features)
    return YARDSTICK, np.stack([-outputs, outputs], 1) / 2 if outputs.ndim == 1 else outputs
