"""Tiny Shakespeare to a loss of 1.88: nanoGPT's processor configuration and this package's recipe.

    python bench/shakespeare.py TINYSHAKESPEARE.TXT NANOGPT_FOLDER

nanoGPT's folder is a checkout with its data prepared (`data/shakespeare_char/prepare.py`); its own
`train.py` runs as its README says for computers without a GPU, and its own estimate of the loss on
the last tenth of the text counts. Ours is `recipes/pretrain_shakespeare.py` with a network of no
more parameters; its loss is taken over the whole last tenth, in nats per character as nanoGPT's.
Seconds are those of the whole process, imports, tokenizer and validations included.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

import sidebyside

TARGET = 1.88
ROOT = pathlib.Path(__file__).resolve().parents[1]
NANOGPT = """
train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20
--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128
--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"""
OURS = """
--seeds 1 --vocab 1024 --dim 128 --layers 2 --length 64 --batch 32 --readings 0.3 --dropout 0
--lr 0.01 --evaluations 1"""


def run(command: list[str], folder: pathlib.Path, loss: str) -> tuple[float, float | None, float]:
    """Seconds of the whole, seconds until TARGET (None: never) and the best loss that it told."""
    started, reached, best = time.perf_counter(), None, float("inf")
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-u", *command],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            if found := re.search(loss, line):
                best = min(best, float(found[1]))
                if best <= TARGET and reached is None:
                    reached = time.perf_counter() - started
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return time.perf_counter() - started, reached, best


def main() -> None:
    text, nanogpt = (pathlib.Path(a).resolve() for a in sys.argv[1:3])
    recipe = [str(ROOT / "recipes/pretrain_shakespeare.py"), str(text), *OURS.split()]
    work = {
        "nanoGPT": (NANOGPT.split(), nanogpt, r"val loss ([\d.]+)"),
        "ours": (recipe, ROOT, r"([\d.]+) nats per character$"),
    }
    rows, ratios = [], []
    for turn in range(3):
        took = {}
        for who, arguments in work.items():
            whole, reached, best = run(*arguments)
            took[who] = reached or whole
            rows.append([turn, who, f"{best:.4f}", f"{reached or 0:.1f}" if reached else "never",
                         f"{whole:.1f}"])  # fmt: skip
        ratios.append(took["nanoGPT"] / took["ours"])
    sidebyside.markdown(["round", "who", "best loss", f"seconds to {TARGET}", "seconds"], rows)
    print(f"ours is faster by {sorted(ratios)[1]:.1f}x (median of {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
