"""The loss lens: which tokens carry loss and what was cut, before the first step of a run.

A task says of each token of a batch whether it carries loss (`lens`); a text that was cut at the
context's end is seen by encoding it once more without that end.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from layerwise.console import Console
from layerwise.data.examples import Examples
from layerwise.errors import DataError
from layerwise.kinds.text.encoders import WHOLE, whole_lengths

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
        return (
            f"{self.carried:,} of {self.tokens:,} tokens in {self.n_rows:,} rows carry loss; "
            f"{self.cut or 'nothing is cut'}"
        )


def look(rows: Examples, processor: Any, task: Any) -> Lens:
    """Look at a sample of the rows, evenly spaced.

    Errors: DataError where nothing in it carries loss.
    """
    picked = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))
    some = rows.subset(picked)
    batch = task.batch(some, processor)
    if not task.count(batch):
        raise DataError(
            f"not one token of {len(some):,} rows of {rows.source} carries loss, so nothing could "
            "be learned; look at what the rows ask for"
        )
    marked = [marks(batch, i, row) for i, row in enumerate(task.lens(batch))]
    long, said = cut_rows(rows, processor) if rows.kind == "text" else (np.zeros(0, int), "")
    shown = [i for i, row in enumerate(picked) if row in long][:1]
    shown = [*shown, *(i for i in range(len(marked)) if i not in shown)][:SHOWN]
    flags = [carries for row in marked for _, carries in row]
    return Lens(
        [segments(marked[i], behind(some, i, processor), processor.tokenizer) for i in shown],
        len(some),
        len(flags),
        sum(flags),
        len(long),
        said,
    )


def marks(batch: Any, i: int, row: Any) -> list[tuple[Any, bool]]:
    """A row of a task's lens; where that is one answer, its tokens and then the answer."""
    if not isinstance(row, str):
        return row
    ids = batch["inputs"][i]
    mask = batch.tensors.get("mask")
    kept = ids if mask is None else ids[mask[i]]
    return [*((int(t), False) for t in kept.flatten()), (f" -> {row}", True)]


def cut_rows(rows: Examples, processor: Any) -> tuple[np.ndarray, str]:
    """Which texts are longer than what is read, and how much of all text that leaves out."""
    lengths = whole_lengths(rows, processor)
    if len(lengths) != len(rows) or processor.reads in ("words", "spans"):  # divided, not cut
        return np.zeros(0, int), ""
    over = (lengths - processor.max_seq_len).clip(0)
    said = (
        f"cut at their end: {(over > 0).sum():,} of {len(over):,} rows, "
        f"{over.sum() / lengths.sum():.1%} of all tokens (--max-seq-len sets the limit)"
    )
    return np.flatnonzero(over), said if over.any() else ""


def behind(some: Examples, i: int, processor: Any) -> Sequence[int]:
    """The tokens of row i that the context's end cut off."""
    if some.kind != "text":
        return ()
    whole = replace(processor, max_seq_len=WHOLE).encode([some.inputs[i]])[0]
    ids = whole[0] if getattr(whole, "ndim", 1) == 2 else whole
    return [int(t) for t in ids[processor.max_seq_len :]] if isinstance(ids, np.ndarray) else ()


def segments(row: Sequence[tuple[Any, bool]], cut: Sequence[int], tokenizer: Any) -> list[Segment]:
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
