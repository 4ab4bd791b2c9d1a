"""Vocabularies in the files of their makers, made into `tokenizers` objects.

GPT-2's and RoBERTa's `vocab.json` + `merges.txt` (Radford et al., 2019), BERT's `vocab.txt`
(arXiv:1810.04805), tiktoken's ranks (github.com/openai/tiktoken), CLIP's `bpe_simple_vocab`
(github.com/openai/CLIP). Each reader returns the tokenizer and its special tokens by role.
"""

import base64
import binascii
import gzip
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from layerwise.errors import WeightsError, unknown

Built = tuple[Tokenizer, dict[str, str]]  # and what its special tokens are for: {"eos": "</s>"}

# ---- how a text is cut before pairs are merged -------------------------------------------------
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = _CASED % (_SHORT + "?", _SHORT + "?") + r"|\p{N}{1,3}" + _CASED_REST
_TEKKEN = _CASED % ("", "") + r"|\p{N}" + _CASED_REST
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PATTERNS: dict[str, tuple[str, ...]] = {  # by the names GGUF gives them; cut in this order
    "gpt-2": (_GPT2,),
    "llama-bpe": (_LLAMA3,),  # GPT-4's cl100k_base too
    "qwen2": (_QWEN2,),
    "gpt-4o": (_GPT4O,),
    "tekken": (_TEKKEN,),
    "starcoder": (r"\p{N}", _GPT2),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    "deepseek-v3": (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}


# ---- what tokenizers are put together from -----------------------------------------------------
def byte_level(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    pattern: str = "gpt-2",
    whole_words: bool = False,
) -> Tokenizer:
    """Byte pairs: texts are cut by PATTERNS[pattern], words are bytes, pairs merge in the order
    given.

    whole_words: a word that is in the vocabulary is taken as it is, whatever the merges say.
    Errors: OptionError for an unknown pattern.
    """
    if pattern not in PATTERNS:
        raise unknown("pattern", pattern, PATTERNS)
    inner = Tokenizer(models.BPE(dict(vocab), list(merges), ignore_merges=whole_words))
    inner.pre_tokenizer = cut_by(PATTERNS[pattern])
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=True)
    return inner


def cut_by(patterns: Sequence[str]) -> pre_tokenizers.PreTokenizer:
    """Cut a text by each pattern in turn, then write its bytes as printable characters."""
    if tuple(patterns) == PATTERNS["gpt-2"]:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)  # has that pattern inside
    cuts = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*cuts, last])


def add_special(inner: Tokenizer, tokens: Sequence[str], **options: bool) -> None:
    """Tokens that stand for themselves wherever they occur and that decoding can leave out."""
    special = partial(tokenizers.AddedToken, normalized=False, special=True, **options)
    inner.add_special_tokens([special(token) for token in tokens])


def surround(inner: Tokenizer, front: str | None, back: str | None) -> None:
    """A token before and one after each text, kept apart from what else is done afterwards."""
    ends = {t: inner.token_to_id(t) for t in (front, back) if t is not None}
    if not ends:
        return
    a, b = (f"{front} " if front else ""), (f" {back}" if back else "")
    template = processors.TemplateProcessing(
        single=f"{a}$A{b}", pair=f"{a}$A{b} $B:1{b and b + ':1'}", special_tokens=list(ends.items())
    )
    before = inner.post_processor
    inner.post_processor = processors.Sequence([before, template]) if before else template


def merges_of(ranks: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, the lowest rank of the third first.

    Vocabularies that keep ranks or scores merge whatever makes the best piece; lists of pairs say
    the same, of two ways to one piece the one with the longer left side first.
    """
    found = [
        (piece[:i], piece[i:])
        for piece in ranks
        for i in range(len(piece) - 1, 0, -1)
        if piece[:i] in ranks and piece[i:] in ranks
    ]
    return sorted(found, key=lambda pair: ranks["".join(pair)])


def read_text(path: Path) -> str:
    """A text file, also when gzip packed it. Errors: WeightsError naming the file."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
        return raw.decode("utf-8")
    except (OSError, EOFError, ValueError) as e:
        raise WeightsError(f"{path}: not a readable text file ({e}); fetch it again") from e


# ---- GPT-2, RoBERTa ----------------------------------------------------------------------------
def from_merges(vocab_file: Path, merges_file: Path) -> Built:
    """`vocab.json` and `merges.txt`; with "<s>" and "</s>" RoBERTa's, with "</w>" CLIP's."""
    written, lines = read_text(vocab_file), read_text(merges_file).splitlines()
    try:
        vocab = json.loads(written)
        halves = (line.split(" ") for line in lines if line and not line.startswith("#version"))
        pairs = [(left, right) for left, right in halves]
        if "!</w>" in vocab:
            return clip(vocab, pairs)
        inner = byte_level(vocab, pairs)
    except Exception as e:  # the library raises bare ones
        raise WeightsError(f"{vocab_file}, {merges_file.name}: not a vocabulary ({e})") from e
    if not {"<s>", "</s>"} <= vocab.keys():
        end = "<|endoftext|>"
        add_special(inner, [end] if end in vocab else [])
        return inner, dict.fromkeys(("bos", "eos", "unk"), end) if end in vocab else {}
    roles = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
    add_special(inner, list(roles.values()))
    add_special(inner, ["<mask>"], lstrip=True)
    ends = [(t, vocab[t]) for t in ("</s>", "<s>")]
    inner.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True)
    return inner, roles | {"cls": "<s>", "sep": "</s>", "mask": "<mask>"}


