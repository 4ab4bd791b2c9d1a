"""`embed`, `search`, and vectors through fit, evaluate, predict and save; real MiniLM weights."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import layerwise
from layerwise import cli
from layerwise.console import Console
from layerwise.errors import DataError, OptionError
from layerwise.fitting.run import fit
from layerwise.kinds.text.each import EachProcessor
from layerwise.kinds.text.processor import TextProcessor
from layerwise.model.model import Model
from layerwise.model.saved import load
from layerwise.models import bert, build, resolve
from layerwise.tasks.embed import Embed
from layerwise.tokens.training import train_bpe, train_wordpiece
from layerwise.verbs.embed import Embedder, Index, embed, search
from tests import oracles
from tests.models.test_bert import minilm

THINGS = ["cat", "dog", "car", "train", "apple", "river", "tree", "house", "song", "book"]
DOES = ["is red", "looks old", "was lost", "stands here", "seems small", "costs a lot"]
TEXTS = [f"the {thing} {does}" for thing in THINGS for does in DOES]


@pytest.fixture(scope="module")
def model() -> Model:
    """A small encoder with fresh weights and a vocabulary of its own."""
    torch.manual_seed(0)
    tokenizer = train_wordpiece(TEXTS, 200)
    config = bert.Config(
        dim=32,
        n_layers=2,
        n_heads=2,
        mlp_dim=48,
        vocab_size=tokenizer.vocab_size,
        max_seq_len=24,
        head_kind="embed",
    )
    network = bert.Model(config).eval()
    processors = {"text": EachProcessor(tokenizer, 24, True)}
    return Model(network, "bert", processors, Embed(), "bert-tiny")


def one_by_one(model: Model, texts: list[str]) -> np.ndarray:
    ids = model.processor.tokenizer.encode_batch(texts, max_length=model.processor.max_seq_len)
    with torch.no_grad():
        return torch.cat([model.network(torch.tensor([row])) for row in ids]).numpy()


# ---- vectors -----------------------------------------------------------------------------------
def test_vectors_are_the_networks_in_any_order(model: Model):
    texts = [TEXTS[0], " and ".join(TEXTS[:9]), TEXTS[5], TEXTS[7] + " and " + TEXTS[8]]
    embedder = Embedder(model, dtype="fp32")
    found = embed(embedder, texts)
    assert (found.dtype, found.shape) == (np.float32, (4, 32))
    np.testing.assert_allclose(found, one_by_one(model, texts), atol=1e-5)
    np.testing.assert_allclose(embed(embedder, texts[::-1]), found[::-1], atol=1e-5)
    assert embedder.n_full == 1  # the long one
    near = embed(model, texts)  # bf16 where there is
    assert ((near * found).sum(1) > 0.998).all()


def test_length_and_size_as_asked(model: Model):
    raw = embed(model, TEXTS[:5], normalise=False)
    assert (np.abs(np.linalg.norm(raw, axis=1) - 1) > 0.01).all()
    np.testing.assert_allclose(np.linalg.norm(embed(model, TEXTS[:5]), axis=1), 1, rtol=1e-5)
    short = embed(model, TEXTS[:5], dims=8)
    cut = raw[:, :8]
    np.testing.assert_allclose(short, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-5)
    with pytest.raises(OptionError, match="--dims 33: the vectors have 32 numbers"):
        embed(model, TEXTS[:5], dims=33)


def test_texts_that_are_empty_are_named(model: Model):
    with pytest.raises(DataError, match="'text 2', 'text 4': nothing to embed"):
        embed(model, ["a cat", " ", "a dog", "\n"])
    assert embed(model, []).shape[0] == 0


def test_decoders_and_images_have_vectors_too(tmp_path: Path):
    tokenizer = train_bpe(TEXTS, 300)
    from layerwise.models.llama import Config

    config = Config(
        vocab_size=300, max_seq_len=32, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16,
        mlp_dim=48,
    )  # fmt: skip
    torch.manual_seed(0)
    processors = {"text": TextProcessor(tokenizer, 32)}
    decoder = Model(build("llama", config).eval(), "llama", processors, None)
    texts = [*TEXTS[:3], TEXTS[3] + " " + TEXTS[4]]
    found = embed(Embedder(decoder, dtype="fp32"), texts)
    with torch.no_grad():
        rows = [torch.tensor([tokenizer.encode(t)]) for t in texts]
        want = torch.cat([decoder.network.features(row).mean(1) for row in rows])  # type: ignore[operator]
    np.testing.assert_allclose(found, want.numpy(), atol=1e-5)

    from layerwise.kinds.image.processor import ImageProcessor
    from layerwise.tasks.classify import Classify

    family, small = resolve("resnet20", n_classes=2)
    processor = ImageProcessor(size=(16, 16), resize=(16, 16))
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    network = build(family, small).eval()
    sighted = Model(network, family, {"image": processor}, Classify(["a", "b"]))
    vectors = embed(Embedder(sighted, dtype="fp32"), list(images))
    with torch.no_grad():
        features = network.features(processor(list(images)))  # type: ignore[operator]
    np.testing.assert_allclose(vectors, features.numpy(), atol=1e-4)


# ---- an index ----------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_an_index_finds_what_a_loop_over_all_finds(model: Model, suffix: str, tmp_path: Path):
    folder = model.save(tmp_path / "model")
    index = Index.of(folder, TEXTS)
    path = index.save(tmp_path / f"index{suffix}")
    queries = ["an old cat", "the song costs a lot"]
    found = search(path, queries, top=4)
    vectors = embed(folder, [*TEXTS, *queries])
    for vector, hits in zip(vectors[-2:], found, strict=True):
        near = sorted(range(len(TEXTS)), key=lambda i: -float(vector @ vectors[i]))[:4]
        assert [hit.row for hit in hits] == near
        assert [hit.text for hit in hits] == [TEXTS[i] for i in near]
        assert hits[0].score == pytest.approx(float(vector @ vectors[near[0]]), abs=1e-4)
    assert found[1][0].text == queries[1]
    assert search(index, TEXTS[3], top=1)[0][0].name == "text 4"


def test_what_is_no_index_is_said(model: Model, tmp_path: Path):
    index = Index.of(model, TEXTS[:4])
    with pytest.raises(OptionError, match=r"file of \.npz, \.npy, \.parquet"):
        index.save(tmp_path / "index.txt")
    index.save(tmp_path / "bare.npy")
    with pytest.raises(DataError, match="vectors alone"):
        search(tmp_path / "bare.npy", "a cat")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a file")
    with pytest.raises(DataError, match="not an index"):
        search(tmp_path / "broken.npz", "a cat")
    index.save(tmp_path / "lost.npz")
    with pytest.raises(OptionError, match="does not know its model: name it with --model"):
        search(tmp_path / "lost.npz", "a cat")
    other = replace(model, network=bert.Model(replace(model.network.config, dim=16)).eval())  # type: ignore[type-var]
    with pytest.raises(DataError, match="gives 16 numbers, that of the index gave 32"):
        search(tmp_path / "lost.npz", "a cat", model=other)
    with pytest.raises(OptionError, match="--top is 1 or more"):
        search(index, "a cat", top=0)


def test_the_command_line_embeds_and_searches(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = model.save(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    index = str(tmp_path / "index.npz")
    command = ["embed", str(folder), str(tmp_path / "texts.txt"), "--output", index]
    assert cli.main(command) == 0
    assert "60 vectors of 32 numbers" in capsys.readouterr().out
    assert cli.main(["search", index, TEXTS[7], "--top", "2", "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert said["hits"][0]["name"] == "texts.txt line 8"
    assert len(said["hits"]) == 2
    assert cli.main([*command[:-1], "index.pickle"]) == 2


# ---- learned -----------------------------------------------------------------------------------
def scored(folder: Path, n: int = 240) -> Path:
    """Pairs that are alike as far as they speak of one thing, and say the same of it."""
    rng = np.random.default_rng(0)
    lines = ["score\tsentence1\tsentence2"]
    for _ in range(n):
        (a, b), (x, y) = rng.integers(10, size=2), rng.integers(6, size=2)
        b = a if rng.random() < 0.5 else b
        score = 3.5 * (a == b) + 1.5 * (x == y)
        i, j = rng.integers(1000, size=2)  # no two are equal
        lines.append(f"{score}\tthe {THINGS[a]} {DOES[x]} {i}\tthe {THINGS[b]} {DOES[y]} {j}")
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.tsv"


def fitted(data: Path, out: Path, **options: Any) -> Any:
    fast = {"threads": 1, "depth": False, "compile": "off", "output": str(out)}
    return fit(data, console=Console(quiet=True), **fast | options)


def test_scored_pairs_from_nothing(tmp_path: Path):
    data = scored(tmp_path)
    result = fitted(data, tmp_path / "run", base="none", steps=60, lr=2e-3, dims="16")
    assert result.score_name == "spearman"
    assert result.low > 0.3
    again = load(tmp_path / "run")
    assert (again.task.name, again.task.dims, again.processor.reads) == ("embed", (16,), "each")
    said = layerwise.evaluate(again, data)
    assert said.low < said.score < said.high
    assert set(said.metrics) == {"spearman", "pearson"}
    values = [p.value for p in layerwise.predict(again, data)]
    assert len(values) == 240
    assert max(values) > min(values) + 0.3


def test_a_base_is_scored_first_and_triples_are_learned_from_it(model: Model, tmp_path: Path):
    base = model.save(tmp_path / "base")
    lines = [json.dumps(dict(zip(("anchor", "positive", "negative"), row, strict=True))) for row in
             ((f"the {a} {DOES[i % 6]}", f"the {a} {DOES[(i + 1) % 6]}",
               f"the {THINGS[(k + 3) % 10]} {DOES[i % 6]}")
              for k, a in enumerate(THINGS) for i in range(12))]  # fmt: skip
    (tmp_path / "triples.jsonl").write_text("\n".join(lines) + "\n")
    result = fitted(
        tmp_path / "triples.jsonl", tmp_path / "run", base=str(base), method="auto", epochs=8.0,
        lr=3e-3, grad_accum_steps=2, depth=True,
    )  # fmt: skip
    assert "changed" in Path(result.report).read_text()  # which layers the pairs moved
    rungs = {rung["name"]: rung["score"] for rung in result.ladder}
    assert next(iter(rungs)) == "base"
    assert max(rungs.values()) > rungs["base"]
    assert {"recall_at_1", "mrr", "triple_accuracy"} == set(result.metrics)
    only = fitted(tmp_path / "triples.jsonl", tmp_path / "as_is", base=str(base), method="base")
    assert [rung["name"] for rung in only.ladder] == ["base"]


def test_labelled_pairs_are_learned_from_as_matches_when_asked(tmp_path: Path):
    rows = [f"{a}\t{a.replace('the', 'this')} {i}\tentailment" for i, a in enumerate(TEXTS)]
    rows += [f"{a}\t{b}\tcontradiction" for a, b in zip(TEXTS, TEXTS[7:], strict=False)]
    text = "premise\thypothesis\tlabel\n" + "\n".join(rows) + "\n"
    (tmp_path / "nli.tsv").write_text(text)
    result = fitted(tmp_path / "nli.tsv", tmp_path / "run", base="none", task="embed", steps=5)
    assert result.score_name == "recall_at_1"
    assert "triple_accuracy" in result.metrics
    pairs = {p.name: p for p in layerwise.selftest(tmp_path / "run").pairs}
    assert pairs["accumulated or one batch"].verdict == "same"
    assert pairs["two ranks or one"].why == "its rows are learned together"


def test_a_yardstick_that_is_not_defined_costs_no_run(tmp_path: Path):
    lines = [f"{i % 5}.0\tthe red apple {i} falls\tder rote apfel {i}a faellt" for i in range(120)]
    text = "\n".join(["score\tsentence1\tsentence2", *lines]) + "\n"
    (tmp_path / "pairs.tsv").write_text(text)
    result = fitted(tmp_path / "pairs.tsv", tmp_path / "run", base="none", task="embed", steps=5)
    assert Path(result.folder, "model", "layerwise.json").exists()


def test_data_that_no_vectors_can_be_learned_from(tmp_path: Path):
    (tmp_path / "one.csv").write_text("text\n" + "\n".join(TEXTS) + "\n")
    with pytest.raises(OptionError, match="--task embed does not fit"):
        fitted(tmp_path / "one.csv", tmp_path / "run", task="embed")
    with pytest.raises(OptionError, match="sizes from 1 up"):
        fitted(scored(tmp_path), tmp_path / "run2", base="none", dims="big")
    with pytest.raises(OptionError, match="below the vectors' own, which is"):
        fitted(scored(tmp_path), tmp_path / "run4", base="none", dims="4096", steps=5)
    with pytest.raises(OptionError, match="--dims is for vectors"):
        fitted(scored(tmp_path), tmp_path / "run3", base="none", dims="8", task="regress")


def test_single_texts_have_no_prediction(model: Model):
    with pytest.raises(DataError, match="`layerwise embed MODEL DATA` gives vectors"):
        model.predict(TEXTS[:3])


# ---- elsewhere ---------------------------------------------------------------------------------
@pytest.mark.oracle
def test_a_saved_model_opens_in_transformers_with_equal_vectors(model: Model, tmp_path: Path):
    transformers = oracles.import_transformers()
    folder = str(model.save(tmp_path / "model"))
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS[:7], padding=True, return_tensors="pt")
    with torch.no_grad():
        features = theirs(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    want = torch.nn.functional.normalize((features * mask).sum(1) / mask.sum(1), dim=-1)
    found = embed(Embedder(folder, dtype="fp32"), TEXTS[:7])
    np.testing.assert_allclose(found, want.numpy(), atol=1e-5)


@pytest.mark.oracle
def test_a_saved_model_opens_in_sentence_transformers(model: Model, tmp_path: Path):
    oracles.import_transformers()
    package = pytest.importorskip("sentence_transformers")
    folder = str(model.save(tmp_path / "model"))
    theirs = package.SentenceTransformer(folder, device="cpu")
    assert theirs.max_seq_length == 24
    texts = [*TEXTS[:5], " and ".join(TEXTS)]
    found = embed(Embedder(folder, dtype="fp32"), texts)
    np.testing.assert_allclose(found, theirs.encode(texts), atol=1e-5)
    util = package.util.semantic_search(theirs.encode(TEXTS[:2]), theirs.encode(TEXTS), top_k=3)
    ours = search(Index.of(folder, TEXTS), TEXTS[:2], top=3)
    assert [[h.row for h in hits] for hits in ours] == [[h["corpus_id"] for h in x] for x in util]


@pytest.mark.data
@pytest.mark.slow
def test_minilm_scores_as_published_through_evaluate(shared_data: Path, tmp_path: Path):
    for name in ("test", "dev"):
        with gzip.open(shared_data / "sts-b" / f"sts-{name}.tsv.gz", "rt", encoding="utf-8") as f:
            rows = [line.rstrip("\n").split("\t") for line in f]
        text = "".join(f"{r[5]}\t{r[6]}\t{r[4]}\n" for r in rows)
        (tmp_path / f"{name}.tsv").write_text("sentence1\tsentence2\tscore\n" + text)
    base = load(minilm())
    found = layerwise.evaluate(base, tmp_path / "test.tsv")
    assert 100 * found.score == pytest.approx(82.03, abs=0.1)  # in bf16 where there is
    assert (found.n, found.score_name) == (1379, "spearman")
    assert found.low < found.score < found.high < found.low + 0.06
