"""CIFAR-10 to 94%: the table of accuracies and times, by running the recipe, one process a seed.

    python bench/cifar10.py CIFAR [--seeds 3]

Seconds are those of the whole process: interpreter, imports, reading and decoding the data,
whitening, training, scoring. CPU seconds tell a busy machine from a slow one: on two quiet cores
the wall clock is a little over half of them.
"""

import argparse
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time

import sidebyside

RECIPE = pathlib.Path(__file__).resolve().parent.parent / "recipes" / "cifar10_94.py"
AIM, LIMIT_SECONDS = 0.94, 1200


def one_seed(data: str, seed: int) -> dict[str, float]:
    """Run the recipe for one seed; its accuracies, and what the process took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    command = [sys.executable, str(RECIPE), data, "--seeds", "1", "--first-seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    found = re.search(r"seed \d+: ([\d.]+)% \(([\d.]+)% without views", done.stdout)
    if found is None:
        sys.exit(f"the recipe failed for seed {seed}:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return {
        "accuracy": float(found[1]) / 100,
        "plain": float(found[2]) / 100,
        "seconds": seconds,
        "cpu": cpu,
        "peak_mb": after.ru_maxrss / 1e3 * 1.024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    runs = []
    for seed in range(options.seeds):
        runs.append(one_seed(options.data, seed))
        print(f"seed {seed} done in {runs[-1]['seconds']:.0f} s", flush=True)
    head = ("seed", "accuracy", "without views", "seconds", "CPU seconds", "peak MB")
    rows = [(seed, *shown(run)) for seed, run in enumerate(runs)]
    mean = {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
    sidebyside.markdown(head, [*rows, ("mean", *shown(mean))])
    reached = mean["accuracy"] >= AIM and max(r["seconds"] for r in runs) <= LIMIT_SECONDS
    spread = statistics.stdev(r["accuracy"] for r in runs) if len(runs) > 1 else 0.0
    print(f"standard deviation over seeds: {spread:.2%}")
    print(f"{AIM:.1%} in at most {LIMIT_SECONDS} s: {'reached' if reached else 'not reached'}")


def shown(run: dict[str, float]) -> tuple[str, ...]:
    accuracies = (f"{run['accuracy']:.2%}", f"{run['plain']:.2%}")
    return (*accuracies, f"{run['seconds']:.0f}", f"{run['cpu']:.0f}", f"{run['peak_mb']:.0f}")


if __name__ == "__main__":
    main()
