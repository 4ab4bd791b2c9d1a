"""Vectors whose cosine says how alike texts are: from scored pairs, from pairs, from triples.

Scored pairs: the cosine is to be the score, brought to 0..1, by squared error (Reimers and
Gurevych, arXiv:1908.10084, section 3).
Pairs and triples: InfoNCE (van den Oord et al., arXiv:1807.03748): of the batch's second texts,
and of its third ones (hard negatives), each first text is to find its own. Texts that are equal
to the right one, or right for an equal first text, do not count as wrong.
Matryoshka (Kusupati et al., arXiv:2205.13147): the first `dims` numbers of a vector by themselves
have to do it as well; the loss is the mean over the sizes.

In InfoNCE the terms of a step depend on its whole batch, so gradient accumulation must not split
it: the loop hands it over whole (`joint`); its parts are encoded one by one without keeping
activations, and encoded again in the backward pass (GradCache: Gao et al., arXiv:2101.06983).
Gradients are those of the big batch, the memory that of one part, for a third more time.

Shapes: B rows, K texts of a row, T tokens, D width, n rows to score.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from layerwise.data.examples import Batch, Examples
from layerwise.errors import DataError, OptionError
from layerwise.kinds.text.matches import matches
from layerwise.models.network import Network
from layerwise.tasks.scores import metrics
from layerwise.tasks.scores.metrics import Weights
from layerwise.tasks.task import Arrays, Baseline, Options, Plain, Prediction, Task

BLOCK = 20_000  # rows among whose texts the right one is looked for
FIELDS = (("anchor", "positive"), ("text_a", "text_b"))


@dataclass(frozen=True)
class CosinePrediction(Prediction):
    """The cosine of a row's first two texts."""

    value: float
    name: str = ""

    def row(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value}

    def show(self) -> str:
        return f"{self.name}  {self.value:.6g}"


@dataclass(frozen=True, kw_only=True)
class VectorsPrediction(CosinePrediction):
    """The same with the vectors of all K texts, of length 1."""

    vectors: np.ndarray  # (K, D)
    texts: tuple[int, ...]  # (K,) numbers that only equal texts share, 0 for one that is not there


