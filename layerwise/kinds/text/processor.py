"""Raw texts to token tensors, the same in training and serving; batches of texts of like length.

What a processor of texts has, this one and those beside it:
    encode(rows) -> list                rows of raw fields (or bare texts), each tokenised once
    length(row) -> int                  tokens of an encoded row
    collate(rows) -> dict               tensors by name; "targets" among them where rows have any
    __call__(rows)                      both
    reads, to_dict(), save(folder)      what rebuilds it: its name in `readers.READERS`, its fields
and is made of (tokenizer, max_seq_len, token_types, ...).

Shapes: B texts, T tokens of the longest in the batch, as `padded_length` rounds it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from layerwise.errors import DataError, OptionError
from layerwise.kinds.text.windows import stack
from layerwise.tokens.tokenizer import Tokenizer

Row = str | Sequence[str] | Mapping[str, str]  # one text, or several that are read together
POOL = 50  # batches whose texts are sorted by length together: little padding, still at random


@dataclass(frozen=True)
class TextProcessor:
    """What turns texts, or pairs of them, into a network's input.

    max_seq_len: tokens of a text, the special ones included; what is longer is cut at its end.
    token_types: whether the network tells the first text of a pair from the second.
    """

    tokenizer: Tokenizer
    max_seq_len: int = 512
    token_types: bool = False
    reads: ClassVar[str] = "text"
    forms: ClassVar[tuple[tuple[str, ...], ...]] = (("text",), ("text_a", "text_b"))

    def __post_init__(self) -> None:
        if self.max_seq_len < 2:
            raise OptionError(f"texts of at least 2 tokens were expected: {self.max_seq_len}")

    def __call__(self, inputs: Sequence[Any]) -> dict[str, Tensor]:
        """tokens (B, T); mask (B, T), True for tokens, where some are padding; token_types."""
        return self.collate(self.encode(inputs))

    def texts_of(self, row: Row) -> tuple[str, ...]:
        """The texts of a row in their order: bare, in a sequence, or by the fields of a form."""
        if not isinstance(row, Mapping):
            return (row,) if isinstance(row, str) else tuple(row)
        for form in self.forms:
            if row.keys() >= set(form):
                return tuple(row[name] for name in form)
        known = ", or of ".join(map(" and ".join, self.forms))
        raise DataError(f"rows of {known} were expected, not rows of {', '.join(row)}")

    def encode(self, inputs: Sequence[Row]) -> list[Any]:
        """(tokens of the text,) int32 each; of a pair (2, tokens), with the token types."""
        rows = [self.texts_of(row) for row in inputs]
        if all(len(row) == 1 for row in rows):
            found = self.tokenizer.encode_batch([text for (text,) in rows], True, self.max_seq_len)
            return [np.asarray(ids, np.int32) for ids in found]
        firsts, seconds = zip(*rows, strict=True)
        pairs = self.tokenizer.windows(firsts, seconds, self.max_seq_len)
        return [np.asarray((pair[0].ids, pair[0].type_ids), np.int32) for pair in pairs]

    def length(self, row: np.ndarray) -> int:
        return row.shape[-1]

    def collate(self, rows: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Encoded texts as the tensors of one batch."""
        ids: Any = [row[0] if row.ndim == 2 else row for row in rows]
        tokens, mask = self.tokenizer.pad(ids, self.max_seq_len)
        out = {"tokens": tokens} | ({} if mask is None else {"mask": mask})
        if self.token_types and rows[0].ndim == 2:
            out["token_types"] = stack([[row[1]] for row in rows], 0, self.max_seq_len).long()
        return out

    def to_dict(self) -> dict[str, Any]:
        sizes = {"max_seq_len": self.max_seq_len, "token_types": self.token_types}
        return {"reads": self.reads, **sizes}

    def save(self, folder: str | Path) -> None:
        """The tokenizer's own files; `to_dict` has the rest."""
        self.tokenizer.save(folder)


def like_lengths(lengths: np.ndarray, batch_size: int, seed: Sequence[int]) -> np.ndarray:
    """A random order (n,) in which stretches of `batch_size` have nearly the same length.

    Rows are shuffled, sorted by length within pools of POOL batches, and the batches of all pools
    are shuffled; every row comes once. What does not fill a batch comes last.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    size = POOL * batch_size
    pools = [order[i : i + size] for i in range(0, len(order), size)]
    order = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in pools])
    whole = len(order) // batch_size * batch_size
    batches = order[:whole].reshape(-1, batch_size)
    return np.concatenate([batches[rng.permutation(len(batches))].ravel(), order[whole:]])
