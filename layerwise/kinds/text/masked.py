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

from layerwise.errors import DataError, OptionError
from layerwise.kinds.text.corpus import NO_LOSS, Corpus, Filled, Seeds, Windows

LEARNED, SCORED = 0.3, 0.15  # shares of the positions that are drawn
AS_MASK, AS_OTHER = 0.8, 0.9  # cumulated shares of what a drawn position becomes
FIXED = (0x5C03E,)  # what the draw for scoring follows from, beside the window


class MaskedWindows(Windows):
    """As `Windows` of T - 2 tokens of the corpus, for a tokenizer with [CLS], [SEP] and [MASK].

    Errors: OptionError for another tokenizer, DataError for windows that have no room for a word.
    """

    ends, beyond = 2, 0

    def __init__(self, corpus: Corpus, length: int, tokenizer: Any, rows: np.ndarray | None = None):
        roles = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
        if None in roles:
            has = ", ".join(tokenizer.special.values()) or "no special tokens"
            needs = "masked words need a tokenizer with [CLS], [SEP] and [MASK]"
            raise OptionError(f"{needs}; this one has {has}")
        if length < 3:
            raise DataError(f"windows of {length} tokens: [CLS], [SEP] and a word need 3")
        self.tokenizer, self.pad_id = tokenizer, tokenizer.pad_id or 0
        self.cls_id, self.sep_id, self.mask_id = roles
        special = {tokenizer.inner.token_to_id(t) for t in tokenizer.special.values()}
        self.words = np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(special))
        super().__init__(corpus, length, rows)

    def filled(self, piece: np.ndarray, place: np.ndarray, row: int, draw: Seeds) -> Filled:
        """Between [CLS] and [SEP]. Without a draw, positions follow from the window alone."""
        before = [self.cls_id] if piece[0] != self.cls_id else []
        after = [self.sep_id] if piece[-1] != self.sep_id else []
        place = np.pad(place, (len(before), len(after)), "edge")
        piece = np.concatenate([before, piece, after]).astype(np.int64)
        rng = np.random.default_rng([*(draw or FIXED), row])
        return *self.hide(piece, LEARNED if draw else SCORED, rng), place

    def hide(self, piece: np.ndarray, share: float, rng: np.random.Generator) -> Filled:
        """What the network sees and what it is asked, (n,) each; special tokens are never asked."""
        words = np.flatnonzero(np.isin(piece, self.words, kind="table"))
        some = round(share * len(words)) or min(1, len(words))
        drawn = rng.permutation(words)[:some]
        u, others = rng.random(some), rng.choice(self.words, some)
        seen, asked = piece.copy(), np.full_like(piece, NO_LOSS)
        asked[drawn] = piece[drawn]
        kept = np.where(u < AS_OTHER, others, piece[drawn])
        seen[drawn] = np.where(u < AS_MASK, self.mask_id, kept)
        return seen, asked