class Embed(Task):
    """Learn vectors. learns: "scores" of pairs, or "matches" (of pairs and triples).

    low, high: the scores for a cosine of 0 and of 1. scale: what cosines are multiplied by among
    matches. dims: sizes that also have to work, cut from the front.
    """

    name = "embed"
    n_outputs = 1
    reader = "each"
    head_kind = "embed"
    works_untrained = True
    top = "vectors"

    def __init__(
        self,
        learns: str = "scores",
        low: float = 0.0,
        high: float = 1.0,
        scale: float = 20.0,
        dims: Iterable[int] = (),
    ):
        self.learns, self.low, self.high, self.scale = learns, low, high, scale
        self.dims, self.joint = tuple(dims), learns == "matches"
        self.score = "spearman" if learns == "scores" else "recall_at_1"
        self.metric = metrics.spearman if learns == "scores" else recall_at_1

    @classmethod
    def fits(cls, examples: Examples) -> int:
        """As usual for scored pairs and triples, and for pairs without a label."""
        if not any(examples.has(*names) for names in FIELDS):
            return 0
        labelled = examples.targets is not None and not examples.has("score")
        return 1 if labelled else 2

    @classmethod
    def of(cls, examples: Examples, options: Options) -> Self:
        """Errors: OptionError for sizes of vectors that are not whole numbers from 1 up."""
        sizes = [d.strip() for d in options.dims.split(",")] if options.dims else []
        if not all(d.isdecimal() and int(d) for d in sizes):
            given = f"{options.dims!r} was given"
            raise OptionError(f"--dims takes sizes from 1 up such as 64,128; {given}")
        if examples.targets is None or examples.target_kind != "number":
            return cls("matches", dims=map(int, sizes))
        low, high = float(np.min(examples.targets)), float(np.max(examples.targets))
        return cls("scores", low, high, dims=map(int, sizes))

    @classmethod
    def whole_rows(cls, examples: Examples, val: float, test: float) -> Examples:
        return matches(examples)

    def aligned(self, examples: Examples) -> Examples:
        return matches(examples)

    def judging(self, examples: Examples) -> "Embed":
        """By scores, or by matches."""
        return type(self).of(examples, Options())

    def to_dict(self) -> dict[str, Any]:
        kept = {"learns": self.learns, "low": self.low, "high": self.high, "scale": self.scale}
        return {"name": self.name, **kept, "dims": list(self.dims)}

    # ---- learning ------------------------------------------------------------------------------
    def count(self, batch: Batch) -> int:
        """Errors: DataError for matches with nothing to compare."""
        if self.joint and len(batch) * (batch["tokens"].shape[1] - 1) < 2:
            cure = "more rows are needed, or a larger --device-batch-size"
            raise DataError(f"a batch of one pair has nothing to compare it with: {cure}")
        return len(batch)

    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        vectors = self.vectors(network, batch)  # (B, K, D)
        D = vectors.shape[-1]
        sizes = (D, *(d for d in self.dims if d < D))
        if self.dims and len(sizes) == 1:
            raise OptionError(f"--dims takes sizes below the vectors' own, which is {D}")
        total = torch.stack([self.loss_of(vectors[..., :d], batch) for d in sizes]).mean()
        return total, {"info_nce" if self.joint else "squared_error": total.detach()}

    def loss_of(self, vectors: Tensor, batch: Batch) -> Tensor:
        unit = F.normalize(vectors, dim=-1)
        if not self.joint:
            wanted = (batch["targets"] - self.low) / max(self.high - self.low, 1e-9)
            return ((unit[:, 0] * unit[:, 1]).sum(-1) - wanted).square().sum()
        candidates = unit[:, 1:].transpose(0, 1).flatten(0, 1)  # ((K-1) B, D), the right ones first
        with torch.autocast(unit.device.type, enabled=False):
            products = self.scale * unit[:, 0] @ candidates.T  # in bf16 they would be too coarse
        products = products.masked_fill(not_wrong(batch["texts"]), -torch.inf)
        right = torch.arange(len(unit), device=unit.device)
        return F.cross_entropy(products, right, reduction="sum")

    def vectors(self, network: Network, batch: Batch) -> Tensor:
        """(B, K, D) fp32; with parts, each encoded by itself and again in the backward pass."""
        if batch.parts == 1 or not torch.is_grad_enabled():
            return encoded(network, batch)
        pieces = batch.split(batch.parts)
        parts: list[Any] = [checkpoint(encoded, network, p, use_reentrant=False) for p in pieces]
        return torch.cat(parts)

    # ---- predictions and their scores ----------------------------------------------------------
    def predict(self, network: Network, batch: Batch) -> Sequence[CosinePrediction]:
        """Errors: DataError for one text per row."""
        if batch["tokens"].shape[1] < 2:
            cure = "`layerwise embed MODEL DATA` gives vectors"
            raise DataError(f"one text per row: there is nothing to compare it with; {cure}")
        unit = F.normalize(encoded(network, batch), dim=-1)
        if not self.joint:
            return [CosinePrediction(c) for c in (unit[:, 0] * unit[:, 1]).sum(-1).tolist()]
        both = zip(unit.cpu().numpy(), map(tuple, batch["texts"].tolist()), strict=True)
        return [VectorsPrediction(float(v[0] @ v[1]), vectors=v, texts=texts) for v, texts in both]

    def scored(self, predictions: Sequence[Any], examples: Examples) -> Arrays:
        """(n,): the rank of each cosine among all, so that those of two models compare; or the
        rank (from 1) at which each first text finds its own."""
        if self.joint:
            return found_at(*unpacked(predictions)), np.zeros(len(predictions))
        cosines = np.array([p.value for p in predictions])
        ranks = metrics.ranks(cosines, np.ones((1, len(cosines))))[0]
        return ranks, np.asarray(examples.targets)

    def metrics(self, predictions: Sequence[Any], examples: Examples) -> dict[str, float]:
        found, targets = self.scored(predictions, examples)
        if not self.joint:
            straight = metrics.pearson(np.array([p.value for p in predictions]), targets)
            return {"spearman": metrics.spearman(found, targets), "pearson": straight}
        out = {"recall_at_1": recall_at_1(found), "mrr": float((1 / found).mean())}
        texts, unit = unpacked(predictions)
        if unit.shape[1] > 2 and (there := texts[:, 2] != 0).any():
            near = np.einsum("nd,nkd->nk", unit[there, 0], unit[there, 1:])
            out["triple_accuracy"] = float((near[:, 0] > near[:, 1]).mean())
        return out

    def baseline(self, train: Examples, test: Examples, plain: Plain) -> Baseline:
        """The cosine of plain features, or chance among all texts."""
        if self.joint or not (found := plain()):
            return Baseline("by chance", 1 / len(test))
        a, b = (found.of_field(test[name]) for name in FIELDS[1])
        cosines = np.asarray(a.multiply(b).sum(1))[:, 0].tolist()
        return Baseline(found.what, predictions=[CosinePrediction(c) for c in cosines])

    def next(self, model: str, data: str) -> list[tuple[str, str]]:
        _, score, _ = super().next(model, data)
        embed = f"layerwise embed {model} TEXTS --output index.npz"
        search = "layerwise search index.npz 'what to look for'"
        return [("embed texts to search in", embed), score, ("search", search)]

    def lens(self, batch: Batch) -> list[str]:
        names = ("pair", "triple")[batch["tokens"].shape[1] > 2]
        if self.learns != "scores":
            return [f"{names}, told from {len(batch) - 1} others"] * len(batch)
        return [f"score {float(t):g}" for t in batch["targets"]]


