"""Plain text through `fit`: tokenised, trained on, scored in bits per byte, opened elsewhere."""

import csv
import dataclasses
import importlib.util
import json
import math
import pathlib
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import layerwise
from layerwise.console import Console
from layerwise.errors import DataError, LayerwiseError, WeightsError
from layerwise.kinds.opening import open_data
from layerwise.kinds.text import language
from layerwise.kinds.text.corpus import NO_LOSS, Windows, tokenise
from layerwise.kinds.text.processor import TextProcessor
from layerwise.tokens.training import train_bpe
from tests.oracles import LlamaCpp, import_transformers
from tests.rows import sentences

QUIET = Console(quiet=True)


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


def test_inspect_says_how_it_reads(fitted, book: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    from layerwise import cli

    found = layerwise.inspect(fitted.folder, book)
    assert found.lens[-1]["bits"] < found.guess["bits"]
    assert found.lens[-1]["bits"] < found.lens[0]["bits"]
    assert list(found.heads) == [f"blocks.{i}" for i in range(len(found.lens) - 1)]
    text = "".join(t for t, _ in found.tokens)
    assert any(line in book.read_text() for line in text.splitlines()[1:-1])
    assert cli.main(["inspect", fitted.folder, str(book)]) == 0
    said = capsys.readouterr().out
    assert "brings most" in said
    assert "tokens right" in said


def test_the_report_shows_the_lens_the_heads_and_hard_tokens(fitted):
    folder = pathlib.Path(fitted.folder)
    page = json.loads((folder / "result.json").read_text())
    assert page["diagnoses"] == []
    floors = {row["name"]: row for row in page["layers"]}
    assert 0 < floors["blocks.0"]["probe"] < 1
    assert floors["blocks.0"]["bits"] > 0
    html = (folder / "report.html").read_text()
    assert "Where its heads look" in html
    assert html.count("--h:") > 100


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


@pytest.mark.oracle
def test_llama_cpp_opens_what_was_trained(fitted, tmp_path: pathlib.Path):
    done = layerwise.export(fitted.folder, str(tmp_path / "a.gguf"), quantize="f32")
    model = layerwise.load(fitted.folder)
    words, text = model.processor.tokenizer, "the dog ran over one hill"
    with LlamaCpp(pathlib.Path(done.path)) as llama_cpp:
        assert llama_cpp.tokens(text) == words.encode(text)
        ids, scores = llama_cpp.continued(words.encode(text), 12, words.vocab_size)
    rows = torch.tensor([words.encode(text) + ids[:-1]])
    with torch.inference_mode():
        ours = model.network(rows)[0, -len(ids) :].log_softmax(-1)
    assert (scores - ours).abs().max() < 0.05  # its cache keeps 16 bits
    assert ids == ours.argmax(-1).tolist()
    assert words.decode(ids) == model.generate(text, 12)


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


def test_sizes_follow_compute_and_text():
    small, large = (language.decoder_of(language.width_for(n), 1024, 256) for n in (4e5, 1e7))
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


def test_rows_of_text_are_found_under_any_name(fitted, tmp_path: pathlib.Path):
    """Ask 13 (trl#2541): "text" there, or nothing."""
    rows = [{"url": f"https://a.org/{i}", "body": sentences(6, i)} for i in range(40)]
    texts = [row["body"] for row in rows]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(texts))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    parquet.write_table(pa.table({"id": range(40), "raw_content": texts}), tmp_path / "c.parquet")
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *(row.values() for row in rows)])
    options = {"base": fitted.folder, "method": "full", "steps": 2, "threads": 1, "dtype": "fp32"}
    options |= {"audit": False, "depth": False, "console": QUIET}
    paths = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.parquet", "d.csv")]
    runs = [layerwise.fit(path, output=str(tmp_path / path.stem), **options) for path in paths]
    want = runs[0].model.network.state_dict()
    for run in runs[1:]:
        assert run.metrics == runs[0].metrics
        found = run.model.network.state_dict()
        assert all(torch.equal(found[name], want[name]) for name in want), run.folder


