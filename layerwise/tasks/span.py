"""The answer to a question as a span of its context, or none; exact match and F1 as SQuAD.

The start is one place among all windows of the context (shared normalisation: Clark and Gardner,
arXiv:1710.10723), the end one in the same window, so that scores of windows compare. Where
training had questions without an answer, the first token stands for "none", as in BERT.
Scores: Rajpurkar et al., arXiv:1606.05250 and arXiv:1806.03822: without case, marks and articles;
the best over the answers given.

Shapes: B questions, N windows, T tokens, n questions.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from layerwise.data.examples import Batch, Examples
from layerwise.data.sources import Tensors
from layerwise.errors import DataError
from layerwise.models.network import Network
from layerwise.tasks.scores.metrics import Weights, average
from layerwise.tasks.task import Arrays, Baseline, Mistake, Options, Plain, Prediction, Task
from layerwise.tasks.words import over_windows

LONGEST = 30  # tokens between the start of an answer and its end
AROUND = 60  # characters shown on either side of an answer
HIDDEN = -1e30  # the score of a place that cannot be chosen; finite, so that softmax gives no NaN
MARKS = str.maketrans("", "", string.punctuation)


def plain(answer: str) -> list[str]:
    """The words of an answer that are compared."""
    return re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(MARKS)).split()


def exact_match(said: str, true: str) -> float:
    return float(plain(said) == plain(true))


def f1(said: str, true: str) -> float:
    """Of the words in common."""
    a, b = plain(said), plain(true)
    if not a or not b:
        return float(a == b)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b))


@dataclass(frozen=True)
class SpanPrediction(Prediction):
    """Where in its context the likeliest answer stands; -1 and -1 where there is none."""

    start: int  # its first character
    end: int  # one past its last
    probability: float
    name: str = ""
    context: str = ""

    def of_row(self, name: str, row: dict[str, Any], top: int, level: float | None) -> Self:
        return replace(self, name=name, context=row["context"])

    @property
    def answer(self) -> str:
        """Empty for none."""
        return self.answer_in(self.context)

    @property
    def place(self) -> tuple[int, int] | None:
        return (self.start, self.end) if self.start >= 0 else None

    def answer_in(self, context: str) -> str:
        return context[self.start : self.end] if self.start >= 0 else ""

    def row(self) -> dict[str, Any]:
        found = {"name": self.name, "probability": self.probability, "answer": self.answer}
        return found | ({} if self.place is None else {"place": self.place})

    def show(self) -> str:
        return f"{self.name}  {self.answer or '(no answer)'} {self.probability:.3f}"


Predictions = Sequence[SpanPrediction]


def scores(
    predictions: Predictions, examples: Examples, score: Callable[[str, str], float]
) -> np.ndarray:
    """The score of each answer against the best of those given: (n,)."""
    found = np.empty(len(predictions))
    rows = zip(predictions, examples["context"], examples["answers"], strict=True)
    for i, (p, context, answers) in enumerate(rows):
        true = [t for a in answers if plain(t := a["text"])] or [""]
        found[i] = max(score(p.answer_in(context), t) for t in true)
    return found


def answer_f1(values: np.ndarray, targets: object = None, weights: Weights = None) -> Any:
    """values: (n,) the F1 of each answer. weights: as in `metrics`."""
    return average(values, weights)


class Span(Task):
    """Learn where the answer stands. null: some questions have none."""

    name = "span"
    score = "f1"
    metric = staticmethod(answer_f1)
    n_outputs = 2
    reader = "spans"
    head_kind = "span"
    top = "answers"

    def __init__(self, null: bool = False):
        self.null = null

    @classmethod
    def fits(cls, examples: Examples) -> int:
        asked = examples.has("context", "question", "answers")
        return 2 * (asked and any(examples["answers"]))

    @classmethod
    def of(cls, examples: Examples, options: Options) -> Self:
        return cls(not all(examples["answers"]))

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "null": self.null}

    def aligned(self, examples: Examples) -> Examples:
        """Errors: rows without answers to compare with."""
        if not examples.has("answers") or not any(examples["answers"]):
            what = f"{examples.source} has no answers to score against"
            raise DataError(f"{what}; `layerwise predict` it")
        return examples

    def count(self, batch: Batch) -> int:
        return 2 * super().count(batch)

    def example_targets(self, rows: int, main: Tensor) -> Tensors:
        places = main.to(torch.bool)
        targets = torch.zeros(rows, 2, dtype=torch.int64)
        return {"targets": targets, "starts": places, "ends": places}

    def choices(self, network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log probabilities (B, N, T) of the start among all windows, of the end in each."""
        starts, ends = (t if t.ndim == 3 else t[:, None] for t in (batch["starts"], batch["ends"]))
        starts, ends = starts.clone(), ends.clone()
        starts[:, 0, 0] = ends[:, 0, 0] = self.null
        scores = over_windows(network, network.READS, batch).unflatten(1, starts.shape[1:])
        start, end = scores.unbind(-1)
        start = start.masked_fill(~starts, HIDDEN).flatten(1).log_softmax(1).view_as(start)
        return start, end.masked_fill(~ends, HIDDEN).log_softmax(-1)

    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        start, end = (scores.flatten(1) for scores in self.choices(network, batch))
        first, last = batch["targets"].split(1, 1)  # (B, 1) each
        taught = (last > 0) | self.null  # the tokenizer may lose the answer of a context
        total = -torch.where(taught, start.gather(1, first) + end.gather(1, last), 0.0).sum()
        return total, {"cross_entropy": total.detach()}

    def predict(self, network: Network, batch: Batch) -> list[SpanPrediction]:
        start, end = self.choices(network, batch)  # (B, N, T)
        ends = F.pad(end, (0, LONGEST), value=HIDDEN).unfold(-1, LONGEST + 1, 1)
        both = start[..., None] + ends  # (B, N, T, LONGEST + 1)
        both[:, :, 0, 1:] = HIDDEN  # none has no length
        best, where = both.flatten(1).max(1)
        first = where // (LONGEST + 1)
        chars = batch["chars"].flatten(1, -2)  # (B, N T, 2)
        row = torch.arange(len(chars), device=chars.device)
        place = torch.stack([chars[row, first, 0], chars[row, first + where % (LONGEST + 1), 1]], 1)
        none = (first == 0) | (best < HIDDEN / 2)
        places, shares = place.masked_fill(none[:, None], -1).tolist(), best.exp().float().tolist()
        both = zip(places, shares, strict=True)
        return [SpanPrediction(first, last, share) for (first, last), share in both]

    def scored(self, predictions: Predictions, examples: Examples) -> Arrays:
        return scores(predictions, examples, f1), np.zeros(len(predictions))

    def metrics(self, predictions: Predictions, examples: Examples) -> dict[str, float]:
        exact = average(scores(predictions, examples, exact_match), None)
        return {"f1": average(scores(predictions, examples, f1), None), "exact_match": exact}

    def lens(self, batch: Batch) -> list[str]:
        return [f"tokens {a} to {b}" if b else "no answer" for a, b in batch["targets"].tolist()]

    def mistakes(self, predictions: Predictions, examples: Examples) -> list[Mistake]:
        """Rows without a word in common with an answer, the surest first; the places marked in what
        stands around them."""
        wrong = np.flatnonzero(scores(predictions, examples, f1) == 0)
        shares = np.array([p.probability for p in predictions])
        out = []
        for i in wrong[np.argsort(-shares[wrong], kind="stable")].tolist():
            context, answers = examples["context"][i], examples["answers"][i]
            true = [(a["start"], a["start"] + len(a["text"])) for a in answers[:1]]
            said = [p.place] if (p := predictions[i]).place else []
            truth, answer = (around(context, *at[0]) if at else "none" for at in (true, said))
            out.append(Mistake(i, truth, answer, p.probability, examples["question"][i]))
        return out

    def baseline(self, train: Examples, test: Examples, plain: Plain) -> Baseline:
        whole = [SpanPrediction(0, len(context), 1.0) for context in test["context"]]
        return Baseline("always the whole context", predictions=whole)


def around(text: str, start: int, end: int) -> str:
    """A place of a text in brackets, with what stands around it."""
    before, after = text[max(0, start - AROUND) : start], text[end : end + AROUND]
    left, right = "..." * (start > AROUND), "..." * (end + AROUND < len(text))
    return f"{left}{before}[{text[start:end]}]{after}{right}"
