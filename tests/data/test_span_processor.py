"""Questions on contexts: windows, where answers may start and end, and where the answer stands."""

import pytest
import torch

from layerwise.errors import DataError
from layerwise.kinds.text.spans import SpanProcessor
from layerwise.tokens.tokenizer import Tokenizer
from layerwise.tokens.training import train_wordpiece
from tests.oracles import import_transformers

CONTEXT = "The tower of Lüneburg was built in 1888 by Anna Méndez, who lived nearby for ten years."
LONG = " ".join(f"Line {i} tells of the number {i * 7 + 3}." for i in range(40))


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return train_wordpiece([CONTEXT, LONG, "Who built it? When? What does line tell of?"] * 5, 200)


def row(context: str, answer: str, question: str = "Who built it?") -> dict:
    answers = [{"text": answer, "start": context.index(answer)}] if answer else []
    return {"context": context, "question": question, "answers": answers}


def said(tensors: dict[str, torch.Tensor], b: int, context: str) -> str:
    """The text between the first token of the target and its last."""
    chars = tensors["chars"].flatten(1, -2)[b]
    first, last = tensors["targets"][b].tolist()
    return context[int(chars[first, 0]) : int(chars[last, 1])]


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level"])
@pytest.mark.parametrize("answer", ["1888", "Anna Méndez", "Lüneburg", "ten years", "The tower"])
def test_the_target_is_the_answer(kind: str, answer: str, request: pytest.FixtureRequest):
    processor = SpanProcessor(request.getfixturevalue(kind), 256)
    tensors = processor([row(CONTEXT, answer)])
    assert said(tensors, 0, CONTEXT) == answer
    first, last = tensors["targets"][0].tolist()
    assert tensors["starts"][0, first]
    assert tensors["ends"][0, last]


@pytest.mark.parametrize("number", [3, 17, 25, 39])
def test_in_a_long_context_the_target_stands_where_it_may_start(wordpiece: Tokenizer, number: int):
    answer = f"number {number * 7 + 3}"
    tensors = SpanProcessor(wordpiece, 48, token_types=True)(
        [row(LONG, answer, f"What does line {number} tell of?"), row(CONTEXT, "1888")]
    )
    assert tensors["tokens"].ndim == 3
    assert tensors["tokens"].shape[-1] == 48
    assert said(tensors, 0, LONG) == answer
    assert said(tensors, 1, CONTEXT) == "1888"
    first = tensors["targets"][0, 0]
    assert tensors["starts"].flatten(1)[0, first]
    types = tensors["token_types"]
    assert types[tensors["ends"]].all()
    assert not types[:, :, 0].any()


def test_every_place_may_start_an_answer_exactly_once(wordpiece: Tokenizer):
    whole = SpanProcessor(wordpiece, 5000)([row(LONG, "Line 3")])
    cut = SpanProcessor(wordpiece, 48)([row(LONG, "Line 3")])
    want = whole["chars"][whole["starts"]]
    got = cut["chars"][cut["starts"]]
    assert torch.equal(got, want)
    assert torch.equal(whole["starts"], whole["ends"])
    assert cut["ends"].sum() > cut["starts"].sum()  # the overlaps are read twice


@pytest.mark.oracle
def test_windows_are_those_of_transformers(wordpiece: Tokenizer):
    transformers = import_transformers()
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(wordpiece.inner).from_str(wordpiece.inner.to_str()), pad_token="[PAD]"
    )
    want = theirs(
        "Who built it?", LONG, max_length=64, stride=16, truncation="only_second",
        return_overflowing_tokens=True, return_offsets_mapping=True, padding=True,
    )  # fmt: skip
    got = SpanProcessor(wordpiece, 64)([row(LONG, "Line 3")])
    assert got["tokens"][0].tolist() == want["input_ids"]
    for k, ids in enumerate(want["input_ids"]):
        inside = [s == 1 for s in want.sequence_ids(k)]
        assert got["ends"][0, k].tolist() == inside
        chars = [list(c) for c in want["offset_mapping"][k]]
        assert got["chars"][0, k].tolist() == chars
        assert len(ids) == 64


def test_questions_without_answers_and_without_any_said(wordpiece: Tokenizer):
    processor = SpanProcessor(wordpiece, 64)
    assert processor([row(CONTEXT, "")])["targets"].tolist() == [[0, 0]]
    asked = {"context": CONTEXT, "question": "Who?"}
    assert "targets" not in processor([asked])


def test_a_question_longer_than_the_context_leaves_room(wordpiece: Tokenizer):
    tensors = SpanProcessor(wordpiece, 48)([row(CONTEXT, "1888", "Who built it? " * 50)])
    assert said(tensors, 0, CONTEXT) == "1888"


def test_an_answer_longer_than_its_window_is_cut_there(wordpiece: Tokenizer):
    answer = LONG[LONG.index("tells") :]
    found = said(SpanProcessor(wordpiece, 48)([row(LONG, answer)]), 0, LONG)
    assert answer.startswith(found)
    assert len(found) > 20


def test_what_it_cannot_read(wordpiece: Tokenizer):
    with pytest.raises(DataError, match="rows of question and context were expected"):
        SpanProcessor(wordpiece)([{"text": "a"}])
