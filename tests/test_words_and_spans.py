"""Tags of words and answers as spans through the verbs; opened by transformers."""

import json
import pathlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import layerwise
from layerwise.cli import parser
from layerwise.console import Console
from layerwise.errors import DataError, OptionError
from layerwise.kinds.opening import open_data
from layerwise.kinds.text.spans import SpanProcessor
from layerwise.kinds.text.tagged import WordProcessor
from layerwise.model.evaluation import compare
from layerwise.model.model import Model
from layerwise.models.bert import Bert, Config
from layerwise.tasks.feed import batch_of
from layerwise.tasks.span import Span
from layerwise.tasks.words import Words
from layerwise.tokens.tokenizer import Tokenizer
from layerwise.tokens.training import train_wordpiece
from tests.oracles import import_transformers

QUIET = Console(quiet=True)
FAST = {"threads": 1, "dtype": "fp32", "device_batch_size": 16, "console": QUIET, "base": "none"}
PEOPLE, PLACES = ["Anna", "Bela", "Cem", "Dora", "Emil"], ["Rome", "Oslo", "Bonn", "Lower Saxony"]
PATTERNS = [("saw", "in"), ("met", "near"), ("left", "for")]
LABELS = ("B-LOC", "B-PER", "I-LOC", "O")


def sentence(rng: np.random.Generator) -> list[tuple[str, str]]:
    verb, where = PATTERNS[rng.integers(3)]
    place = str(rng.choice(PLACES)).split()
    words = [(str(rng.choice(PEOPLE)), "B-PER"), (verb, "O"), (str(rng.choice(PEOPLE)), "B-PER"),
             (where, "O"), *zip(place, ["B-LOC", "I-LOC"], strict=False), (".", "O")]  # fmt: skip
    before = [(str(w), "O") for w in rng.choice(["so", "then", "once", "later"], rng.integers(4))]
    return [*before, *words]


def conll(path: pathlib.Path, n: int, seed: int = 0, change: Sequence[tuple[str, str]] = ()):
    rng = np.random.default_rng(seed)
    rows = ["\n".join(f"{w}\t{t}" for w, t in sentence(rng)) for _ in range(n)]
    text = "\n\n".join(rows) + "\n\n"
    for old, new in change:
        text = text.replace(old, new)
    path.write_text(text)
    return path


def question(i: int, answered: bool = True) -> dict:
    rng = np.random.default_rng(i)
    names, places = rng.permutation(PEOPLE)[:3], rng.permutation(PLACES)[:3]
    said = [f"{n} lives in {p} ." for n, p in zip(names, places, strict=True)]
    context = f"Page {i} . " + " ".join(said)
    answer = {"text": str(places[1]), "answer_start": context.index(f"in {places[1]} .") + 3}
    return {"id": str(i), "question": f"Where does {names[1]} live ?", "context": context,
            "answers": [answer] if answered else []}  # fmt: skip


