"""The plan against the run: predicted and actual peak memory and time, over many configurations.

    python bench/plan.py               the error table (about seven minutes on 2 cores)
    python bench/plan.py --quick       six configurations
    python bench/plan.py --calibrate   networks of no family, for the constants in plan/memory.py

Each configuration runs in a process of its own, as `fit` does it: tune the allocator, plan (memory
from tracing alone, time from five real steps), then train. Actual memory is the kernel's high-water
mark of resident memory, base process included; actual time is the wall clock of the steps.
"""

import argparse
import json
import os
import pathlib
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

STEPS = 30  # of the run that is predicted; fewer where a step is slow
SECONDS = 4.0  # that the run may take beyond its least steps
LEAST_STEPS = 8
THREADS = 2


@dataclass(frozen=True)
class Case:
    """One configuration: a named size, what its config changes, and the setting of its step."""

    name: str
    side: int  # of the images; values per row for mlp
    batch: int
    dtype: str = "fp32"
    optimizer: str = "adamw"
    accumulation: int = 1
    checkpointing: bool = False
    changes: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        more = [f"x{self.accumulation}"] if self.accumulation > 1 else []
        more += ["ckpt"] if self.checkpointing else []
        return " ".join(
            [self.name, f"{self.side}px b{self.batch}", self.dtype, self.optimizer, *more]
        )


WIDE = (("dim", 2048), ("n_layers", 6))
CASES = [
    Case("alexnet", 127, 16),
    Case("alexnet", 127, 32, "bf16", "sgd"),
    Case("alexnet_owt", 95, 64, "bf16", "adamw", 2),
    Case("alexnet_owt", 127, 32, "fp32", "sgd"),
    Case("alexnet", 159, 16, "bf16", "adamw", 1, True),
    Case("resnet18", 64, 32, "fp32", "sgd"),
    Case("resnet18", 64, 64, "bf16", "adamw"),
    Case("resnet18", 96, 16, "fp32", "adamw", 4),
    Case("resnet18_cifar", 32, 64, "bf16", "sgd"),
    Case("resnet20", 32, 256, "fp32", "sgd"),
    Case("resnet20", 32, 256, "bf16", "adamw"),
    Case("resnet56", 32, 64, "bf16", "sgd", 1, True),
    Case("resnet50", 64, 32, "fp32", "adamw"),
    Case("resnet50", 96, 16, "bf16", "sgd"),
    Case("resnet50", 64, 32, "bf16", "adamw", 2),
    Case("resnet50", 96, 32, "bf16", "adamw", 1, True),
    Case("vit_tiny_patch16_224", 224, 8, "fp32", "adamw"),
    Case("vit_tiny_patch16_224", 224, 32, "bf16", "adamw"),
    Case("vit_tiny_patch4_32", 32, 64, "fp32", "sgd"),
    Case("vit_tiny_patch4_32", 32, 128, "bf16", "adamw"),
    Case("vit_tiny_patch4_32", 32, 64, "bf16", "adamw", 4),
    Case("vit_small_patch32_224", 224, 32, "bf16", "adamw"),
    Case("vit_small_patch32_224", 224, 32, "bf16", "adamw", 1, True),
    Case("mobilenet_v1_050", 128, 32, "fp32", "adamw"),
    Case("mobilenet_v1_100", 128, 32, "bf16", "sgd"),
    Case("mobilenetv2_100", 96, 32, "fp32", "sgd"),
    Case("mobilenetv2_100", 128, 32, "bf16", "adamw", 2),
    Case("mobilenetv3_large_100", 96, 32, "bf16", "adamw"),
    Case("mobilenetv2_100", 96, 64, "fp32", "adamw", 1, True),
    Case("squeezenet1_1", 96, 64, "fp32", "adamw"),
    Case("squeezenet1_0", 127, 32, "bf16", "sgd"),
    Case("squeezenet1_1", 159, 16, "bf16", "adamw", 4),
    Case("mlp", 2048, 512, "fp32", "adamw", 1, False, WIDE),
    Case("mlp", 2048, 1024, "bf16", "adamw", 1, False, WIDE),
    Case("mlp", 2048, 512, "bf16", "sgd", 4, False, WIDE),
    Case("mlp_residual", 1024, 1024, "fp32", "muon", 1, False, (("dim", 512), ("n_layers", 6))),
]
QUICK = [0, 6, 17, 24, 29, 33]

# networks of no family: plain stacks, so that no constant is fitted to what the table measures
CALIBRATION = [
    Case("conv64", 32, 128),
    Case("conv64", 32, 256, "bf16"),
    Case("conv32", 64, 64, "fp32", "sgd", 2),
    Case("conv96", 32, 128, "bf16", "adamw", 1, True),
    Case("conv128", 24, 64, "fp32", "adamw"),
    Case("depthwise64", 48, 64, "fp32", "sgd"),
    Case("depthwise96", 48, 64, "bf16", "adamw"),
    Case("dense1024", 1024, 2048, "fp32", "adamw"),
    Case("dense3072", 3072, 256, "bf16", "adamw"),
    Case("dense2048", 2048, 512, "fp32", "sgd", 2),
    Case("attention128", 64, 64, "fp32", "adamw"),
    Case("attention256", 64, 64, "bf16", "adamw"),
    Case("attention192", 96, 16, "fp32", "sgd", 4),
    Case("attention192", 64, 64, "bf16", "adamw", 1, True),
]


