"""`selftest`: whether the shortcuts of training change what is learned, on a run's model and data.

What is compared, and how, stands in `train/ways.py`.
"""

import pathlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from layerwise import runtime
from layerwise.data.examples import Examples
from layerwise.data.loader import in_order
from layerwise.errors import DataError, OptionError
from layerwise.fitting.run import open_chosen
from layerwise.model.evaluation import as_fitted
from layerwise.model.model import Model
from layerwise.model.saved import load
from layerwise.settings import Settings, settings
from layerwise.storage import read_json
from layerwise.tasks.feed import Feed
from layerwise.train.ways import PARTS, Pair, compare

ROW_BY_ROW = ("packed or padded", "two ranks or one")  # only for rows that are learned each alone
CHARACTERS = 20_000  # of each text that is looked at for a window of tokens


@dataclass
class SelfTest:
    """What came of it. `same`: nothing differs but what has to by the nature of the network."""

    run: str
    rows: int
    arithmetic: str
    pairs: list[Pair]

    @property
    def same(self) -> bool:
        return all(pair.verdict != "differs" for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "same": self.same}


def selftest(
    run: str | pathlib.Path, rows: int = 8, compiled: bool = False, ranks: bool = True
) -> SelfTest:
    """Gradients of one step of a finished run in pairs of ways that should agree.

    run: the folder of the run. rows: of its training data, in the one batch that is computed.
    compiled: compile the layers, too (minutes). ranks: start two processes, too; a script that
    calls this then needs its `if __name__ == "__main__"`.
    Errors: OptionError for a folder that holds no finished run, or for too few rows.
    """
    folder = pathlib.Path(run)
    if not (folder / "run.json").exists() or not (folder / "model" / "layerwise.json").exists():
        raise OptionError(f"selftest takes the folder of a finished run; {folder} holds none")
    if rows <= PARTS:
        raise OptionError(f"--rows must be above {PARTS} (micro-batches); {rows} was given")
    values, model = read_json(folder / "run.json"), load(folder)
    chosen = settings(**values["settings"])
    machine = runtime.start(chosen.device, chosen.dtype, chosen.threads)
    machine, task = model.kind.machine(machine, chosen), model.answers()
    some = rows_of(model, values["data"], chosen, rows)
    feed = Feed(task, some, model.processors, cached=False)
    whole, joint = next(in_order(feed, rows)), task.joint
    padded = model.kind.lengths(some, model.processor) is not None and not joint
    alone = list(in_order(feed, 1)) if padded else []
    skip = {} if compiled else {"compiled or eager": "ask for it with --compiled: it takes minutes"}
    skip |= {} if ranks else {"two ranks or one": "as asked"}
    skip |= dict.fromkeys(ROW_BY_ROW, "its rows are learned together") if joint else {}
    pairs = compare(model.network, task, whole, machine, alone, skip)
    return SelfTest(str(folder), len(some), str(machine.dtype).removeprefix("torch."), pairs)


def rows_of(model: Model, data: str, chosen: Settings, n: int) -> Examples:
    """Training rows of the run as its model was given them; windows of tokens for plain text."""
    examples, task = open_chosen(data, chosen), model.answers()
    examples = as_fitted(model, examples, chosen.seed, chosen.val, chosen.test)
    train = np.flatnonzero(examples.given == "train")
    rng = np.random.default_rng(chosen.seed)
    if task.every_position:
        some = examples.subset(np.sort(rng.permutation(train)[: 4 * n]))
        texts = [text[:CHARACTERS] for text in some["text"]]
        some = task.task_rows(replace(some, fields={"text": texts}), model.processors)
    else:
        some = task.aligned(examples.subset(train))
    if len(some) <= PARTS:
        few = f"{len(some)} rows to train on"
        raise DataError(f"{data}: {few}; selftest needs more than {PARTS}")
    return some.subset(np.sort(rng.permutation(len(some))[:n]))
