"""What a network says of rows, in evaluation mode. Legend: n rows."""

from collections.abc import Callable
from typing import Any

from layerwise import runtime
from layerwise.adapt.packed import at_once, without_padding
from layerwise.data.loader import in_order
from layerwise.models.network import Network
from layerwise.runtime import Runtime
from layerwise.tasks.feed import Feed


def predict_rows(
    network: Network,
    feed: Feed,
    machine: Runtime,
    batch_size: int = 0,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> list[Any]:
    """The task's prediction for every row, in order: (n,).

    batch_size: rows at once; 0: as many as surely take less memory than a step of training.
    """
    out: list[Any] = [None] * feed.n
    with runtime.evaluating(network):
        quick = without_padding(network, machine, feed.n)
        for batch in in_order(feed, batch_size, times=at_once(quick, machine)):
            with machine.autocast():
                found = feed.task.predict(quick, batch.to(machine.device))
            for row, prediction in zip(batch.rows.tolist(), found, strict=True):
                out[row] = prediction
            progress(int(batch.rows[-1]) + 1, feed.n)
    return out
