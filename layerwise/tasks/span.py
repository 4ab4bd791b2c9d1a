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
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.data.examples import Batch, Examples
from layerwise.errors import DataError
from layerwise.kinds.sources import batch_of
from layerwise.tasks.scores.metrics import average
from layerwise.tasks.words import over_windows

LONGEST = 30  # tokens between the start of an answer and its end
AROUND = 60  # characters shown on either side of an answer
HIDDEN = -1e30  # the score of a place that is no choice; finite, so that no choice is no NaN
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


def text_of(row: dict[str, Any], out: np.ndarray) -> str:
    """The answer (start, end, ...) in the context of a row; empty for none."""
    return row["context"][int(out[0]) : int(out[1])] if out[0] >= 0 else ""


def scores(outputs: np.ndarray, rows: np.ndarray, score: Any) -> np.ndarray:
    """The score of each answer against the best of those given: (n,)."""
    found = np.empty(len(rows))
    for i, (row, out) in enumerate(zip(rows, outputs, strict=True)):
        said = text_of(row, out)
        true = [t for a in row["answers"] if plain(t := a["text"])] or [""]
        found[i] = max(score(said, t) for t in true)
    return found


def answer_f1(outputs: np.ndarray, targets: np.ndarray, weights: Any = None) -> Any:
    """outputs: (n, 3); targets: (n,) rows with context and answers. weights: as in `metrics`."""
    return average(scores(outputs, targets, f1), weights)


class Span:
    """Learn where the answer stands. null: some questions have none."""

    name = "span"
    score = "f1"
    metric = staticmethod(answer_f1)
    higher_is_better = True
    labels: tuple[str, ...] = ()
    n_outputs = 2
    target_kind = "answers"
    head_kind = "span"
    batch = staticmethod(batch_of)

    def __init__(self, null: bool = False):
        self.null = null

    @classmethod
    def of(cls, examples: Examples, **options: Any) -> "Span":
        return cls(any(not row["answers"] for row in examples.inputs))

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "null": self.null}

    def count(self, batch: Batch) -> int:
        if not len(batch):
            raise DataError("a batch without rows carries no loss; is the data set empty?")
        return 2 * len(batch)

    def choices(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log probabilities (B, N, T) of the start among all windows, of the end in each."""
        starts, ends = (t if t.ndim == 3 else t[:, None] for t in (batch["starts"], batch["ends"]))
        starts, ends = starts.clone(), ends.clone()
        starts[:, 0, 0] = ends[:, 0, 0] = self.null
        start, end = over_windows(network, batch).unflatten(1, starts.shape[1:]).unbind(-1)
        start = start.masked_fill(~starts, HIDDEN).flatten(1).log_softmax(1).view_as(start)
        return start, end.masked_fill(~ends, HIDDEN).log_softmax(-1)

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        start, end = (scores.flatten(1) for scores in self.choices(network, batch))
        first, last = batch["targets"].split(1, 1)  # (B, 1) each
        taught = (last > 0) | self.null  # a context may lose its answer to the tokenizer
        total = -torch.where(taught, start.gather(1, first) + end.gather(1, last), 0.0).sum()
        return total, {"cross_entropy": total.detach()}

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """(B, 3): first character of the likeliest answer, the one behind its last, probability.

        -1 and -1 where the likeliest is that there is none.
        """
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
        place = place.float().masked_fill(none[:, None], -1.0)
        return torch.cat([place, best.exp()[:, None].float()], 1)

    def scored(self, outputs: np.ndarray) -> np.ndarray:
        return outputs

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """outputs: (n, 3); targets: (n,) rows with context and answers."""
        exact = average(scores(outputs, targets, exact_match), None)
        return {"f1": answer_f1(outputs, targets), "exact_match": exact}

    def lens(self, batch: Batch) -> list[str]:
        return [f"tokens {a} to {b}" if b else "no answer" for a, b in batch["targets"].tolist()]

    def read(self, row: Any, out: np.ndarray) -> dict[str, Any]:
        """One row of outputs (3,) as a Prediction has it."""
        place = (int(out[0]), int(out[1])) if out[0] >= 0 else None
        return {"answer": text_of(row, out), "place": place, "probability": float(out[2])}

    def mistakes(self, inputs: Any, outputs: np.ndarray, targets: np.ndarray) -> list[tuple]:
        """Rows without a word in common with an answer: (row, truth, said, probability, text), the
        surest first; the places marked in what stands around them."""
        wrong = np.flatnonzero(scores(outputs, targets, f1) == 0)
        out = []
        for i in wrong[np.argsort(-outputs[wrong, 2], kind="stable")].tolist():
            row: Any = targets[i]
            spans = [(a["start"], a["start"] + len(a["text"])) for a in row["answers"][:1]]
            said = [(int(outputs[i, 0]), int(outputs[i, 1]))] if outputs[i, 0] >= 0 else []
            marked = (
                around(row["context"], *place[0]) if place else "none" for place in (spans, said)
            )
            out.append((i, *marked, float(outputs[i, 2]), row["question"]))
        return out

    def yardstick(self, train: Examples, test: Examples) -> tuple[str, np.ndarray]:
        whole = [(0, len(row["context"]), 1.0) for row in test.inputs]
        return "always the whole context", np.array(whole, np.float32)


def around(text: str, start: int, end: int) -> str:
    """A place of a text in brackets, with what stands around it."""
    before, after = text[max(0, start - AROUND) : start], text[end : end + AROUND]
    left, right = "..." * (start > AROUND), "..." * (end + AROUND < len(text))
    return f"{left}{before}[{text[start:end]}]{after}{right}"
