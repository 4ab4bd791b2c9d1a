"""What does watching the layers cost? Steps with and without a Watch, alternating.

Command    python bench/watch.py [--rounds N]
Hardware   2 CPU cores, otherwise idle
Time       about 3 minutes
Expected   at most 3% of the step on average, for every network

Blocks of steps with the watch and without it follow each other on the same network, so that a
machine that speeds up or slows down meets both. "plain cost" is the share of the time that the
looks themselves took when the watch may not pause (what 1 look in 25 costs); "cost" is with the
watch as it is, from wall-clock time: the median over the rounds of with / without - 1, and the
range of the middle half. Early looks (steps 1 to 16) are in both.
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
from layerwise.inspect.watch import Watch
from layerwise.train.optim import build_optimizer

BLOCK = 50  # steps: two looks at every=25


def networks() -> list[tuple[str, nn.Module, Tensor]]:
    """Name, network and inputs: from a step of a millisecond to one of a second."""

    def build(family: str, variant: str, **fields: Any) -> nn.Module:
        config = models.replace_fields(models.family(family).VARIANTS[variant], fields)
        return models.build(family, config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def images(n: int, side: int) -> Tensor:
        return torch.randn(n, 3, side, side).contiguous(memory_format=torch.channels_last)

    return [
        ("mlp, 3 layers of 256, batch 128", build("mlp", "mlp", n_in=64), torch.randn(128, 64)),
        ("mlp, 30 layers of 128, batch 64", build("mlp", "mlp_deep_residual"), torch.randn(64, 64)),
        ("resnet20, 32x32, batch 32", build("resnet", "resnet20"), images(32, 32)),
        ("vit_tiny_patch4_32, batch 16", build("vit", "vit_tiny_patch4_32"), images(16, 32)),
        ("mobilenetv2_035, 64x64, batch 16", build("mobilenet", "mobilenetv2_035"), images(16, 64)),
    ]


def stepper(network: nn.Module, inputs: Tensor) -> tuple[Callable[[Any, int], None], Any]:
    """One training step as the loop takes it, with whatever watch is handed in."""
    groups = [{"params": list(network.parameters()), "weight_decay": 0.01}]
    optimizer = build_optimizer("adamw", groups, 1e-4)
    targets = torch.randint(10, (len(inputs),))

    def step(watch: Any, number: int) -> None:
        if watch is not None:
            watch.before(number)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(network(inputs), targets)
        loss.backward()
        if watch is not None:
            watch.after_backward(float(loss.detach()))
        optimizer.step()
        if watch is not None:
            watch.after_step()

    return step, optimizer


def block(step: Callable[[Any, int], None], watch: Any, start: int, steps: int) -> float:
    began = time.perf_counter()
    for s in range(start, start + steps):
        step(watch, s)
    return time.perf_counter() - began


def measure(network: nn.Module, inputs: Tensor, rounds: int) -> dict[str, float]:
    step, optimizer = stepper(network, inputs)
    layers = network.layers()  # type: ignore[operator]
    once = block(step, None, 0, 5) / 5
    steps = max(BLOCK, int(0.5 / once) // BLOCK * BLOCK)  # half a second at least
    watch = Watch(layers, optimizer, every=25)
    plain = Watch(layers, optimizer, every=25, budget=1.0)
    seconds_plain = block(step, plain, 0, BLOCK)
    ratios = []
    for i in range(rounds):
        on = lambda i=i: block(step, watch, i * steps, steps)  # noqa: E731
        off = lambda i=i: block(step, None, i * steps, steps)  # noqa: E731
        times = {}
        for name, run in (("on", on), ("off", off)) if i % 2 else (("off", off), ("on", on)):
            times[name] = run()
        watch.pause(times["off"])
        ratios.append(times["on"] / times["off"] - 1)
    low, cost, high = np.percentile(ratios, (25, 50, 75))
    return {
        "step_ms": once * 1e3,
        "look_ms": plain.spent / len(plain.history) * 1e3,
        "plain": plain.spent / seconds_plain,
        "cost": cost,
        "low": low,
        "high": high,
        "looks": len(watch.history),
        "due": sum(1 for s in range(rounds * steps) if s % 25 == 0 or s in (1, 2, 4, 8, 16)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    runtime.tune_allocator()
    torch.manual_seed(0)
    print(f"{'network':34} {'step':>8} {'a look':>8} {'plain cost':>10} {'cost':>7} (middle half)")
    worst = 0.0
    for name, network, inputs in networks():
        m = measure(network, inputs, args.rounds)
        worst = max(worst, m["cost"])
        print(
            f"{name:34} {m['step_ms']:6.1f}ms {m['look_ms']:6.1f}ms {m['plain']:10.1%} "
            f"{m['cost']:7.2%} ({m['low']:.2%} to {m['high']:.2%}), "
            f"{m['looks']:.0f} of {m['due']:.0f} looks taken",
            flush=True,
        )
    print(f"largest cost {worst:.2%}, wanted at most 3%; {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
