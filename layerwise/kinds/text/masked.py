"""Windows of a corpus for masked words: some tokens are hidden, and asked for.

Drawn positions become [MASK] in 8 of 10 cases, any other word in 1, and stay as they are in 1
(BERT, arXiv:1810.04805, section 3.1). In training 30% are drawn, which learns more from a text than
BERT's 15% (Wettig et al., arXiv:2202.08005); scores are of 15%, so that they compare.

Every window is a text as the network will be given one, from [CLS] to [SEP], also where it is cut
out of the middle of a document.

Shapes: B windows, T positions of a window.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.errors import DataError, OptionError
from layerwise.kinds.text.corpus import NO_LOSS, Corpus, Windows

LEARNED, SCORED = 0.3, 0.15  # shares of the positions that are drawn
AS_MASK, AS_OTHER = 0.8, 0.9  # cumulated shares of what a drawn position becomes
FIXED = (0x5C03E,)  # what the draw for scoring follows from, beside the window


class MaskedWindows(Windows):
    """As `Windows`, for a tokenizer with [CLS], [SEP] and [MASK].

    Errors: OptionError for another tokenizer, DataError for windows that have no room for a word.
    """

    def __init__(self, corpus: Corpus, length: int, tokenizer: Any, rows: np.ndarray | None = None):
        ends = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
        if None in ends:
            raise OptionError(
                "masked words need a tokenizer with [CLS], [SEP] and [MASK]; this one has "
                f"{', '.join(tokenizer.special.values()) or 'no special tokens'}"
            )
        if length < 3:
            raise DataError(f"windows of {length} tokens: [CLS], [SEP] and a word need 3")
        self.tokenizer = tokenizer
        self.cls_id, self.sep_id, self.mask_id = ends
        special = {tokenizer.inner.token_to_id(t) for t in tokenizer.special.values()}
        self.words = np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(special))
        super().__init__(corpus, length, rows)

    @property
    def own(self) -> int:
        """Tokens of the corpus in a window: all but the ends it is given."""
        return self.length - 2

    @property
    def n_windows(self) -> int:
        return -(-len(self.corpus.tokens) // self.own)

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]  # rows only, no slices
        start = int(self.rows[i]) * self.own
        return np.asarray(self.corpus.tokens[start : start + self.own])

    def take(self, rows: np.ndarray) -> "MaskedWindows":
        return MaskedWindows(self.corpus, self.length, self.tokenizer, self.rows[rows])

    def tensors(
        self, rows: np.ndarray, shift: int = 0, draw: tuple[int, ...] = ()
    ) -> dict[str, Tensor]:
        """tokens, targets (B, T) int64, NO_LOSS where nothing is asked; documents (B, T) where a
        window has several or is not full.

        draw: seed and step of a training batch; without, positions follow from the window alone.
        """
        T, tokens, share = self.length, self.corpus.tokens, LEARNED if draw else SCORED
        inputs = np.full((len(rows), T), self.tokenizer.pad_id or 0, np.int64)
        targets = np.full((len(rows), T), NO_LOSS, np.int64)
        documents = np.full((len(rows), T), T, np.int64)  # padding: a document of its own
        for b, row in enumerate(self.rows[rows].tolist()):
            start = row * self.own + shift
            if shift:
                start = max(0, min(start, len(tokens) - self.own))
            piece = tokens[start : start + self.own].astype(np.int64)
            place = np.searchsorted(self.corpus.starts, start + np.arange(len(piece)), side="right")
            piece, place = self.closed(piece, place - place[0])
            n, rng = len(piece), np.random.default_rng([*(draw or FIXED), row])
            documents[b, :n] = place
            inputs[b, :n], targets[b, :n] = self.hide(piece, share, rng)
        out = {"tokens": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
        return out | ({"documents": torch.from_numpy(documents)} if documents.any() else {})

    def closed(self, piece: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The piece from [CLS] to [SEP], and the document of each of its tokens."""
        before = [self.cls_id] if piece[0] != self.cls_id else []
        after = [self.sep_id] if piece[-1] != self.sep_id else []
        ends = ((len(before), len(after)),)
        return np.concatenate([before, piece, after]).astype(np.int64), np.pad(place, ends, "edge")

    def hide(
        self, piece: np.ndarray, share: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the network sees and what it is asked, (n,) each; special tokens are never asked."""
        words = np.flatnonzero(np.isin(piece, self.words, kind="table"))
        some = round(share * len(words)) or min(1, len(words))
        drawn = rng.permutation(words)[:some]
        u, others = rng.random(some), rng.choice(self.words, some)
        seen, asked = piece.copy(), np.full_like(piece, NO_LOSS)
        asked[drawn] = piece[drawn]
        seen[drawn] = np.where(
            u < AS_MASK, self.mask_id, np.where(u < AS_OTHER, others, piece[drawn])
        )
        return seen, asked
