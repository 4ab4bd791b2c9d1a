"""What does watching the layers cost? Steps with and without a Watch, alternating.

Command    python bench/watch.py [--seconds N] [--only NAME]
Hardware   2 CPU cores, otherwise idle
Time       about 3 minutes
Expected   at most 3% of the step on average, for every network

Blocks of 25 steps with the watch and without it follow each other on the same network, so that a
machine that speeds up or slows down meets both. Every step is timed. The cost adds up what a step
with a look takes longer than one without a watch (lower quartiles, so that disturbance from outside
does not count) and what the steps between looks take longer. "unlimited" is the same for a watch
that looks at every 25th step whatever it costs; the watch as it is pauses where a look is dear.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise import models, runtime
from layerwise.inspection.watch import Watch
from layerwise.models.network import Network
from layerwise.train.optim import build_optimizer

BLOCK = 25  # steps, one look in each


def networks() -> list[tuple[str, Network, Tensor]]:
    """Name, network and inputs: from a step of a millisecond to one of a second."""

    def build(family: str, variant: str, **fields: Any) -> Network:
        config = models.replace_fields(models.family(family).VARIANTS[variant], fields)
        network = models.build(family, config)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch declares it without

    def images(n: int, side: int) -> Tensor:
        return torch.randn(n, 3, side, side).contiguous(memory_format=torch.channels_last)

    def tokens(n: int, length: int) -> Tensor:
        return torch.randint(2048, (n, length))

    words: dict[str, Any] = {"vocab_size": 2048, "max_seq_len": 256}
    small = {"dim": 128, "n_layers": 3, "n_heads": 4, "head_dim": 32, "n_kv_heads": 4}
    decoder = build("llama", "qwen3_0_6b", **words, **small, mlp_dim=384)
    encoder = build("bert", "bert-mini", **words, n_classes=4, head_kind="class")
    return [
        ("mlp, 3 layers of 256, batch 128", build("mlp", "mlp", n_in=64), torch.randn(128, 64)),
        ("mlp, 30 layers of 128, batch 64", build("mlp", "mlp_deep_residual"), torch.randn(64, 64)),
        ("resnet20, 32x32, batch 32", build("resnet", "resnet20"), images(32, 32)),
        ("vit_tiny_patch4_32, batch 16", build("vit", "vit_tiny_patch4_32"), images(16, 32)),
        ("mobilenetv2_035, 64x64, batch 16", build("mobilenet", "mobilenetv2_035"), images(16, 64)),
        ("decoder, 3 layers of 128, 8 x 128", decoder, tokens(8, 128)),
        ("bert-mini, batch 16 x 64", encoder, tokens(16, 64)),
    ]


def stepper(network: nn.Module, inputs: Tensor) -> tuple[Callable[[Any, int], None], Any]:
    """One training step as the loop takes it, with whatever watch is handed in."""
    groups = [{"params": list(network.parameters()), "weight_decay": 0.01}]
    optimizer = build_optimizer("adamw", groups, 1e-4)
    n_out = network(inputs).flatten(0, -2).shape
    targets = torch.randint(min(10, n_out[1]), (n_out[0],))

    def step(watch: Any, number: int) -> None:
        if watch is not None:
            watch.before(number)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(network(inputs).flatten(0, -2), targets)
        loss.backward()
        if watch is not None:
            watch.after_backward(float(loss.detach()))
        optimizer.step()
        if watch is not None:
            watch.after_step()

    return step, optimizer


def timed(step: Callable[[Any, int], None], watch: Any, number: int) -> tuple[float, bool]:
    """Seconds of one step, and whether it was looked at."""
    looks = len(watch.history) if watch else 0
    began = time.perf_counter()
    step(watch, number)
    return time.perf_counter() - began, bool(watch) and len(watch.history) > looks


def measure(network: Network, inputs: Tensor, seconds: float) -> dict[str, float]:
    step, optimizer = stepper(network, inputs)
    layers = network.layers()
    for s in range(5):
        step(None, s)
    watch = Watch(layers, optimizer, every=BLOCK)
    free = Watch(layers, optimizer, every=BLOCK, budget=1.0)
    times: dict[str, list[tuple[float, bool]]] = {"off": [], "watch": [], "free": []}
    began, number = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or number < 4 * BLOCK:
        for name, chosen in (("off", None), ("watch", watch), ("free", free)):
            start = time.perf_counter()
            times[name] += [timed(step, chosen, number + i) for i in range(BLOCK)]
            if chosen is not watch:
                watch._began += time.perf_counter() - start  # its budget is of its own blocks
        number += BLOCK
    plain = quick([t for t, _ in times["off"]])
    looked = [t for t, look in times["free"] if look]
    return {
        "step": plain,
        "look": quick(looked) - plain,
        "unlimited": extra(times["free"], plain),
        "cost": extra(times["watch"], plain),
        "inside": watch.spent / sum(t for t, _ in times["watch"]),
        "looks": sum(look for _, look in times["watch"]),
        "due": len(looked),
    }


def quick(times: list[float]) -> float:
    """The lower quartile: what a step takes when nothing else disturbs the machine."""
    return float(np.percentile(times, 25))


def extra(times: list[tuple[float, bool]], plain: float) -> float:
    """The share by which these steps take longer than plain ones, by kind."""
    total = 0.0
    for kind in (True, False):
        mine = [t for t, look in times if look == kind]
        total += len(mine) * (quick(mine) - plain) if mine else 0.0
    return total / (len(times) * plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="per network")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    args = parser.parse_args()
    runtime.tune_allocator()
    torch.manual_seed(0)
    head = f"{'network':34} {'step':>8} {'a look':>8} {'unlimited':>9} {'cost':>6}"
    print(f"{head} {'its own clock':>13}")
    worst = 0.0
    for name, network, inputs in (n for n in networks() if args.only in n[0]):
        m = measure(network, inputs, args.seconds)
        worst = max(worst, m["cost"])
        print(
            f"{name:34} {m['step'] * 1e3:6.1f}ms {m['look'] * 1e3:6.1f}ms {m['unlimited']:9.1%} "
            f"{m['cost']:6.2%} {m['inside']:9.2%}   {m['looks']} of {m['due']} looks taken",
            flush=True,
        )
    print(f"largest cost {worst:.2%}, wanted at most 3%; {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
