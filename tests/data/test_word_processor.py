"""Words to tokens: each word speaks through its first one, in the window that shows most of it."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import pre_tokenizers

from layerwise.errors import DataError, OptionError
from layerwise.kinds.text.tagged import WordProcessor, words_of
from layerwise.kinds.text.windows import owners
from layerwise.tokens.tokenizer import Tokenizer
from layerwise.tokens.training import train_wordpiece
from tests.data.conftest import CORPUS
from tests.oracles import import_transformers

SENTENCE = ["Anna", "jumps", "overseas", "in", "Lower", "Saxony", "!"]


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return train_wordpiece(CORPUS, 120, lowercase=False)


def spoken(tensors: dict[str, torch.Tensor], b: int = 0) -> list[int]:
    """The words that have a token, as often as they have one."""
    words = tensors["words"].flatten(1)[b]
    return words[words >= 0].tolist()


def test_each_word_speaks_through_its_first_token(wordpiece: Tokenizer):
    tensors = WordProcessor(wordpiece)([{"tokens": SENTENCE}, {"tokens": ["Bob"]}])
    ids, words = tensors["tokens"][0].tolist(), tensors["words"][0].tolist()
    assert (ids[0], ids[-1], words[0], words[-1]) == (wordpiece.cls_id, wordpiece.sep_id, -1, -1)
    assert spoken(tensors) == list(range(len(SENTENCE)))
    assert spoken(tensors, 1) == [0]
    for place, word in enumerate(words):
        if word >= 0:
            first = wordpiece.encode(SENTENCE[word], special=False)[0]
            assert ids[place] == first
    assert len(ids) > len(SENTENCE) + 2  # some words have several tokens, which carry no loss
    assert tensors["mask"][1].tolist() == [i < 2 + len(wordpiece.encode("Bob", special=False))
                                           for i in range(len(ids))]  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["wordpiece", "byte_level"])
def test_tokens_and_words_are_those_of_transformers(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
):
    transformers = import_transformers()
    ours: Tokenizer = request.getfixturevalue(kind)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(ours.inner.to_str()), pad_token="<pad>"
    )
    if kind == "byte_level":  # as RobertaTokenizerFast(add_prefix_space=True), which words need
        theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    want = theirs(SENTENCE, is_split_into_words=True)
    got = WordProcessor(ours)([{"tokens": SENTENCE}])
    assert got["tokens"][0].tolist() == want["input_ids"]
    places = [want.word_ids().index(w) for w in range(len(SENTENCE))]
    assert got["words"][0][places].tolist() == list(range(len(SENTENCE)))
    assert len(spoken(got)) == len(SENTENCE)


def test_a_long_sentence_is_read_in_windows_with_every_word_once(wordpiece: Tokenizer):
    words = SENTENCE * 9
    whole = WordProcessor(wordpiece)([{"tokens": words}])
    cut = WordProcessor(wordpiece, max_seq_len=20)([{"tokens": words}, {"tokens": ["Bob"]}])
    assert cut["tokens"].ndim == 3
    assert cut["tokens"].shape[-1] == 20
    assert sorted(spoken(cut)) == spoken(whole) == list(range(len(words)))
    assert spoken(cut, 1) == [0]
    assert not cut["mask"][1, 1:].any()  # windows that only the long one has
    for window, marks, mask in zip(cut["tokens"][0], cut["words"][0], cut["mask"][0], strict=True):
        ids = window[mask].tolist()
        assert (ids[0], ids[-1]) == (wordpiece.cls_id, wordpiece.sep_id)
        for place in torch.nonzero(marks >= 0)[:, 0].tolist():
            first = wordpiece.encode(words[int(marks[place])], special=False)[0]
            assert ids[place] == first
            whole_place = whole["words"][0].tolist().index(int(marks[place]))
            beside = min(4, place - 1, len(ids) - 2 - place)  # the same text around it
            around = slice(whole_place - beside, whole_place + beside + 1)
            assert whole["tokens"][0][around].tolist() == ids[place - beside : place + beside + 1]


def test_the_window_with_most_around_a_place_owns_it():
    owner = owners(np.array([0, 6, 12]), 8, 17)
    assert owner.tolist() == [0] * 7 + [1] * 6 + [2] * 4
    assert owners(np.array([0]), 5, 5).tolist() == [0] * 5


def test_words_that_leave_no_token_still_speak(wordpiece: Tokenizer, byte_level: Tokenizer):
    words = ["Anna", "\u200d", "", "Bob"]  # BERT's normaliser drops the joiner
    tensors = WordProcessor(wordpiece)([{"tokens": words}])
    assert spoken(tensors) == [0, 1, 2, 3]
    assert tensors["tokens"][0].tolist().count(wordpiece.unk_id) == 2
    assert spoken(WordProcessor(byte_level)([{"tokens": words}])) == [0, 1, 2, 3]


def test_bare_texts_are_cut_into_words():
    text, places = words_of({"text": "I'm @paul, see https://x.org/a?b (U.S. 3.5%)"})
    assert [text[a:b] for a, b in places] == [
        "I", "'m", "@paul", ",", "see", "https://x.org/a?b", "(", "U.S", ".", "3.5", "%", ")",
    ]  # fmt: skip
    assert words_of("Bob naps") == ("Bob naps", [(0, 3), (4, 8)])
    joined, places = words_of({"tokens": ["New", "York", "!"]})
    assert [joined[a:b] for a, b in places] == ["New", "York", "!"]


def test_what_it_cannot_read(wordpiece: Tokenizer):
    with pytest.raises(DataError, match="not rows of premise, hypothesis"):
        WordProcessor(wordpiece)([{"premise": "a", "hypothesis": "b"}])
    with pytest.raises(OptionError, match="max_seq_len 3: no room for words"):
        WordProcessor(wordpiece, max_seq_len=3)([{"tokens": SENTENCE}])
    assert WordProcessor(wordpiece).to_dict()["max_seq_len"] == 512


def test_marks_belong_to_their_letters():
    for text in ("हिन्दी", "café", "كِتَاب", "ที่"):
        assert words_of(text)[1] == [(0, len(text))]
