"""The plan against the run: predicted and actual peak memory and time, over many configurations.

    python bench/plan.py               the error table (about 20 minutes on 2 cores)
    python bench/plan.py --quick       six configurations
    python bench/plan.py --calibrate   networks of no family, for planning/memory.py's constants
    python bench/plan.py --slice 0:12 --json FILE   some, added to what FILE holds from before

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
from dataclasses import asdict
from typing import Any, NamedTuple

from plan_cases import CALIBRATION, CASES, QUICK, Case, parts_of

STEPS = 30  # of the run that is predicted; fewer where a step is slow
SECONDS = 4.0  # that the run may take beyond its least steps
LEAST_STEPS = 6
EVEN = 0.15  # change of the share that others take, past which a measured time says little
THREADS = 2


# ---- one configuration, in its own process


def child(case: Case, keep: str) -> dict[str, Any]:
    """Plan it, run it, and say both."""
    import torch

    from layerwise import runtime
    from layerwise.planning import make_plan

    runtime.tune_allocator()
    torch.set_num_threads(THREADS)
    build, example, task = parts_of(case)
    started, before = time.perf_counter(), Load.now()
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
    planning, others = time.perf_counter() - started, Load.now().others_since(before)
    pace = plan.seconds.value
    steps = max(LEAST_STEPS, min(STEPS, int(SECONDS / pace)))
    if keep:
        pathlib.Path(keep).write_bytes(pickle.dumps(plan.trace))
    base, before = forget_peak(), Load.now()
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
        "others": (others, Load.now().others_since(before)),
        "roofline": roofline(plan, steps) if not keep else None,
    }


def roofline(plan: Any, steps: int) -> float:
    from layerwise.planning import timing

    return timing.from_roofline(plan.trace, plan.request.hardware, steps).value


def run(network: Any, example: Any, task: Any, setting: Any, steps: int) -> list[float]:
    """Seconds of each step of a real training on random rows."""
    import torch

    from layerwise.planning.optimizers import make_optimizer
    from layerwise.planning.step import prepare, stretched, train_step

    torch.manual_seed(0)
    prepare(network, setting)
    optimizer = make_optimizer(setting.optimizer, network)
    batch = stretched(example, setting)
    inputs = batch.main(network.READS)
    if inputs.is_floating_point():
        inputs.normal_()
    else:  # tokens, of which there are fewest in any of these vocabularies
        inputs.random_(512)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        train_step(network, batch, task, setting, optimizer)
        seconds.append(time.perf_counter() - started)
    return seconds


class Load(NamedTuple):
    """Seconds of processor time so far: of the machine and of this process; and the clock."""

    busy: float
    own: float
    clock: float

    @classmethod
    def now(cls) -> "Load":
        with open("/proc/stat") as f:
            user, nice, system, _idle, _wait, *more = map(int, f.readline().split()[1:])
        ticks = user + nice + system + sum(more[:3])  # interrupts and what the host took
        return cls(ticks / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter())

    def others_since(self, before: "Load") -> float:
        """The share of the machine that other processes took."""
        theirs = (self.busy - before.busy) - (self.own - before.own)
        return max(0.0, theirs) / (self.clock - before.clock) / (os.cpu_count() or 1)


def forget_peak() -> int:
    """Set the kernel's high-water mark of this process to what is resident now; returns that."""
    from layerwise.planning.machine import resident

    base = resident()
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return base


def high_water() -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM"))


# ---- all of them


