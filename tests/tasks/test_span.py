"""Answers as spans: SQuAD's scores, the best span of all windows, questions without an answer."""

import itertools
import re
import string
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerwise.data.examples import Batch, Examples
from layerwise.tasks import task_from_dict
from layerwise.tasks.scores.intervals import interval
from layerwise.tasks.span import LONGEST, Span, SpanPrediction, answer_f1, around, exact_match, f1
from tests.rows import numbered


# ---- the official script's functions, written again ----------------------------------------------
def normalize_answer(s: str) -> str:
    without = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", without).split())


def compute_f1(gold: str, pred: str) -> float:
    gold_toks, pred_toks = normalize_answer(gold).split(), normalize_answer(pred).split()
    common = Counter(gold_toks) & Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = num_same / len(pred_toks), num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


ANSWERS = [
    "the Normans", "Normans", "norman's", "", "a  the", "10th and 11th centuries", "U.S.", "US",
    "in the 10th century", "Café de l'Été", "cafe", "the the cat", "cat cat", "1,000",
]  # fmt: skip


def test_scores_are_those_of_the_official_script():
    for gold, said in itertools.product(ANSWERS, ANSWERS):
        assert f1(said, gold) == pytest.approx(compute_f1(gold, said)), (gold, said)
        assert exact_match(said, gold) == int(normalize_answer(gold) == normalize_answer(said))


def test_known_scores():
    assert exact_match("The Normans!", "normans") == 1
    assert f1("10th and 11th centuries", "in the 10th and 11th centuries") == pytest.approx(8 / 9)
    assert f1("France", "Germany") == 0
    assert f1("", "") == 1


CONTEXT = "The Normans came from Denmark, Iceland and Norway in the 10th century."


def rows(*answers: list[str]) -> Examples:
    given = [[{"text": t, "start": CONTEXT.find(t)} for t in each] for each in answers]
    examples, n = numbered(len(given)), len(given)
    examples.fields = {"context": [CONTEXT] * n, "question": ["?"] * n, "answers": given}
    return examples


def predicted(*said: str) -> list[SpanPrediction]:
    places = [(CONTEXT.find(s), CONTEXT.find(s) + len(s)) if s else (-1, -1) for s in said]
    return [SpanPrediction(*place, 0.5) for place in places]


def test_the_best_of_the_answers_counts_and_none_is_an_answer():
    asked = rows(["Denmark", "Denmark, Iceland"], ["10th century"], [], [], ["Norway"])
    found = predicted("Denmark, Iceland and", "in the 10th century", "", "Norway", "")
    assert Span().metrics(found, asked) == {
        "f1": pytest.approx((0.8 + 0.8 + 1 + 0 + 0) / 5),
        "exact_match": pytest.approx(0.2),
    }
    each, targets = Span().scored(found, asked)
    assert answer_f1(each, targets, np.eye(5)).tolist() == pytest.approx([0.8, 0.8, 1, 0, 0])
    assert interval(Span.metric, each, targets).n == 5


# ---- predictions ---------------------------------------------------------------------------------
class Fixed(nn.Module):
    """A network that says what it is told: scores (B N, T, 2)."""

    READS = ("tokens",)

    def __init__(self, scores: Tensor):
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scores.view(*tokens.shape, 2)


