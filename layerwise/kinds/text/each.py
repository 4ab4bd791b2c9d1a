"""Texts of a row each for itself: pairs and triples for a network that gives every text a vector.

Shapes: B rows, K texts of a row, T tokens of the longest text in the batch, rounded.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from layerwise.errors import DataError
from layerwise.kinds.text.processor import Row, TextProcessor


@dataclass(frozen=True)
class EachProcessor(TextProcessor):
    """Rows of texts to a network's input, one text beside the other: tokens, mask (B, K, T), and
    texts (B, K), a number that only equal texts share, 0 for one that is not there.

    token_types: whether the network has any; each text by itself is the first of a pair.
    """

    reads: ClassVar[str] = "each"
    forms = (("anchor", "positive", "negative"), ("text_a", "text_b"), ("text",))

    def encode(self, inputs: Sequence[Row]) -> list[list[np.ndarray]]:
        """Of each row its K texts, (tokens,) int32; an absent one is empty.

        Errors: DataError for rows of other fields, or of another number of texts than the first.
        """
        rows = [self.texts_of(row) for row in inputs]
        if sizes := {len(row) for row in rows} - {len(rows[0])}:
            raise DataError(f"rows of {len(rows[0])} and of {sizes.pop()} texts do not go together")
        flat = [text for row in rows for text in row]
        ids = self.tokenizer.encode_batch(flat, max_length=self.max_seq_len)
        found = [np.asarray(x if text else (), np.int32) for x, text in zip(ids, flat, strict=True)]
        return [found[i : i + len(rows[0])] for i in range(0, len(found), len(rows[0]))]

    def length(self, row: Sequence[np.ndarray]) -> int:
        return max(map(len, row))

    def collate(self, rows: Sequence[Sequence[np.ndarray]]) -> dict[str, Tensor]:
        """Encoded rows as the tensors of one batch."""
        flat = [text for row in rows for text in row]
        tokens, mask = self.tokenizer.pad(flat, self.max_seq_len)  # type: ignore[arg-type]
        shape = (len(rows), len(rows[0]))
        out = {"tokens": tokens, "texts": torch.tensor([number_of(text) for text in flat])}
        out |= {} if mask is None else {"mask": mask}
        return {name: tensor.unflatten(0, shape) for name, tensor in out.items()}


def number_of(tokens: np.ndarray) -> int:
    """63 bits that only equal texts share, 0 for an absent one."""
    digest = hashlib.blake2b(tokens.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 if len(tokens) else 0
