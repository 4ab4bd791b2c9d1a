"""Do the labels belong to the rows? The network and probes too simple to be at fault are tried.

Legend: n rows, C classes, D features.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from layerwise.data.examples import Batch
from layerwise.data.splits import stratified_folds
from layerwise.inspection.lens import judged, read_out
from layerwise.inspection.probe import CrossFit, one_hot
from layerwise.inspection.texts import is_text, rows_of_text, tokenwise
from layerwise.kinds.text.source import TOKENS
from layerwise.models.network import Network
from layerwise.runtime import evaluating

FEW = 100  # rows below which nothing can be said
SURE = 3.0  # standard errors above chance that count as signal
LARGEST = 512  # features a ridge regression is given
PIECE = 32  # rows
PRIOR = 20.0  # times that a token must have been seen to count as much as the frequencies


@dataclass(frozen=True)
class Signal:
    """Whether labels can be predicted: True, False, or None when there are too few rows to say."""

    present: bool | None
    sentence: str


def chance_loss(batch: Batch) -> float | None:
    """The mean loss of the best constant answer: the entropy of the classes, or of the tokens.

    None for numbers and several labels per row, where it depends on the task.
    """
    if not names_classes(batch) and not tokenwise(batch):
        return None
    targets = batch["targets"][batch["targets"] >= 0]
    if not len(targets):
        return None
    shares = torch.bincount(targets).double() / len(targets)
    shares = shares[shares > 0]
    return float(-(shares * shares.log()).sum())


def signal(network: Network, probe: Batch, held_out: Batch | None) -> Signal:
    """Does anything beat guessing on rows it has not seen?

    The network is tried on `held_out`; a ridge regression in five folds on the raw values is tried
    on `probe` and `held_out`, and one on the network's features only on `held_out`: of the rows it
    was trained on, the network may have memorised the labels.
    """
    if tokenwise(probe):
        return token_signal(network, probe, held_out or probe)
    tried: list[str] = []
    if held_out is not None and names_classes(held_out):  # few rows can show it, not disprove it
        score = network_score(network, held_out)
        tried.append(sentence("the network", score, held_out))
        if above(score, held_out):
            return Signal(True, tried[-1])
    for batch in (probe, held_out):
        if batch is None or not usable(batch):
            continue
        for name, features in views(network.READS, network if batch is held_out else None, batch):
            score = ridge_score(features, batch["targets"].cpu().numpy())
            tried.append(sentence(f"a linear probe on {name}", score, batch))
            if above(score, batch):
                return Signal(True, tried[-1])
    unseen = probe if held_out is None else held_out
    if not usable(unseen):
        return Signal(None, f"only {len(unseen)} rows: too few to tell if labels can be predicted")
    return Signal(False, "; ".join(tried))


def names_classes(batch: Batch) -> bool:
    targets = batch.tensors.get("targets", torch.zeros(0))
    return len(batch) > 0 and targets.ndim == 1 and not targets.is_floating_point()


def usable(batch: Batch) -> bool:
    return len(batch) >= FEW and names_classes(batch)


def views(
    reads: Sequence[str], network: Network | None, batch: Batch
) -> list[tuple[str, np.ndarray]]:
    """The rows as numbers (n, D): the raw values, and the network's features where it is given."""
    inputs = batch.main(reads)
    raw = rows_of_text(inputs, batch) if is_text(batch) and inputs.ndim < 4 else inputs.float()
    while raw.ndim == 4 and raw[0].numel() > LARGEST:
        raw = nn.functional.avg_pool2d(raw, 2)
    what = "the counts of the words" if is_text(batch) else "the raw values"
    found = [(what, raw.flatten(1)[:, :LARGEST].cpu().numpy())]
    if network is not None:
        features = in_pieces(network, network.features, batch)
        features = features.flatten(1)[:, :LARGEST]
        if bool(torch.isfinite(features).all()):
            found.append(("the network's features", features.cpu().numpy()))
    return found


