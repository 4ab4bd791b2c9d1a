"""What every layer knows: the depth of a trained network in numbers and plain sentences.

For each layer, from the raw inputs to the head: how well a linear probe names the label of rows it
was not fitted on, the same with shuffled labels (the control: a probe that scores there learns by
itself), how many directions the layer uses (effective rank), how alike it is to every other (CKA),
and how well brightness, colour and edges of the image can still be read from it. `floors.py` puts
it into words.

Legend: n rows, L layers, D features, K outputs; b c h w images.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from layerwise.data.examples import Batch
from layerwise.data.splits import stratified_folds as folds_of
from layerwise.errors import DataError
from layerwise.inspection.floors import DepthReport, LayerDepth
from layerwise.inspection.probe import CrossFit, cka, effective_rank, one_hot, r_squared
from layerwise.inspection.taps import outputs_seen
from layerwise.inspection.texts import is_text, rows_of_text, thinned, tokenwise
from layerwise.models.network import Network

POOLED, WIDEST = 2048, 512  # features per layer: maps are pooled to the first, all cut to the other
MOST_ROWS, CKA_ROWS, FEWEST = 2000, 600, 40
FOLDS = 2  # every row is scored by the probe that was fitted on the other half
CONTROLS = 3  # shuffles of the labels


def depth_report(
    network: Network,
    batches: Iterable[Batch],
    labels: Sequence[str] = (),
    seed: int = 0,
    gradients: dict[str, float] | None = None,
) -> DepthReport:
    """Probe every layer of a trained network.

    batches: rows with "targets": (B,) classes, (B,) numbers, (B, C) several labels, or
    (B, T) a class for each token of a text, negative where there is none; preferably rows it was
    not trained on; about 2,000 are used. labels: names of the classes, for the sentences.
    gradients: {layer: gradient norm}, as the watch saw them.
    Errors: DataError when there are too few rows to score a probe on.
    """
    features, properties, targets = collect(network, batches)
    n = len(targets)
    if n < FEWEST:
        raise DataError(f"a depth report needs at least {FEWEST} labelled rows; {n} were given")
    question = Question(targets, seed)
    floors: list[LayerDepth] = []
    merits: list[np.ndarray] = []  # (n,) per layer: how right the probe was on each row
    for name, x in features.items():
        fit = CrossFit(x, question.folds)
        merits.append(question.merit(fit.predict(question.targets), question.targets))
        change = merits[-1] - merits[max(0, len(merits) - 2)]
        controls = [question.merit(fit.predict(y), y).mean() for y in question.shuffled]
        reads = {k: round(r_squared(fit.predict(v), v), 4) for k, v in properties.items()}
        floor = LayerDepth(
            name=name,
            probe=float(merits[-1].mean()),
            error=standard_error(merits[-1]),
            gain=float(change.mean()),
            gain_error=standard_error(change),
            control=float(np.mean(controls)),
            width=x.shape[1],
            effective_rank=effective_rank(x),
            reads=reads,
            gradient=(gradients or {}).get(name),
        )
        floors.append(floor)
    some = np.random.default_rng(seed).permutation(n)[:CKA_ROWS]
    return DepthReport(
        layers=floors,
        cka=rounded(cka([x[some] for x in features.values()])),
        errors=rounded(np.array([[standard_error(a - b) for a in merits] for b in merits])),
        recall=recall_by_class(merits, targets, labels) if question.classes else {},
        chance=question.chance,
        score_name="accuracy" if question.classes else "r2",
        n_rows=n,
    )


class Question:
    """What the probes have to find: targets as a matrix, shuffles of it, and folds."""

    def __init__(self, targets: np.ndarray, seed: int):
        self.classes = targets.ndim == 1 and targets.dtype.kind in "iu"
        n = len(targets)
        codes = np.unique(targets, return_inverse=True)[1] if self.classes else np.zeros(n, int)
        whole = one_hot(codes) if self.classes else targets.reshape(n, -1).astype(np.float64)
        self.targets = whole  # (n, K)
        self.folds = folds_of(codes, FOLDS, seed)
        self.chance = float(whole.mean(0).max()) if self.classes else 0.0
        draws = [np.random.default_rng((seed, s)).permutation(n) for s in range(CONTROLS)]
        self.shuffled = [whole[d] for d in draws]

    def merit(self, predicted: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """(n,) what the score is the mean of; for numbers, one minus the share of variance left."""
        if self.classes:
            return (predicted.argmax(1) == targets.argmax(1)).astype(np.float64)
        spread = targets.var(0)
        spread[spread == 0] = 1.0
        return 1 - ((targets - predicted) ** 2 / spread).mean(1)


def recall_by_class(
    merits: list[np.ndarray], targets: np.ndarray, labels: Sequence[str]
) -> dict[str, list[float]]:
    """{class: share of its rows that the probe names, per layer}; classes without rows left out."""
    rows = {label: targets == c for c, label in enumerate(labels) if (targets == c).any()}
    return {k: [round(float(m[mine].mean()), 4) for m in merits] for k, mine in rows.items()}


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def rounded(table: np.ndarray) -> list[list[float]]:
    return [[round(float(v), 5) for v in row] for row in table]


# ---- activations ---------------------------------------------------------------------------------


def collect(
    network: Network, batches: Iterable[Batch]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """{layer: features (n, D)} beginning with the inputs; of images {property: (n, K)}; targets.

    Of texts with a class for each token such a token is a row, the commonest class `thinned`.
    """
    layers = dict(network.layers())
    layers.pop("pos_embed", None)  # outputs the same for every text
    device = str(next(network.parameters()).device)
    kept: dict[str, list[np.ndarray]] = {"inputs": [], **{name: [] for name in layers}}
    seen: list[dict[str, np.ndarray]] = []
    targets: list[np.ndarray] = []
    now: Batch  # the one that runs
    with outputs_seen(network, layers, lambda name, out: kept[name].append(features_of(out, now))):
        for batch in batches:
            now = thinned(batch).to(device)
            network(**now.select(network.READS))
            kept["inputs"].append(features_of(now.main(network.READS), now))
            if "image" in batch.tensors:
                seen.append(image_properties(batch["image"].float().cpu()))
            wanted = now.tensors.get("targets", torch.zeros(len(batch)))  # pairs have none
            targets.append((wanted[wanted >= 0] if tokenwise(now) else wanted).cpu().numpy())
            if sum(len(t) for t in targets) >= MOST_ROWS:
                break
    if not targets:
        raise DataError("a depth report needs labelled rows; no batch was given")
    found = {k: project(np.concatenate(parts)) for k, parts in kept.items() if parts}
    properties = {k: np.concatenate([part[k] for part in seen]) for k in (seen[:1] or [{}])[0]}
    varying = {k: v for k, v in properties.items() if v.std(0).min() > 1e-4}
    return found, varying, np.concatenate(targets)


def features_of(x: Tensor, batch: Batch) -> np.ndarray:
    """(n, D): one row per example, or per token where those have the labels."""
    if x.ndim < 4 and is_text(batch):
        return rows_of_text(x.detach(), batch).cpu().numpy()
    return pooled(x)


def pooled(x: Tensor) -> np.ndarray:
    """One row of features per example: maps and patches pooled to a grid, the class token too."""
    x = x.detach().float()
    first = x.new_zeros(len(x), 0)
    if x.ndim == 3:
        side = math.isqrt(x.shape[1])
        extra = x.shape[1] - side * side
        square = extra <= 1 < side
        first = x[:, 0] if extra or not square else first  # (B, D)
        x = x[:, extra:].mT.unflatten(2, (side, side)) if square else x.mean(1)
    if x.ndim == 4:
        grid = next((g for g in (8, 4, 2) if x.shape[1] * g * g <= POOLED), 1)
        x = F.adaptive_avg_pool2d(x, (min(grid, x.shape[2]), min(grid, x.shape[3])))
    return torch.cat([x.flatten(1), first], dim=1).cpu().numpy()


def project(x: np.ndarray) -> np.ndarray:
    """At most WIDEST features, by a random projection, which keeps distances: (n, D)."""
    if x.shape[1] <= WIDEST:
        return x
    matrix = np.random.default_rng(0).standard_normal((x.shape[1], WIDEST), dtype=np.float32)
    return x @ (matrix / math.sqrt(WIDEST))


def image_properties(images: Tensor) -> dict[str, np.ndarray]:
    """What can be measured on an image without knowing what it shows, each (n, K): brightness and
    colour in its quarters, and the strength of upright and level edges there."""
    grey = images.mean(1, keepdim=True)  # (b, 1, h, w)
    across = F.pad((grey[..., 1:] - grey[..., :-1]).abs(), (0, 1))
    down = F.pad((grey[..., 1:, :] - grey[..., :-1, :]).abs(), (0, 0, 0, 1))
    found = {"brightness": grey, "edges": torch.cat([across, down], 1)}
    if images.shape[1] == 3:
        found["colour"] = images - grey
    return {k: F.adaptive_avg_pool2d(v, 2).flatten(1).double().numpy() for k, v in found.items()}
