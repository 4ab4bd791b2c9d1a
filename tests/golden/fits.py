"""The golden fits: small seeded runs of `fit` over every kind of data, recorded to the last bit.

A change that should leave results as they are is proved to: `pytest tests/golden` on the machine on
which the records were made compares every number exactly, on another one within tolerances. To see
a change exactly on another machine, record there before it, and compare after it:

    python -m tests.golden.fits --record            all of them anew; prints what changed
    python -m tests.golden.fits --record digits     and these alone
"""

import argparse
import functools
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import layerwise
from layerwise.console import Console
from tests.golden import data, records

RECORDED = pathlib.Path(__file__).parent / "recorded"
ALWAYS = {
    "threads": 1, "loader_threads": 1, "dtype": "fp32", "compile": "off", "base": "none",
    "steps": 20, "device_batch_size": 16, "seed": 3, "console": Console(quiet=True),
}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """base: the fit whose model it starts from; interrupted: it
    is resumed from an early checkpoint; exports: forms that its model is written in."""

    make: Callable[[pathlib.Path], data.Made]
    options: dict[str, Any] = field(default_factory=dict)
    base: str = ""
    interrupted: bool = False
    exports: tuple[dict[str, str], ...] = ()


HUGGINGFACE = {"to": "huggingface"}
# Where activations are not kept for the backward pass (checkpointing, matches), a look takes a new
# tensor that lies where a forgotten one lay for that one: what it sees is left to the allocator.
UNSEEN = {"watch_every": 0}
FITS: dict[str, Fit] = {
    # images
    "digits": Fit(data.digits, {"steps": 40, "ema": 0.9, "evaluate_every": 15}),
    "digits_fast": Fit(
        data.few_digits, {"model": "airbench94", "device_batch_size": 60, "steps": 3}
    ),
    "digits_cured": Fit(
        data.digits, {"model": "mlp", "image_size": 16, "lr": 1.0, "steps": 40, "cure": True}
    ),
    "digits_resumed": Fit(
        data.few_digits,
        {"steps": 30, "checkpoint_every": 5, "evaluate_every": 10, "keep": 3},
        interrupted=True,
    ),
    "photographs": Fit(
        data.photographs,
        {"image_size": 48, "device_batch_size": 8, "steps": 12},
        exports=(HUGGINGFACE,),
    ),
    "photographs_base": Fit(
        data.photographs,
        {"method": "auto", "device_batch_size": 8, "steps": 8, "layer_decay": 0.8},
        base="photographs",
    ),
    "scenes": Fit(
        data.scenes_by_a_table,
        {"model": "vit_tiny_patch4_32", "image_size": 32, "device_batch_size": 8, "steps": 12},
    ),
    "scenes_base": Fit(
        data.scenes_by_a_table,
        {"method": "auto", "device_batch_size": 8, "steps": 8, "unfreeze": "progressive"},
        base="scenes",
    ),
    "shapes": Fit(data.shapes, {"grad_accum_steps": 2, "device_batch_size": 8}),
    # tables
    "flowers": Fit(data.flowers, {"steps": 60}),
    "orders": Fit(data.orders, {"optimizer": "sgd", "lr": 0.05, "steps": 40}),
    "houses": Fit(data.houses, {"target": "price", "schedule": "wsd", "steps": 60}),
    # texts
    "book": Fit(data.book, exports=(HUGGINGFACE, {"to": "gguf", "quantize": "q8_0"})),
    "book_base": Fit(
        lambda folder: data.book(folder, 500, seed=21), {"method": "full"}, base="book"
    ),
    "tales": Fit(data.tales, {"task": "masked", "max_seq_len": 64, "steps": 30}),
    "moods": Fit(data.moods, {"checkpointing": True, **UNSEEN}),
    "moods_lora": Fit(
        data.moods,
        {"method": "lora", "lora_variant": "dora", "lr": 0.01},
        "tales",
        exports=(HUGGINGFACE,),
    ),
    "moods_packed": Fit(data.moods, {"method": "lora", "quantize": "8", "lr": 0.01}, "tales"),
    "moods_base": Fit(data.doubtful_moods, {"method": "auto", "lr": 0.003}, "tales"),
    "nli": Fit(data.pairs_with_a_label),
    "names": Fit(data.tagged_words, {"steps": 30}),
    "names_base": Fit(data.tagged_words, {"method": "auto", "steps": 10}, "tales"),
    "questions": Fit(data.questions),
    "matches": Fit(data.matching_pairs, {"dims": "32", "grad_accum_steps": 2, **UNSEEN}),
    "matches_base": Fit(data.matching_pairs, {"method": "auto", "steps": 10, **UNSEEN}, "tales"),
    "alike": Fit(data.scored_pairs),
}


