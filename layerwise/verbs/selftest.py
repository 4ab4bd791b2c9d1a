"""`selftest`: whether the shortcuts of training change what is learned, on a run's model and data.

What is compared, and how, stands in `train/ways.py`.
"""

import pathlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from layerwise import runtime
from layerwise.data.examples import Examples
from layerwise.data.loader import in_order
from layerwise.errors import DataError, OptionError
from layerwise.fitting.run import machine_for, open_chosen
from layerwise.kinds.text import language
from layerwise.kinds.text.corpus import tokenise
from layerwise.kinds.text.documents import texts_of
from layerwise.kinds.text.matches import matches
from layerwise.model.evaluation import as_fitted, in_order_of
from layerwise.model.model import Model, load, read_json
from layerwise.settings import Settings, settings
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
        raise OptionError(f"--rows must be above {PARTS}, to be dealt out; {rows} was given")
    values, model = read_json(folder / "run.json"), load(folder)
    chosen = settings(**values["settings"])
    machine = runtime.start(chosen.device, chosen.dtype, chosen.threads)
    machine = machine_for(machine, model.kind, chosen)
    some = rows_of(model, values["data"], chosen, rows)
    whole = next(in_order(some, model.processor, rows, cached=False))
    padded = some.kind == "text"
    joint = getattr(model.task, "joint", False)
    alone = list(in_order(some, model.processor, 1, cached=False)) if padded and not joint else []
    skip = {} if compiled else {"compiled or eager": "ask for it with --compiled: it takes minutes"}
    skip |= {} if ranks else {"two ranks or one": "as asked"}
    skip |= dict.fromkeys(ROW_BY_ROW, "its rows are learned together") if joint else {}
    pairs = compare(model.network, model.task, whole, machine, alone, skip)
    return SelfTest(str(folder), len(some), str(machine.dtype).removeprefix("torch."), pairs)


def rows_of(model: Model, data: str, chosen: Settings, n: int) -> Examples:
    """Training rows of the run as its model was given them; windows of tokens for plain text."""
    examples = open_chosen(data, chosen)
    examples = matches(examples) if model.task.name == "embed" else examples
    examples = as_fitted(examples, chosen.seed, chosen.val, chosen.test)
    train = np.flatnonzero(examples.given == "train")
    rng = np.random.default_rng(chosen.seed)
    if examples.form == "plain":
        some = examples.subset(np.sort(rng.permutation(train)[: 4 * n]))
        corpus = tokenise([t[:CHARACTERS] for t in texts_of(some)], model.processor.tokenizer)
        masked = model.task.name == "masked"
        some = language.windows_of(some, corpus, model.processor, masked)
    else:
        some = in_order_of(model, examples.subset(train))
    if len(some) <= PARTS:
        raise DataError(
            f"{data}: {len(some)} rows to train on; selftest deals out more than {PARTS}"
        )
    return some.subset(np.sort(rng.permutation(len(some))[:n]))
