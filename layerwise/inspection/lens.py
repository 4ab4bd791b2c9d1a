"""What the head would say at every depth of a language model, and which tokens are hard.

The logit lens (nostalgebraist 2020; Belrose et al., arXiv:2303.08112, section 2): the last norm and
the head are put on what each block hands on. The scores never are held whole.

Shapes: B rows, T positions, D width, V vocabulary, N positions that carry loss.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from layerwise.data.examples import Batch
from layerwise.layers.loss import chunks
from layerwise.models.network import Network, head_kind
from layerwise.runtime import evaluating

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


@contextmanager
def outputs_seen(network: Network) -> Iterator[dict[str, Tensor]]:
    """Inside, what goes into the first block, as "embeddings", and what each block hands on."""
    seen: dict[str, Tensor] = {}
    stack = network.layers()
    blocks = {name: layer for name, layer in stack.items() if name.startswith("blocks.")}
    first = next(iter(blocks.values()))
    undo = [first.register_forward_pre_hook(lambda _, args: seen.update(embeddings=args[0]))]
    for name, layer in blocks.items():
        keep = lambda _, args, out, name=name: seen.update({name: out})  # noqa: E731
        undo.append(layer.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for hook in undo:
            hook.remove()


def logit_lens(network: Network, batches: Sequence[Batch]) -> list[dict[str, float | str]]:
    """[{name, right, bits}] from the embeddings to the last block: the share of tokens the head
    would name rightly there, and its mean loss in bits.

    batches: with "targets" (B, T), negative where no loss is carried. The last one is the network.
    """
    norm = network.layers().get("norm", nn.Identity())
    score = read_out(network)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    with (
        evaluating(network),
        torch.compiler.set_stance("force_eager"),
        outputs_seen(network) as seen,
    ):
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
    with evaluating(network), torch.compiler.set_stance("force_eager"):
        x = network.features(**batch.select(network.READS))
        bits, _ = judged(read_out(network), x, batch["targets"])
    out = np.full(batch["targets"].shape, np.nan)
    out[(batch["targets"] >= 0).cpu().numpy()] = bits
    return out


def strip(batch: Batch, bits: np.ndarray, stream: Callable[[], object]) -> list[tuple[str, float]]:
    """The first row as [(text, bits)]: each token that was to be found, with its loss.

    Where loss is carried the token is the target's, else the input's, with NaN. stream: makes a
    decoder with `push(token) -> text`; a token whose characters are not whole yet has no text.
    """
    targets, inputs = batch["targets"][0], batch["tokens"][0]
    tokens = torch.where(targets >= 0, targets, inputs).tolist()[:STRIP]
    decoder = stream()
    return [(decoder.push(t), float(b)) for t, b in zip(tokens, bits[0], strict=False)]  # type: ignore[attr-defined]


def guessing(batches: Sequence[Batch]) -> dict[str, float]:
    """What always naming the commonest token gets right, and the bits of its frequencies alone."""
    targets = torch.cat([b["targets"][b["targets"] >= 0] for b in batches])
    shares = torch.bincount(targets).double() / max(1, len(targets))
    bits = float(torch.special.entr(shares).sum()) / math.log(2)
    return {"right": float(shares.max()), "bits": bits}
