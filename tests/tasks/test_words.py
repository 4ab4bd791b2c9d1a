"""Tags of words: entities as the CoNLL script reads them, and what a network learns of them."""

from typing import Any

import numpy as np
import pytest
import torch

from layerwise.data.examples import Batch
from layerwise.kinds.text.corpus import NO_LOSS
from layerwise.models.bert import Bert, Config
from layerwise.tasks import task_from_dict
from layerwise.tasks.scores.intervals import interval
from layerwise.tasks.words import Words, entities, over_windows


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


def coded(sentences: list[str], width: int) -> np.ndarray:
    out = np.full((len(sentences), width), -1)
    for row, tags in zip(out, sentences, strict=True):
        row[: len(tags.split())] = [LABELS.index(t) for t in tags.split()]
    return out


def as_outputs(tags: np.ndarray) -> np.ndarray:
    return np.stack([tags, np.where(tags < 0, -1, 0.9)], -1).astype(np.float32)


TRUE = ["B-PER I-PER O O B-LOC", "O O", "B-LOC O B-PER"]
SAID = ["B-PER I-PER O O B-PER", "O B-LOC", "B-LOC O O"]


def test_scores_of_a_known_case():
    task = Words(LABELS)
    outputs, targets = as_outputs(coded(SAID, 5)), coded(TRUE, 7)  # targets of longer rows beside
    found = task.metrics(outputs, targets)
    # 2 of 4 said are right, 2 of 4 true are found; 7 of 10 words are right
    assert found == {"entity_f1": 0.5, "entity_precision": 0.5, "entity_recall": 0.5,
                     "accuracy": 0.7}  # fmt: skip
    kinds = task.by_kind(outputs, targets)
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
    assert task.metric(tags, targets) == pytest.approx(want)
    weights = np.stack([np.ones(200), np.arange(200) < 100])
    both = task.metric(tags, targets, weights)
    assert both[0] == pytest.approx(want)
    assert both[1] == pytest.approx(task.metric(tags[:100], targets[:100]))
    found = interval(task.metric, tags, targets)
    assert found.value == pytest.approx(want)
    assert found.low < found.value < found.high


def test_tags_without_marks_are_scored_word_by_word():
    task = Words(("ADV", "NOUN", "VERB"))
    assert (task.score, Words(LABELS).score, Words(("O", "X")).score) == (
        "accuracy", "entity_f1", "accuracy",
    )  # fmt: skip
    targets, tags = np.array([[0, 1, -1], [2, 2, 2]]), np.array([[0, 0, -1], [2, 2, 1]])
    assert task.metrics(as_outputs(tags), targets) == {"accuracy": 0.6}
    assert task.metric(tags, targets) == 0.6
    assert task.metric(tags, targets, np.array([[1, 0], [0, 1.0]])).tolist() == [0.5, 2 / 3]
    assert task.read("so it goes", as_outputs(tags)[1])["entities"] == []


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
    tensors = {"inputs": inputs, "mask": mask, "words": words, "targets": targets}
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
    logits = over_windows(network, rows).detach()  # (B, T, C)
    want, said = 0.0, {}
    for b, tags in enumerate(rows["targets"].tolist()):
        for t, word in enumerate(rows["words"].flatten(1)[b].tolist()):
            if word >= 0:
                share = logits[b, t].softmax(-1)
                want -= float(share[tags[word]].log())
                said[b, word] = [float(share.argmax()), float(share.max())]
    with torch.no_grad():
        total, parts = task.loss(network, rows)
    assert float(total) == pytest.approx(want, rel=1e-5)
    assert parts.keys() == {"cross_entropy"}
    assert task.count(rows) == 4
    targets = task.token_targets(rows)
    assert (targets != NO_LOSS).sum() == 4
    found = task.predict(network, rows).detach()
    assert found.shape == (2, 3, 2)
    for (b, word), value in said.items():
        assert found[b, word].tolist() == pytest.approx(value, rel=1e-5)
    assert (found[1, 1:] == -1).all()
    assert sum(carries for _, carries in task.lens(rows)[0]) == 3


def test_a_window_is_read_as_it_would_be_alone(network: Bert):
    rows = batch(2)
    together = over_windows(network, rows)
    alone = network(rows["inputs"][0, 1:])
    assert torch.allclose(together[0, 4:], alone[0], atol=1e-6)


def test_it_is_rebuilt_from_its_dict():
    again = task_from_dict(Words(LABELS).to_dict())
    assert (again.labels, again.score, again.n_outputs) == (LABELS, "entity_f1", 5)


def test_predictions_in_words():
    task = Words(LABELS)
    row = {"tokens": ["Anna", "Bell", "left", "Rome"]}
    out = as_outputs(coded(["B-PER I-PER O B-LOC"], 6))[0]
    out[1, 1] = 0.4
    read = task.read(row, out)
    assert [w[:2] for w in read["words"]][1] == ("Bell", "I-PER")
    person, place = read["entities"]
    assert person["text"] == "Anna Bell"
    assert (person["start"], person["end"], person["words"], person["kind"]) == (
        0,
        9,
        (0, 1),
        "PER",
    )
    assert person["probability"] == pytest.approx(0.4)
    assert (place["text"], place["start"], place["words"]) == ("Rome", 15, (3, 3))
    text = task.read("Anna Bell, left Rome", as_outputs(coded(["B-PER I-PER O O B-LOC"], 5))[0])
    assert text["entities"][0]["text"] == "Anna Bell"
    assert text["entities"][1]["start"] == 16
