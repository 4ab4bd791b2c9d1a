"""Which layers a fine-tune changed: how far weights moved, and how much outputs differ."""

import math
from collections.abc import Iterable
from typing import Any

from layerwise.data.examples import Batch
from layerwise.inspection.depth import CKA_ROWS, collect
from layerwise.inspection.probe import cka
from layerwise.inspection.texts import tokenwise
from layerwise.models.network import Network

LEAST_CHANGE = 5e-4  # of a layer's size: below it the base counts as unchanged


def changed_layers(
    network: Network, base: Network, batches: Iterable[Batch]
) -> list[dict[str, Any]]:
    """[{name, change, cka}] of the layers that both have, in order.

    change: norm of the difference of the weights over that of the base's; cka: likeness of
    the layer's outputs in both, on the same rows (1: the same picture). A layer whose weights have
    another shape (a fresh head) is left out.
    """
    batches = list(batches)
    if not all(map(tokenwise, batches)):  # then a row is a text, whatever shape its answers have
        kept = [{k: v for k, v in b.tensors.items() if k != "targets"} for b in batches]
        batches = [Batch(tensors, b.rows) for tensors, b in zip(kept, batches, strict=True)]
    ours, theirs = network.layers(), base.layers()
    now, before = collect(network, batches)[0], collect(base, batches)[0]
    out: list[dict[str, Any]] = []
    for name in (n for n in ours if n in theirs and n in now and n in before):
        new, old = (dict(layer[name].named_parameters()) for layer in (ours, theirs))
        if not old or any(k not in new or new[k].shape != p.shape for k, p in old.items()):
            continue
        both = [(new[k].detach().double().cpu(), p.detach().double().cpu()) for k, p in old.items()]
        moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in both))
        size = math.sqrt(sum(float(b.square().sum()) for _, b in both))
        alike = float(cka([x[name][:: -(-len(x[name]) // CKA_ROWS)] for x in (now, before)])[0, 1])
        out.append({"name": name, "change": moved / max(size, 1e-12), "cka": alike})
    return out


def changed_sentences(rows: list[dict[str, Any]]) -> list[str]:
    """Where most was changed, and what stayed."""
    if not rows:
        return []
    most = max(rows, key=lambda r: r["change"])
    if most["change"] < LEAST_CHANGE:
        return [f"Against its base, no layer changed by {LEAST_CHANGE:.2%} of its size."]
    least = min(rows, key=lambda r: r["change"])
    far = min(rows, key=lambda r: r["cka"])
    text = f"Against its base, {most['name']} changed most ({most['change']:.1%} of its size)"
    if most is not least:
        text += f", {least['name']} least ({least['change']:.1%})"
    if far["cka"] >= 0.99:
        return [text + "; every layer still draws the same picture (CKA 0.99 or more)."]
    return [text + f"; what {far['name']} says differs most (CKA {far['cka']:.2f})."]
