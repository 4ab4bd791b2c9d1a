"""Questions on contexts to token tensors, and where in them the answer stands.

A context longer than the network reads comes in windows that overlap; every place of it may start
an answer in one window only, the one that shows most around it.

Shapes: B questions, N windows, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tokenizers
import torch
from torch import Tensor

from layerwise.errors import DataError
from layerwise.kinds.text.processor import TextProcessor
from layerwise.kinds.text.windows import owners, stacked

OVERLAP, QUESTION = 128, 64  # tokens: of two windows; of a question at most
Row = dict[str, Any]


@dataclass(frozen=True)
class SpanProcessor(TextProcessor):
    """Rows of a question and its context, with or without answers, to a network's input."""

    reads: ClassVar[str] = "spans"

    def encode(self, inputs: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Of each question its windows: tokens, token_types (t,); starts, ends (t,) bool, where an
        answer may start and end; chars (t, 2) in the context; and the target, where it is known:
        the window, its first and its last token, (0, 0, 0) for a question without an answer."""
        for row in inputs:
            if not isinstance(row, Mapping) or not {"question", "context"} <= row.keys():
                raise DataError(f"rows of question and context were expected, not {str(row)[:60]}")
        questions = self._cut([row["question"] for row in inputs])
        contexts = [row["context"] for row in inputs]
        overlap = min(OVERLAP, self.max_seq_len // 4)
        found = self.tokenizer.windows(questions, contexts, self.max_seq_len, overlap)
        return [_row(e, overlap, r.get("answers")) for e, r in zip(found, inputs, strict=True)]

    def length(self, row: Row) -> int:
        return sum(map(len, row["tokens"]))

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """tokens, token_types, mask, starts, ends: (B, T), chars (B, T, 2); with windows between
        B and T where a question has several. targets (B, 2): places in all windows on end."""
        fill = {"tokens": self.tokenizer.pad_id or 0, "starts": 0, "ends": 0, "chars": 0}
        fill |= {"token_types": 0} if self.token_types else {}
        out = stacked(rows, fill, self.max_seq_len)
        if all("target" in row for row in rows):
            found = torch.tensor([row["target"] for row in rows])  # (B, 3)
            out["targets"] = found[:, 1:] + found[:, :1] * out["tokens"].shape[-1]
        return out

    def _cut(self, questions: list[str]) -> list[str]:
        """Questions of so many tokens that the context has room beside them."""
        most = min(QUESTION, self.max_seq_len // 4)
        found = self.tokenizer.inner.encode_batch(questions, add_special_tokens=False)
        both = zip(questions, found, strict=True)
        return [q[: e.offsets[most - 1][1]] if len(e) > most else q for q, e in both]


def _row(windows: list[tokenizers.Encoding], overlap: int, answers: Any) -> Row:
    ends = [np.array([s == 1 for s in e.sequence_ids]) for e in windows]
    size, step = int(ends[0].sum()), max(1, int(ends[0].sum()) - overlap)
    n = step * (len(windows) - 1) + int(ends[-1].sum())
    owner = owners(step * np.arange(len(windows)), size, n)  # (n,) of the context's tokens
    starts = [inside.copy() for inside in ends]
    for k, inside in enumerate(ends):
        starts[k][inside] = owner[k * step :][: int(inside.sum())] == k
    out: Row = {
        "tokens": [np.array(e.ids, np.int64) for e in windows],
        "token_types": [np.array(e.type_ids, np.int64) for e in windows],
        "starts": starts,
        "ends": ends,
        "chars": [np.array(e.offsets, np.int32) for e in windows],
    }
    if answers is not None:
        out["target"] = _target(out, answers[0]) if answers else (0, 0, 0)
    return out


def _target(row: Row, answer: Mapping[str, Any]) -> tuple[int, int, int]:
    """The window, first and last token of an answer; cut where it leaves its window."""
    first, last = answer["start"], answer["start"] + len(answer["text"])
    found = (0, 0, 0)  # of a context without tokens
    windows = zip(row["starts"], row["ends"], row["chars"], strict=True)
    for k, (starts, ends, chars) in enumerate(windows):
        own = np.flatnonzero(starts)
        begun = own[chars[own, 1] > first]
        if len(own):
            at = int(begun[0] if len(begun) else own[-1])
            within = np.flatnonzero(ends & (chars[:, 0] < last))
            found = k, at, max(at, int(within.max(initial=0)))
        if len(begun):
            break
    return found
