"""A tag for each word: cross-entropy at the first token of a word, scored by whole entities.

Entities are read from tags as the CoNLL script does (Tjong Kim Sang and Buchholz, 2000), in any of
IOB1, IOB2, IOE and IOBES, and from sequences that none of them allows: an entity ends where the
kind changes, and any tag but O begins one where none is open. Tags without such marks (parts of
speech) are scored word by word.

Shapes: B sentences, T tokens (of all windows of a sentence), W words, C tags, n sentences.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from layerwise.data.examples import Batch, Examples
from layerwise.data.sources import Tensors
from layerwise.errors import DataError
from layerwise.kinds.text.corpus import NO_LOSS
from layerwise.kinds.text.tagged import words_of
from layerwise.layers.loss import n_with_loss
from layerwise.models.network import Network
from layerwise.tasks import probes
from layerwise.tasks.labels import Labels, require_known
from layerwise.tasks.scores.metrics import divide, scalar
from layerwise.tasks.task import Arrays, Baseline, Calibration, Mistake, Plain, Prediction

MARKED = re.compile(r"O|[BIESLUM]-.+")
SAME = {"L": "E", "U": "S", "M": "I"}  # marks of other schemes
Entity = tuple[str, int, int]  # kind, first word, last word
AT_ONCE = 256  # windows that go through the network together in prediction


def entities(tags: Iterable[str]) -> list[Entity]:
    """The entities of a sentence."""
    found, first, mark, kind = [], -1, "O", ""
    for i, tag in enumerate([*tags, "O"]):
        before, known = mark, kind
        mark, _, kind = tag.partition("-")
        mark = SAME.get(mark, mark)
        if first >= 0 and (mark in "BSO" or before in "ES" or kind != known):
            found.append((known, first, i - 1))
            first = -1
        if mark != "O" and first < 0:
            first = i
    return found


def ratio(counts: np.ndarray, weights: object) -> Any:
    """The sum of the first column over that of the second, of (n, 2) weighted rows."""
    above, below = np.moveaxis(counts.sum(0) if weights is None else weights @ counts, -1, 0)
    return scalar(divide(above, below))


def entity_f1(counts: np.ndarray, targets: object = None, weights: object = None) -> Any:
    """counts: (n, 2) entities that are right twice over, entities said and true."""
    return ratio(counts, weights)


def accuracy(counts: np.ndarray, targets: object = None, weights: object = None) -> Any:
    """counts: (n, 2) words that are right, words that have a tag."""
    return ratio(counts, weights)


def over_windows(network: Callable[..., Tensor], reads: Sequence[str], batch: Batch) -> Tensor:
    """What a network, or its features, are at each token, windows one after another: (B, T, C)."""
    given, tokens = batch.select(reads), batch["tokens"]
    if tokens.ndim == 2:
        return network(**given).float()
    N = tokens.shape[1]
    flat = {name: t.flatten(0, 1) for name, t in given.items()}
    n = len(tokens) * N
    size = n if torch.is_grad_enabled() else AT_ONCE
    parts = [{k: v[i : i + size] for k, v in flat.items()} for i in range(0, n, size)]
    out = torch.cat([network(**part).float() for part in parts])
    return out.unflatten(0, (len(tokens), N)).flatten(1, 2)


@dataclass(frozen=True)
class WordsPrediction(Prediction):
    """The likeliest tag of each of W words, and its probability."""

    tags: tuple[str, ...]  # (W,)
    shares: np.ndarray  # (W,)
    marked: bool  # whether tags mark entities
    name: str = ""
    text: str = ""
    places: tuple[tuple[int, int], ...] = ()  # of the words in the text

    def of_row(self, name: str, row: dict[str, Any], top: int, level: float | None) -> Self:
        text, places = words_of(row)
        return replace(self, name=name, text=text, places=tuple(places))

    @property
    def words(self) -> list[tuple[str, str, float]]:
        """Each word with its tag and that tag's probability."""
        found = zip(self.places, self.tags, self.shares.astype(float), strict=False)
        return [(self.text[a:b], tag, float(p)) for (a, b), tag, p in found]

    @property
    def entities(self) -> list[dict[str, Any]]:
        """Kind, text, place in characters (start, end) and words (first, last), and the probability
        of the least sure word."""
        found = []
        for kind, i, j in entities(self.tags) if self.marked else ():
            a, b = self.places[i][0], self.places[j][1]
            share = float(self.shares[i : j + 1].min())
            found.append({"kind": kind, "text": self.text[a:b], "start": a, "end": b,
                          "words": (i, j), "probability": share})  # fmt: skip
        return found

    def row(self) -> dict[str, Any]:
        found = {"name": self.name, "words": self.words, "entities": self.entities}
        return {k: v for k, v in found.items() if v != []}

    def show(self) -> str:
        found = [f"{e['text']} ({e['kind']} {e['probability']:.3f})" for e in self.entities]
        said = ", ".join(found) or " ".join(f"{word}/{tag}" for word, tag, _ in self.words)
        return f"{self.name}  {said}"


