"""What a base knows before it is trained: features of rows.

Legend: n rows, D features.
"""

import pathlib
import time
from dataclasses import dataclass

import numpy as np

from layerwise import runtime
from layerwise.adapt.packed import at_once, without_padding
from layerwise.data.examples import Examples
from layerwise.data.loader import in_order
from layerwise.model.model import Model
from layerwise.runtime import Runtime
from layerwise.storage import read_json, write_json
from layerwise.tasks.feed import Feed
from layerwise.tasks.task import Task
from layerwise.tasks.words import over_windows

ENOUGH = 20_000  # rows that neighbours and probes are given: more move a linear layer little
WORDS = 30_000  # words that a probe is given: most have the one usual tag
TIMED = 64  # rows by which the time of features is judged
FEATURES_SHARE = 0.15  # of a budget


@dataclass
class Features:
    """What a base makes of some training rows: which (k,), and their features (k, D)."""

    rows: np.ndarray
    values: np.ndarray


def features_of(base: Model, rows: Examples, task: Task, machine: Runtime) -> np.ndarray:
    """The base's features for every row: (n, D) float32."""
    feed, found = Feed(task, rows, base.processors), np.empty((len(rows), 0), np.float32)
    with runtime.evaluating(base.network):
        network = without_padding(base.network, machine, len(rows))
        for batch in in_order(feed, times=at_once(network, machine)):
            batch = batch.to(machine.device)
            with machine.autocast():
                if (mask := batch.tensors.get("mask")) is not None:
                    mask = mask.flatten(1)
                if batch.tokens_per_row and batch["tokens"].ndim == 3:  # windows of long texts
                    got = over_windows(network.features, network.READS, batch)
                else:
                    got = network.features(**batch.select(network.READS))
                got = network.pooled(got, mask)
            values = got.float().flatten(1).cpu().numpy()
            found = found if found.shape[1] else np.empty((len(rows), values.shape[1]), np.float32)
            found[batch.rows] = values
    return found


def some_features(
    base: Model, rows: Examples, task: Task, machine: Runtime, seed: int, most: int = ENOUGH
) -> Features:
    """The features of all rows, or of so many at random."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])
    return Features(chosen, features_of(base, rows.subset(chosen), task, machine))


def word_features(
    base: Model, rows: Examples, task: Task, machine: Runtime, seed: int, most: int = ENOUGH
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors (k, D) of words' first tokens in so many sentences, at most WORDS; their tags."""
    rng, found = np.random.default_rng(seed), []
    some = rows.subset(np.sort(rng.permutation(len(rows))[:most]))
    with runtime.evaluating(base.network):
        network = without_padding(base.network, machine, len(some))
        feed = Feed(task, some, base.processors)
        for batch in in_order(feed, times=at_once(network, machine)):
            batch = batch.to(machine.device)
            tags = task.token_targets(batch)
            assert tags is not None, "each token has what is learned of it"
            with machine.autocast():
                vectors = over_windows(network.features, network.READS, batch)
            found.append((vectors[tags >= 0].cpu().numpy(), tags[tags >= 0].cpu().numpy()))
    vectors, tags = map(np.concatenate, zip(*found, strict=True))
    chosen = rng.permutation(len(tags))[:WORDS]
    return vectors[chosen], tags[chosen]


def affordable_rows(
    base: Model, rows: Examples, task: Task, machine: Runtime, budget: float, folder: pathlib.Path
) -> int:
    """How many rows' features are worth their time: ENOUGH, or what a share of the budget pays for.

    What was measured is kept in the run's folder, so that a resumed run takes as many.
    """
    if budget == float("inf"):
        return ENOUGH
    kept = folder / "features.json"
    if not kept.exists():
        some = rows.subset(np.linspace(0, len(rows) - 1, TIMED).astype(int))
        spent = []
        for _ in range(2):  # the first warms up
            started = time.perf_counter()
            features_of(base, some, task, machine)
            spent.append(time.perf_counter() - started)
        paid = min(FEATURES_SHARE * budget / spent[-1] * TIMED, ENOUGH)
        write_json(kept, {"rows": max(TIMED, int(paid))})
    return read_json(kept)["rows"]
