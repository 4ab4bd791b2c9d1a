"""A corpus as tokens in one memory-mapped file: tokenised once, read as windows of equal length.

Documents follow each other, each closed by the end-of-text token, or between [CLS] and [SEP] where
the tokenizer has these. A window may hold several; they are told apart by `documents`, so that
attention stays within one, and no token is asked to predict the first token of the next document.

Shapes: n tokens in all, N windows, B windows of a batch, T positions of a window.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch

from layerwise.data.sources import Tensors
from layerwise.errors import DataError
from layerwise.storage import cache_folder, replacing
from layerwise.tokens.tokenizer import Tokenizer

PIECE = 1 << 20  # characters of a document that are tokenised at a time
AT_ONCE = 1 << 23  # characters handed to the tokenizer's threads at a time
Seeds = tuple[int, ...]
Filled = tuple[np.ndarray, ...]
NO_LOSS = -100  # target of a position that carries no loss


@dataclass(frozen=True)
class Corpus:
    """tokens: (n,) uint16 or uint32. starts: (documents + 1,) first token of each."""

    tokens: np.ndarray
    starts: np.ndarray
    n_bytes: int  # of the text, in UTF-8

    @property
    def bytes_per_token(self) -> float:
        return self.n_bytes / max(1, len(self.tokens))


def tokenise(
    texts: Iterable[str], tokenizer: Tokenizer, folder: str | Path | None = None
) -> Corpus:
    """All texts as one corpus, kept in `folder` and found there again by content and tokenizer.

    texts: read twice where they are not kept yet, so an iterable that can be started anew.
    Errors: DataError when there is no text at all; StorageError for a disk that is full.
    """
    folder = cache_folder(folder)
    digest = hashlib.blake2b(tokenizer.fingerprint.encode(), digest_size=12)
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text.encode("utf-8", "surrogatepass"))
    path = folder / f"{digest.hexdigest()}.tokens"
    if not path.with_suffix(".json").exists():
        write_tokens(path, texts, tokenizer)
    return read_tokens(path)


def write_tokens(path: Path, texts: Iterable[str], tokenizer: Tokenizer) -> None:
    """The token file, then its index, each renamed into place when whole."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    starts, n_bytes = [0], 0
    roles = (tokenizer.cls_id,), (tokenizer.eos_id, tokenizer.sep_id)
    front, end = ([i for i in role if i is not None][:1] for role in roles)
    with replacing(path) as partial, partial.open("wb") as file:
        for group in grouped(texts):
            pieces = [piece for text in group for piece in in_pieces(text)]
            encoded = iter(tokenizer.encode_batch(pieces, special=False))
            for text in group:
                ids = front + [i for _ in in_pieces(text) for i in next(encoded)] + end
                file.write(np.asarray(ids, dtype).tobytes())
                starts.append(starts[-1] + len(ids))
                n_bytes += len(text.encode("utf-8", "surrogatepass"))
    index = {"dtype": np.dtype(dtype).name, "starts": starts, "n_bytes": n_bytes}
    with replacing(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(index))


def grouped(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in groups of about AT_ONCE characters."""
    group, size = [], 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def in_pieces(text: str) -> Iterator[str]:
    """A long text cut behind line ends, or after PIECE characters where there is none."""
    start = 0
    while len(text) - start > PIECE:
        cut = text.rfind("\n", start, start + PIECE) + 1 or start + PIECE
        yield text[start:cut]
        start = cut
    yield text[start:]


def read_tokens(path: Path) -> Corpus:
    index = json.loads(path.with_suffix(".json").read_text())
    starts = np.asarray(index["starts"], np.int64)
    if starts[-1] == 0:
        raise DataError("the corpus holds no text: not one token came out of it")
    tokens = np.memmap(path, np.dtype(index["dtype"]), "r", shape=(int(starts[-1]),))
    return Corpus(tokens, starts, index["n_bytes"])


class Windows(Sequence[np.ndarray]):
    """Rows of a corpus: stretches of T + 1 tokens that overlap by the one that is only predicted.

    The values of a field "windows": `len`, `take(rows)`, and `tensors(rows)`.
    """

    ends: ClassVar[int] = 0  # tokens of a window that are not the corpus's own
    beyond: ClassVar[int] = 1  # tokens that are read beyond its own
    pad_id = 0

    def __init__(self, corpus: Corpus, length: int, rows: np.ndarray | None = None):
        self.corpus, self.length, self.stride = corpus, length, length - self.ends
        n = len(corpus.tokens)
        self.n_windows = -(-(n - self.beyond) // self.stride)  # of the corpus
        if self.n_windows < 1:
            raise DataError(f"the text has {n} tokens; at least 2 are needed to predict one")
        self.rows = np.arange(self.n_windows) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]  # rows only, no slices
        start = int(self.rows[i]) * self.stride
        return np.asarray(self.corpus.tokens[start : start + self.stride + self.beyond])

    def take(self, rows: np.ndarray) -> Self:
        out = copy.copy(self)
        out.rows = self.rows[rows]
        return out

    def tensors(self, rows: np.ndarray, shift: int = 0, draw: Seeds = ()) -> Tensors:
        """tokens, targets (B, T) int64, NO_LOSS where nothing is asked; documents (B, T) where a
        window has several or is not full; n_bytes (B,).

        shift: tokens by which all windows are moved, so that every epoch cuts elsewhere; the last
        window of the corpus is moved back instead of running out. draw: seed and step of a training
        batch, from which anything random in it follows.
        """
        tokens, shape, size = (
            self.corpus.tokens,
            (len(rows), self.length),
            self.stride + self.beyond,
        )
        fill = (self.pad_id, NO_LOSS, self.length)  # padding: a document of its own
        inputs, targets, documents = (np.full(shape, value, np.int64) for value in fill)
        for b, row in enumerate(self.rows[rows].tolist()):
            start = row * self.stride + shift
            if shift:
                start = max(0, min(start, len(tokens) - size))
            piece = tokens[start : start + size].astype(np.int64)
            place = np.searchsorted(self.corpus.starts, start + np.arange(len(piece)), side="right")
            filled = self.filled(piece, place - place[0], row, draw)
            for into, values in zip((inputs, targets, documents), filled, strict=True):
                into[b, : len(values)] = values
        out = {"tokens": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
        if documents.any():
            out["documents"] = torch.from_numpy(documents)
        if self.beyond:  # every token is asked: of how many bytes of text
            asked = torch.from_numpy((targets != NO_LOSS).sum(1))
            out["n_bytes"] = asked * self.corpus.bytes_per_token
        return out

    def filled(self, piece: np.ndarray, place: np.ndarray, row: int, draw: Seeds) -> Filled:
        """What the network sees of a window, what it is asked, and the documents: up to (T,) each.

        piece, place: its tokens of the corpus, and the document of each.
        """
        asked = np.where(place[1:] == place[:-1], piece[1:], NO_LOSS)
        return piece[: self.length], asked, place[: self.length]
