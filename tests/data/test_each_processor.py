"""Texts of a row each for itself; pairs and labels as matches and hard negatives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from layerwise.data.examples import Examples
from layerwise.errors import DataError, OptionError
from layerwise.kinds.opening import open_data
from layerwise.kinds.text.each import EachProcessor
from layerwise.kinds.text.matches import matches
from layerwise.tokens.training import train_wordpiece

WORDS = ["the cat sat on the mat", "a dog runs in the park", "birds fly south", "it rains"]


@pytest.fixture(scope="module")
def processor() -> EachProcessor:
    return EachProcessor(train_wordpiece(WORDS * 3, 120), max_seq_len=6)


def test_each_text_is_as_by_itself(processor: EachProcessor):
    rows = [{"text_a": WORDS[0], "text_b": WORDS[3]}, {"text_a": WORDS[2], "text_b": WORDS[1]}]
    batch = processor(rows)
    assert batch["tokens"].shape == batch["mask"].shape == (2, 2, 6)
    for b, row in enumerate(rows):
        for k, text in enumerate(row.values()):
            alone = processor.tokenizer.encode_batch([text], max_length=6)[0]
            assert batch["tokens"][b, k][batch["mask"][b, k]].tolist() == alone
    encoded = processor.encode(rows)
    assert [processor.length(row) for row in encoded] == [6, 6]


def test_equal_texts_share_their_number_and_absent_ones_have_none(processor: EachProcessor):
    rows = [
        {"anchor": "it rains", "positive": "birds fly", "negative": ""},
        {"anchor": "birds fly", "positive": "a dog runs", "negative": "it rains"},
    ]
    numbers, mask = processor(rows)["texts"], processor(rows)["mask"]
    assert numbers.dtype == torch.int64
    assert numbers[0, 0] == numbers[1, 2] != 0
    assert numbers[0, 1] == numbers[1, 0] != numbers[0, 0]
    assert numbers[0, 2] == 0
    assert not mask[0, 2].any()


def test_bare_texts_tuples_and_other_fields(processor: EachProcessor):
    assert processor(["it rains", "birds fly"])["tokens"].shape[:2] == (2, 1)
    assert processor([("it rains", "birds fly")])["tokens"].shape[:2] == (1, 2)
    with pytest.raises(DataError, match="not rows of prompt, completion"):
        processor.encode([{"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match="rows of 1 and of 2 texts"):
        processor.encode(["a", ("a", "b")])
    with pytest.raises(OptionError, match="at least 2 tokens"):
        EachProcessor(processor.tokenizer, 1)


# ---- matches -----------------------------------------------------------------------------------
def nli(tmp_path: Path, rows: list[tuple[str, str, str]]) -> Examples:
    path = tmp_path / "nli.tsv"
    lines = ["premise\thypothesis\tlabel", *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return open_data(path)


A, B = "a man plays the guitar", "two dogs run over a field"


def test_nli_becomes_triples(tmp_path: Path):
    rows = [
        (A, "somebody makes music", "entailment"),
        (A, "nobody makes a sound", "contradiction"),
        (A, "the man is famous for it", "neutral"),
        (A, "a person has a guitar", "entailment"),
        (B, "there are animals outside", "entailment"),
        (B, "the dogs are brothers", "neutral"),
    ]
    found = matches(nli(tmp_path, rows))
    assert list(found.fields) == ["anchor", "positive", "negative"]
    assert [tuple(row.values()) for row in found.rows()] == [
        (A, "somebody makes music", "nobody makes a sound"),
        (A, "a person has a guitar", "nobody makes a sound"),
        (B, "there are animals outside", ""),
    ]
    assert list(found.names) == [f"nli.tsv row {i}" for i in (2, 5, 6)]
    assert found.target_kind == "none"
    assert "3 match, 2 of them with one that does not" in found.understood


def test_without_a_contradiction_they_stay_pairs(tmp_path: Path):
    rows = [(A, "somebody makes music", "entailment"), (B, "the dogs are brothers", "neutral")] * 2
    found = matches(nli(tmp_path, rows))
    assert list(found.fields) == ["text_a", "text_b"]
    assert len(found) == 2


def test_labels_that_say_nothing_of_matching_are_named(tmp_path: Path):
    rows = [(A, "somebody makes music", "sport"), (B, "the dogs are brothers", "politics")] * 2
    with pytest.raises(DataError, match=r"no label says that two do \(politics, sport\)"):
        matches(nli(tmp_path, rows))


def test_one_text_per_row_is_refused(tmp_path: Path):
    (tmp_path / "one.csv").write_text("text\n" + "\n".join(f"row {i} says so" for i in range(9)))
    with pytest.raises(DataError, match="two texts per row"):
        matches(open_data(tmp_path / "one.csv"))


def test_scores_that_are_no_numbers_name_their_row(tmp_path: Path):
    rows = [f"{i}.5\ta man plays number {i}\tsomebody plays number {i}" for i in range(30)]
    rows[20] = rows[20].replace("20.5", "often")
    text = "score\tsentence1\tsentence2\n" + "\n".join(rows) + "\n"
    (tmp_path / "sts.tsv").write_text(text)
    with pytest.raises(DataError, match=r"sts.tsv.*often"):
        open_data(tmp_path / "sts.tsv", target="score", target_kind="number")
    np.testing.assert_equal(len(rows), 30)
