"""Tokenizers that several tests read with."""

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from layerwise.tokens.tokenizer import Tokenizer

CORPUS = [
    "Anna flew from Rome to Lower Saxony on Monday, said Bob.",
    "The quick brown fox jumps over the lazy dogs of Lower Manhattan.",
] * 30


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """RoBERTa's: a word behind a blank is another than one at the start of a text."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    roles = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>"}
    return Tokenizer(inner, roles | {"unk": "<unk>", "mask": "<mask>"})