# ---- one configuration, in its own process ----------------------------------------------------


def child(case: Case, keep: str) -> dict[str, Any]:
    """Plan it, run it, and say both."""
    import torch

    from layerwise import runtime
    from layerwise.plan import make_plan

    runtime.tune_allocator()
    torch.set_num_threads(THREADS)
    build, example, task = parts_of(case)
    started = time.perf_counter()
    plan = make_plan(
        build,
        example,
        task,
        steps=1,
        device_batch_size=case.batch,
        grad_accum_steps=case.accumulation,
        optimizer=case.optimizer,
        dtype=case.dtype,
        checkpointing=case.checkpointing,
        measure=True,
    )
    planning = time.perf_counter() - started
    pace = plan.seconds.value
    steps = max(LEAST_STEPS, min(STEPS, int(SECONDS / pace)))
    if keep:
        pathlib.Path(keep).write_bytes(pickle.dumps(plan.trace))
    base = forget_peak()
    seconds = run(build(), example, task, plan.setting, steps)
    return {
        "memory": vars(plan.memory["peak"]),
        "base": base,
        "tensors": plan.trace.peak,
        "actual_memory": high_water(),
        "time": vars(plan.seconds.scaled(steps)),
        "actual_time": sum(seconds),
        "steps": steps,
        "planning": planning,
        "roofline": roofline(plan, steps) if not keep else None,
    }


def roofline(plan: Any, steps: int) -> float:
    from layerwise.plan import timing

    return timing.from_roofline(plan.trace, plan.request.hardware, steps).value


def run(network: Any, example: Any, task: Any, setting: Any, steps: int) -> list[float]:
    """Seconds of each step of a real training on random rows."""
    import torch

    from layerwise.plan.optimizers import make_optimizer
    from layerwise.plan.step import prepare, stretched, train_step

    torch.manual_seed(0)
    prepare(network, setting)
    optimizer = make_optimizer(setting.optimizer, network)
    batch = stretched(example, setting)
    batch["inputs"].normal_()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        train_step(network, batch, task, setting, optimizer)
        seconds.append(time.perf_counter() - started)
    return seconds


def parts_of(case: Case) -> tuple[Callable[[], Any], Any, Any]:
    """A builder, an example batch on the meta device, and the task."""
    import numpy as np
    import torch

    from layerwise import models
    from layerwise.data.examples import Batch
    from layerwise.tasks.classify import Classify

    task = Classify([str(i) for i in range(10)])
    images = not case.name.startswith(("mlp", "dense"))
    shape = (2, 3, case.side, case.side) if images else (2, case.side)
    inputs = torch.zeros(shape, device="meta")
    if images:
        inputs = inputs.to(memory_format=torch.channels_last)
    targets = torch.zeros(2, dtype=torch.int64, device="meta")
    example = Batch({"inputs": inputs, "targets": targets}, np.arange(2))
    if case in CALIBRATION:
        return lambda: plain_network(case.name, case.side), example, task
    changes: dict[str, Any] = {"n_classes": 10, **dict(case.changes)}
    if not images:
        changes["n_in"] = case.side
    family, config = models.resolve(case.name, **changes)
    return lambda: models.build(family, config), example, task


def plain_network(name: str, side: int) -> Any:
    """A stack of one kind of layer: conv, depthwise, dense or attention, and its width."""
    from torch import nn

    kind = name.rstrip("0123456789")
    width = int(name.removeprefix(kind))

    def conv(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
        layer = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(n_out), nn.ReLU())

    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if kind == "conv":
        stack = [conv(3, width, 3), conv(width, width, 3), conv(width, 2 * width, 3, 2)]
        stack += [conv(2 * width, 2 * width, 3), conv(2 * width, 2 * width, 1), *pooled]
        return nn.Sequential(*stack, nn.Linear(2 * width, 10))
    if kind == "depthwise":
        pair = [conv(width, width, 3, groups=width), conv(width, width, 1)]
        return nn.Sequential(conv(3, width, 3, 2), *pair, *pair, *pooled, nn.Linear(width, 10))
    if kind == "dense":
        hidden = [layer for _ in range(4) for layer in (nn.Linear(width, width), nn.GELU())]
        return nn.Sequential(*hidden, nn.Linear(width, 10))
    return attention_network(width, side)


def attention_network(width: int, side: int) -> Any:
    from torch import nn

    class Tokens(nn.Sequential):
        def forward(self, input: Any) -> Any:
            return super().forward(input).flatten(2).transpose(1, 2)  # (b, N, D)

    class Mean(nn.Module):
        def forward(self, tokens: Any) -> Any:
            return tokens.mean(1)

    layers = [
        nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, "gelu", batch_first=True)
        for _ in range(4)
    ]
    return nn.Sequential(Tokens(nn.Conv2d(3, width, 8, 8)), *layers, Mean(), nn.Linear(width, 10))


