"""The vocabulary in a GGUF file's keys, as a tokenizer, and a tokenizer as such keys.

The keys: docs/gguf.md of github.com/ggml-org/ggml; what each kind does with a text: llama.cpp.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

from layerwise.errors import WeightsError
from layerwise.tokens import vocabularies
from layerwise.tokens.sentencepieces import (
    BYTE,
    CONTROL,
    DEFINED,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    Pieces,
    is_byte,
)
from layerwise.tokens.vocabularies import PATTERNS, Built

KEY = "tokenizer.ggml."
ROLES = {  # ours to theirs, in their spelling
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding",
    "cls": "cls", "mask": "mask",
}  # fmt: skip
SAME = {  # kinds of cutting that go by several names
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "dbrx",
                  "smaug-bpe", "chatglm-bpe"),
    "qwen2": ("stablelm2", "hunyuan", "deepseek-r1-qwen", "megrez"),
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "roberta-bpe", "jina-es", "jina-de", "jina-v2-code",
              "gigachat", "exaone4", "a.x-4.0", "mellum"),
    "starcoder": ("refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"),
    "gpt-4o": ("llama4", "kormo"),
    "deepseek-v3": ("hunyuan-dense",),
}  # fmt: skip
CUTTING = {name: kind for kind, names in SAME.items() for name in (kind, *names)}
WHOLE_WORDS = ("llama-bpe", "tekken")  # llama.cpp calls it ignore_merges
ADD_BOS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"}


def from_gguf(metadata: Mapping[str, Any]) -> Built:
    """The tokenizer that the keys of a GGUF file describe.

    metadata: keys to values, as `weights.gguf.read_metadata` gives them.
    Errors: WeightsError for keys that are missing and for kinds that layerwise does not have.
    """
    kinds = {"gpt2": _byte_pairs, "llama": _pieces, "t5": _pieces, "bert": _words}
    kind = metadata.get(KEY + "model")
    if kind not in kinds:
        raise _refused("model", kind, kinds)
    texts = _needed(metadata, "tokens")
    roles = {ours: metadata.get(f"{KEY}{theirs}_token_id") for ours, theirs in ROLES.items()}
    named = {r: texts[i] for r, i in roles.items() if i is not None and 0 <= i < len(texts)}
    inner = kinds[kind](metadata, texts)
    if kind != "bert":
        _ends(inner, metadata, named)
        return inner, named
    return inner, {r: t for r, t in named.items() if inner.token_to_id(t) is not None}


def _needed(metadata: Mapping[str, Any], key: str) -> list[Any]:
    if KEY + key not in metadata:
        raise WeightsError(f"this GGUF file has no {KEY}{key}: it holds no whole vocabulary")
    return list(metadata[KEY + key])


def _refused(key: str, value: object, known: Iterable[str]) -> WeightsError:
    return WeightsError(f"{KEY}{key} = {value!r} is not supported, only {', '.join(known)}")


def _kinds(metadata: Mapping[str, Any], texts: list[str]) -> list[int]:
    return list(metadata.get(KEY + "token_type") or [NORMAL] * len(texts))


def _byte_pairs(metadata: Mapping[str, Any], texts: list[str]) -> Tokenizer:
    cutting = metadata.get(KEY + "pre", "default")
    kind = CUTTING.get(cutting, cutting)
    if kind not in PATTERNS:
        raise _refused("pre", cutting, [*PATTERNS, *CUTTING])
    pairs = [(m[: m.index(" ", 1)], m[m.index(" ", 1) + 1 :]) for m in _needed(metadata, "merges")]
    vocab = {text: i for i, text in enumerate(texts)}
    inner = vocabularies.byte_level(vocab, pairs, kind, whole_words=kind in WHOLE_WORDS)
    rows = list(zip(texts, _kinds(metadata, texts), strict=True))
    vocabularies.add_special(inner, [t for t, kind in rows if kind == CONTROL])
    inner.add_tokens([AddedToken(t, normalized=False) for t, kind in rows if kind == DEFINED])
    return inner


def _pieces(metadata: Mapping[str, Any], texts: list[str]) -> Tokenizer:
    return Pieces(
        texts,
        _needed(metadata, "scores"),
        _kinds(metadata, texts),
        unigram=metadata[KEY + "model"] == "t5",
        unk_id=metadata.get(KEY + "unknown_token_id", 0),
        charsmap=bytes(metadata.get(KEY + "precompiled_charsmap", b"")),
        prefix=bool(metadata.get(KEY + "add_space_prefix", True)),
        squeeze=bool(metadata.get(KEY + "remove_extra_whitespaces", False)),
    ).build()


def _words(metadata: Mapping[str, Any], texts: list[str]) -> Tokenizer:
    """llama.cpp marks how words begin, BERT how they go on."""

    def as_bert(text: str) -> str:
        if text.startswith("[") and text.endswith("]"):
            return text
        return text.removeprefix(SPACE) if text.startswith(SPACE) else "##" + text

    return vocabularies.from_words([as_bert(text) for text in texts])[0]


def _ends(inner: Tokenizer, metadata: Mapping[str, Any], named: dict[str, str]) -> None:
    """The tokens that go before and after a text, where the file or its kind says so."""
    kind = metadata[KEY + "model"]
    usual_bos = kind == "llama" or metadata.get(KEY + "pre") in ADD_BOS
    bos = named.get("bos") if metadata.get(KEY + "add_bos_token", usual_bos) else None
    eos = named.get("eos") if metadata.get(KEY + "add_eos_token", kind == "t5") else None
    vocabularies.surround(inner, bos, eos)


# ---- a tokenizer as keys -----------------------------------------------------------------------
def to_gguf(inner: Tokenizer, special: Mapping[str, str]) -> dict[str, Any]:
    """The keys for a GGUF file; `from_gguf` makes the same tokenizer of them.

    special: tokens by role. Errors: WeightsError for tokenizers that llama.cpp has no kind for.
    """
    values = json.loads(inner.to_str())
    model = values["model"]
    by_id = {i: token for token, i in inner.get_vocab().items()}
    texts = [by_id.get(i, f"[UNUSED{i}]") for i in range(max(by_id) + 1)]
    unk = special.get("unk") or model.get("unk_token")
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model.get("merges", [])]
    added = {t["id"]: CONTROL if t["special"] else DEFINED for t in values["added_tokens"]}
    if model["type"] == "WordPiece":
        texts = [_as_llama_cpp(t) for t in texts]
        keys: dict[str, Any] = {"model": "bert", "pre": "default"}
    elif model["type"] == "BPE" and model["byte_fallback"]:
        keys = {"model": "llama", "pre": "default", "scores": _scores(pairs, texts)}
        keys["add_space_prefix"] = "Prepend" in json.dumps(values["normalizer"])
        added |= {i: BYTE for i, t in by_id.items() if is_byte(t)}
        added |= {i: UNKNOWN for i, t in by_id.items() if t == unk}
    else:
        keys = {"model": "gpt2", "pre": _kind_of_cutting(values)}
        keys["merges"] = [" ".join(pair) for pair in pairs]
    keys["tokens"] = texts
    keys["token_type"] = [added.get(i, NORMAL if i in by_id else UNUSED) for i in range(len(texts))]
    numbers = {role: inner.token_to_id(token) for role, token in special.items()}
    if keys["model"] != "bert":
        around = inner.encode("a").ids
        keys["add_bos_token"] = around[0] == numbers.get("bos")
        keys["add_eos_token"] = around[-1] == numbers.get("eos")
    keys |= {f"{ROLES[role]}_token_id": i for role, i in numbers.items()}
    return {KEY + key: value for key, value in keys.items()}


def _as_llama_cpp(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        return text
    return text[2:] if text.startswith("##") else SPACE + text


def _scores(pairs: list[list[str]], texts: list[str]) -> list[float]:
    """Scores in whose order llama.cpp merges as the list of merges does."""
    ranks: dict[str, int] = {}
    for i, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), i)
    return [-float(ranks.get(text, len(pairs))) for text in texts]


def _kind_of_cutting(values: Mapping[str, Any]) -> str:
    """The name of how it cuts texts, by the patterns in its tokenizer.json."""
    steps = values["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    patterns = tuple(s["pattern"].get("Regex") for s in steps if s.get("type") == "Split")
    if not patterns and steps[-1].get("use_regex"):
        patterns = PATTERNS["gpt-2"]
    known = [name for name, cuts in PATTERNS.items() if cuts == patterns]
    normal = (values["normalizer"] or {}).get("type", "NFC")  # which llama.cpp leaves out
    if steps[-1].get("type") != "ByteLevel" or not known or normal != "NFC":
        raise WeightsError(
            f"this tokenizer cuts texts in a way GGUF has no name for, only {', '.join(PATTERNS)}: "
            f"train one with such a pattern, or give the file's keys yourself"
        )
    return known[0]