def measure(case: Case, keep: str = "") -> dict[str, Any] | None:
    """The figures of one configuration; None, and why, where it failed."""
    command = [sys.executable, __file__, "--child", json.dumps(asdict(case)), "--keep", keep]
    # threads that wait do not spin: on a machine that others use too, spinning costs a factor of 5
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "passive"}
    root = pathlib.Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    if done.returncode:
        print(f"{case}: failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(cases: list[Case], keep: str = "") -> None:
    """Print predicted beside actual for each, then the errors over all (of `keep` too)."""
    print(
        f"{'configuration':<48}{'memory MB: plan':>16}{'actual':>8}{'error':>8}"
        f"{'s: plan':>10}{'actual':>8}{'error':>8}{'roofline':>10}{'others, then':>14}",
        flush=True,
    )
    started = time.perf_counter()
    found = {str(case): figures for case in cases if (figures := shown(case)) is not None}
    print(f"\n{len(found)} of {len(cases)} configurations, {time.perf_counter() - started:.0f} s")
    if keep:
        file = pathlib.Path(keep)
        found = (json.loads(file.read_text()) if file.exists() else {}) | found
        file.write_text(json.dumps(found, indent=1))
    summary(list(found.values()))


def shown(case: Case) -> dict[str, Any] | None:
    figures = measure(case)
    if figures is not None:
        print(row(case, figures), flush=True)
    return figures


def summary(found: list[dict[str, Any]]) -> None:
    """The errors over all configurations."""
    base = [f["base"] for f in found]
    memory = [(f["memory"]["value"], f["actual_memory"]) for f in found]
    seconds = [(f["time"]["value"], f["actual_time"]) for f in found]
    tensors = [b + f["tensors"] for b, f in zip(base, found, strict=True)]
    print(f"{len(found)} configurations")
    say("memory", [error(p, a) for p, a in memory], 0.05, 0.15)
    own = [error(p - b, a - b) for (p, a), b in zip(memory, base, strict=True)]
    say("memory beyond the base process", own)
    plain = [error(t, a) for t, (_, a) in zip(tensors, memory, strict=True)]
    say("the sum of all tensors instead, for comparison", plain)
    say("time by a few measured steps", [error(p, a) for p, a in seconds], 0.15, 0.3)
    even = [f for f in found if abs(f["others"][0] - f["others"][1]) < EVEN]
    print(f"  of which {len(even)} while the load by other processes changed by under {EVEN:.0%}")
    if even:
        say("  time, those", [error(f["time"]["value"], f["actual_time"]) for f in even], 0.15, 0.3)
    say("time by the roofline", [error(f["roofline"], f["actual_time"]) for f in found])
    for what in ("memory", "time"):
        inside = sum(f[what]["low"] <= f[f"actual_{what}"] <= f[what]["high"] for f in found)
        print(f"{what}: {inside} of {len(found)} actual values lie in the stated interval")


def row(case: Case, f: dict[str, Any]) -> str:
    plan, actual = f["memory"]["value"], f["actual_memory"]
    seconds, real = f["time"]["value"], f["actual_time"]
    return (
        f"{case!s:<48}{plan / 1e6:>16.0f}{actual / 1e6:>8.0f}{error(plan, actual):>+8.1%}"
        f"{seconds:>10.2f}{real:>8.2f}{error(seconds, real):>+8.1%}"
        f"{error(f['roofline'], real):>+10.0%}{f['others'][0]:>8.0%}{f['others'][1]:>5.0%}"
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


# ---- the constants


def calibrate() -> None:
    """Run the plain networks and show how the error moves with a constant of planning/memory.py."""
    from layerwise.planning import memory

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
    for life in (0.001, 0.8, 1.2, 1.4, 1.6, 1.8, 2.2):
        memory.PIN_LIFE = life
        errors = [
            error(memory.cpu_peak(t, f["base"], f["steps"]).value, f["actual_memory"])
            for t, f in runs
        ]
        print(f"pins live {life:.1f} lifetimes: bias {statistics.mean(errors):+.1%}, ", end="")
        say("memory", errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--slice", default=":")
    parser.add_argument("--json", default="")
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
        first, last = (int(x) if x else None for x in options.slice.split(":"))
        table([CASES[i] for i in QUICK] if options.quick else CASES[first:last], options.json)


if __name__ == "__main__":
    main()