def in_pieces(network: Network, call: Callable[..., Tensor], batch: Batch) -> Tensor:
    """call(inputs) in evaluation mode, PIECE rows at a time: large images would not fit at once.

    Outputs for each token of a text are pooled, (B, T, D) to (B, D).
    """
    out = []
    with evaluating(network):
        for part in batch.split(-(-len(batch) // PIECE)):
            x = call(**part.select(network.READS)).float()
            out.append(rows_of_text(x, part) if is_text(part) and x.ndim == 3 else x)
    return torch.cat(out)


def network_score(network: Network, batch: Batch) -> float:
    logits = in_pieces(network, network, batch)  # (n, C)
    return float((logits.argmax(1) == batch["targets"]).float().mean())


def likeness(network: Network, batch: Batch) -> float:
    """The mean cosine between the features of different texts: 1 where they are all the same."""
    x = in_pieces(network, network.features, batch)
    x = nn.functional.normalize(x.double(), dim=1)  # (n, D)
    n = len(x)
    return float((x.sum(0).square().sum() - n) / (n * (n - 1))) if n > 1 else 0.0


def token_signal(network: Network, probe: Batch, held_out: Batch) -> Signal:
    """Can the targets of tokens be predicted better than by their frequencies?

    Tried are the network on `held_out`, against the frequencies there, and a table of which target
    follows which input token, counted on `probe` and thinned out where a token is rare, against
    the frequencies in `probe`.
    """
    seen, wanted = (b["targets"][b["targets"] >= 0] for b in (probe, held_out))
    if min(len(seen), len(wanted)) < FEW:
        return Signal(None, f"only {len(wanted)} tokens: too few to tell")
    inputs, asked = (b["tokens"][b["targets"] >= 0] for b in (probe, held_out))
    V = 1 + int(max(seen.max(), wanted.max()))
    own, known = (torch.bincount(x, minlength=V).float() for x in (wanted, seen))
    shares = (known + 1) / (len(seen) + V)
    pairs, times = torch.unique(inputs * V + seen, return_counts=True)
    key = asked * V + wanted
    place = torch.searchsorted(pairs, key).clamp_max(len(pairs) - 1)
    together = torch.where(pairs[place] == key, times[place], 0)
    often = torch.bincount(inputs, minlength=1 + int(asked.max()))[asked]
    table = (together + PRIOR * shares[wanted]) / (often + PRIOR)
    bits: list[np.ndarray] = []
    with evaluating(network):
        for part in held_out.split(-(-held_out["tokens"].numel() // TOKENS)):
            x = network.features(**part.select(network.READS))
            bits.append(judged(read_out(network), x, part["targets"])[0])
    losses = torch.from_numpy(np.concatenate(bits) * math.log(2)).to(table)
    tried = []
    for who, loss, plain in (
        ("the network", losses, -(own / own.sum())[wanted].log()),
        ("a table of neighbours", -table.log(), -shares[wanted].log()),
    ):
        gain = plain - loss
        tried.append(
            f"{who} needs {float(loss.mean()):.2f} nats for each of {len(loss):,} unseen tokens, "
            f"their frequencies {float(plain.mean()):.2f}"
        )
        if float(gain.mean()) > SURE * float(gain.std()) / math.sqrt(len(gain)):
            return Signal(True, tried[-1])
    return Signal(False, "; ".join(tried))


def ridge_score(features: np.ndarray, targets: np.ndarray, folds: int = 5) -> float:
    """Accuracy in cross-validation of a ridge regression onto the classes."""
    fit = CrossFit(features, stratified_folds(targets, folds, seed=0))
    return float((fit.predict(one_hot(targets)).argmax(1) == targets).mean())


def chance_score(batch: Batch) -> float:
    """The share of the most frequent class: what guessing it always would score."""
    return float(torch.bincount(batch["targets"]).max()) / len(batch)


def above(score: float, batch: Batch) -> bool:
    chance = chance_score(batch)
    return score > chance + SURE * math.sqrt(chance * (1 - chance) / len(batch))


def sentence(who: str, score: float, batch: Batch) -> str:
    return (
        f"{who} scores {score:.1%} on {len(batch)} rows it has not seen, where always naming the "
        f"most frequent class scores {chance_score(batch):.1%}"
    )