# ---- BERT --------------------------------------------------------------------------------------
BERT_ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def from_words(words: Sequence[str], lowercase: bool | None = None) -> Built:
    """BERT's list of word pieces, one a line in `vocab.txt`.

    lowercase: by default as the words are: a vocabulary with capitals was made of cased text.
    """
    vocab = {word: i for i, word in enumerate(words)}
    if lacking := [t for t in ("[UNK]", "[CLS]", "[SEP]") if t not in vocab]:
        raise WeightsError(f"{', '.join(lacking)} missing: not a vocabulary of word pieces")
    if lowercase is None:
        lowercase = not any(w != w.lower() for w in words if not w.startswith("["))
    inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    roles = {role: t for role, t in BERT_ROLES.items() if t in vocab}
    add_special(inner, list(roles.values()))
    surround(inner, "[CLS]", "[SEP]")
    return inner, roles


# ---- tiktoken ----------------------------------------------------------------------------------
_END = "<|endoftext|>"
TIKTOKEN: dict[str, tuple[str, dict[str, int]]] = {  # file: how it cuts, and its special tokens
    **dict.fromkeys(("gpt2", "whisper_gpt2", "r50k_base", "p50k_base"), ("gpt-2", {_END: 50256})),
    **dict.fromkeys(("multilingual", "whisper_multilingual"), ("gpt-2", {_END: 50257})),
    "cl100k_base": ("llama-bpe", {_END: 100257, "<|endofprompt|>": 100276}),
    "o200k_base": ("gpt-4o", {_END: 199999, "<|endofprompt|>": 200018}),
}


def from_tiktoken(
    path: Path, pattern: str | None = None, special: Mapping[str, int] | None = None
) -> Built:
    """tiktoken's ranks, a line each: the piece in base64 and its rank; `.gz` too.

    pattern: a name of PATTERNS, and special: tokens with their numbers; both known for the files
    of OpenAI. Errors: WeightsError naming the line, or for another file without a pattern.
    """
    stem = path.name.split(".")[0]
    if pattern is None and stem not in TIKTOKEN:
        say = "say how texts are cut for this vocabulary"
        raise WeightsError(f"{path}: {say}: pattern= one of {list(PATTERNS)}")
    known, usual = TIKTOKEN.get(stem, ("", {}))
    vocab, numbers = _ranks(path), dict(usual if special is None else special)
    inner = byte_level(vocab | numbers, merges_of(vocab), pattern or known, whole_words=True)
    add_special(inner, list(numbers))
    end = _END if _END in numbers else None
    return inner, {"bos": end, "eos": end} if end else {}


def _ranks(path: Path) -> dict[str, int]:
    """Rank by piece, the pieces' bytes written as GPT-2 does."""
    letters, ranks = byte_letters(), {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            piece, rank = line.split()
            ranks["".join(letters[b] for b in base64.b64decode(piece))] = int(rank)
        except (ValueError, binascii.Error) as e:
            if line.strip():
                raise WeightsError(f"{path}: line {number} is not a piece and its rank: {e}") from e
    return ranks


def byte_letters() -> list[str]:
    """GPT-2's printable character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in plain)}
    return [others.get(b, chr(b)) for b in range(256)]


# ---- CLIP --------------------------------------------------------------------------------------
CLIP_SIZE = 49408
_CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def from_clip(path: Path) -> Built:
    """`bpe_simple_vocab_16e6.txt`, also `.gz`: merges alone, the vocabulary follows from them."""
    lines = read_text(path).splitlines()[1:]  # the first says the version
    n_merges = CLIP_SIZE - 2 * 256 - 2  # the file has more than CLIP uses
    if len(lines) < n_merges:
        raise WeightsError(f"{path}: {len(lines)} merges came, CLIP has {n_merges}: truncated?")
    pairs = [(a, b) for a, b in (line.split() for line in lines[:n_merges])]
    letters = sorted(byte_letters())
    pieces = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in pairs)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return clip({piece: i for i, piece in enumerate(pieces)}, pairs)


def clip(vocab: Mapping[str, int], pairs: Sequence[tuple[str, str]]) -> Built:
    """CLIP's tokenizer: lower case, single spaces, words that end in "</w>"."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    model = models.BPE(dict(vocab), list(pairs), end_of_word_suffix="</w>", unk_token=end)
    inner = Tokenizer(model)
    inner.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    words = pre_tokenizers.Split(tokenizers.Regex(_CLIP), "removed", invert=True)
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    add_special(inner, [start, end])
    ends = [(t, vocab[t]) for t in (end, start)]
    inner.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False)
    return inner, {"bos": start, "eos": end, "pad": end, "unk": end}
