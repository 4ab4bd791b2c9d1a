"""Tokenizers: every kind of vocabulary, to the token; training, saving, streaming, belonging."""

import copy
import gzip
import json
import pickle
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from layerwise.errors import DataError, OptionError, WeightsError
from layerwise.tokens import sentencepieces, vocabularies
from layerwise.tokens.tokenizer import Tokenizer, padded_length
from layerwise.tokens.training import train_bpe, train_wordpiece
from layerwise.weights.gguf.read import read_metadata
from tests import oracles

TEXTS = [
    "",
    "Hello world",
    "  two  spaces, and a tab\tand\n\n new lines \r\n",
    "I'VE don't it's 3.14 1234567 xxxxxxxxx aaaa ======",
    "naïve café — “quoted” ﬁne Ⅷ e\u0301",
    "Привет, мир! 日本語のテキスト 한국어 ไทย नमस्ते",
    "🦙🚀 family 👩‍👩‍👧 end",
    "def f(x):\n    return x**2  # code\n",
]
CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Sphinx of black quartz, judge my vow, said the fox.",
    "The dog and the fox and the sphinx are quick.",
] * 20
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="session")
def vocabulary(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The keys of a GGUF vocabulary of the shared data, by its name."""
    read: dict[str, dict[str, Any]] = {}

    def keys(name: str) -> dict[str, Any]:
        if name not in read:
            path = tmp_path_factory.mktemp("vocab") / f"{name}.gguf"
            packed = shared_data / "tokenizers" / f"ggml-vocab-{name}.gguf.gz"
            path.write_bytes(gzip.decompress(packed.read_bytes()))
            read[name] = read_metadata(path)
        return read[name]

    return keys


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(CORPUS, 300)


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return train_wordpiece(CORPUS, 120)


# ---- the vectors -------------------------------------------------------------------------------
@pytest.mark.data
@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "bert-bge"])
def test_gguf_vocabularies_pass_their_vectors(
    name: str, vocabulary: Callable[[str], Any], shared_data: Path
):
    tokenizer = Tokenizer.from_gguf(vocabulary(name))
    path = shared_data / "tokenizers" / f"ggml-vocab-{name}.gguf.inp"
    texts = path.read_bytes().decode("utf-8").split(SEPARATOR)[:-1]
    lines = path.with_suffix(".out").read_text().split("\n")[: len(texts)]
    expected = [[int(i) for i in line.split()] for line in lines]
    assert len(texts) == 46
    assert tokenizer.encode_batch(texts, special=False) == expected
    if name != "bert-bge":  # which drops capitals and spaces
        assert [tokenizer.decode(ids) for ids in expected] == texts
        assert [streamed(tokenizer, ids) for ids in expected] == texts


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join([*(stream.push(i) for i in ids), stream.flush()])


@pytest.mark.data
def test_roles_and_ends_come_with_the_file(vocabulary: Callable[[str], Any]):
    llama = Tokenizer.from_gguf(vocabulary("llama-spm"))
    assert (llama.bos_id, llama.eos_id, llama.unk_id, llama.pad_id) == (1, 2, 0, None)
    assert llama.encode("Hello world") == [1, 15043, 3186]
    assert llama.decode([1, 15043, 3186, 2]) == "Hello world"
    bge = Tokenizer.from_gguf(vocabulary("bert-bge"))
    assert (bge.cls_id, bge.sep_id, bge.pad_id, bge.mask_id) == (101, 102, 0, 103)
    assert bge.encode("Hello", "world") == [101, 7592, 102, 2088, 102]
    gpt2 = Tokenizer.from_gguf(vocabulary("gpt-2"))
    assert gpt2.encode("a<|endoftext|>") == [64, gpt2.eos_id] == [64, 50256]


@pytest.mark.data
def test_one_vocabulary_in_several_files_is_one(vocabulary: Callable[[str], Any], tmp_path: Path):
    """GPT-2 as GGUF and as vocab.json + merges.txt; BERT as GGUF and as vocab.txt."""
    keys = vocabulary("gpt-2")
    words = keys["tokenizer.ggml.tokens"]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    merges = "\n".join(["#version: 0.2", *keys["tokenizer.ggml.merges"]])
    (tmp_path / "merges.txt").write_text(merges, "utf-8")
    files = Tokenizer.load(tmp_path)
    assert files.fingerprint == Tokenizer.from_gguf(keys).fingerprint
    assert files.special == dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")

    bge = Tokenizer.from_gguf(vocabulary("bert-bge"))
    by_id = sorted(bge.inner.get_vocab().items(), key=lambda item: item[1])
    path = tmp_path / "other" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("\n".join(word for word, _ in by_id) + "\n", "utf-8")
    assert Tokenizer.load(path).fingerprint == bge.fingerprint
    assert Tokenizer.load(path).special == bge.special


# ---- tiktoken, CLIP ----------------------------------------------------------------------------
@pytest.mark.data
@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "end"), [("whisper_gpt2", 50256), ("whisper_multilingual", 50257)]
)
def test_whisper_ranks_are_as_tiktoken(name: str, end: int, shared_data: Path):
    tiktoken = pytest.importorskip("tiktoken")
    path = shared_data / "tokenizers" / f"{name}.tiktoken.gz"
    ours = Tokenizer.load(path)
    assert (ours.eos_id, ours.vocab_size) == (end, end + 1)
    theirs = tiktoken.Encoding(
        name,
        pat_str=vocabularies.PATTERNS["gpt-2"][0],
        mergeable_ranks=ranks_of(path),
        special_tokens={},
    )
    noise = random.Random(0)
    letters = "ab xyz'\n 01é日🦙"
    texts = TEXTS + ["".join(noise.choices(letters, k=60)) for _ in range(200)]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids == theirs.encode(text, disallowed_special=())
        assert ours.decode(ids) == text


def ranks_of(path: Path) -> dict[bytes, int]:
    import base64

    lines = gzip.decompress(path.read_bytes()).splitlines()
    return {base64.b64decode(piece): int(rank) for piece, rank in (x.split() for x in lines)}


@pytest.mark.data
def test_clip_as_openai_says(shared_data: Path):
    clip = Tokenizer.load(shared_data / "tokenizers" / "clip_bpe_simple_vocab_16e6.txt.gz")
    assert clip.vocab_size == 49408
    assert (clip.bos_id, clip.eos_id) == (49406, 49407)
    # the notebook of openai/CLIP and its README
    assert clip.encode("hello world!") == [49406, 3306, 1002, 256, 49407]
    assert clip.encode("A photo  of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert clip.encode("a diagram", special=False) == [320, 22697]


def test_ranks_of_unknown_makers_need_a_pattern(tmp_path: Path):
    path = tmp_path / "mine.tiktoken"
    path.write_text("IQ== 0\nIg== 1\nISI= 2\n")
    with pytest.raises(WeightsError, match=r"mine.tiktoken: say how texts are cut .*pattern="):
        Tokenizer.load(path)
    mine = Tokenizer.from_tiktoken(path, "gpt-2", {"<end>": 9})
    assert mine.encode('!"<end>!') == [2, 9, 0]
    assert mine.vocab_size == 10
    with pytest.raises(OptionError, match="unknown pattern 'gpt2'"):
        Tokenizer.from_tiktoken(path, "gpt2")
    path.write_text("IQ== 0\nnonsense\n")
    with pytest.raises(WeightsError, match=r"mine.tiktoken: line 2 is not a piece and its rank"):
        Tokenizer.from_tiktoken(path, "gpt-2")


# ---- sentencepiece -----------------------------------------------------------------------------
SENTENCES = [*CORPUS, "naïve café 日本語", "Привет мир 1234", "two  spaces and aaaa"]


def train_sentencepiece(folder: Path, **options: Any) -> ModuleType | Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spm = pytest.importorskip("sentencepiece")
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES),
            model_prefix=str(folder / "m"),
            minloglevel=9,
            hard_vocab_limit=False,
            **options,
        )
        return spm.SentencePieceProcessor(model_file=str(folder / "m.model"))


@pytest.mark.oracle
@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe", "vocab_size": 140},
        {"model_type": "unigram", "vocab_size": 90},
        {"model_type": "bpe", "vocab_size": 380, "byte_fallback": True,  # as Llama's
         "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"model_type": "unigram", "vocab_size": 340, "byte_fallback": True},
        {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "add_dummy_prefix": False,
         "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
         "allow_whitespace_only_pieces": True},  # as Gemma's
        {"model_type": "unigram", "vocab_size": 90, "pad_id": 3, "unk_id": 2, "bos_id": -1,
         "eos_id": 1, "normalization_rule_name": "nmt_nfkc"},  # as T5's
    ],
    ids=["bpe", "unigram", "llama", "unigram-bytes", "gemma", "t5"],
)  # fmt: skip
def test_sentencepiece_models_are_as_the_library_reads_them(
    options: dict[str, Any], tmp_path: Path
):
    theirs = train_sentencepiece(tmp_path, **options)
    ours = Tokenizer.load(tmp_path / "m.model")
    assert ours.vocab_size == theirs.vocab_size()
    ids = [ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id]
    said = [theirs.unk_id(), theirs.bos_id(), theirs.eos_id(), theirs.pad_id()]
    assert ids == [None if i < 0 else i for i in said]
    for text in [*TEXTS, *SENTENCES, " the  fox "]:
        expected = theirs.encode(text)
        assert ours.encode(text) == expected, text
        if options.get("byte_fallback"):
            assert ours.decode(expected) == theirs.decode(expected)
            assert streamed(ours, expected) == theirs.decode(expected)


@pytest.mark.oracle
def test_a_folder_says_what_goes_around_a_text(tmp_path: Path):
    theirs = train_sentencepiece(tmp_path, model_type="bpe", vocab_size=140)
    (tmp_path / "m.model").rename(tmp_path / "tokenizer.model")
    config = {"add_bos_token": True, "tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": theirs.vocab_size()}))
    ours = Tokenizer.load(tmp_path)
    assert ours.encode("the fox") == [theirs.bos_id(), *theirs.encode("the fox")]
    assert ours.vocab_size == theirs.vocab_size() + 1
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    with pytest.raises(WeightsError, match="numbers its tokens otherwise"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x0a\xff\x01abc", "cut short at byte"),
        (b"not a model at all", "not a sentencepiece model"),
        (b"", "no pieces in it"),
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x03", "model type 3 is not supported, only unigram"),
    ],
)
def test_damaged_sentencepiece_files_are_errors(raw: bytes, message: str, tmp_path: Path):
    (tmp_path / "x.model").write_bytes(raw)
    with pytest.raises(WeightsError, match=message):
        Tokenizer.load(tmp_path / "x.model")


def test_protocol_buffers_are_read_field_by_field():
    message = (
        b"\x08\x96\x01"
        + b"\x12\x03abc"
        + b"\x1d"
        + struct.pack("<f", 0.5)
        + b"\x20"
        + (b"\xff" * 9 + b"\x01")
    )
    assert list(sentencepieces.fields(message)) == [
        (1, 150),
        (2, b"abc"),
        (3, struct.pack("<f", 0.5)),
        (4, -1),
    ]


# ---- GGUF: kinds -------------------------------------------------------------------------------
def bytes_only(pre: str) -> dict[str, Any]:
    tokens = [*vocabularies.byte_letters(), "<s>", "<tool>", "11", "111", "ab"]
    kinds = [1] * 256 + [3, 4, 1, 1, 1]
    key = "tokenizer.ggml."
    return {
        key + "model": "gpt2",
        key + "pre": pre,
        key + "tokens": tokens,
        key + "token_type": kinds,
        key + "merges": ["1 1", "11 1"],
        key + "bos_token_id": 256,
    }


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["11", "111"]),
        ("llama-bpe", ["<s>", "111", "11"]),  # threes, then the rest
        ("qwen2", ["1"] * 5),
        ("starcoder", ["1"] * 5),
        ("default", ["111", "11"]),
    ],
)
def test_kinds_of_cutting(pre: str, expected: list[str]):
    tokenizer = Tokenizer.from_gguf(bytes_only(pre))
    assert [tokenizer.inner.id_to_token(i) for i in tokenizer.encode("11111")] == expected


def test_whole_words_special_and_defined_tokens_of_gguf():
    llama = Tokenizer.from_gguf(bytes_only("llama-bpe"))
    assert llama.encode("ab", special=False) == [260]  # a word of the vocabulary, without a merge
    assert len(Tokenizer.from_gguf(bytes_only("gpt-2")).encode("ab")) == 2
    assert llama.encode("a<tool>", special=False)[-1] == 257
    assert llama.decode(llama.encode("<s>a<tool>")) == "a<tool>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre": "klingon"}, r"tokenizer.ggml.pre = 'klingon' is not supported, only gpt-2"),
        ({"model": "rwkv"}, r"tokenizer.ggml.model = 'rwkv' is not supported"),
        ({"model": None}, r"tokenizer.ggml.model = None"),
    ],
)
def test_kinds_we_do_not_have_are_errors(change: dict[str, Any], message: str):
    keys = bytes_only("gpt-2") | {f"tokenizer.ggml.{k}": v for k, v in change.items()}
    with pytest.raises(WeightsError, match=message):
        Tokenizer.from_gguf(keys)


def test_a_gguf_file_without_its_vocabulary_is_an_error():
    keys = bytes_only("gpt-2")
    del keys["tokenizer.ggml.merges"]
    with pytest.raises(WeightsError, match=r"no tokenizer.ggml.merges"):
        Tokenizer.from_gguf(keys)


@pytest.mark.data
@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "bert-bge"])
def test_the_keys_of_a_gguf_file_come_out_again(name: str, vocabulary: Callable[[str], Any]):
    ours = Tokenizer.from_gguf(vocabulary(name))
    keys = ours.to_gguf()
    again = Tokenizer.from_gguf(keys)
    assert (again.fingerprint, again.special) == (ours.fingerprint, ours.special)
    same = ("tokens", "token_type", "merges", "model", "bos_token_id", "seperator_token_id")
    for key in (f"tokenizer.ggml.{k}" for k in same):
        if key == "tokenizer.ggml.token_type" and name == "bert-bge":
            continue  # that file marks a single one of its special tokens
        assert keys.get(key) == vocabulary(name).get(key), key


@pytest.mark.parametrize("pattern", ["qwen2", "gpt-2", "llama-bpe"])
def test_trained_tokenizers_go_into_gguf(pattern: str):
    ours = train_bpe(CORPUS, 300, pattern=pattern)
    ours.config["chat_template"] = "{{ messages }}"
    keys = ours.to_gguf()
    assert keys["tokenizer.ggml.pre"] == pattern
    again = Tokenizer.from_gguf(keys)
    assert again.fingerprint == ours.fingerprint
    assert again.config == ours.config


def test_tokenizers_that_gguf_has_no_name_for_are_errors(tmp_path: Path):
    ours = train_bpe(CORPUS, 300)
    ours.inner.pre_tokenizer = vocabularies.cut_by([r"\w+"])
    with pytest.raises(WeightsError, match="GGUF has no name for"):
        ours.to_gguf()


@pytest.mark.oracle
def test_cutting_is_as_in_tiktoken_and_transformers():
    """The patterns beside those of the makers, on texts that tell them apart."""
    regex = pytest.importorskip("regex")
    cl100k = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    )
    letters = vocabularies.byte_letters()
    for text in TEXTS:
        cuts = vocabularies.cut_by(vocabularies.PATTERNS["llama-bpe"]).pre_tokenize_str(text)
        expected = regex.findall(cl100k, text)
        written = ["".join(letters[b] for b in word.encode()) for word in expected]
        assert [word for word, _ in cuts] == written


# ---- training and saving -----------------------------------------------------------------------
def test_a_trained_bpe_says_any_text(bpe: Tokenizer):
    assert bpe.vocab_size == 300
    assert (bpe.eos_id, bpe.pad_id, bpe.bos_id) == (0, 0, None)
    assert [bpe.decode(bpe.encode(text)) for text in TEXTS] == TEXTS
    assert [streamed(bpe, bpe.encode(text)) for text in TEXTS] == TEXTS
    assert len(bpe.encode(CORPUS[0])) < len(CORPUS[0])


def test_a_trained_wordpiece_is_a_bert_tokenizer(wordpiece: Tokenizer):
    assert (wordpiece.pad_id, wordpiece.unk_id, wordpiece.mask_id) == (0, 1, 4)
    ids = wordpiece.encode("The FOX")
    assert [ids[0], ids[-1]] == [wordpiece.cls_id, wordpiece.sep_id]
    assert wordpiece.decode(ids) == "the fox"
    assert wordpiece.encode("日", special=False) == [wordpiece.unk_id]


def test_training_is_the_same_again(bpe: Tokenizer, wordpiece: Tokenizer):
    assert train_bpe(iter(CORPUS), 300).fingerprint == bpe.fingerprint
    assert train_wordpiece(iter(CORPUS), 120).fingerprint == wordpiece.fingerprint


def test_training_needs_text_and_room():
    with pytest.raises(DataError, match="all of it is empty"):
        train_bpe(["", " \n"], 300)
    with pytest.raises(DataError, match="all of it is empty"):
        train_wordpiece([], 300)
    with pytest.raises(OptionError, match="vocab_size 200: at least 257"):
        train_bpe(CORPUS, 200)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_transformers_opens_what_is_saved(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
):
    transformers = oracles.import_transformers()
    ours: Tokenizer = request.getfixturevalue(kind)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [theirs(text)["input_ids"] for text in TEXTS] == ours.encode_batch(TEXTS)
    assert theirs.eos_token_id == ours.eos_id
    assert theirs.mask_token_id == ours.mask_id
    assert theirs.decode(ours.encode("the fox"), skip_special_tokens=True) == "the fox"
    assert ("token_type_ids" in theirs("a", "b")) == (kind == "wordpiece")
    cut = theirs(CORPUS, truncation=True, max_length=7)["input_ids"]
    assert ours.encode_batch(CORPUS, max_length=7) == cut


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_saved_and_loaded_is_the_same(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    ours: Tokenizer = request.getfixturevalue(kind)
    again = Tokenizer(ours.inner, ours.special, {"chat_template": "{{ messages }}"})
    again.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.special, loaded.fingerprint) == (ours.special, ours.fingerprint)
    assert loaded.config["chat_template"] == "{{ messages }}"
    assert loaded.encode_batch(TEXTS) == ours.encode_batch(TEXTS)
    alone = Tokenizer.load(tmp_path / "tokenizer.json")  # the roles go by their usual names
    assert alone.special.items() >= {r: t for r, t in ours.special.items() if r != "pad"}.items()


@pytest.mark.data
def test_gguf_vocabularies_are_saved_whole(vocabulary: Callable[[str], Any], tmp_path: Path):
    ours = Tokenizer.from_gguf(vocabulary("llama-spm"))
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == ours.fingerprint


def test_settings_of_somebodys_batches_are_dropped(wordpiece: Tokenizer, tmp_path: Path):
    wordpiece.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    values["truncation"] = {
        "max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"
    }  # fmt: skip
    values["padding"] = {
        "strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    path.write_text(json.dumps(values))
    assert Tokenizer.load(tmp_path).encode(CORPUS[0]) == wordpiece.encode(CORPUS[0])


# ---- batches -----------------------------------------------------------------------------------
def test_batches_are_as_single_texts(bpe: Tokenizer, wordpiece: Tokenizer):
    for tokenizer in (bpe, wordpiece):
        assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_long_texts_keep_their_ends(wordpiece: Tokenizer):
    whole = wordpiece.encode(CORPUS[0])
    assert wordpiece.encode_batch([CORPUS[0]], max_length=6) == [[*whole[:5], wordpiece.sep_id]]
    assert wordpiece.encode_batch([CORPUS[0]], max_length=len(whole)) == [whole]
    bare = wordpiece.encode_batch([CORPUS[0]], special=False, max_length=6)
    assert bare == [whole[1:7]]
    with pytest.raises(OptionError, match="max_length 1: no room"):
        wordpiece.encode_batch([CORPUS[0]], max_length=1)


def test_windows_cover_the_text(wordpiece: Tokenizer):
    question, context = "who jumps", " ".join(CORPUS[:3])
    (found,) = wordpiece.windows([question], [context], max_length=24, stride=4)
    assert len(found) > 1
    covered: set[int] = set()
    for window in found:
        assert len(window) <= 24
        assert window.ids[0] == wordpiece.cls_id
        assert window.ids[-1] == wordpiece.sep_id
        of_context = [i for i, s in enumerate(window.sequence_ids) if s == 1]
        assert all(window.type_ids[i] == 1 for i in of_context)
        for i in of_context:
            start, stop = window.offsets[i]
            piece = window.tokens[i].removeprefix("##")
            assert context[start:stop].lower() == piece
            covered |= set(range(start, stop))
    assert {i for i, c in enumerate(context) if not c.isspace()} == covered
    ((whole,),) = wordpiece.windows([question], [context])
    assert whole.ids == wordpiece.encode(question, context)
    ((first,),) = wordpiece.windows([question], [context], max_length=24)
    assert first.ids == found[0].ids


def test_words_of_a_row_are_told_apart(wordpiece: Tokenizer):
    ((window,),) = wordpiece.windows([["The", "sphinxes", "judge"]])
    words = [w for w in window.word_ids if w is not None]
    assert sorted(set(words)) == [0, 1, 2]
    assert words.count(1) > 1  # several pieces, one word


def test_no_room_for_text_is_an_error(wordpiece: Tokenizer):
    with pytest.raises(OptionError, match="max_length 2, stride 0: no room for the text"):
        wordpiece.windows(["the fox"], max_length=2)
    with pytest.raises(OptionError, match="cannot be cut to max_length 5"):
        wordpiece.windows(["the fox the fox"], ["dog"], max_length=5, stride=1)


def test_a_tokenizer_can_be_copied_and_sent(wordpiece: Tokenizer):
    wordpiece.windows(["the fox"], max_length=3)
    for twin in (copy.deepcopy(wordpiece), pickle.loads(pickle.dumps(wordpiece))):
        assert twin.encode_batch(TEXTS) == wordpiece.encode_batch(TEXTS)


def test_padding(wordpiece: Tokenizer):
    tokens, mask = wordpiece.pad([[5, 6, 7], [8]], 512)
    assert tokens.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert mask is not None
    assert mask.tolist() == [[True] * 3 + [False], [True, False, False, False]]
    tokens, mask = wordpiece.pad([[5, 6, 7, 8], [7, 8, 9, 5]], 512)
    assert (tokens.dtype, mask) == (torch.int64, None)
    tokens, mask = wordpiece.pad([[5, 6, 7]], 512)
    assert (tokens.tolist(), mask) == ([[5, 6, 7]], None)


def test_batches_have_few_lengths_and_never_more_than_a_text_may():
    lengths = [padded_length(n, 509, 2) for n in range(1, 510)]
    assert all(n <= T < n + 8 for n, T in enumerate(lengths, 1))
    assert len(set(lengths)) == 16 + 56
    assert lengths[:5] + lengths[63:66] + lengths[-1:] == [4, 4, 4, 4, 8, 64, 72, 72, 509]


def test_a_character_waits_for_its_bytes(bpe: Tokenizer):
    stream = bpe.stream()
    parts = [stream.push(i) for i in bpe.encode("a🦙b")]
    assert parts == ["a", "", "", "", "🦙", "b"]
    stream = bpe.stream()
    broken = bpe.encode("🦙")[:2]
    assert [stream.push(i) for i in broken] == ["", ""]
    assert stream.flush() == "\ufffd"


# ---- whose weights -----------------------------------------------------------------------------
def test_a_tokenizer_of_another_network_is_caught(bpe: Tokenizer, wordpiece: Tokenizer):
    bpe.check(300)
    bpe.check(304, bpe.fingerprint)  # rows that round the size up
    with pytest.raises(WeightsError, match=r"tokenizer has 300 tokens, the network knows 256"):
        bpe.check(256)
    with pytest.raises(WeightsError, match=r"has 300 tokens, the network knows 30,522: that is"):
        bpe.check(30522)
    with pytest.raises(WeightsError, match=r"not the one the weights were trained with"):
        bpe.check(300, wordpiece.fingerprint)


def test_the_fingerprint_sees_what_is_done_around_the_vocabulary():
    cased, uncased = (train_wordpiece(["the fox"], 60, lowercase=low) for low in (False, True))
    assert cased.inner.get_vocab() == uncased.inner.get_vocab()
    assert cased.fingerprint != uncased.fingerprint


# ---- files that are no tokenizers --------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", r"tokenizer.json: not a tokenizer.json"),
        ("vocab.json", '{"a": 0}', r"merges.txt: not a readable text file"),
        ("vocab.txt", "a\nb\n", r"\[UNK\], \[CLS\], \[SEP\] missing"),
        ("bpe_simple_vocab_16e6.txt", "#version\na b\n", r"1 merges came, CLIP has 48894"),
        ("model.gguf", "GGUF", r"Tokenizer.from_gguf\(read_metadata\(path\)\)"),
        ("weights.bin", "x", r"not a tokenizer file that layerwise knows"),
    ],
)
def test_files_that_are_no_tokenizers(name: str, content: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(WeightsError, match=message):
        Tokenizer.load(tmp_path / name)


def test_absent_files_and_empty_folders(tmp_path: Path):
    with pytest.raises(WeightsError, match="no tokenizer in this folder"):
        Tokenizer.load(tmp_path)
    with pytest.raises(WeightsError, match="there is no such file"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "cut.tiktoken.gz").write_bytes(gzip.compress(b"IQ== 0\n" * 99)[:-9])
    with pytest.raises(WeightsError, match=r"cut.tiktoken.gz: not a readable text file"):
        Tokenizer.from_tiktoken(tmp_path / "cut.tiktoken.gz", "gpt-2")


def test_roberta_and_clip_folders(tmp_path: Path):
    letters = vocabularies.byte_letters()
    words = ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    roberta = Tokenizer.load(tmp_path)
    a, b = roberta.inner.token_to_id("a"), roberta.inner.token_to_id("b")
    assert roberta.encode("a", "b") == [0, a, 2, 2, b, 2]
    assert roberta.encode("a <mask>", special=False) == [a, roberta.mask_id]
    assert (roberta.pad_id, roberta.cls_id, roberta.sep_id, roberta.mask_id) == (1, 0, 2, 260)