def encoded(network: Network, batch: Batch) -> Tensor:
    """The network's vector of each text of each row: (B, K, D) fp32."""
    tokens, mask = batch["tokens"], batch.tensors.get("mask")  # (B, K, T)
    flat = network(tokens.flatten(0, 1), mask=None if mask is None else mask.flatten(0, 1))
    return flat.float().unflatten(0, tokens.shape[:2])


def not_wrong(texts: Tensor) -> Tensor:
    """(B, (K-1) B) bool: the candidates that are not wrong for a first text, without its own.

    texts: (B, K) numbers that only equal texts share, 0 where there is none.
    """
    first, candidates = texts[:, 0], texts[:, 1:].T.flatten()
    same = (candidates == texts[:, 1, None]) | (candidates == first[:, None]) | (candidates == 0)
    B = len(first)
    same[:, :B] |= first == first[:, None]
    same[:, :B] &= ~torch.eye(B, dtype=torch.bool, device=texts.device)
    return same


# ---- scores of matches ---------------------------------------------------------------------------
def recall_at_1(places: np.ndarray, targets: object = None, weights: Weights = None) -> Any:
    """How often the right text comes first; weights as in `metrics`."""
    return metrics.average(places == 1, weights)


def unpacked(predictions: Sequence[VectorsPrediction]) -> Arrays:
    """The texts' numbers (n, K) and vectors (n, K, D)."""
    texts = np.array([p.texts for p in predictions], np.int64)
    return texts, np.stack([p.vectors for p in predictions])


def found_at(texts: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """The rank of each row's own second text among those of BLOCK rows, (n,) from 1 up.

    Ties count against it: vectors that are all equal find nothing.
    """
    found = np.empty(len(unit))
    for start in range(0, len(unit), BLOCK):
        part = slice(start, start + BLOCK)
        near_by = torch.from_numpy(np.ascontiguousarray(unit[part]))
        numbers = torch.from_numpy(np.ascontiguousarray(texts[part]))
        candidates = near_by[:, 1:].transpose(0, 1).flatten(0, 1)
        own = (near_by[:, 0] * near_by[:, 1]).sum(-1, keepdim=True)
        closer = (near_by[:, 0] @ candidates.T > own - 1e-6) & ~not_wrong(numbers)
        found[part] = 1 + closer.fill_diagonal_(False).sum(1).numpy()
    return found