Predictions = Sequence[WordsPrediction]


class Words(Labels):
    """Learn the tag of each word."""

    name = "words"
    reader = "words"
    head_kind = "tag"
    reads_lines = True
    each_token = True
    probe = staticmethod(probes.of_classes)

    def __init__(self, labels: Sequence[str]):
        super().__init__(labels)
        marked = all(map(MARKED.fullmatch, self.labels))
        self.marked = marked and any("-" in tag for tag in self.labels)
        self.score = "entity_f1" if self.marked else "accuracy"
        self.metric = entity_f1 if self.marked else accuracy

    @classmethod
    def fits(cls, examples: Examples) -> int:
        return 2 * examples.has("tokens", "tags")

    # ---- learning --------------------------------------------------------------------------------
    def aligned(self, examples: Examples) -> Examples:
        """Errors: rows without tags, or with tags that the model does not know."""
        if not examples.has("tags"):
            what = f"{examples.source} has none"
            raise DataError(f"this model answers with a tag for each word; {what}")
        strange = [tag for tag in examples.labels if tag not in self.labels]
        require_known(strange, examples.source, self.labels)
        return examples

    def learned(self, examples: Examples) -> Callable[[np.ndarray], Tensors]:
        """ "targets" (B, W): the tag of each word; -1 after its last and for a tag that is
        not known, as rows to predict may have."""
        if not examples.has("tags"):
            return lambda rows: {}
        place = {tag: i for i, tag in enumerate(self.labels)}
        tags = [torch.tensor([place.get(tag, -1) for tag in row]) for row in examples["tags"]]
        longest = max(map(len, tags), default=0)

        def targets(rows: np.ndarray) -> Tensors:
            out = torch.full((len(rows), longest), -1)
            for into, row in zip(out, rows.tolist(), strict=True):
                into[: len(tags[row])] = tags[row]
            return {"targets": out}

        return targets

    def example_targets(self, rows: int, main: Tensor) -> Tensors:
        return {"targets": main, "words": main}

    def token_targets(self, batch: Batch) -> Tensor:
        """(B, T): the tag of the word whose first token stands there, else NO_LOSS."""
        words, tags = batch["words"].flatten(1), batch["targets"]  # (B, T), (B, W) with -1
        found = tags.gather(1, words.clamp(min=0))
        return torch.where((words < 0) | (found < 0), NO_LOSS, found)

    def count(self, batch: Batch) -> int:
        n = n_with_loss(self.token_targets(batch))
        if not n:
            raise DataError("no word of this batch has a tag; look at the data")
        return n

    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = over_windows(network, network.READS, batch).flatten(0, 1)  # (B T, C)
        targets = self.token_targets(batch).flatten()
        total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=NO_LOSS)
        return total, {"cross_entropy": total.detach()}

    def lens(self, batch: Batch) -> list[list[tuple[int, bool]]]:
        """Each token, and whether a tag is learned there."""
        tokens, carried = batch["tokens"].flatten(1), self.token_targets(batch) != NO_LOSS
        shown = batch.tensors.get("mask", torch.ones_like(tokens, dtype=torch.bool)).flatten(1)
        rows = zip(tokens, carried, shown, strict=True)
        return [list(zip(i[s].tolist(), c[s].tolist(), strict=True)) for i, c, s in rows]

    # ---- predictions and their scores ----------------------------------------------------------
    def predict(self, network: Network, batch: Batch) -> list[WordsPrediction]:
        words = batch["words"].flatten(1)  # (B, T)
        share, tag = over_windows(network, network.READS, batch).softmax(-1).max(-1)  # (B, T)
        out = []
        for place, tags, shares in zip(words, tag, share, strict=True):
            first = place >= 0
            order = place[first].argsort()
            ids, sure = tags[first][order].tolist(), shares[first][order].cpu().numpy()
            out.append(WordsPrediction(tuple(self.labels[i] for i in ids), sure, self.marked))
        return out

    def true(self, examples: Examples) -> list[list[str]]:
        return [list(tags) for tags in examples["tags"]]

    def scored(self, predictions: Predictions, examples: Examples) -> Arrays:
        """(n, 2) for `entity_f1`, or for `accuracy` where tags mark no entities."""
        if not self.marked:
            return self.right(predictions, examples), np.zeros(len(predictions))
        counts = [(len(s & t), len(s) + len(t)) for s, t in self.pairs(predictions, examples)]
        return np.array(counts) * [2, 1], np.zeros(len(predictions))

    def right(self, predictions: Predictions, examples: Examples) -> np.ndarray:
        """Words that are right, and words: (n, 2)."""
        both = zip(predictions, self.true(examples), strict=True)
        rows = [(sum(map(str.__eq__, p.tags, true)), len(true)) for p, true in both]
        return np.array(rows)

    def pairs(
        self, predictions: Predictions, examples: Examples
    ) -> list[tuple[set[Entity], set[Entity]]]:
        """The entities of each sentence: what was said, and what is true."""
        both = zip(predictions, self.true(examples), strict=True)
        return [(set(entities(p.tags[: len(t)])), set(entities(t))) for p, t in both]

    def metrics(self, predictions: Predictions, examples: Examples) -> dict[str, float]:
        found = {"accuracy": accuracy(self.right(predictions, examples))}
        if not self.marked:
            return found
        whole = self.by_kind(predictions, examples)["all"]
        return {f"entity_{k}": whole[k] for k in ("f1", "precision", "recall")} | found

    def by_kind(self, predictions: Predictions, examples: Examples) -> dict[str, dict[str, float]]:
        """Precision, recall and F1 of each kind of entity, and how many there are; "all" last."""
        pairs = self.pairs(predictions, examples)
        names = sorted({e[0] for pair in pairs for side in pair for e in side})
        out = {}
        for name in [*names, "all"]:
            said, true = ({(i, e) for i, pair in enumerate(pairs) for e in pair[side]
                           if name in ("all", e[0])} for side in (0, 1))  # fmt: skip
            right = len(said & true)
            precision, recall = right / max(1, len(said)), right / max(1, len(true))
            f1 = 2 * right / max(1, len(said) + len(true))
            out[name] = {"precision": precision, "recall": recall, "f1": f1, "n": len(true)}
        return out

    def figures(
        self, predictions: Predictions, examples: Examples, calibration: Calibration
    ) -> dict[str, Any]:
        return {"kinds": self.by_kind(predictions, examples)} if self.marked else {}

    def mistakes(self, predictions: Predictions, examples: Examples) -> list[Mistake]:
        """Sentences tagged wrongly, the most mistakes first, entities marked in the sentence."""
        read = entities if self.marked else single
        out, rows = [], examples.rows()
        for i, (p, true) in enumerate(zip(predictions, self.true(examples), strict=True)):
            found = [read(tags) for tags in (true, p.tags[: len(true)])]
            if missed := len(set(found[0]) ^ set(found[1])):
                text, places = words_of(rows[i])
                truth, said = (in_brackets(text, places, each) for each in found)
                sure = float(p.shares[: len(true)].min())
                out.append((missed, Mistake(i, truth, said, sure, "")))
        return [mistake for _, mistake in sorted(out, key=lambda x: -x[0])]

    def baseline(self, train: Examples, test: Examples, plain: Plain) -> Baseline:
        """Each word as it is tagged most often in training."""
        seen: dict[str, Counter[str]] = {}
        usual = Counter(tag for tags in train["tags"] for tag in tags).most_common(1)[0][0]
        for words, tags in zip(train["tokens"], train["tags"], strict=True):
            for word, tag in zip(words, tags, strict=True):
                seen.setdefault(word, Counter())[tag] += 1
        best = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
        said = [tuple(best.get(word) or usual for word in words) for words in test["tokens"]]
        found = [WordsPrediction(tags, np.ones(len(tags)), self.marked) for tags in said]
        return Baseline("each word as it is tagged most often in training", predictions=found)


def single(tags: Iterable[str]) -> list[Entity]:
    return [(tag, i, i) for i, tag in enumerate(tags)]


def in_brackets(text: str, places: list[tuple[int, int]], found: list[Entity]) -> str:
    """A sentence with its entities marked: [Anna Bell](PER) left."""
    for kind, i, j in reversed(found):
        a, b = places[i][0], places[j][1]
        text = f"{text[:a]}[{text[a:b]}]({kind}){text[b:]}"
    return text