@pytest.mark.parametrize(("task", "model"), [("causal", "auto"), ("masked", "bert-tiny")])
def test_a_corpus_has_one_score_by_fit_by_evaluate_and_by_hand(task, model, tmp_path):
    """Ask 24 (lm-evaluation-harness#1841); documents of any length."""
    texts, folder = [sentences(n, n) for n in (60, 1, 20, 5)], tmp_path / "books"
    folder.mkdir()
    for name in ("train", "valid", "test"):
        (folder / f"{name}.txt").write_text("<|endoftext|>".join(f"{name} {t}" for t in texts))
    options = {"base": "none", "task": task, "model": model, "steps": 10, "max_seq_len": 32}
    options |= {"threads": 1, "dtype": "fp32", "audit": False, "console": QUIET}
    run = layerwise.fit(folder, output=str(tmp_path / "run"), **options)
    found = layerwise.evaluate(run.folder, folder)
    assert (found.split, found.metrics) == ("test", run.metrics)
    assert (found.score, found.low, found.high) == (run.score, run.low, run.high)
    assert layerwise.evaluate(run.folder, folder / "test.txt").metrics == run.metrics
    assert layerwise.compare(run.folder, run.model, folder).difference == 0
    with pytest.raises(WeightsError, match="gives no answer for a row"):
        layerwise.predict(run.folder, folder / "test.txt")
    if task == "causal":
        assert run.details["next"][0]["command"].startswith("layerwise generate ")
        by_hand = bits_by_hand(run.model, [f"test {text}" for text in texts], 32)
        assert run.score == pytest.approx(by_hand, rel=1e-5)


@torch.no_grad()
def bits_by_hand(model, texts: list[str], length: int) -> float:
    """Bits per byte, each document of each window by itself."""
    words, nats, asked = model.processor.tokenizer, 0.0, 0
    stream = [(d, i) for d, t in enumerate(texts) for i in [*words.encode(t), words.eos_id]]
    for first in range(0, len(stream) - 1, length):
        window = stream[first : first + length + 1]
        for document in {d for d, _ in window}:
            ids = torch.tensor([[i for d, i in window if d == document]])
            if ids.shape[1] > 1:
                found = model.network(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])
                nats, asked = nats - float(found.double().sum()), asked + found.numel()
    return nats / math.log(2) / (len("".join(texts)) * asked / len(stream))


def test_bits_per_byte_do_not_depend_on_how_text_is_cut(fitted, tmp_path: pathlib.Path):
    """Ask 24: who knows nothing needs log2(V) bits for each token, whatever the windows."""
    model, text = layerwise.load(fitted.folder), sentences(50, 2)
    (tmp_path / "a.txt").write_text(text)
    words, T = model.processor.tokenizer, model.processor.max_seq_len
    other = dataclasses.replace(
        model, processors={"text": TextProcessor(train_bpe([text], 280), T)}
    )
    with pytest.raises(DataError, match="cut text into different tokens"):
        layerwise.compare(model, other, tmp_path / "a.txt")
    with pytest.raises(DataError, match="a plain text was expected"):
        layerwise.evaluate(model, pairs(tmp_path / "pairs.tsv"))
    with torch.no_grad():
        model.network.norm.weight.zero_()
    want = math.log2(words.vocab_size) * (len(words.encode(text)) + 1) / len(text)
    for length in (3, 16, T):
        cut = dataclasses.replace(model, processors={"text": TextProcessor(words, length)})
        found = layerwise.evaluate(cut, tmp_path / "a.txt")
        assert found.score == pytest.approx(want, rel=1e-6)


def pairs(path: pathlib.Path) -> pathlib.Path:
    rows = [f"{sentences(1, i)}\t{sentences(1, i)} Indeed." for i in range(30)]
    path.write_text("\n".join(["premise\thypothesis", *rows]))
    return path


def test_the_recipe_runs(book: pathlib.Path):
    path = pathlib.Path(__file__).parents[1] / "recipes" / "pretrain_shakespeare.py"
    spec = importlib.util.spec_from_file_location("pretrain_shakespeare", path)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    sys.modules["pretrain_shakespeare"] = recipe
    spec.loader.exec_module(recipe)
    options = ["--quick", "--length", "32", "--vocab", "300", "--dim", "32", "--readings", "2"]
    (score,) = recipe.main([str(book), *options])
    assert score.nats == min(score.nats, score.last)
    assert 0.3 < score.nats < 2.5  # 13 words at random: 0.56 nats per character


def test_a_text_is_held_out_in_stretches_whatever_its_lines(tmp_path: pathlib.Path):
    texts = {
        "title.txt": "A title\n" + "many words " * 5000,
        "open.txt": sentences(300, 0).rstrip(),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    rows = language.in_stretches(open_data(tmp_path), 0.1, 0.1)
    for name, text in texts.items():
        found = zip(rows["text"], rows.names, strict=True)
        parts = [part for part, own in found if name in own]
        assert "".join(parts) == text
        assert [round(len(part) / len(text), 1) for part in parts] == [0.8, 0.1, 0.1]
