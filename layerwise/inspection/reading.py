"""How a trained network reads: the depth of a text network in numbers and plain sentences.

Of networks that name tokens (decoders, masked words): the logit lens at every block and the loss of
every token of an example. Of those with labels: the probes of `depth.py`. Of all: where each
attention head looks, and against a base, which layers a fine-tune changed.

Shapes: B rows, T positions, H heads, N positions that carry loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import nn

from layerwise.data.examples import Batch
from layerwise.inspection.changed import changed_layers, changed_sentences
from layerwise.inspection.depth import depth_report
from layerwise.inspection.floors import DepthReport
from layerwise.inspection.heads import MEASURES, SHARP, heads_seen, measures
from layerwise.inspection.lens import TextStream, guessing, logit_lens, strip, token_bits
from layerwise.inspection.taps import eager
from layerwise.models.network import Network

HEAD_ROWS = 16  # rows for the heads: all their weights are held at once
MOSTLY = 0.5  # of a head's weight
ADDS = 0.02  # bits below which a block adds nothing that the head can read
HOW = {"first": "the first token", "itself": "the token itself", "previous": "the token before"}


@dataclass(frozen=True)
class Reading:
    """What `reading` found; the parts that a network does not have are empty."""

    heads: dict[str, list[dict[str, float]]]  # {layer: one dict of MEASURES per head}
    lens: list[dict[str, Any]] = field(default_factory=list)  # name, right, bits, floor by floor
    guess: dict[str, float] = field(default_factory=dict)  # right, bits: by frequency alone
    tokens: list[tuple[str, float]] = field(default_factory=list)  # text and bits of one row
    hard: float = 0.0  # share of the tokens that half of the loss lies on
    changed: list[dict[str, Any]] = field(default_factory=list)  # name, change, cka
    depth: DepthReport | None = None
    n_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report; the sentences are among them."""
        depth = None if self.depth is None else self.depth.to_dict()
        tokens = [(t, round(b, 3) if np.isfinite(b) else None) for t, b in self.tokens]
        return asdict(self) | {"depth": depth, "tokens": tokens, "sentences": self.sentences()}

    def sentences(self) -> list[str]:
        found = [] if self.depth is None else self.depth.sentences()
        found += lens_sentences(self) + token_sentences(self) + head_sentences(self)
        return found + changed_sentences(self.changed)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows for the console."""
        if self.depth is not None:
            return self.depth.table()
        rows = [[f["name"], f"{f['right']:.1%}", f"{f['bits']:.3f}"] for f in self.lens]
        return ["layer", "tokens right", "bits"], rows


def reading(
    network: Network,
    batches: Sequence[Batch],
    names_tokens: bool,
    labels: Sequence[str] = (),
    probes: bool = False,
    stream: Callable[[], TextStream] | None = None,
    base: Network | None = None,
    seed: int = 0,
    gradients: dict[str, float] | None = None,
) -> Reading:
    """Inspect a trained text network.

    batches: as its task makes them, preferably of rows it was not trained on. names_tokens:
    whether it learned what each token is; probes: whether it learned labels that probes can
    predict. stream: makes a decoder of tokens, for the example. base: the network it was
    fine-tuned from. The rest as for `depth_report`.
    Errors: DataError when there are too few rows to score a probe on.
    """
    device = str(next(network.parameters()).device)
    batches = [batch.to(device) for batch in batches]
    some = len(batches) // 2  # texts come in order of their length
    found: dict[str, Any] = {"heads": head_table(network, batches[some])}
    if names_tokens and "targets" in batches[0].tensors:
        bits = [token_bits(network, batch) for batch in batches]
        found["lens"], found["guess"] = logit_lens(network, batches), guessing(batches)
        found["hard"] = hard_share(bits)
        found["n_tokens"] = int(sum(np.isfinite(b).sum() for b in bits))
        found["tokens"] = strip(batches[some], bits[some], stream) if stream else []
    elif probes:
        found["depth"] = depth_report(network, batches, labels, seed, gradients)
    if base is not None:
        found["changed"] = changed_layers(network, base.to(device), batches)
    return Reading(**found)


def head_table(network: Network, batch: Batch) -> dict[str, list[dict[str, float]]]:
    """{layer: one dict of MEASURES per head}, over the first rows of a batch."""
    some = batch.first(HEAD_ROWS)
    keep = some.tensors.get("mask")
    found: dict[str, dict[str, np.ndarray]] = {}

    def see(name: str, module: nn.Module, q, k, v, mask, causal, options) -> None:
        found[name.rpartition(".")[0]], _ = measures(q, k, mask, causal, options, keep)

    with eager(network), heads_seen(network, see):
        network.features(**some.select(network.READS))
    table = {n: np.stack([where[m] for m in MEASURES], 1) for n, where in found.items()}  # (H, 5)
    return {
        name: [dict(zip(MEASURES, head.round(4).tolist(), strict=True)) for head in rows]
        for name, rows in table.items()
        if np.isfinite(rows).all()
    }


def hard_share(bits: Sequence[np.ndarray]) -> float:
    """The share of tokens that half of the loss lies on, the hardest first."""
    values = np.sort(np.concatenate([b[np.isfinite(b)] for b in bits]))[::-1]
    total = np.cumsum(values)
    if not len(values) or not total[-1] > 0:
        return 0.0
    return float((np.searchsorted(total, total[-1] / 2) + 1) / len(values))


# ---- sentences -----------------------------------------------------------------------------------


def lens_sentences(r: Reading) -> list[str]:
    """What is known where, which block brings most, and which ones bring nothing."""
    if not r.lens:
        return []
    top, guess = r.lens[-1], r.guess
    out = [
        f"The network names {top['right']:.1%} of {r.n_tokens:,} tokens rightly and needs "
        f"{top['bits']:.2f} bits for each; always naming the commonest is right for "
        f"{guess['right']:.1%}, and frequencies alone need {guess['bits']:.2f} bits."
    ]
    early = next(f for f in r.lens if f["right"] >= 0.9 * top["right"])
    if early is not top:
        out.append(
            f"With the head on {early['name']} already {early['right']:.1%} are right: what comes "
            "above refines."
        )
    gains = [(a["bits"] - b["bits"], b["name"]) for a, b in zip(r.lens, r.lens[1:], strict=False)]
    if gains:
        gain, name = max(gains)
        out.append(f"{name} brings most: the head needs {gain:.2f} bits less above it than below.")
    idle = [name for gain, name in gains if abs(gain) < ADDS]
    if idle:
        verb = "hardly changes" if len(idle) == 1 else "hardly change"
        out.append(f"{', '.join(idle)} {verb} what the head would say (less than {ADDS} bits).")
    return out


def token_sentences(r: Reading) -> list[str]:
    out = [f"Half of the loss lies on {r.hard:.0%} of the tokens."] if r.hard else []
    marked = [(b, t) for t, b in r.tokens if np.isfinite(b) and t.strip()]
    if len(marked) >= 3:
        worst = sorted(marked, reverse=True)[:3]
        named = ", ".join(f"'{t.strip()}' ({b:.1f} bits)" for b, t in worst)
        out.append(f"In the example the hardest tokens are {named}.")
    return out


def head_sentences(r: Reading) -> list[str]:
    """How many heads do what, with the purest of each kind."""
    every = [(f"{layer} head {i}", h) for layer, hs in r.heads.items() for i, h in enumerate(hs)]
    if not every:
        return []
    out = []
    for key, what in HOW.items():
        mine = [(h[key], name) for name, h in every if h[key] > MOSTLY]
        if mine:
            share, name = max(mine)
            rest = " and so rest" if key == "first" else ""
            verb = "reads" if len(mine) == 1 else "read"
            out.append(
                f"{len(mine)} of {len(every)} heads {verb} mostly {what}{rest} (most: {name} with "
                f"{share:.0%})."
            )
    stuck = [n for n, h in every if h["entropy"] < SHARP and h["first"] < MOSTLY]
    if len(stuck) > len(every) / 2:
        out.append(f"{len(stuck)} of {len(every)} heads are stuck on one token each: saturated.")
    near, far = (pick(every, key=lambda x: x[1]["distance"]) for pick in (min, max))
    out.append(
        f"{near[0]} looks nearest ({near[1]['distance']:.1f} tokens away on average), {far[0]} "
        f"farthest ({far[1]['distance']:.0f})."
    )
    return out
