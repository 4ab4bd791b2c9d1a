"""How long one waits: for help, for the import, and for the first training step of the demo.

    python bench/startup.py

Each a fresh process, several times, the median; peers' imports beside ours where installed. The
demo's first step counts from before `import layerwise`: understanding, audit, split, plan and all.
"""

import statistics
import subprocess
import sys
import time

import sidebyside

TIMES = 7
IMPORTS = ("layerwise", "torch", "transformers", "timm", "keras", "fastai.vision.learner")
FIRST_STEP = """
import os, sys, time
start = time.perf_counter()
import tempfile, traceback
from layerwise.console import Console
from layerwise.verbs.demo import demo
from torch.optim.optimizer import register_optimizer_step_post_hook
def stop(*args):  # the audit and the plan take steps of their own before
    if any(f.f_code.co_filename.endswith("train/loop.py") for f, _ in traceback.walk_stack(None)):
        print(time.perf_counter() - start, flush=True)
        os._exit(0)
register_optimizer_step_post_hook(stop)
demo(console=Console(quiet=True), output=tempfile.mkdtemp() + "/run")
"""


def seconds(command: list[str], told: bool = False) -> float | None:
    """The median wall clock of a command, or of what it prints; None where it fails."""
    found = []
    for _ in range(TIMES if not told else 3):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return None
        wall = time.perf_counter() - started
        found.append(float(done.stdout.split()[-1]) if told else wall)
    return statistics.median(found)


def main() -> None:
    python = sys.executable
    bare = seconds([python, "-c", "pass"]) or 0.0
    rows = [["python alone", bare, ""]]
    rows.append(["layerwise --help", seconds([python, "-m", "layerwise.cli", "--help"]), "0.2"])
    for name in IMPORTS:
        took = seconds([python, "-c", f"import {name}"])
        aim = "0.1" if name == "layerwise" else ""
        rows.append([f"import {name}, beyond python", took and took - bare, aim])
    rows.append(["demo: first training step", seconds([python, "-c", FIRST_STEP], True), "4"])
    sidebyside.markdown(
        ["what", "seconds", "at most"],
        [[name, "not installed" if s is None else f"{s:.2f}", aim] for name, s, aim in rows],
    )


if __name__ == "__main__":
    main()
