"""What the head would predict at every depth of a language model, and which tokens are hard.

The logit lens (nostalgebraist 2020; Belrose et al., arXiv:2303.08112, section 2): the last norm and
the head are applied to the output of each block. The scores are never held as a whole.

Shapes: B rows, T positions, D width, V vocabulary, N positions that carry loss.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from layerwise.data.examples import Batch
from layerwise.inspection.taps import eager, outputs_seen, tap
from layerwise.layers.loss import chunks
from layerwise.models.network import Network, head_kind

STRIP = 160  # tokens of the example text


def read_out(network: Network) -> Callable[[Tensor], Tensor]:
    """Scores (N, V) of the network's own features (N, D)."""
    return network.score if head_kind(network) == "masked" else network.head


def judged(
    scores_of: Callable[[Tensor], Tensor], x: Tensor, targets: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) loss in bits, and whether the likeliest was right, where targets (B, T) are no padding.

    x: (B, T, D), what `scores_of` reads.
    """
    keep = targets >= 0
    rows, wanted = x[keep], targets[keep]  # (N, D), (N,)
    bits, right = [np.zeros(0)], [np.zeros(0, bool)]
    width = scores_of(rows[:1]).shape[-1] if len(rows) else 1
    for part in chunks(len(rows), width):
        scores = scores_of(rows[part]).float()
        own = scores.gather(1, wanted[part, None])[:, 0]
        bits.append(((scores.logsumexp(1) - own) / math.log(2)).double().cpu().numpy())
        right.append((scores.argmax(1) == wanted[part]).cpu().numpy())
    return np.concatenate(bits), np.concatenate(right)


def logit_lens(network: Network, batches: Sequence[Batch]) -> list[dict[str, float | str]]:
    """[{name, right, bits}] from the embeddings to the last block: the share of tokens the head
    would name rightly there, and its mean loss in bits.

    batches: with "targets" (B, T), negative where no loss is carried. The last one is the network.
    """
    stack, score = network.layers(), read_out(network)
    norm = stack.get("norm", nn.Identity())
    blocks = {name: layer for name, layer in stack.items() if name.startswith("blocks.")}
    seen: dict[str, Tensor] = {}  # "embeddings", the input of the first block, and their outputs
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    embedded = lambda args, options: seen.update(embeddings=args[0])  # noqa: E731
    with contextlib.ExitStack() as undo:
        undo.callback(tap(next(iter(blocks.values())), embedded, before=True))
        undo.enter_context(outputs_seen(network, blocks, lambda n, out: seen.update({n: out})))
        for batch in batches:
            network.features(**batch.select(network.READS))
            for name, x in seen.items():
                parts = judged(lambda rows: score(norm(rows)), x, batch["targets"])
                found.setdefault(name, []).append(parts)
    out: list[dict[str, float | str]] = []
    for name, parts in found.items():
        bits, right = (np.concatenate(p) for p in zip(*parts, strict=True))
        out.append({"name": name, "right": float(right.mean()), "bits": float(bits.mean())})
    return out


def token_bits(network: Network, batch: Batch) -> np.ndarray:
    """(B, T) the loss of every position in bits, NaN where none is carried."""
    with eager(network):
        x = network.features(**batch.select(network.READS))
        bits, _ = judged(read_out(network), x, batch["targets"])
    out = np.full(batch["targets"].shape, np.nan)
    out[(batch["targets"] >= 0).cpu().numpy()] = bits
    return out


class TextStream(Protocol):
    """Makes text of tokens as they come; one whose characters are not whole yet has none."""

    def push(self, token: int) -> str: ...


def strip(
    batch: Batch, bits: np.ndarray, stream: Callable[[], TextStream]
) -> list[tuple[str, float]]:
    """The first row as [(text, bits)]: each token that was to be predicted, with its loss.

    Where a position carries loss the token is the target, else the input, with NaN.
    """
    targets, inputs = batch["targets"][0], batch["tokens"][0]
    tokens = torch.where(targets >= 0, targets, inputs).tolist()[:STRIP]
    decoder = stream()
    return [(decoder.push(t), float(b)) for t, b in zip(tokens, bits[0], strict=False)]


def guessing(batches: Sequence[Batch]) -> dict[str, float]:
    """What always naming the commonest token gets right, and the bits of its frequencies alone."""
    targets = torch.cat([b["targets"][b["targets"] >= 0] for b in batches])
    shares = torch.bincount(targets).double() / max(1, len(targets))
    bits = float(torch.special.entr(shares).sum()) / math.log(2)
    return {"right": float(shares.max()), "bits": bits}
