"""Tags of words: entities as the CoNLL script reads them, and what a network learns of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from layerwise.data.examples import Batch, Examples
from layerwise.kinds.text.corpus import NO_LOSS
from layerwise.models.bert import Bert, Config
from layerwise.tasks import task_from_dict
from layerwise.tasks.scores.intervals import interval
from layerwise.tasks.words import Words, WordsPrediction, entities, over_windows
from tests.rows import numbered


# ---- an independent reading, after conlleval.pl and seqeval, rule by rule ------------------------
def end_of_chunk(before: str, tag: str, kind_before: str, kind: str) -> bool:
    pairs = ["BB", "BS", "BO", "IB", "IS", "IO", "EE", "EI", "EO", "EB", "ES", "SB", "SI", "SE",
             "SO", "SS"]  # fmt: skip
    return before + tag in pairs or (before not in "O." and kind_before != kind)


def start_of_chunk(before: str, tag: str, kind_before: str, kind: str) -> bool:
    if tag in "BS" or before + tag in ["EE", "EI", "SE", "SI", "OE", "OI"]:
        return True
    return tag not in "O." and kind_before != kind


def chunks(tags: list[str]) -> list[tuple[str, int, int]]:
    before, kind_before, begin, found = "O", "", 0, []
    for i, whole in enumerate([*tags, "O"]):
        tag, kind = whole[0], whole[2:]
        if end_of_chunk(before, tag, kind_before, kind):
            found.append((kind_before, begin, i - 1))
        if start_of_chunk(before, tag, kind_before, kind):
            begin = i
        before, kind_before = tag, kind
    return found


CASES = {
    "IOB2": ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
    "neighbours": ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
    "IOB1": ("I-PER I-PER B-PER O I-LOC", [("PER", 0, 1), ("PER", 2, 2), ("LOC", 4, 4)]),
    "IOBES": ("S-A B-A I-A E-A O B-A E-A", [("A", 0, 0), ("A", 1, 3), ("A", 5, 6)]),
    "BILOU": ("U-A B-A I-A L-A", [("A", 0, 0), ("A", 1, 3)]),
    "begun by I": ("O I-A I-A O", [("A", 1, 2)]),
    "another kind": ("B-A I-B I-B", [("A", 0, 0), ("B", 1, 2)]),
    "I behind E": ("B-A E-A I-A", [("A", 0, 1), ("A", 2, 2)]),
    "dashes in kinds": ("B-creative-work I-creative-work", [("creative-work", 0, 1)]),
    "none": ("O O", []),
    "empty": ("", []),
}


@pytest.mark.parametrize("case", CASES)
def test_entities(case: str):
    tags, want = CASES[case]
    assert entities(tags.split()) == want


def test_entities_of_any_sequence_are_those_of_the_conll_script():
    rng = np.random.default_rng(0)
    marks = ["O", *(f"{m}-{k}" for m in "BIES" for k in "XY")]
    for _ in range(5000):
        tags = rng.choice(marks, rng.integers(0, 9)).tolist()
        assert entities(tags) == chunks(tags), tags


# ---- scores --------------------------------------------------------------------------------------
LABELS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")


def tagged(sentences: Sequence[str]) -> Examples:
    tags = [tags.split() for tags in sentences]
    rows = numbered(len(tags))
    rows.fields = {"tokens": [["w"] * len(t) for t in tags], "tags": tags}
    return rows


def predicted(task: Words, sentences: Sequence[str]) -> list[WordsPrediction]:
    rows = [tuple(tags.split()) for tags in sentences]
    return [WordsPrediction(tags, np.full(len(tags), 0.9), task.marked) for tags in rows]


def named(tags: np.ndarray) -> list[str]:
    """Numbers of LABELS, -1 behind a sentence's last, as words."""
    return [" ".join(LABELS[t] for t in row if t >= 0) for row in tags]


TRUE = ["B-PER I-PER O O B-LOC", "O O", "B-LOC O B-PER"]
SAID = ["B-PER I-PER O O B-PER", "O B-LOC", "B-LOC O O"]


def test_scores_of_a_known_case():
    task = Words(LABELS)
    said, rows = predicted(task, SAID), tagged(TRUE)
    found = task.metrics(said, rows)
    # 2 of 4 said are right, 2 of 4 true are found; 7 of 10 words are right
    assert found == {"entity_f1": 0.5, "entity_precision": 0.5, "entity_recall": 0.5,
                     "accuracy": 0.7}  # fmt: skip
    kinds = task.by_kind(said, rows)
    assert kinds["PER"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "n": 2}
    assert kinds["LOC"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "n": 2}
    assert kinds["all"]["n"] == 4


def test_f1_of_random_taggings_is_that_of_their_chunks():
    rng, task = np.random.default_rng(1), Words(LABELS)
    targets, tags = rng.integers(0, 5, (200, 9)), rng.integers(0, 5, (200, 9))
    tags = np.where(rng.random(tags.shape) < 0.6, targets, tags)
    targets[np.arange(9) >= rng.integers(1, 10, 200)[:, None]] = -1
    tags[targets < 0] = -1
    read = [
        {(i, *c) for i, row in enumerate(x) for c in chunks([LABELS[t] for t in row if t >= 0])}
        for x in (tags, targets)
    ]
    right = len(read[0] & read[1])
    want = 2 * right / (len(read[0]) + len(read[1]))
    counts, none = task.scored(predicted(task, named(tags)), tagged(named(targets)))
    assert task.metric(counts, none) == pytest.approx(want)
    weights = np.stack([np.ones(200), np.arange(200) < 100])
    both = task.metric(counts, none, weights)
    assert both[0] == pytest.approx(want)
    first = task.scored(predicted(task, named(tags[:100])), tagged(named(targets[:100])))
    assert both[1] == pytest.approx(task.metric(*first))
    found = interval(task.metric, counts, none)
    assert found.value == pytest.approx(want)
    assert found.low < found.value < found.high


