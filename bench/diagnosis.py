"""Does the diagnosis find what is wrong, keep quiet when nothing is, and cure what it finds?

Command    python bench/diagnosis.py [--half report|develop] [--seeds N] [--only ARCH] [--verbose]
Hardware   2 CPU cores
Time       about 7 minutes (800 s of processor time)
Expected   recall at least 90%, false alarms at most 5%, the cure helps in at least 80%
Measured   151 of 154 found, 3 of 100 false alarms, 110 of 122 cures help (two seeds)

The faults of `faults.py` are injected into five architectures on real images (scikit-learn's
digits, and CIFAR-10 where the data folder has it), a decoder on the letters of Shakespeare and an
encoder on news (both need the data folder), and trained by the product's own loop. A fault counts
as found only when the first diagnosis names it; labels that are all masked, when the run refuses. A
cure is taken from the diagnosis as it stands, true or not, applied, and the network trained again
with the same seed; it helps when the held-out loss falls by a tenth or the accuracy rises by five
points. Thresholds were set on the half "develop"; the figures to quote come from "report": other
seeds, so other weights, splits and batches. Where the cure is for a person to carry out (the code,
the labels), the script does what the sentence says; these are counted apart.
"""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from faults import Arch, Fault, Outcome, architectures, faults, healthy, helped, load, run


@dataclasses.dataclass(frozen=True)
class Job:
    """One cell of the table: plain numbers, so that another process can take it."""

    arch: int
    sound: bool
    case: int  # in `healthy` or `faults` of the architecture
    seed: int
    folder: pathlib.Path


def cases(arch: Arch, sound: bool) -> list[tuple[str, Fault]]:
    return healthy(arch) if sound else [(f.name, f) for f in faults(arch)]


def work(job: Job) -> tuple[Outcome, Outcome | None]:
    """The broken (or sound) run, and the one after the first diagnosis' cure."""
    arch = architectures()[job.arch]
    fault = cases(arch, job.sound)[job.case][1]
    data = load(arch.data, job.folder)
    before = run(arch, fault, job.seed, data)
    if job.sound or not before.diagnoses:
        return before, None
    return before, run(arch, fault, job.seed, data, before.diagnoses[0])


def one_thread() -> None:
    torch.set_num_threads(1)  # small networks: two processes do more than two threads


def jobs(seeds: list[int], folder: pathlib.Path, only: str) -> list[Job]:
    return [
        Job(a, sound, c, seed, folder)
        for a, arch in enumerate(architectures())
        if only in arch.name
        for sound in (True, False)
        for c in range(len(cases(arch, sound)))
        for seed in seeds
    ]


@dataclasses.dataclass
class Tally:
    found: int = 0
    runs: int = 0

    def add(self, hit: bool) -> None:
        self.found, self.runs = self.found + hit, self.runs + 1

    def __str__(self) -> str:
        return f"{self.found} of {self.runs} ({self.found / max(1, self.runs):.1%})"


def report(
    results: Iterator[tuple[Job, Outcome, Outcome | None]], n_seeds: int, verbose: bool
) -> None:
    recall, alarms, cures, by_hand = Tally(), Tally(), Tally(), Tally()
    archs = architectures()
    rows: list[tuple[Outcome, Outcome | None]] = []
    for job, before, after in results:
        name, fault = cases(archs[job.arch], job.sound)[job.case]
        if job.sound:
            alarms.add(bool(before.diagnoses))
        else:
            recall.add(bool(before.diagnoses) and before.diagnoses[0].fault == fault.right)
            kind = by_hand if fault.by_hand else cures
            kind.add(after is not None and helped(before, after))
        rows.append((before, after))
        if len(rows) == n_seeds:
            show(archs[job.arch], "healthy: " * job.sound + name, rows, verbose)
            rows = []
    print(f"\nrecall: the first diagnosis names the fault   {recall}   wanted 90%")
    print(f"false alarms on healthy runs                  {alarms}   wanted at most 5%")
    print(f"the cure, applied by the machine, helps       {cures}   wanted 80%")
    print(f"the cure, carried out by a person, helps      {by_hand}")


def show(arch: Arch, name: str, rows: list[tuple[Outcome, Outcome | None]], verbose: bool) -> None:
    said = ", ".join("+".join(d.fault for d in r.diagnoses) or "-" for r, _ in rows)
    scores = "/".join(f"{r.accuracy:.2f}" for r, _ in rows)
    cured = "/".join(f"{c.accuracy:.2f}" if c else "-" for _, c in rows)
    cured = "" if name.startswith("healthy") else f"-> {cured}"
    print(f"{arch.name:11} {name:30} accuracy {scores:10} {cured:13}  {said}", flush=True)
    for d in rows[0][0].diagnoses if verbose else ():
        print(f"{'':12}{d.layer}: {d.evidence}. {d.cure}. {d.cure_options}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--half", choices=("report", "develop"), default="report")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="architectures whose name contains this")
    parser.add_argument("--verbose", action="store_true", help="print each diagnosis in full")
    parser.add_argument("--processes", type=int, default=2)
    here = pathlib.Path(__file__).resolve().parent
    folder = os.environ.get("LAYERWISE_DATA", str(here.parent / "../shared/data"))
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(folder))
    args = parser.parse_args()
    began = time.perf_counter()
    first = 100 if args.half == "report" else 0
    print(f"half {args.half}: seeds {first} to {first + args.seeds - 1}")
    todo = jobs(list(range(first, first + args.seeds)), args.data, args.only)
    context: Any = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.processes, context, one_thread) as pool:
        done = ((job, *result) for job, result in zip(todo, pool.map(work, todo), strict=True))
        report(done, args.seeds, args.verbose)
    print(f"{time.perf_counter() - began:.0f} s, {args.processes} processes of one thread")


if __name__ == "__main__":
    main()
