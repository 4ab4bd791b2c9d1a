"""Texts to token numbers and back: a thin wrapper around the `tokenizers` library.

It opens what vocabularies come in (see `Tokenizer.load`), saves the three files that transformers
opens, and knows which weights it belongs to.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from layerwise.errors import OptionError, WeightsError
from layerwise.storage import replacing
from layerwise.tokens import gguf_vocabulary, vocabularies
from layerwise.tokens.files import ROLES, open_file, open_folder

PROBE = "Ab é 12,345 don't\n\n  x\t日本 Привет 🦙 naïve_ﬁ [x]"  # one text, many ways to cut it
SPARE = 16  # networks may have up to one row in so many that no token uses


def padded_length(longest: int, most: int, rows: int) -> int:
    """How many tokens the texts of a batch are padded to: `longest` rounded up to a multiple of 4
    (of 8 above 64), but no further than `most`. A single text is not padded.

    oneDNN compiles kernels for every new length, some 10 MB each for an encoder that trains.
    """
    step = 1 if rows == 1 else 4 if longest <= 64 else 8
    return max(longest, min(-(-longest // step) * step, most))


class Tokenizer:
    """Texts to lists of token numbers and back.

    special: the tokens by role: {"eos": "</s>", "pad": "<pad>"}; see ROLES. Their numbers are
    `bos_id`, `eos_id`, `pad_id`, `unk_id`, `mask_id`, `cls_id`, `sep_id`; None where it has none.
    config: further keys of tokenizer_config.json, kept as they are (`chat_template` among them).
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        special: Mapping[str, str | None],
        config: Mapping[str, Any] | None = None,
    ):
        inner.no_padding()  # files may hold settings of somebody's batches
        inner.no_truncation()
        self.inner, self.config = inner, dict(config or {})
        self._cutters: dict[tuple[int, int, str], tokenizers.Tokenizer] = {}
        known = {r: t for r, t in special.items() if t and inner.token_to_id(t) is not None}
        self.special: dict[str, str] = known
        ids = (inner.token_to_id(known[r]) if r in known else None for r in ROLES)
        self.bos_id, self.eos_id, self.pad_id, self.unk_id, *rest = ids
        self.mask_id, self.cls_id, self.sep_id = rest

    # ---- opening and saving ------------------------------------------------------------------
    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """From a folder of the Hugging Face layout, or one file, known by its name:

        tokenizer.json; vocab.json beside merges.txt (GPT-2, RoBERTa, CLIP); vocab.txt (BERT);
        *.model (sentencepiece, or Llama 3's ranks); *.tiktoken and bpe_simple_vocab*.txt, also .gz.
        Errors: WeightsError for files that are absent, damaged or of no known kind.
        """
        path = Path(path)
        return cls(*open_folder(path)) if path.is_dir() else cls(*open_file(path))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """From the keys of a GGUF file (`weights.gguf.read_metadata`)."""
        template = metadata.get("tokenizer.chat_template")
        config = {"chat_template": template} if template else {}
        return cls(*gguf_vocabulary.from_gguf(metadata), config)

    def to_gguf(self) -> dict[str, Any]:
        """The keys of a GGUF file for this tokenizer and its chat template."""
        keys = gguf_vocabulary.to_gguf(self.inner, self.special)
        template = self.config.get("chat_template")
        return keys | ({"tokenizer.chat_template": template} if template else {})

    @classmethod
    def from_tiktoken(
        cls, path: str | Path, pattern: str, special: Mapping[str, int] | None = None
    ) -> "Tokenizer":
        """From ranks of another maker than OpenAI.

        pattern: how texts are cut, a name of `vocabularies.PATTERNS`. special: token -> number.
        """
        return cls(*vocabularies.from_tiktoken(Path(path), pattern, special or {}))

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        roles = {f"{role}_token": token for role, token in self.special.items()}
        paired = "sep" in self.special and 1 in self.inner.encode("a", "a").type_ids
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": int(1e30),
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", *["token_type_ids"] * paired, "attention_mask"],
        }
        files = {"tokenizer_config": config | self.config | roles, "special_tokens_map": roles}
        for name, values in files.items():  # laid out as transformers writes them
            with replacing(folder / f"{name}.json") as partial:
                partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
        self.inner.save(str(folder / "tokenizer.json"))

    # ---- what it is --------------------------------------------------------------------------
    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest token number: the rows that a network needs."""
        return 1 + max(self.inner.get_vocab().values(), default=-1)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all tokens with their numbers, and over how a text of many kinds is cut."""
        vocab = sorted((i, token) for token, i in self.inner.get_vocab().items())
        told = json.dumps([vocab, self.encode(PROBE)], ensure_ascii=False)
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()

    def check(self, vocab_size: int, fingerprint: str | None = None, what: str = "") -> None:
        """Errors: WeightsError where this tokenizer cannot be that of a network.

        vocab_size: the network's. fingerprint: the one kept with its weights, if any. A few rows
        that no token uses are usual (they round the size up); a good part of them is not.
        what: how to begin an error, the file's name.
        """
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise WeightsError(
                f"{what}this tokenizer ({self.fingerprint[:12]}) is not the one the weights were "
                f"trained with ({fingerprint[:12]}): use the tokenizer saved beside them"
            )
        n_tokens, why = self.vocab_size, ""
        if n_tokens > vocab_size:
            why = "they do not belong together, or the network's embedding has to be enlarged"
        elif vocab_size - n_tokens > vocab_size // SPARE:
            why = "that is more than spare rows, they do not belong together"
        if why:
            sizes = f"the tokenizer has {n_tokens:,} tokens, the network knows {vocab_size:,}"
            raise WeightsError(f"{what}{sizes}: {why}")

    # ---- texts to numbers --------------------------------------------------------------------
    def encode(self, text: str, pair: str | None = None, special: bool = True) -> list[int]:
        """The token numbers of a text, or of two as one. special: with the tokens around them."""
        return self.inner.encode(text, pair, add_special_tokens=special).ids

    def encode_batch(
        self, texts: Sequence[str], special: bool = True, max_length: int | None = None
    ) -> list[list[int]]:
        """As `encode`, for many at once and in parallel; cut to `max_length` with the ends kept."""
        found = self.inner.encode_batch_fast(list(texts), add_special_tokens=special)
        rows = [e.ids for e in found]
        if max_length is None or not any(len(ids) > max_length for ids in rows):
            return rows
        long = [i for i, ids in enumerate(rows) if len(ids) > max_length]
        kept = _special_at_end(found[long[0]])  # as many in each: they come with the template
        if max_length <= kept:
            raise OptionError(f"max_length {max_length}: no room for the text")
        for i in long:
            rows[i][max_length - kept : len(rows[i]) - kept] = []
        return rows

    def windows(
        self,
        texts: Sequence[str] | Sequence[Sequence[str]],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        stride: int = 0,
    ) -> list[list[tokenizers.Encoding]]:
        """The library's encodings (ids, type_ids, offsets, word_ids ...) of texts or pairs.

        texts: also as lists of words, whose tokens then tell their word. Of each one encoding, or
        with a `stride` as many as it takes to cover a text of more than `max_length` tokens, each
        overlapping the last by that many; of a pair, it is then the second that is cut.
        Errors: OptionError for a length that leaves no room.
        """
        words = len(texts) > 0 and not isinstance(texts[0], str)
        rows: list[Any] = list(zip(texts, pairs, strict=True)) if pairs else list(texts)
        if max_length is None:
            return [[e] for e in self.inner.encode_batch(rows, is_pretokenized=words)]
        room = max_length - self.inner.num_special_tokens_to_add(pairs is not None)
        if room < 1 or stride >= room:
            raise OptionError(f"max_length {max_length}, stride {stride}: no room for the text")
        way = "only_second" if pairs and stride else "longest_first"
        try:
            found = self._cutting(max_length, stride, way).encode_batch(rows, words)
        except Exception as e:  # the library raises bare ones
            raise OptionError(f"a text cannot be cut to max_length {max_length}: {e}") from e
        return [[e, *(e.overflowing if stride else ())] for e in found]

    def _cutting(self, max_length: int, stride: int, way: str) -> tokenizers.Tokenizer:
        """A copy that cuts: the setting is the object's, and others may be using this one."""
        key = max_length, stride, way
        if key not in self._cutters:
            copy = tokenizers.Tokenizer.from_str(self.inner.to_str())
            copy.enable_truncation(max_length, stride=stride, strategy=way)
            self._cutters[key] = copy
        return self._cutters[key]

    def pad(self, rows: Sequence[Sequence[int]], most: int) -> tuple[Tensor, Tensor | None]:
        """Rows of numbers as (B, T) int64, padded at the end, and the mask: True for tokens.

        most: tokens that a text may have; T is `padded_length`.
        The mask is None where no row is padded: networks are faster without.
        """
        lengths = torch.tensor([len(row) for row in rows])
        T = padded_length(int(lengths.max()), most, len(rows))
        filler = self.pad_id if self.pad_id is not None else self.eos_id or 0
        tokens = torch.tensor([[*row, *[filler] * (T - len(row))] for row in rows])
        if bool((lengths == T).all()):
            return tokens, None
        return tokens, torch.arange(T) < lengths[:, None]

    # ---- numbers to texts --------------------------------------------------------------------
    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of token numbers. special: whether to write the special tokens too."""
        return self.inner.decode(list(ids), skip_special_tokens=not special)

    def stream(self, special: bool = False) -> "Stream":
        """Decoding as tokens arrive: `push(id)` returns what can be shown, `flush()` the rest."""
        return Stream(self, special)


class Stream:
    """Text from tokens one by one; a character waits until all of its bytes are there."""

    def __init__(self, tokenizer: Tokenizer, special: bool = False):
        self.tokenizer, self.special = tokenizer, special
        self.before: list[int] = []  # what made the last text: context for the next
        self.waiting: list[int] = []

    def push(self, token: int) -> str:
        self.waiting.append(token)
        return self._take(whole=False)

    def flush(self) -> str:
        return self._take(whole=True)

    def _take(self, whole: bool) -> str:
        shown = self.tokenizer.decode(self.before, self.special)
        text = self.tokenizer.decode(self.before + self.waiting, self.special)
        unfinished = text.endswith("\ufffd") or not text.startswith(shown)
        if len(text) <= len(shown) or (unfinished and not whole):
            return ""
        self.before, self.waiting = self.waiting, []
        return text[len(shown) :]


def _special_at_end(encoding: tokenizers.Encoding) -> int:
    marks = encoding.special_tokens_mask[::-1]
    return marks.index(0) if 0 in marks else 0
