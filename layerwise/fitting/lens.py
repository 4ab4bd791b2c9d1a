"""The loss lens: which tokens carry loss and what was cut, before the first step of a run.

A task says of each token of a batch whether it carries loss (`lens`); a text that was cut at the
end of the context is encoded once more in full.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from layerwise import kinds
from layerwise.console import Console
from layerwise.data.examples import Batch, Examples
from layerwise.errors import DataError
from layerwise.tasks.feed import batch_of
from layerwise.tasks.task import Marked, Task
from layerwise.tokens.tokenizer import Tokenizer

SAMPLE, SHOWN = 500, 2  # rows looked at, rows shown
WIDTH = 160  # characters of a row that are shown

Segment = tuple[str, str]  # a stretch of text, and "loss", "seen" or "cut"


@dataclass(frozen=True)
class Lens:
    """What a run learns from, of a sample of its rows."""

    rows: list[list[Segment]]
    n_rows: int  # looked at
    tokens: int  # of these rows, as the network is shown them
    carried: int  # of these tokens, the answers of rows among them
    cut_rows: int  # of all rows
    cut: str  # what that leaves out, in a sentence

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"said": self.said()}

    def said(self) -> str:
        """The sample in a sentence."""
        carried = f"{self.carried:,} of {self.tokens:,} tokens in {self.n_rows:,} rows carry loss"
        return f"{carried}; {self.cut or 'nothing is cut'}"


def lens_of(rows: Examples, processors: Mapping[str, Any], task: Task) -> Lens | None:
    """The lens on a sample of the rows, evenly spaced; None where they are not made of tokens.

    Errors: DataError where nothing in it carries loss.
    """
    picked = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))
    some = rows.subset(picked)
    batch = batch_of(task, some, processors)
    if not batch.tokens_per_row:
        return None
    if not task.count(batch):
        none = f"none of the tokens in {len(some):,} rows of {rows.source} carries loss"
        raise DataError(f"{none}, so nothing could be learned; look at what the rows ask for")
    kind = kinds.read_by(["tokens"])
    processor = processors[kind.name]
    marked = [marks(batch, i, row) for i, row in enumerate(task.lens(batch))]
    long, said = kind.cut(rows, processor)
    shown = [i for i, row in enumerate(picked) if row in long][:1]
    shown = [*shown, *(i for i in range(len(marked)) if i not in shown)][:SHOWN]
    flags = [carries for row in marked for _, carries in row]
    cut = [kind.cut_off(some, i, processor) for i in shown]
    both = zip(shown, cut, strict=True)
    lines = [segments(marked[i], tokens, processor.tokenizer) for i, tokens in both]
    return Lens(lines, len(some), len(flags), sum(flags), len(long), said)


def marks(batch: Batch, i: int, row: str | Marked) -> Marked:
    """A row of a task's lens; where that is one answer, its tokens and then the answer."""
    if not isinstance(row, str):
        return row
    ids = batch["tokens"][i]
    mask = batch.tensors.get("mask")
    kept = ids if mask is None else ids[mask[i]]
    return [*((int(t), False) for t in kept.flatten()), (f" -> {row}", True)]


def segments(row: Marked, cut: Sequence[int], tokenizer: Tokenizer) -> list[Segment]:
    """Neighbours of one kind joined, decoded, and shortened to what fits on a line or two."""
    kinds = [(token, "loss" if carries else "seen") for token, carries in row]
    groups: list[tuple[str, list[Any]]] = []
    for token, kind in [*kinds, *((t, "cut") for t in cut)]:
        if not groups or groups[-1][0] != kind or isinstance(token, str):
            groups.append((kind, []))
        groups[-1][1].append(token)
    out, room = [], WIDTH
    for n, (kind, tokens) in enumerate(groups):
        words = isinstance(tokens[0], str)
        text = tokens[0] if words else tokenizer.decode(tokens[: 4 * WIDTH])
        text = text.replace("\n", "↵")
        most = max(12, room // min(3, len(groups) - n))
        out.append((text if len(text) <= most else text[: most - 1] + "…", kind))
        room -= len(out[-1][0])
        if room <= 0:
            break
    return out


def show(lens: Lens, console: Console) -> None:
    """The sentence, and the rows in colour, or in brackets where there is none."""
    console.say(f"lens: {lens.said()}")
    for row in lens.rows:
        console.marks(row)
