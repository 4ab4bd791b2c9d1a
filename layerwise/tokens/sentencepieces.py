"""Sentencepiece vocabularies: the `.model` file read as what it is, a protocol buffer.

Kudo and Richardson, arXiv:1808.06226; the fields: sentencepiece_model.proto of
github.com/google/sentencepiece. Unigram and BPE, with or without bytes for unknown characters.

Departure: after a symbol that the user defined, or a special token, a text gets its leading space
again, as in Llama's published tokenizer.json.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from layerwise.errors import WeightsError
from layerwise.tokens.vocabularies import Built, add_special, merges_of

NORMAL, UNKNOWN, CONTROL, DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of pieces
UNIGRAM, BPE = 1, 2  # kinds of models
SPACE = "▁"


def is_byte(text: str) -> bool:
    """Whether a piece stands for one byte, as in "<0x0A>"."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


@dataclass(frozen=True)
class Pieces:
    """A vocabulary of scored pieces and what is done to a text before.

    charsmap: sentencepiece's compiled table of replacements. prefix: a space before each text.
    squeeze: no spaces at the ends of a text and single ones inside.
    """

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    unigram: bool
    unk_id: int = 0
    charsmap: bytes = b""
    prefix: bool = True
    squeeze: bool = False

    def build(self) -> Tokenizer:
        inner = Tokenizer(self._model())
        steps: list[Any] = [normalizers.Precompiled(self.charsmap)] if self.charsmap else []
        if self.squeeze:
            steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        steps += [normalizers.Prepend(SPACE)] if self.prefix else []
        inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
        if not any(SPACE in t[1:] for t in self._of(NORMAL, DEFINED)):  # words keep to themselves
            inner.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never")
        parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        parts += [decoders.Strip(" ", 1, 0)] if self.prefix else []
        inner.decoder = decoders.Sequence(parts)
        add_special(inner, self._of(CONTROL, UNKNOWN))
        inner.add_tokens([AddedToken(t, normalized=False) for t in self._of(DEFINED)])
        return inner

    def _of(self, *kinds: int) -> list[str]:
        return [t for t, kind in zip(self.texts, self.kinds, strict=True) if kind in kinds]

    def _model(self) -> models.Model:
        bytes_too = BYTE in self.kinds
        if self.unigram:
            pieces = list(zip(self.texts, self.scores, strict=True))
            return models.Unigram(pieces, self.unk_id, byte_fallback=bytes_too)
        rows = zip(self.texts, self.scores, self.kinds, strict=True)
        ranks = {text: -score for text, score, kind in rows if kind in (NORMAL, DEFINED)}
        return models.BPE(
            {text: i for i, text in enumerate(self.texts)},
            merges_of(ranks),
            unk_token=self.texts[self.unk_id],
            fuse_unk=True,
            byte_fallback=bytes_too,
        )


# ---- the file ----------------------------------------------------------------------------------
PIECES, TRAINER, NORMALIZER = 1, 2, 3  # fields of ModelProto
MODEL_TYPE, AS_SUFFIX, UNK_ID, BOS_ID, EOS_ID, PAD_ID = 3, 24, 40, 41, 42, 43  # of TrainerSpec
CHARSMAP, DUMMY_PREFIX, NO_EXTRA_SPACES = 2, 3, 4  # of NormalizerSpec


def from_sentencepiece(path: Path) -> Built:
    """A `.model` file. Errors: WeightsError for a file that is damaged or of another kind."""
    raw = path.read_bytes()
    texts, scores, kinds = [], [], []
    specs: dict[int, dict[int, Any]] = {TRAINER: {}, NORMALIZER: {}}
    try:
        for field, value in fields(raw):
            if field == PIECES:
                piece = dict(fields(value))
                texts.append(piece[1].decode("utf-8"))
                scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
                kinds.append(piece.get(3, NORMAL))
            elif field in specs:
                specs[field].update(fields(value))
    except (ValueError, KeyError, TypeError, struct.error) as e:
        raise WeightsError(f"{path}: not a sentencepiece model, or damaged ({e})") from e
    if not texts:
        raise WeightsError(f"{path}: not a sentencepiece model: no pieces in it")
    trainer, normalizer = specs[TRAINER], specs[NORMALIZER]
    kind = trainer.get(MODEL_TYPE, UNIGRAM)
    if kind not in (UNIGRAM, BPE) or trainer.get(AS_SUFFIX):
        what = "spaces as suffixes" if trainer.get(AS_SUFFIX) else f"model type {kind}"
        raise WeightsError(f"{path}: {what} is not supported, only unigram and BPE with prefixes")
    pieces = Pieces(
        *(texts, scores, kinds, kind == UNIGRAM, trainer.get(UNK_ID, 0)),
        charsmap=normalizer.get(CHARSMAP, b""),
        prefix=bool(normalizer.get(DUMMY_PREFIX, 1)),
        squeeze=bool(normalizer.get(NO_EXTRA_SPACES, 1)),
    )
    numbers = {"unk": (UNK_ID, 0), "bos": (BOS_ID, 1), "eos": (EOS_ID, 2), "pad": (PAD_ID, -1)}
    ids = {role: trainer.get(field, usual) for role, (field, usual) in numbers.items()}
    return pieces.build(), {role: texts[i] for role, i in ids.items() if 0 <= i < len(texts)}


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: number, and an int or bytes. Errors: ValueError when cut short."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value - (1 << 64) if value >> 63 else value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind} at byte {at}")
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + size > len(data):
            raise ValueError(f"cut short at byte {len(data)}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError(f"cut short at byte {at}")
