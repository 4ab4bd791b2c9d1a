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

SAMPLE, SHOWN = 500, 2  # rows counted, rows shown
WIDTH = 160  # characters of a row that are shown
UNCUT = 1 << 20  # tokens: no context ends there

Segment = tuple[str, str]  # a stretch of text, and "loss", "seen" or "cut"


@dataclass(frozen=True)
class Lens:
    """What a run learns from, of a sample of its rows."""

    rows: list[list[Segment]]
    n_rows: int
    tokens: int  # shown to the network, of all rows looked at
    carried: int  # of these with loss; or rows, where each has one answer
    cut_rows: int
    cut_tokens: int  # beside `tokens`

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"said": self.said()}

    def said(self) -> str:
        """The sample in a sentence."""
        share = self.cut_tokens / max(1, self.tokens + self.cut_tokens)
        cut = f"{self.cut_rows:,} of them cut, {share:.1%} of the tokens" if self.cut_rows else ""
        return (
            f"{self.carried:,} of {self.tokens:,} tokens in {self.n_rows:,} rows carry loss; "
            + (cut or "nothing is cut")
        )


def look(rows: Examples, processor: Any, task: Any) -> Lens:
    """Look at a sample of the rows, evenly spaced.

    Errors: DataError where nothing in it carries loss.
    """
    some = rows.subset(np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)))
    batch = task.batch(some, processor)
    if not task.count(batch):
        raise DataError(
            f"not one token of {len(some):,} rows of {rows.source} carries loss, so nothing could "
            "be learned; look at what the rows ask for"
        )
    shown = task.lens(batch)
    marked = [marks(batch, i, row) for i, row in enumerate(shown)]
    whole = whole_rows(some, processor, batch) if rows.kind == "text" else {}
    cut = {i: ids for i, ids in whole.items() if len(ids)}
    picked = [*list(cut)[:1], *(i for i in range(len(marked)) if i not in list(cut)[:1])][:SHOWN]
    flags = [carries for row in marked for _, carries in row]
    return Lens(
        [segments(marked[i], cut.get(i, ()), processor.tokenizer) for i in picked],
        len(some),
        len(flags),
        sum(flags),
        len(cut),
        sum(len(ids) for ids in cut.values()),
    )


def marks(batch: Any, i: int, row: Any) -> list[tuple[Any, bool]]:
    """A row of a task's lens; where that is one answer, its tokens and then the answer."""
    if not isinstance(row, str):
        return row
    ids = batch["inputs"][i]
    mask = batch.tensors.get("mask")
    kept = ids if mask is None else ids[mask[i]]
    return [*((int(t), False) for t in kept.flatten()), (f" -> {row}", True)]


def whole_rows(some: Examples, processor: Any, batch: Any) -> dict[int, Sequence[int]]:
    """Of each row the tokens that the context's end cut off."""
    limit = processor.max_seq_len
    long = replace(processor, max_seq_len=UNCUT).encode(list(some.inputs))
    if len(long) != len(batch):  # rows that were divided, not cut
        return {}
    ids = [row[0] if getattr(row, "ndim", 1) == 2 else row for row in long]
    return {i: row[limit:].tolist() for i, row in enumerate(ids) if len(row) > limit}


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
