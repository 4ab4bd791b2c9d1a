"""Work dealt out to threads whose own PyTorch operations stay on their thread."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


def parallel(threads: int) -> Callable[..., Any]:
    """A `map` that deals its items out to this many threads, one share each; results in order."""
    if threads <= 1:
        return map
    pool = single_threaded_pool(threads)

    def each(function: Callable[..., Any], items: Iterable[Any]) -> Iterator[Any]:
        items = list(items)
        share = max(1, -(-len(items) // threads))
        parts = [items[i : i + share] for i in range(0, len(items), share)]
        for results in pool.map(lambda part: [function(x) for x in part], parts):
            yield from results

    return each


def single_threaded_pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose own PyTorch operations stay on their thread.

    Otherwise each would bring a team as large as the trainer's, and they would fight for the cores.
    """
    pool = ThreadPoolExecutor(threads, "layerwise-loader", stay_on_this_thread)
    before, all_here = torch.get_num_threads(), threading.Barrier(threads)
    for started in [pool.submit(all_here.wait) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(before)  # PyTorch gives the number set last to threads that come later
    return pool


def stay_on_this_thread() -> None:
    torch.get_num_threads()  # a thread's first question takes over the process's number ...
    torch.set_num_threads(1)  # ... which this changes, for this thread
