"""Where tokenizers lie: the files of a model folder, and which reader each is for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from layerwise.errors import WeightsError
from layerwise.storage import read_json
from layerwise.tokens import sentencepieces, vocabularies
from layerwise.tokens.vocabularies import Built

USUAL = {  # roles, and the usual tokens for them where no file says which
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "pad": ("<pad>", "[PAD]"), "unk": ("<unk>", "[UNK]"), "mask": ("<mask>", "[MASK]"),
    "cls": ("[CLS]",), "sep": ("[SEP]",),
}  # fmt: skip
ROLES = tuple(USUAL)
IN_A_FOLDER = (
    *("tokenizer.json", "vocab.json", "vocab.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
SHIFTED = ("XLMRoberta", "Camembert", "MBart", "NllbTokenizer")  # their ids are not the file's


def open_file(file: Path, config: Mapping[str, Any] | None = None) -> Built:
    """A tokenizer from one file and what its special tokens are for, by the usual names.

    config: the tokenizer_config.json beside it, if any.
    Errors: WeightsError for a file that is absent, damaged or of no known kind.
    """
    config = config or {}
    if not file.is_file():
        raise WeightsError(f"{file}: there is no such file")
    name = file.name.removesuffix(".gz")
    if name in ("vocab.json", "merges.txt"):
        return vocabularies.from_merges(file.with_name("vocab.json"), file.with_name("merges.txt"))
    if name.endswith(".json"):
        return _tokenizer_json(file)
    if name.startswith(("bpe_simple_vocab", "clip_bpe_simple_vocab")):
        return vocabularies.from_clip(file)
    if name.endswith(".tiktoken"):
        return vocabularies.from_tiktoken(file)
    if name.endswith(".txt"):
        lines = vocabularies.read_text(file).rstrip("\n").split("\n")
        return vocabularies.from_words([w.rstrip("\r") for w in lines], config.get("do_lower_case"))
    if name.endswith(".model"):
        return _model_file(file, config)
    more = ": open it with Tokenizer.from_gguf(read_metadata(path))" if name[-5:] == ".gguf" else ""
    raise WeightsError(f"{file}: not a tokenizer file that layerwise knows{more}")


def open_folder(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, str], dict[str, Any]]:
    """A tokenizer, its special tokens by role, and its tokenizer_config.json."""
    file, config = _file_in(folder), _json_beside(folder, "tokenizer_config.json")
    inner, special = open_file(file, config)
    if file.name != "tokenizer.json":
        _add_tokens(inner, _json_beside(folder, "added_tokens.json"), folder)
    said = _json_beside(folder, "special_tokens_map.json") | config
    tokens = {role: said.get(f"{role}_token") for role in ROLES}
    bare = {r: t.get("content") if isinstance(t, dict) else t for r, t in tokens.items()}
    named = {role: token for role, token in bare.items() if token}
    if named and file.name == "tokenizer.json":
        special = {}  # no need to go by usual names
    template = folder / "chat_template.jinja"
    if template.is_file():
        config["chat_template"] = template.read_text("utf-8")
    return inner, special | named, config


def _file_in(folder: Path) -> Path:
    found = [folder / name for name in IN_A_FOLDER if (folder / name).is_file()]
    found += sorted([*folder.glob("*.tiktoken"), *folder.glob("*.tiktoken.gz")])
    if not found:
        raise WeightsError(f"{folder}: no tokenizer in this folder; expected tokenizer.json")
    return found[0]


def _tokenizer_json(file: Path) -> Built:
    """Its roles go by the usual names: the file itself does not say them."""
    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as e:  # the library raises bare ones
        raise WeightsError(f"{file}: not a tokenizer.json ({e}); fetch it again") from e
    added = {t.content for t in inner.get_added_tokens_decoder().values() if t.special}
    found = {role: next((t for t in names if t in added), "") for role, names in USUAL.items()}
    return inner, {role: token for role, token in found.items() if token}


def _model_file(file: Path, config: Mapping[str, Any]) -> Built:
    """Sentencepiece, or the ranks that Llama 3 keeps under the same name."""
    with file.open("rb") as start:
        if start.read(8).startswith(b"IQ== 0"):
            return vocabularies.from_tiktoken(file, "llama-bpe", {})
    if str(config.get("tokenizer_class", "")).startswith(SHIFTED):
        raise WeightsError(
            f"{file}: {config['tokenizer_class']} numbers its tokens otherwise than this file; "
            f"save it as tokenizer.json (transformers' fast tokenizers do)"
        )
    inner, special = sentencepieces.from_sentencepiece(file)
    front = special.get("bos") if config.get("add_bos_token") else None
    back = special.get("eos") if config.get("add_eos_token") else None
    vocabularies.surround(inner, front, back)
    return inner, special


def _add_tokens(inner: tokenizers.Tokenizer, added: Mapping[str, int], folder: Path) -> None:
    """Tokens that were added later, each under the number it says."""
    for token, number in sorted(added.items(), key=lambda item: item[1]):
        inner.add_special_tokens([tokenizers.AddedToken(token, normalized=False)])
        if (found := inner.token_to_id(token)) != number:
            said = f"{token!r} should have the number {number} but would have {found}"
            raise WeightsError(f"{folder / 'added_tokens.json'}: {said}")


def _json_beside(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}
