"""The forecast of a pre-training's loss against what came, over corpora and budgets.

    python bench/forecast.py CORPUS [CORPUS ...] [--budgets 60s 120s 300s] [--threads 1]

Each is a `fit` in a process of its own: proxies, law, choice, training. What is compared is
the validation loss in bits per byte, forecast for the tokens that the run had time to read.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any


def child(corpus: str, budget: str, threads: int, seed: int) -> dict[str, Any]:
    """One fit's forecast beside what came."""
    import layerwise
    from layerwise.console import Console

    with tempfile.TemporaryDirectory() as folder:
        options = {"budget": budget, "threads": threads, "seed": seed, "depth": False}
        console = Console(sys.stderr)
        output = f"{folder}/run"
        result = layerwise.fit(corpus, console=console, base="none", output=output, **options)
        memory = next(r for r in result.details["plan"] if "memory" in r["name"])
        found = result.details["forecast"] or sys.exit("no forecast: the time is too short for one")
        return found | {"memory": memory, "test": result.score}


def measure(corpus: str, budget: str, threads: int, seed: int) -> dict[str, Any] | None:
    """The same in a process of its own; None, and why, where it failed."""
    one = json.dumps([corpus, budget, threads, seed])
    done = subprocess.run(
        [sys.executable, __file__, "--child", one],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        cwd=pathlib.Path(__file__).resolve().parent.parent,
    )
    if done.returncode:
        print(f"{corpus} {budget}: {(done.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def row(corpus: str, budget: str, f: dict[str, Any]) -> str:
    where = "within" if f["within"] else "OUTSIDE"
    return (
        f"{pathlib.Path(corpus).stem:<24}{budget:>6}{f['chosen']:>9}{f['tokens'] / 1e6:>9.2f}M"
        f"{f['epochs']:>7.1f}{f['value']:>10.3f} ({f['low']:.3f} to {f['high']:.3f})"
        f"{f['came']:>8.3f}{f['value'] / f['came'] - 1:>+8.1%}  {where}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", nargs="*")
    parser.add_argument("--budgets", nargs="+", default=["60s", "120s", "300s"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--child", default="")
    options = parser.parse_args()
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
    if options.child:
        print(json.dumps(child(*json.loads(options.child))))
        return
    print(f"{'corpus':<24}{'time':>6}{'size':>9}{'tokens':>10}{'epochs':>7}{'forecast':>10}"
          f"{'came':>27}{'error':>8}", flush=True)  # fmt: skip
    found = []
    for corpus in options.corpora:
        for budget in options.budgets:
            for seed in range(options.seeds):
                path = str(pathlib.Path(corpus).resolve())
                one = measure(path, budget, options.threads, seed)
                if one is not None:
                    found.append(one)
                    print(row(corpus, budget, one), flush=True)
    if found:
        errors = [abs(math.log(f["value"] / f["came"])) for f in found]
        inside = sum(f["within"] for f in found)
        print(f"{inside} of {len(found)} within; median error {statistics.median(errors):.1%}")


if __name__ == "__main__":
    main()