def chains() -> list[list[str]]:
    """The fits, each behind its base: what has to be done in one process."""
    first = {name: FITS[name].base or name for name in FITS}
    return [
        [name for name in FITS if first[name] == root] for root in dict.fromkeys(first.values())
    ]


# ---- running them --------------------------------------------------------------------------------
def recorded(chain: list[str], root: pathlib.Path) -> Iterator[tuple[str, records.Json]]:
    """Each fit of a chain with its record; `root` is an empty folder."""
    for name in chain:
        fit, folder = FITS[name], root / name
        folder.mkdir()
        made = fit.make(folder)
        base = {"base": str(root / fit.base / "run" / "model")} if fit.base else {}
        options = ALWAYS | fit.options | base
        with looks_without_cost():
            result = run_fit(fit, made, folder / "run", options)
        found = records.record(result, made.data, made.new, root)
        yield name, found | {"exports": [exported(folder, to, root) for to in fit.exports]}


def run_fit(fit: Fit, made: data.Made, run: pathlib.Path, options: dict[str, Any]) -> Any:
    result = layerwise.fit(made.data, output=str(run), **options)
    if fit.interrupted:
        whole = records.files_of(records.kept_model(run))
        for newer in sorted(run.glob("rungs/*/checkpoints/*"))[1:]:
            shutil.rmtree(newer)  # as if it had died behind the oldest checkpoint that is left
        shutil.rmtree(records.kept_model(run))
        result = layerwise.fit(resume=run, console=options["console"])
        assert records.files_of(records.kept_model(run)) == whole, "resumed, it ended elsewhere"
    return result


@contextmanager
def looks_without_cost() -> Iterator[None]:
    """Looks at the layers pause while they have cost too much of the time, which differs from run
    to run; here they cost nothing, so that the steps that are looked at are always the same."""
    from layerwise.inspection.watch import Watch

    free = property(lambda watch: 0.0, lambda watch, seconds: None)
    with patch.object(Watch, "spent", free, create=True):
        yield


def exported(folder: pathlib.Path, to: dict[str, str], root: pathlib.Path) -> records.Json:
    out = folder / "exports" / to["to"]
    out.mkdir(parents=True)
    path = out / "model.gguf" if to["to"] == "gguf" else out / "model"
    done = layerwise.export(folder / "run", str(path), **to)
    return records.exported(done, root) | {"files": records.files_of(out)}


# ---- recording them ------------------------------------------------------------------------------
@functools.cache
def recorded_on() -> records.Json:
    return records.read(RECORDED / "machine.json")


def record_all(names: list[str]) -> None:
    """Record the chains that these fits belong to, and say what differs from what was recorded."""
    for chain in chains():
        if names and not set(names) & set(chain):
            continue
        with tempfile.TemporaryDirectory() as root:
            started = time.monotonic()
            for name, found in recorded(chain, pathlib.Path(root).resolve()):
                path = RECORDED / f"{name}.json"
                changed = records.differences(records.read(path), found)
                records.write(path, found)
                print(f"{name}: {time.monotonic() - started:.1f} s, {len(changed)} changes")
                print("".join(f"  {line}\n" for line in changed[: records.SHOWN]), end="")
                started = time.monotonic()
    records.write(RECORDED / "machine.json", records.machine())


def main() -> None:
    one = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if any(os.environ.get(name) != value for name, value in one.items()):
        command = [sys.executable, "-m", "tests.golden.fits", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | one)  # read when libraries are loaded
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--record", nargs="*", metavar="FIT", required=True, choices=[*FITS, []])
    asked = parser.parse_args().record
    with tempfile.TemporaryDirectory() as cache:
        os.environ["LAYERWISE_CACHE"] = cache
        record_all(asked)


if __name__ == "__main__":
    main()
