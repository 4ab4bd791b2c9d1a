"""Runs contenders in child processes, in turn, round after round, and prints medians and ratios.

A child is the same script with `--child NAME ...`; it prints one JSON line of figures. Alternating
rounds keep a machine that changes its speed from favouring anyone: the ratio is taken round by
round, and its median is what counts.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def rounds(
    script: str, names: Sequence[str], arguments: Sequence[str], n: int = 3, timeout: float = 300
) -> dict[str, list[dict[str, Any]]]:
    """Figures of every contender in every round; one that this processor cannot run in earnest or
    that fails is left out, and said."""
    out: dict[str, list[dict[str, Any]]] = {name: [] for name in names if can(name)}
    for _ in range(n):
        for name in list(out):
            command = [sys.executable, script, "--child", name, *arguments]
            environment = os.environ | {"OMP_NUM_THREADS": "2", "TF_CPP_MIN_LOG_LEVEL": "3"}
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=timeout, env=environment
                )
                out[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
            except (subprocess.TimeoutExpired, json.JSONDecodeError, IndexError) as e:
                why = (
                    (done.stderr.strip().splitlines() or [str(e)])[-1]
                    if not isinstance(e, subprocess.TimeoutExpired)
                    else "took too long"
                )
                print(f"  {name}: left out ({why[:160]})", flush=True)
                del out[name]
    return {k: v for k, v in out.items() if v}


def can(name: str) -> bool:
    """Whether the processor multiplies in what a contender's name says; else said: emulated bf16
    takes minutes for what takes seconds."""
    if "bf16" not in name or multiplies_in_bf16():
        return True
    print(f"  {name}: left out (this processor does not multiply in bf16)", flush=True)
    return False


def multiplies_in_bf16() -> bool:
    from layerwise import runtime

    return runtime.native_bf16("cpu")


def first_of_ours(runs: dict[str, Any]) -> str:
    """Whom the others are compared with: our first contender that ran."""
    return next(name for name in runs if name.startswith("ours"))


def median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(r[key] for r in runs)


def ratio(a: list[dict[str, Any]], b: list[dict[str, Any]], key: str) -> float:
    """Median over the rounds of a / b, each round by itself."""
    return statistics.median(x[key] / y[key] for x, y in zip(a, b, strict=False))


def rate(work: Callable[[], Any], per_call: int, seconds: float = 6.0, warmup: int = 2) -> float:
    """Items per second: the median over calls for about `seconds`, after the warm-up calls."""
    for _ in range(warmup):
        work()
    times: list[float] = []
    ended = time.perf_counter() + seconds
    while time.perf_counter() < ended or len(times) < 3:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return per_call / statistics.median(times)


def product_rate(dtype: Any, n: int = 2048) -> float:
    """FLOP/s of a matrix product of n x n here and now, in the dtype that is used: the limit that
    MFU is taken of."""
    import torch

    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return rate(lambda: a @ b, 2 * n**3, 1.0)


def import_timm() -> Any:
    """timm, also beside a CPU build of PyTorch on which torchvision's wheel does not import."""
    return oracles().import_timm()


def import_transformers() -> Any:
    """transformers, likewise."""
    return oracles().import_transformers()


def oracles() -> Any:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
    from tests import oracles

    return oracles


def peak_mb() -> float:
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith("VmHWM")) * 1024 / 1e6


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(c) for c in row) + " |", flush=True)