def test_tags_without_marks_are_scored_word_by_word():
    task = Words(("ADV", "NOUN", "VERB"))
    assert (task.score, Words(LABELS).score, Words(("O", "X")).score) == (
        "accuracy", "entity_f1", "accuracy",
    )  # fmt: skip
    rows, said = tagged(["ADV NOUN", "VERB VERB VERB"]), ["ADV ADV", "VERB VERB NOUN"]
    found = predicted(task, said)
    assert task.metrics(found, rows) == {"accuracy": 0.6}
    counts, none = task.scored(found, rows)
    assert task.metric(counts, none) == 0.6
    assert task.metric(counts, none, np.array([[1, 0], [0, 1.0]])).tolist() == [0.5, 2 / 3]
    assert found[1].of_row("", {"text": "so it goes"}, 3, None).entities == []


# ---- learning ------------------------------------------------------------------------------------
def batch(n_windows: int = 1) -> Batch:
    """Two sentences of 3 and 1 words; the first in so many windows."""
    if n_windows == 1:
        words = torch.tensor([[-1, 0, -1, 1, 2, -1], [-1, 0, -1, -1, -1, -1]])
        mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    else:
        words = torch.tensor([[[-1, 0, -1, -1], [-1, 1, 2, -1]], [[-1, 0, -1, -1], [-1] * 4]])
        mask = torch.tensor([[[True] * 4] * 2, [[True] * 3 + [False], [False] * 4]])
    inputs = torch.arange(words.numel()).view(words.shape) % 50
    targets = torch.tensor([[1, 3, 4], [0, -1, -1]])
    tensors = {"tokens": inputs, "mask": mask, "words": words, "targets": targets}
    return Batch(tensors, np.arange(2))


@pytest.fixture
def network() -> Bert:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "mlp_dim": 32,
        "vocab_size": 50,
    }
    return Bert(Config(**sizes, max_seq_len=16, head_kind="tag", n_classes=5)).eval()


@pytest.mark.parametrize("n_windows", [1, 2])
def test_loss_and_predictions_stand_at_first_tokens(network: Bert, n_windows: int):
    task, rows = Words(LABELS), batch(n_windows)
    logits = over_windows(network, network.READS, rows).detach()  # (B, T, C)
    want, said = 0.0, {}
    for b, tags in enumerate(rows["targets"].tolist()):
        for t, word in enumerate(rows["words"].flatten(1)[b].tolist()):
            if word >= 0:
                share = logits[b, t].softmax(-1)
                want -= float(share[tags[word]].log())
                said[b, word] = LABELS[int(share.argmax())], float(share.max())
    with torch.no_grad():
        total, parts = task.loss(network, rows)
    assert float(total) == pytest.approx(want, rel=1e-5)
    assert parts.keys() == {"cross_entropy"}
    assert task.count(rows) == 4
    targets = task.token_targets(rows)
    assert (targets != NO_LOSS).sum() == 4
    with torch.no_grad():
        found = task.predict(network, rows)
    assert [len(p.tags) for p in found] == [len(p.shares) for p in found] == [3, 1]
    for (b, word), (tag, share) in said.items():
        assert found[b].tags[word] == tag
        assert found[b].shares[word] == pytest.approx(share, rel=1e-5)
    assert sum(carries for _, carries in task.lens(rows)[0]) == 3


def test_a_window_is_read_as_it_would_be_alone(network: Bert):
    rows = batch(2)
    together = over_windows(network, network.READS, rows)
    alone = network(rows["tokens"][0, 1:])
    assert torch.allclose(together[0, 4:], alone[0], atol=1e-6)


def test_it_is_rebuilt_from_its_dict():
    again = task_from_dict(Words(LABELS).to_dict())
    assert (again.labels, again.score, again.n_outputs) == (LABELS, "entity_f1", 5)


def test_predictions_in_words():
    task = Words(LABELS)
    row = {"tokens": ["Anna", "Bell", "left", "Rome"]}
    (out,) = predicted(task, ["B-PER I-PER O B-LOC"])
    out.shares[1] = 0.4
    read = out.of_row("", row, 3, None)
    assert [w[:2] for w in read.words][1] == ("Bell", "I-PER")
    person, place = read.entities
    assert person["text"] == "Anna Bell"
    assert (person["start"], person["end"], person["words"], person["kind"]) == (
        0,
        9,
        (0, 1),
        "PER",
    )
    assert person["probability"] == pytest.approx(0.4)
    assert (place["text"], place["start"], place["words"]) == ("Rome", 15, (3, 3))
    (out,) = predicted(task, ["B-PER I-PER O O B-LOC"])
    text = out.of_row("", {"text": "Anna Bell, left Rome"}, 3, None)
    assert text.entities[0]["text"] == "Anna Bell"
    assert text.entities[1]["start"] == 16
