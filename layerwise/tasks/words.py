"""A tag for each word: cross-entropy at the first token of a word, scored by whole entities.

Entities are read from tags as the CoNLL script does (Tjong Kim Sang and Buchholz, 2000), in any of
IOB1, IOB2, IOE and IOBES, and from sequences that none of them allows: an entity ends where the
kind changes, and any tag but O begins one where none is open. Tags without such marks (parts of
speech) are scored word by word.

Shapes: B sentences, T tokens (of all windows of a sentence), W words, C tags, n sentences.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.data.examples import Batch, Examples
from layerwise.errors import DataError
from layerwise.kinds.text.corpus import NO_LOSS
from layerwise.kinds.text.tagged import words_of
from layerwise.layers.loss import n_with_loss
from layerwise.tasks.labels import Labels
from layerwise.tasks.scores.metrics import divide, scalar

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


def ratio(counts: np.ndarray, weights: Any) -> Any:
    """The sum of the first column over that of the second, of (n, 2) weighted rows."""
    above, below = np.moveaxis(counts.sum(0) if weights is None else weights @ counts, -1, 0)
    return scalar(divide(above, below))


def over_windows(network: Callable[..., Tensor], batch: Batch) -> Tensor:
    """What a network, or its features, are at each token, windows one after another: (B, T, C)."""
    inputs, context = batch["inputs"], batch.context
    if inputs.ndim == 2:
        return network(inputs, **context).float()
    N = inputs.shape[1]
    flat = {name: t.flatten(0, 1) for name, t in {"inputs": inputs, **context}.items()}
    size = len(flat["inputs"]) if torch.is_grad_enabled() else AT_ONCE
    parts = [{k: v[i : i + size] for k, v in flat.items()} for i in range(0, len(inputs) * N, size)]
    out = torch.cat([network(part.pop("inputs"), **part).float() for part in parts])
    return out.unflatten(0, (len(inputs), N)).flatten(1, 2)


class Words(Labels):
    """Learn the tag of each word."""

    name = "words"
    target_kind = "tags"
    head_kind = "tag"

    def __init__(self, labels: Sequence[str]):
        super().__init__(labels)
        marked = all(map(MARKED.fullmatch, self.labels))
        self.marked = marked and any("-" in tag for tag in self.labels)
        self.score = "entity_f1" if self.marked else "accuracy"

    # ---- learning --------------------------------------------------------------------------------
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

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = over_windows(network, batch).flatten(0, 1)  # (B T, C)
        targets = self.token_targets(batch).flatten()
        total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=NO_LOSS)
        return total, {"cross_entropy": total.detach()}

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """(B, W, 2): the likeliest tag of each word and its probability; -1 behind the last."""
        words = batch["words"].flatten(1)  # (B, T)
        share, tag = over_windows(network, batch).softmax(-1).max(-1)  # (B, T)
        W = max(int(words.max()), 0) + 1
        place = torch.where(words < 0, W, words)[..., None].expand(-1, -1, 2)
        out = share.new_full((len(words), W + 1, 2), -1.0)
        return out.scatter_(1, place, torch.stack([tag.to(share.dtype), share], -1))[:, :W]

    def lens(self, batch: Batch) -> list[list[tuple[int, bool]]]:
        """Each token, and whether a tag is learned there."""
        inputs, carried = batch["inputs"].flatten(1), self.token_targets(batch) != NO_LOSS
        shown = batch.context.get("mask", torch.ones_like(inputs, dtype=torch.bool)).flatten(1)
        rows = zip(inputs, carried, shown, strict=True)
        return [list(zip(i[s].tolist(), c[s].tolist(), strict=True)) for i, c, s in rows]

    # ---- scores ----------------------------------------------------------------------------------
    def scored(self, outputs: np.ndarray) -> np.ndarray:
        """What `metric` takes of the raw outputs (n, W, 2): the tags (n, W)."""
        return outputs[..., 0].astype(np.int64)

    def tags(self, ids: np.ndarray) -> list[str]:
        return [self.labels[i] for i in ids if i >= 0]

    @property
    def metric(self) -> Any:
        """A function of tags (n, W), targets (n, W) and weights (..., n): how often each sentence
        counts; the result has their leading shape."""
        return self.entity_f1 if self.marked else self.accuracy

    def entity_f1(self, tags: np.ndarray, targets: np.ndarray, weights: Any = None) -> Any:
        counts = [(len(s & t), len(s) + len(t)) for s, t in self.pairs(tags, targets)]
        return ratio(np.array(counts) * [2, 1], weights)

    def accuracy(self, tags: np.ndarray, targets: np.ndarray, weights: Any = None) -> Any:
        width = min(tags.shape[1], targets.shape[1])
        known = targets >= 0
        right = known[:, :width] & (tags[:, :width] == targets[:, :width])
        return ratio(np.stack([right.sum(1), known.sum(1)], 1), weights)

    def pairs(self, tags: np.ndarray, targets: np.ndarray) -> Iterator[tuple[set, set]]:
        """The entities of each sentence: what was said, and what is true."""
        for said, true in zip(tags, targets, strict=True):
            n = int((true >= 0).sum())
            yield set(entities(self.tags(said[:n]))), set(entities(self.tags(true[:n])))

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        accuracy = {"accuracy": self.accuracy(self.scored(outputs), targets)}
        if not self.marked:
            return accuracy
        whole = self.by_kind(outputs, targets)["all"]
        return {f"entity_{k}": whole[k] for k in ("f1", "precision", "recall")} | accuracy

    def by_kind(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, dict[str, float]]:
        """Precision, recall and F1 of each kind of entity, and how many there are; "all" last."""
        pairs = list(self.pairs(self.scored(outputs), targets))
        kinds = sorted({e[0] for pair in pairs for side in pair for e in side})
        out = {}
        for kind in [*kinds, "all"]:
            said, true = ({(i, e) for i, pair in enumerate(pairs) for e in pair[side]
                           if kind in ("all", e[0])} for side in (0, 1))  # fmt: skip
            right = len(said & true)
            out[kind] = {
                "precision": right / max(1, len(said)),
                "recall": right / max(1, len(true)),
                "f1": 2 * right / max(1, len(said) + len(true)),
                "n": len(true),
            }
        return out

    # ---- in words --------------------------------------------------------------------------------
    def read(self, row: Any, out: np.ndarray) -> dict[str, Any]:
        """One row of outputs (W, 2) as a Prediction has it: words with their tags, and entities."""
        text, places = words_of(row)
        tags, shares = self.tags(out[:, 0].astype(int)), out[:, 1].astype(float)
        words = [(text[a:b], t, float(p)) for (a, b), t, p in zip(places, tags, shares)]  # noqa: B905
        found = []
        for kind, i, j in entities(tags) if self.marked else ():
            a, b = places[i][0], places[j][1]
            share = float(shares[i : j + 1].min())
            found.append({"kind": kind, "text": text[a:b], "start": a, "end": b,
                          "words": (i, j), "probability": share})  # fmt: skip
        return {"words": words, "entities": found}

    def mistakes(self, inputs: Any, outputs: np.ndarray, targets: np.ndarray) -> list[tuple]:
        """Sentences tagged wrongly: (row, truth, said, probability, ""), the most mistakes first,
        what is meant marked in the sentence."""
        read = entities if self.marked else single
        out = []
        for i, (said, true) in enumerate(zip(self.scored(outputs), targets, strict=True)):
            n = int((true >= 0).sum())
            found = [read(self.tags(ids[:n])) for ids in (true, said)]
            if missed := len(set(found[0]) ^ set(found[1])):
                text, places = words_of(inputs[i])
                marked = (in_brackets(text, places, each) for each in found)
                out.append((missed, (i, *marked, float(outputs[i, :n, 1].min()), "")))
        return [row for _, row in sorted(out, key=lambda x: -x[0])]

    def yardstick(self, train: Examples, test: Examples) -> tuple[str, np.ndarray]:
        """Each word as it is tagged most often in training."""
        seen: dict[str, Counter[str]] = {}
        usual = Counter(tag for row in train.inputs for tag in row["tags"]).most_common(1)[0][0]
        for row in train.inputs:
            for word, tag in zip(row["tokens"], row["tags"], strict=True):
                seen.setdefault(word, Counter())[tag] += 1
        best = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
        out = np.full((len(test), max(len(row["tokens"]) for row in test.inputs), 2), -1.0)
        for row, into in zip(test.inputs, out, strict=True):
            tags = [self.labels.index(best.get(word, usual)) for word in row["tokens"]]
            into[: len(tags)] = np.stack([tags, np.ones(len(tags))], 1)
        return "each word as it is tagged most often in training", out


def single(tags: Iterable[str]) -> list[Entity]:
    return [(tag, i, i) for i, tag in enumerate(tags)]


def in_brackets(text: str, places: list[tuple[int, int]], found: list[Entity]) -> str:
    """A sentence with its entities marked: [Anna Bell](PER) left."""
    for kind, i, j in reversed(found):
        a, b = places[i][0], places[j][1]
        text = f"{text[:a]}[{text[a:b]}]({kind}){text[b:]}"
    return text
