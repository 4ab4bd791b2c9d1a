"""Sentences as words to token tensors, and which token speaks for which word: its first.

A sentence longer than the context is read in windows that overlap by a quarter; each word is
tagged in the window that shows most around it. A word that the tokenizer makes nothing of (some
lose what they do not know) is read as the unknown token: every word gets a tag.

Shapes: B sentences, N windows, T tokens, W words.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tokenizers
from torch import Tensor

from layerwise.data.text_files import MARKS
from layerwise.errors import DataError, OptionError
from layerwise.kinds.text.processor import TextProcessor
from layerwise.kinds.text.windows import owners, stacked

W = rf"[\w{MARKS}]"
WORD = re.compile(rf"https?://\S+|[@#]{W}+|{W}+(?:[-.,]{W}+)*|['’]{W}+|[^\w\s]")
Row = dict[str, list[np.ndarray]]


def words_of(row: str | Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """The text of a row and where its words stand in it, as (start, end) characters.

    Words that came as a list are joined by blanks; a text is cut at blanks and around marks.
    """
    if isinstance(row, Mapping) and "tokens" in row:
        ends = np.cumsum([len(word) + 1 for word in row["tokens"]]).tolist()
        places = [(e - 1 - len(w), e - 1) for w, e in zip(row["tokens"], ends, strict=True)]
        return " ".join(row["tokens"]), places
    text = row.get("text") if isinstance(row, Mapping) else row
    if not isinstance(text, str):
        raise DataError(f"words (tokens) or a text were expected, not rows of {', '.join(row)}")
    return text, [m.span() for m in WORD.finditer(text)]


@dataclass(frozen=True)
class WordProcessor(TextProcessor):
    """Words, or texts that it cuts into words, to a network's input."""

    reads: ClassVar[str] = "words"

    def encode(self, inputs: Sequence[str | Mapping[str, Any]]) -> list[Row]:
        """Of each sentence its windows: tokens (t,), and words (t,): the word whose first token
        stands there, or -1."""
        rows = [[text[a:b] for a, b in places] for text, places in map(words_of, inputs)]
        return [self._in_windows(encoding) for encoding in self._encodings(rows)]

    def length(self, row: Row) -> int:
        return sum(map(len, row["tokens"]))

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """tokens, words, mask: (B, T), or (B, N, T) where a sentence has several windows."""
        return stacked(rows, {"tokens": self.tokenizer.pad_id or 0, "words": -1}, self.max_seq_len)

    def _encodings(self, rows: list[list[str]]) -> list[tokenizers.Encoding]:
        # to these tokenizers a word behind a blank is another than one at the start of a text
        blank = " " if "ByteLevel" in repr(self.tokenizer.inner.pre_tokenizer) else ""
        unknown = self.tokenizer.special.get("unk", "?")
        found = [e for (e,) in self.tokenizer.windows([[blank + w for w in row] for row in rows])]
        for i, row in enumerate(rows):
            if len(row) > len(known := set(found[i].word_ids) - {None}):
                again = [blank + w if j in known else unknown for j, w in enumerate(row)]
                found[i] = self.tokenizer.windows([again])[0][0]
        return found

    def _in_windows(self, encoding: tokenizers.Encoding) -> Row:
        ids = np.array(encoding.ids, np.int64)
        words = np.array([-1 if w is None else w for w in encoding.word_ids])
        firsts = np.where(np.r_[True, words[1:] != words[:-1]], words, -1)  # (t,)
        if len(ids) <= self.max_seq_len:
            return {"tokens": [ids], "words": [firsts]}
        inside = np.flatnonzero(words >= 0)
        head, end = inside[0], inside[-1] + 1  # the special tokens stand around
        room = self.max_seq_len - head - (len(ids) - end)
        if room < 2:
            raise OptionError(f"max_seq_len {self.max_seq_len}: no room for words")
        starts = head + np.arange(0, end - head - room // 4, room - room // 4)
        owner = owners(starts - head, room, end - head)
        out: Row = {"tokens": [], "words": []}
        for k, start in enumerate(starts):
            part = slice(start, min(start + room, end))
            own = np.where(owner[start - head : part.stop - head] == k, firsts[part], -1)
            out["tokens"].append(np.concatenate([ids[:head], ids[part], ids[end:]]))
            out["words"].append(np.r_[firsts[:head], own, firsts[end:]])
        return out
