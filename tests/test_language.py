"""Plain text through `fit`: tokenised, trained on, scored in bits per byte, opened elsewhere."""

import json
import pathlib

import numpy as np
import pytest
import torch

import layerwise
from layerwise import language, runtime
from layerwise.console import Console
from layerwise.data.corpus import NO_LOSS, Windows, tokenise
from layerwise.data.train_tokenizer import train_bpe
from layerwise.errors import DataError, LayerwiseError
from tests.oracles import import_transformers

QUIET = Console(quiet=True)
WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "one", "dog", "ran", "over", "hill", "and"]


def sentences(n: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    lines = (" ".join(rng.choice(WORDS, 8)) + "." for _ in range(n))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(sentences(1500, 0))
    return path


@pytest.fixture(scope="module")
def fitted(book: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run") / "run"
    options = {"steps": 60, "device_batch_size": 8, "threads": 1, "dtype": "fp32"}
    return layerwise.fit(book, console=QUIET, base="none", output=str(folder), **options)


def test_it_learns_to_continue_text(fitted):
    page = json.loads((pathlib.Path(fitted.folder) / "result.json").read_text())
    assert fitted.score_name == "bits_per_byte"
    assert fitted.low <= fitted.score <= fitted.high
    assert fitted.score < page["score"]["baseline"]["value"]  # the frequencies of tokens alone
    assert page["plan"][0]["actual"] > 0


def test_the_saved_model_is_the_same_and_scores_the_same(fitted, book: pathlib.Path):
    again = layerwise.load(fitted.folder)
    ids = torch.tensor([again.processor.tokenizer.encode("the cat sat on a mat")])
    with torch.inference_mode():
        assert torch.equal(again.network(ids), fitted.model.network.eval()(ids))


@pytest.mark.oracle
def test_transformers_opens_what_was_trained(fitted):
    transformers = import_transformers()
    folder = str(pathlib.Path(fitted.folder) / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ids = words("the dog ran over one hill", return_tensors="pt")["input_ids"]
    ours = layerwise.load(folder)
    assert ours.processor.tokenizer.encode("the dog ran over one hill") == ids[0].tolist()
    with torch.inference_mode():
        want, got = theirs(ids).logits, ours.network(ids)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_windows_hold_every_token_once(tmp_path: pathlib.Path):
    texts = [sentences(30, i) for i in range(5)]
    tokenizer = train_bpe(texts, 300)
    corpus = tokenise(texts, tokenizer, tmp_path)
    windows = Windows(corpus, 32)
    tensors = windows.tensors(np.arange(len(windows)))
    predicted = tensors["targets"][tensors["targets"] != NO_LOSS]
    firsts = set(corpus.starts[:-1].tolist())  # no document's first token is asked for
    wanted = [int(t) for i, t in enumerate(corpus.tokens) if i not in firsts]
    assert predicted.tolist() == wanted
    assert tokenizer.decode(np.asarray(corpus.tokens[: corpus.starts[1]])) == texts[0]
    assert tensors["documents"].max() > 0


def test_a_corpus_is_tokenised_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    texts = [sentences(20, 0)]
    tokenizer = train_bpe(texts, 300)
    first = tokenise(texts, tokenizer, tmp_path)
    monkeypatch.setattr(type(tokenizer), "encode_batch", None)  # would fail if it were called
    again = tokenise(texts, tokenizer, tmp_path)
    assert np.array_equal(first.tokens, again.tokens)


def test_an_interrupted_tokenisation_leaves_nothing_that_is_read(tmp_path: pathlib.Path):
    texts = [sentences(20, 0)]
    tokenizer = train_bpe(texts, 300)
    whole = tokenise(texts, tokenizer, tmp_path / "a")
    for index in (tmp_path / "a").glob("*.json"):
        index.unlink()
    assert np.array_equal(tokenise(texts, tokenizer, tmp_path / "a").tokens, whole.tokens)


def test_a_resumed_run_keeps_the_size_it_began_with(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    machine = runtime.start(threads=1)
    first = language.affordable(60.0, machine, tmp_path)
    monkeypatch.setattr(language, "product_rate", lambda machine: 1.0)  # a machine grown slow
    assert language.affordable(60.0, machine, tmp_path) == first
    assert language.affordable(float("inf"), machine, tmp_path) == float("inf")


def test_sizes_follow_compute_and_text():
    small, large = (language.decoder_of(n, 1024, 256) for n in (4e5, 1e7))
    assert (small.dim, small.n_layers) == (128, 2)
    assert (large.dim, large.n_layers) == (384, 6)
    assert language.vocabulary_for(1_000_000) == 1024
    assert language.vocabulary_for(10**12) == language.MOST_VOCABULARY


def test_text_too_short_to_learn_from(tmp_path: pathlib.Path):
    path = tmp_path / "short.txt"
    path.write_text("a\nb\n")
    with pytest.raises(LayerwiseError):
        layerwise.fit(path, console=QUIET, output=str(tmp_path / "run"), steps=2)


def test_training_goes_on_from_a_base(fitted, book: pathlib.Path, tmp_path: pathlib.Path):
    options = {"base": fitted.folder, "method": "full", "steps": 10, "threads": 1, "dtype": "fp32"}
    result = layerwise.fit(book, console=QUIET, output=str(tmp_path / "run"), lr=1e-5, **options)
    assert abs(result.score - fitted.score) < 0.02  # where it was, not from the beginning
    assert result.model.processor.tokenizer.fingerprint == (
        fitted.model.processor.tokenizer.fingerprint
    )


def test_a_network_that_does_not_write(book: pathlib.Path, tmp_path: pathlib.Path):
    with pytest.raises(DataError, match="does not continue text"):
        layerwise.fit(book, console=QUIET, output=str(tmp_path / "run"), model="resnet20", steps=2)