def squad(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return conll(tmp_path_factory.mktemp("words") / "news.conll", 240)


@pytest.fixture(scope="module")
def tagger(sentences: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
    folder = str(tmp_path_factory.mktemp("tagger") / "run")
    return layerwise.fit(sentences, output=folder, steps=60, max_seq_len=48, **FAST)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    rows = [question(i) for i in range(120)]
    return squad(tmp_path_factory.mktemp("spans") / "asked.jsonl", rows)


@pytest.fixture(scope="module")
def answerer(asked: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
    folder = str(tmp_path_factory.mktemp("answerer") / "run")
    return layerwise.fit(asked, output=folder, steps=4, **FAST)


def page_of(result) -> dict:
    return json.loads((pathlib.Path(result.folder) / "result.json").read_text())


# ---- tags ----------------------------------------------------------------------------------------
def test_it_learns_to_tag_and_reports_kind_by_kind(tagger):
    assert tagger.score_name == "entity_f1"
    assert tagger.score > 0.95
    assert tagger.low <= tagger.score <= tagger.high
    page = page_of(tagger)
    assert set(page["kinds"]) == {"LOC", "PER", "all"}
    assert page["kinds"]["all"]["f1"] == tagger.score
    assert page["kinds"]["PER"]["n"] == 2 * page["rows"]["test"]
    assert page["score"]["baseline"]["what"].startswith("each word as it is tagged most often")
    assert page["plan"][0]["actual"] > 0
    assert "Kind by kind" in pathlib.Path(tagger.report).read_text()


def test_a_saved_tagger_says_the_same_of_every_word(tagger, sentences: pathlib.Path):
    again = layerwise.load(tagger.folder)
    a, b = (m.predict(sentences) for m in (tagger.model, again))
    assert [p.row() for p in a] == [p.row() for p in b]
    rows = open_data(sentences).rows()
    assert all([w for w, _, _ in p.words] == r["tokens"] for p, r in zip(a, rows, strict=True))
    found = layerwise.evaluate(tagger.folder, sentences)
    assert found.score > 0.95
    assert set(found.metrics) == {"entity_f1", "entity_precision", "entity_recall", "accuracy"}


def test_bare_texts_get_entities_with_their_places(tagger, tmp_path: pathlib.Path):
    text = "Once Dora met Emil near Lower Saxony."
    (said,) = tagger.model.predict([text])
    found = {(e["kind"], e["text"]) for e in said.entities}
    assert found == {("PER", "Dora"), ("PER", "Emil"), ("LOC", "Lower Saxony")}
    assert all(text[e["start"] : e["end"]] == e["text"] for e in said.entities)
    path = tmp_path / "new.txt"
    path.write_text(f"{text}\n\n{text}\n")
    assert [p.name for p in tagger.model.predict(path)] == ["new.txt line 1", "new.txt line 3"]
    assert said.show().startswith("text 0  Dora (PER 0.9")
    assert "Once/O" in replace(said, marked=False).show()


def test_a_sentence_longer_than_the_context_is_tagged_whole(tagger):
    words = [w for i in range(30) for w, _ in sentence(np.random.default_rng(i))]
    true = [t for i in range(30) for _, t in sentence(np.random.default_rng(i))]
    (said,) = tagger.model.predict([{"tokens": words}])
    assert [w for w, _, _ in said.words] == words
    right = sum(tag == want for (_, tag, _), want in zip(said.words, true, strict=True))
    assert right > 0.8 * len(true)


def test_tags_that_no_training_has(tagger, tmp_path: pathlib.Path, capsys):
    other = conll(tmp_path / "other.conll", 30, change=[("B-LOC", "B-CITY"), ("I-LOC", "I-CITY")])
    with pytest.raises(DataError, match="does not know: B-CITY, I-CITY; it knows B-LOC"):
        layerwise.evaluate(tagger.folder, other)
    assert len(tagger.model.predict(other)) == 30
    folder = tmp_path / "split"
    folder.mkdir()
    conll(folder / "train.conll", 80)
    conll(folder / "dev.conll", 20, 1)
    conll(folder / "test.conll", 20, 2, change=[("B-LOC", "B-CITY"), ("I-LOC", "I-CITY")])
    result = layerwise.fit(folder, output=str(tmp_path / "run"), steps=2, **FAST)
    said = [f["message"] for f in page_of(result)["audit"]["findings"]]
    assert any("2 tags never occur in train" in m and "'B-CITY', 'I-CITY'" in m for m in said)


def test_tags_are_scored_in_the_models_order(tagger, tmp_path: pathlib.Path):
    fewer = conll(
        tmp_path / "fewer.conll", 40, change=[("Lower\tB-LOC\nSaxony\tI-LOC", "Bonn\tB-LOC")]
    )
    assert open_data(fewer).labels == ("B-LOC", "B-PER", "O")
    assert layerwise.evaluate(tagger.folder, fewer).score > 0.95


def test_two_taggers_are_compared_whatever_the_order_of_their_tags(tagger, sentences):
    order = [3, 1, 0, 2]
    model = tagger.model
    network: Any = Bert(model.network.config)
    network.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        network.head.weight.copy_(model.network.head.weight[order])
        network.head.bias.copy_(model.network.head.bias[order])
    turned = replace(model, network=network.eval(), task=Words([LABELS[i] for i in order]))
    found = compare(model, turned, sentences)
    assert found.difference == 0
    assert found.a > 0.95


def test_one_tag_alone_is_refused(tmp_path: pathlib.Path):
    path = tmp_path / "one.conll"
    path.write_text("so O\nit O\n\ngoes O\n\n" * 20)
    with pytest.raises(DataError, match="every word has the one tag 'O'"):
        layerwise.fit(path, output=str(tmp_path / "run"), **FAST)


def test_parts_of_speech_are_scored_word_by_word(tmp_path: pathlib.Path):
    kinds = [
        ("B-PER", "NOUN"),
        ("B-LOC", "NOUN"),
        ("I-LOC", "NOUN"),
        (".\tO", ".\tPUNCT"),
        ("\tO", "\tX"),
    ]
    path = conll(tmp_path / "a.conll", 120, change=kinds)
    result = layerwise.fit(path, output=str(tmp_path / "run"), steps=40, **FAST)
    assert result.score_name == "accuracy"
    assert result.score > 0.9
    (said,) = result.model.predict(["Anna saw Cem in Rome ."])
    assert said.entities == []
    assert "Anna/NOUN" in said.show()


# ---- answers -------------------------------------------------------------------------------------
def test_answers_go_through_fit_and_come_back_the_same(answerer, asked: pathlib.Path):
    assert answerer.score_name == "f1"
    assert set(answerer.metrics) == {"f1", "exact_match"}
    page = page_of(answerer)
    assert page["score"]["baseline"]["what"] == "always the whole context"
    assert page["gives"] == "answers"
    again = layerwise.load(answerer.folder)
    a, b = (m.predict(asked) for m in (answerer.model, again))
    assert [p.row() for p in a] == [p.row() for p in b]
    rows = open_data(asked).rows()
    for said, row in zip(a, rows, strict=True):
        assert said.place is not None
        assert said.answer == row["context"][said.place[0] : said.place[1]]
        assert 0 < said.probability <= 1
    found = layerwise.evaluate(answerer.folder, asked)
    assert found.low <= found.score <= found.high
    assert found.wrong[0]["text"].startswith("Where does")
    assert "[" in found.wrong[0]["truth"]


def test_spans_can_be_learned():
    """The loss and the search meet: a network that is taught 32 questions answers them."""
    rows = [question(i) for i in range(32)]
    text = [row["context"] + " " + row["question"] for row in rows]
    tokenizer = train_wordpiece(text, 300)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "mlp_dim": 128,
        "max_seq_len": 32,
    }
    network = Bert(Config(**sizes, vocab_size=tokenizer.vocab_size, head_kind="span", dropout=0.0))
    task, processor = Span(), SpanProcessor(tokenizer, 24, token_types=True)
    for row in rows:
        row["answers"] = [{"text": a["text"], "start": a["answer_start"]} for a in row["answers"]]
    examples = rows_as_examples(rows)
    batch = batch_of(task, examples, {"text": processor})
    assert batch["tokens"].ndim == 3  # windows
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(150):
        loss, _ = task.loss(network, batch)
        (loss / task.count(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        said = task.predict(network.eval(), batch)
    assert task.metrics(said, examples)["exact_match"] > 0.9


def rows_as_examples(rows: list[dict]):
    from layerwise.kinds.text.documents import text_examples

    return text_examples("spans", rows, [str(i) for i in range(len(rows))], [""] * len(rows))


def test_questions_without_answers_make_none_an_answer(tmp_path: pathlib.Path):
    rows = [question(i, answered=i % 2 == 0) for i in range(60)]
    path = squad(tmp_path / "a.jsonl", rows)
    result = layerwise.fit(path, output=str(tmp_path / "run"), steps=4, **FAST)
    task = layerwise.load(result.folder).task
    assert task.null
    said = result.model.predict(path)
    assert all((p.answer == "") == (p.place is None) for p in said)
    unanswered = [{k: v for k, v in row.items() if k != "answers"} for row in rows[:5]]
    assert len(result.model.predict(squad(tmp_path / "b.jsonl", unanswered))) == 5
    assert len(result.model.predict(unanswered)) == 5
    with pytest.raises(DataError, match="has no answers to score against"):
        layerwise.evaluate(result.folder, tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="no label to learn"):
        layerwise.fit(tmp_path / "b.jsonl", output=str(tmp_path / "run2"), **FAST)


# ---- plans, options ------------------------------------------------------------------------------
def test_what_the_rungs_cannot_do_is_said(asked: pathlib.Path, tmp_path: pathlib.Path, base):
    options = FAST | {"base": str(base), "output": str(tmp_path / "run"), "steps": 2}
    with pytest.raises(OptionError, match="--method knn is not for the task span"):
        layerwise.fit(asked, method="knn", **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tagger of other tags, as a base."""
    folder = tmp_path_factory.mktemp("base")
    text = " ".join([*PEOPLE, *PLACES, "saw met left in near for so then once later ."])
    tokenizer = train_wordpiece([text] * 9, 200)
    sizes: dict[str, Any] = {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "mlp_dim": 64,
        "max_seq_len": 64,
    }
    config = Config(**sizes, vocab_size=tokenizer.vocab_size, head_kind="tag", n_classes=2)
    Model(Bert(config), "bert", {"text": WordProcessor(tokenizer, 64)}, Words(("X", "Y"))).save(
        folder
    )
    return folder


def test_a_linear_layer_on_token_vectors_may_do(sentences, base, tmp_path: pathlib.Path):
    options = FAST | {"base": str(base), "output": str(tmp_path / "run"), "steps": 5}
    result = layerwise.fit(sentences, **options)
    assert result.ladder[0]["name"] == "probe"
    assert result.ladder[0]["score"] > 0.9
    assert result.score > 0.9
    assert layerwise.load(result.folder).labels == LABELS


def test_lora_on_a_base(sentences, base, tmp_path: pathlib.Path):
    options = FAST | {"base": str(base), "output": str(tmp_path / "run"), "steps": 3}
    result = layerwise.fit(sentences, method="lora", **options)
    assert [r["name"] for r in result.ladder] == ["lora"]
    assert result.model.network.config.head_kind == "tag"


def test_plans_of_encoders_for_words_and_spans(sentences, asked):
    for data in (sentences, asked):
        found = layerwise.plan("bert-tiny", data=str(data), max_seq_len=64)
        assert found.params > 1e6
    assert parser().parse_args(["fit", "x", "--task", "words"]).task == "words"


# ---- opened elsewhere ----------------------------------------------------------------------------
@pytest.mark.oracle
@pytest.mark.parametrize("style", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("kind", ["tag", "span"])
def test_transformers_opens_it_and_gives_the_same_logits(
    kind: str, style: str, tmp_path: pathlib.Path
):
    transformers = import_transformers()
    tokenizer = train_wordpiece(
        ["the quick brown fox jumps over the lazy dog in lower saxony"] * 9, 90
    )
    if style == "roberta":  # whose positions count from the padding's number
        tokenizer = Tokenizer(tokenizer.inner, tokenizer.special | {"pad": "[UNK]", "unk": "[PAD]"})
    sizes: dict[str, Any] = {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "mlp_dim": 64,
        "max_seq_len": 40,
    }
    config = Config(
        **sizes, vocab_size=tokenizer.vocab_size, style=style, head_kind=kind,
        n_classes=len(LABELS) if kind == "tag" else 2,
        n_token_types={"bert": 2, "roberta": 1, "distilbert": 0}[style],
        norm_eps=1e-5 if style == "roberta" else 1e-12,
    )  # fmt: skip
    torch.manual_seed(0)
    reads = WordProcessor(tokenizer, 40) if kind == "tag" else SpanProcessor(tokenizer, 40)
    task = Words(LABELS) if kind == "tag" else Span()
    network = Bert(config).eval()
    Model(network, "bert", {"text": reads}, task).save(tmp_path)
    auto = {"tag": "TokenClassification", "span": "QuestionAnswering"}[kind]
    theirs = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(tmp_path).eval()
    ids = torch.tensor([tokenizer.encode("the lazy fox jumps over")])
    with torch.no_grad():
        want, got = theirs(ids), network(ids)
    want = want.logits if kind == "tag" else torch.stack([want.start_logits, want.end_logits], -1)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    if kind == "tag":
        assert theirs.config.id2label == dict(enumerate(LABELS))
    opened = layerwise.load(tmp_path)
    assert type(opened.processor) is type(reads)
    (tmp_path / "layerwise.json").unlink()  # as it would come from elsewhere
    published = layerwise.load(tmp_path)
    assert (published.task.name, type(published.processor)) == (task.name, type(reads))
    assert published.labels == task.labels
