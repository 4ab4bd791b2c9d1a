"""New tokenizers, learned on a corpus.

Byte-level BPE: Sennrich et al., arXiv:1508.07909, over bytes as in Radford et al., 2019; WordPiece
as in BERT, arXiv:1810.04805.
"""

from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import models, trainers

from layerwise.errors import DataError, OptionError
from layerwise.tokens import vocabularies
from layerwise.tokens.tokenizer import Tokenizer


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special: Sequence[str] = ("<|endoftext|>",),
    pattern: str = "qwen2",
) -> Tokenizer:
    """A byte-level BPE tokenizer learned on texts; nothing is ever unknown to it.

    special: tokens of their own; the first ends a text. pattern: how texts are cut, a name of
    `vocabularies.PATTERNS`. Errors: OptionError for a size below the bytes, DataError for no text.
    """
    if vocab_size < 256 + len(special):
        raise OptionError(f"vocab_size {vocab_size}: at least {256 + len(special)} (256 bytes)")
    inner = vocabularies.byte_level({}, [], pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=vocabularies.byte_letters(),
        show_progress=False,
    )
    inner.train_from_iterator(_some(texts), trainer)
    end = special[0] if special else None
    return Tokenizer(inner, {"eos": end, "pad": end})


def train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """A WordPiece tokenizer as BERT's, learned on texts, which are gone over twice.

    The library numbers the characters inside words as it meets them, which differs from run to run;
    a first pass finds them, and the second has them in order. Errors: DataError for no text.
    """
    texts = list(texts) if isinstance(texts, Iterator) else texts
    first = list(vocabularies.BERT_ROLES.values())
    inside = {word for word in _words(texts, 0, first, lowercase) if word.startswith("##")}
    words = _words(texts, vocab_size, [*first, *sorted(inside)], lowercase)
    return Tokenizer(*vocabularies.from_words(words, lowercase))


def _words(texts: Iterable[str], size: int, first: list[str], lowercase: bool) -> list[str]:
    """The vocabulary that the library learns, in its order; `first` stands at its front."""
    inner = tokenizers.Tokenizer(models.WordPiece({}, unk_token=vocabularies.BERT_ROLES["unk"]))
    inner.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=first, show_progress=False)
    inner.train_from_iterator(_some(texts), trainer)
    vocab = inner.get_vocab()
    return sorted(vocab, key=lambda word: vocab[word])


def _some(texts: Iterable[str]) -> Iterator[str]:
    """The texts; an error where none of them has a word."""
    empty = True
    for text in texts:
        empty = empty and not text.strip()
        yield text
    if empty:
        raise DataError("no text to train a tokenizer on: all of it is empty")