def made(B: int, N: int, T: int, seed: int = 0) -> tuple[Fixed, Batch]:
    """Random scores; question tokens in front, starts owned once, two characters to a token."""
    rng = torch.Generator().manual_seed(seed)
    ends = torch.zeros(B, N, T, dtype=torch.bool)
    ends[..., 4:-1] = True
    starts = ends.clone()
    starts[:, :-1, -5:] = False  # left to the next window
    first = 2 * torch.arange(T) + 100 * torch.arange(N)[:, None]
    chars = torch.stack([first, first + 2], -1).expand(B, N, T, 2).int()
    tensors = {"tokens": torch.zeros(B, N, T, dtype=torch.int64), "starts": starts, "ends": ends,
               "chars": chars}  # fmt: skip
    if N == 1:
        tensors = {name: t[:, 0] for name, t in tensors.items()}
    scores = 3 * torch.randn(B * N, T, 2, generator=rng)
    return Fixed(scores), Batch(tensors, np.arange(B))


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("N", [1, 3])
def test_the_best_span_is_found_as_by_trying_all(N: int, null: bool):
    T = 44
    network, batch = made(8, N, T)
    task = Span(null)
    with torch.no_grad():
        found = task.predict(network, batch)
    starts, ends = batch["starts"].view(8, N, T), batch["ends"].view(8, N, T)
    chars = batch["chars"].reshape(8, N, T, 2)
    scores = network.scores.detach().view(8, N, T, 2)
    for b in range(8):
        choices: dict[tuple[int, int], float] = {}
        mass = [(n, i) for n in range(N) for i in range(T) if starts[b, n, i]]
        mass += [(0, 0)] * null
        total = torch.stack([scores[b, n, i, 0] for n, i in mass]).logsumexp(0)
        for n in range(N):
            stops = [j for j in range(T) if ends[b, n, j]] + [0] * (null and n == 0)
            under = scores[b, n, stops, 1].logsumexp(0)
            for i in range(T):
                for j in range(i, min(T, i + LONGEST + 1)):
                    if starts[b, n, i] and ends[b, n, j]:
                        place = int(chars[b, n, i, 0]), int(chars[b, n, j, 1])
                        choices[place] = float(
                            scores[b, n, i, 0] - total + scores[b, n, j, 1] - under
                        )
            if null and n == 0:
                choices[-1, -1] = float(scores[b, 0, 0].sum() - total - under)
        best = max(choices, key=lambda place: choices[place])
        assert (found[b].start, found[b].end) == best
        assert found[b].probability == pytest.approx(np.exp(choices[best]), rel=1e-4)


def test_loss_is_that_of_start_among_all_windows_and_end_in_its_own():
    network, batch = made(3, 2, 12)
    batch.tensors["targets"] = torch.tensor([[5, 6], [12 + 4, 12 + 8], [0, 0]])
    task = Span()
    total, _ = task.loss(network, batch)
    start, end = task.choices(network, batch)
    want = -(start[0, 0, 5] + end[0, 0, 6] + start[1, 1, 4] + end[1, 1, 8])
    assert torch.allclose(total, want)
    assert task.count(batch) == 6
    none = Span(null=True)
    start, end = none.choices(network, batch)
    want = -(
        start[0, 0, 5]
        + end[0, 0, 6]
        + start[1, 1, 4]
        + end[1, 1, 8]
        + start[2, 0, 0]
        + end[2, 0, 0]
    )
    assert torch.allclose(none.loss(network, batch)[0], want)
    assert torch.allclose(start.flatten(1).exp().sum(1), torch.ones(3))
    total.backward()
    assert network.scores.grad is not None
    assert network.scores.grad.isfinite().all()
    assert task.lens(batch) == ["tokens 5 to 6", "tokens 16 to 20", "no answer"]


def test_mistakes_and_the_floor():
    found = predicted("10th century", "Iceland", "Norway", "")
    found[2] = replace(found[2], probability=0.9)
    wrong = Span().mistakes(found, rows(["Denmark"], ["Norway", "Iceland"], [], ["Denmark"]))
    assert [m.row for m in wrong] == [2, 0, 3]
    assert (wrong[0].truth, wrong[0].predicted, wrong[0].probability) == (
        "none", "The Normans came from Denmark, Iceland and [Norway] in the 10th century.",
        pytest.approx(0.9),
    )  # fmt: skip
    assert wrong[1].predicted.endswith("in the [10th century].")
    assert around("x" * 70 + CONTEXT, 92, 99).startswith(
        "..." + "x" * 38 + "The Normans came from [Denmark]"
    )


def test_predictions_in_words():
    row = rows(["Denmark"]).rows()[0]
    there, none = (p.of_row("row 0", row, 3, None) for p in predicted("Denmark", ""))
    assert (there.answer, there.place, there.probability) == ("Denmark", (22, 29), 0.5)
    assert (none.answer, none.place, none.probability) == ("", None, 0.5)
    same = {"name": "row 0", "probability": 0.5}
    assert there.row() == same | {"answer": "Denmark", "place": (22, 29)}
    assert none.row() == same | {"answer": ""}
    assert task_from_dict(Span(null=True).to_dict()).null