def forget_peak() -> int:
    """Set the kernel's high-water mark of this process to what is resident now; returns that."""
    from layerwise.plan.machine import resident

    base = resident()
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return base


def high_water() -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM"))


# ---- all of them ----------------------------------------------------


def measure(case: Case, keep: str = "") -> dict[str, Any] | None:
    """The figures of one configuration; None, and why, where it failed."""
    command = [sys.executable, __file__, "--child", json.dumps(asdict(case)), "--keep", keep]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    root = pathlib.Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    if done.returncode:
        print(f"{case}: failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(cases: list[Case]) -> None:
    """Print predicted beside actual for each, then the errors over all."""
    print(f"{'configuration':<48}{'memory MB: plan':>16}{'actual':>8}{'error':>8}"
          f"{'s: plan':>10}{'actual':>8}{'error':>8}{'roofline':>10}")  # fmt: skip
    found = []
    started = time.perf_counter()
    for case in cases:
        figures = measure(case)
        if figures is not None:
            found.append(figures)
            print(row(case, figures), flush=True)
    print(f"\n{len(found)} of {len(cases)} configurations, {time.perf_counter() - started:.0f} s")
    say("memory", [error(f["memory"]["value"], f["actual_memory"]) for f in found], 0.05, 0.15)
    own = [error(f["memory"]["value"] - f["base"], f["actual_memory"] - f["base"]) for f in found]
    say("memory beyond the base process", own)
    say(
        "sum of tensors, for comparison",
        [error(f["base"] + f["tensors"], f["actual_memory"]) for f in found],
    )
    say(
        "time, 5 measured steps",
        [error(f["time"]["value"], f["actual_time"]) for f in found],
        0.15,
        0.3,
    )
    say("time, roofline", [error(f["roofline"], f["actual_time"]) for f in found])
    for what in ("memory", "time"):
        inside = sum(f[what]["low"] <= f[f"actual_{what}"] <= f[what]["high"] for f in found)
        print(f"{what}: {inside} of {len(found)} actual values lie in the stated interval")


def row(case: Case, f: dict[str, Any]) -> str:
    plan, actual = f["memory"]["value"], f["actual_memory"]
    seconds, real = f["time"]["value"], f["actual_time"]
    return (
        f"{case!s:<48}{plan / 1e6:>16.0f}{actual / 1e6:>8.0f}{error(plan, actual):>+8.1%}"
        f"{seconds:>10.2f}{real:>8.2f}{error(seconds, real):>+8.1%}"
        f"{error(f['roofline'], real):>+10.0%}"
    )


def error(predicted: float, actual: float) -> float:
    return predicted / actual - 1


def say(what: str, errors: list[float], median: float = 0.0, tail: float = 0.0) -> None:
    sizes = sorted(abs(e) for e in errors)
    middle, p95 = statistics.median(sizes), sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))]
    text = f"{what}: median error {middle:.1%}, 95% within {p95:.1%}, worst {sizes[-1]:.1%}"
    if median:
        met = middle <= median and p95 <= tail
        text += f" (targets {median:.0%} and {tail:.0%}: {'met' if met else 'missed'})"
    print(text)


# ---- the constants ----------------------------------------------------


def calibrate() -> None:
    """Run the plain networks and show how the error moves with each constant of plan/memory.py."""
    from layerwise.plan import memory

    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for case in CALIBRATION:
            kept = str(pathlib.Path(folder) / "trace.pickle")
            figures = measure(case, kept)
            if figures is not None:
                trace = pickle.loads(pathlib.Path(kept).read_bytes())
                runs.append((trace, figures))
                share = error(figures["memory"]["value"], figures["actual_memory"])
                print(
                    f"{case!s:<40}{figures['actual_memory'] / 1e6:>8.0f} MB {share:>+8.1%}",
                    flush=True,
                )
    for pinned in (0.0, 0.3, 0.6, 1.0):
        for life in (10.0, 30.0, 100.0, 300.0):
            memory.PINNED, memory.PIN_LIFE = pinned, life
            errors = [
                error(memory.cpu_peak(t, f["base"], f["steps"]).value, f["actual_memory"])
                for t, f in runs
            ]
            print(
                f"pinned {pinned:.1f}, life {life:.0f}: bias {statistics.mean(errors):+.1%}, ",
                end="",
            )
            say("memory", errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--child", default="")
    parser.add_argument("--keep", default="")
    options = parser.parse_args()
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
    if options.child:
        values = json.loads(options.child)
        values["changes"] = tuple(tuple(c) for c in values["changes"])
        print(json.dumps(child(Case(**values), options.keep)))
    elif options.calibrate:
        calibrate()
    else:
        table([CASES[i] for i in QUICK] if options.quick else CASES)


if __name__ == "__main__":
    main()
