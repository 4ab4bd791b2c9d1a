"""Killed fifty times at random moments and resumed, a run ends in the weights of one left alone.

Command    python bench/resume.py [--kills 50] [--work images | causal | masked | classify]
Data       images: scikit-learn's scanned digits, ResNet-20; causal, masked: tiny Shakespeare, small
           networks; classify: rows of SST-2, an encoder from scratch. A checkpoint at every step
           (LAYERWISE_DATA is the folder of data)
Time       about 8 minutes on 2 cores each
Expected   every tensor equal to the bit

Each life of the run is a process of `layerwise fit`; SIGKILL falls between the first new checkpoint
of that life and a second later, so also into the writing of checkpoints, logs and reports.
"""

import argparse
import gzip
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = pathlib.Path(os.environ.get("LAYERWISE_DATA", ROOT.parent / "shared" / "data"))
OPTIONS = [
    *("--base", "none", "--threads", "1", "--seed", "3", "--dtype", "fp32"),
    *("--no-depth", "--no-audit", "--checkpoint-every", "1", "--evaluate-every", "50"),
]
CHARACTERS, ROWS = 60_000, 1000  # of Shakespeare, of SST-2


def images(folder: pathlib.Path) -> list[str]:
    digits = load_digits()
    pixels = np.round(np.asarray(digits.images) * (255 / 16)).astype(np.uint8)  # type: ignore[union-attr]
    np.savez(folder / "digits.npz", images=pixels, labels=digits.target)  # type: ignore[union-attr]
    return [str(folder / "digits.npz"), "--device-batch-size", "64"]


def causal(folder: pathlib.Path) -> list[str]:
    text = (DATA / "text" / "tinyshakespeare.txt").read_text()[:CHARACTERS]
    (folder / "plays.txt").write_text(text)
    sizes = ["--device-batch-size", "4", "--max-seq-len", "64"]
    return [str(folder / "plays.txt"), *sizes, "--model", "auto"]


def masked(folder: pathlib.Path) -> list[str]:
    return [*causal(folder)[:-1], "bert-tiny", "--task", "masked"]


def classify(folder: pathlib.Path) -> list[str]:
    with gzip.open(DATA / "text-classification/sst2/train.tsv.gz", "rt", encoding="utf-8") as lines:
        (folder / "films.tsv").write_text("".join(itertools.islice(lines, ROWS)))
    return [str(folder / "films.tsv"), "--device-batch-size", "8", "--model", "bert-tiny"]


WORK = {make.__name__: make for make in (images, causal, masked, classify)}


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "layerwise.cli", "fit", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    error = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"the run failed: {error}")


def newest(run: pathlib.Path) -> str:
    """The name of the newest complete checkpoint, "" when there is none."""
    return max((p.name for p in run.glob("rungs/*/checkpoints/step-*")), default="")


def live_and_die(run: pathlib.Path, arguments: list[str], delay: float) -> bool:
    """One life of the run; False when it ended by itself before it could be killed."""
    before, process = newest(run), start(*arguments)
    while newest(run) <= before:
        if process.poll() is not None:
            finish(process)
            return False
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return process.returncode == -signal.SIGKILL


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--work", choices=WORK, default="images")
    parser.add_argument("--steps", default="300")
    asked = parser.parse_args()
    wanted = asked.kills
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        given = [*WORK[asked.work](folder), *OPTIONS, "--steps", asked.steps]
        whole, run = folder / "whole", folder / "killed"
        finish(start(*given, "--output", str(whole)))
        killed, steps = 0, []
        arguments = [*given, "--output", str(run)]
        while killed < wanted and live_and_die(run, arguments, float(rng.uniform(0, 0.4))):
            killed += 1
            steps.append(int(newest(run).removeprefix("step-")))
            arguments = ["--resume", str(run)]
        finish(start("--resume", str(run)))
        a, b = (load_file(f / "model" / "model.safetensors") for f in (whole, run))
        different = [k for k in a if not torch.equal(a[k], b[k])]
    print(f"{asked.work}: killed {killed} times, at steps {steps}")
    print(f"{len(a)} tensors, {len(different)} differ from the undisturbed run")
    return bool(different) or killed < wanted


if __name__ == "__main__":
    sys.exit(main())
