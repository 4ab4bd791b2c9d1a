"""Texts with labels through the verbs: fit, predict, evaluate, resume; opened by other tools."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import torch

import layerwise
from layerwise.console import Console
from layerwise.errors import DataError, OptionError, WeightsError
from layerwise.fitting import ladder
from layerwise.fitting.recipes import recipe_for
from layerwise.kinds.opening import open_data
from layerwise.kinds.text.features import WordCounts
from layerwise.kinds.text.kind import STARTS
from layerwise.kinds.text.processor import TextProcessor
from layerwise.kinds.text.source import Texts
from layerwise.model.evaluation import rows_to_score
from layerwise.model.model import ends_of, for_task
from layerwise.models import bert
from layerwise.runtime import start
from layerwise.settings import settings
from layerwise.tasks import task_for
from layerwise.tasks.feed import Feed, batch_of
from layerwise.tokens.training import train_wordpiece
from layerwise.train.predicting import predict_rows
from layerwise.weights.configs.encoders import encoder_json, sentence_json
from layerwise.weights.files import save_tensors
from layerwise.weights.names import publish
from tests.oracles import import_transformers

QUIET = Console(quiet=True)
FAST = {"threads": 1, "dtype": "fp32", "device_batch_size": 16, "console": QUIET}
PLAIN = ["the film", "a plot", "this scene", "an actor", "the music", "one story", "that ending"]
SAID = {
    "good": ["moves and shines", "is a quiet delight", "glows with warm wit"],
    "bad": ["drags and bores", "is a loud mess", "sinks in dull gloom"],
    "mixed": ["starts well then fades", "is half a triumph", "means well at least"],
}


def review(label: str, rng: np.random.Generator) -> str:
    parts = [f"{rng.choice(PLAIN)} {rng.choice(SAID[label])}" for _ in range(rng.integers(1, 4))]
    return f"{' and '.join(parts)} <b>{rng.integers(1000)}</b>"


def rows_of(n: int, seed: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    labels = [list(SAID)[i % 3] for i in range(n)]
    return [(review(label, rng), label) for label in labels]


def write(
    path: pathlib.Path, rows: list[tuple[str, ...]], head: str = "text\tlabel"
) -> pathlib.Path:
    path.write_text("\n".join([head, *("\t".join(row) for row in rows)]) + "\n")
    return path


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write(tmp_path_factory.mktemp("reviews") / "reviews.tsv", rows_of(360, 0))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small sentence encoder in the layout of sentence-transformers."""
    folder = tmp_path_factory.mktemp("base")
    texts = [text for text, _ in rows_of(300, 9)]
    tokenizer = train_wordpiece(texts, 400)
    config = bert.Config(
        dim=32, n_layers=2, n_heads=2, mlp_dim=64, max_seq_len=64, head_kind="embed",
        vocab_size=tokenizer.vocab_size,
    )  # fmt: skip
    torch.manual_seed(0)
    tensors = publish(bert.Bert(config).state_dict(), bert.PUBLISHED["bert-embed"])
    save_tensors(folder / "model.safetensors", tensors)
    files = {"config.json": encoder_json(config), **sentence_json(config, 48)}
    for name, values in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def fitted(reviews: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return layerwise.fit(reviews, base="none", output=str(folder), steps=120, **FAST)


@pytest.fixture(scope="module")
def tuned(reviews: pathlib.Path, base: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
    folder = str(tmp_path_factory.mktemp("tuned") / "run")
    options = {**FAST, "base": str(base), "method": "full", "steps": 120, "lr": 3e-3}
    return layerwise.fit(reviews, output=folder, **options)


# ---- from scratch --------------------------------------------------------------------------------
def test_it_learns_and_reports_beside_the_yardstick(fitted):
    assert fitted.score > 0.9
    page = json.loads((pathlib.Path(fitted.folder) / "result.json").read_text())
    floor = page["score"]["baseline"]
    assert floor["what"] == WordCounts.what
    assert floor["low"] <= floor["value"] <= floor["high"]
    assert floor["value"] > 0.9  # the words alone tell these classes apart
    assert page["plan"][0]["actual"] > 0
    assert page["calibration"]["temperature"] > 0


def test_the_saved_model_says_the_same(fitted, reviews: pathlib.Path):
    again = layerwise.load(fitted.folder)
    a, b = (m.predict(reviews, confidence=0.9) for m in (fitted.model, again))
    assert [p.row() for p in a] == [p.row() for p in b]
    assert again.labels == ("bad", "good", "mixed")
    found = layerwise.evaluate(fitted.folder, reviews)  # of its own data what it never saw
    assert (found.split, found.n, found.score) == ("test", 72, fitted.score)
    assert layerwise.evaluate(fitted.folder, reviews, split="all").n == 360
    held = rows_to_score(again, str(reviews), "", "val")[0]
    assert len(held) == round(0.25 * 360)  # few rows: more of them to choose by


def test_unlabelled_texts_of_any_kind(fitted, tmp_path: pathlib.Path):
    texts = ["the film drags and bores", "a plot is a quiet delight", "this scene means well"]
    wanted = [p.label for p in fitted.model.predict(texts)]
    assert wanted[:2] == ["bad", "good"]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n\n")
    (tmp_path / "a.csv").write_text("text\n" + "\n".join(texts) + "\n")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    for name in ("a.txt", "a.csv", "a.jsonl"):
        found = fitted.model.predict(tmp_path / name)
        assert [p.label for p in found] == wanted, name
    assert found[0].name == "a.jsonl line 1"
    assert fitted.model.predict(tmp_path / "a.txt")[2].name == "a.txt line 3"


def test_mistakes_are_shown_as_text_that_is_no_markup(reviews, tmp_path: pathlib.Path):
    rng = np.random.default_rng(1)
    rows = [(text, rng.choice(["good", "bad"])) for text, _ in rows_of(200, 3)]  # a coin
    path = write(tmp_path / "coin.tsv", rows)
    result = layerwise.fit(path, base="none", output=str(tmp_path / "run"), steps=3, **FAST)
    page = pathlib.Path(result.report).read_text()
    assert "&lt;b&gt;" in page
    assert "<b>7" not in page


def test_resume_ends_in_the_same_weights(reviews: pathlib.Path, tmp_path: pathlib.Path):
    options = {**FAST, "base": "none", "steps": 30, "checkpoint_every": 5, "evaluate_every": 10}
    whole = layerwise.fit(reviews, output=str(tmp_path / "a"), **options, keep=3)
    layerwise.fit(reviews, output=str(tmp_path / "b"), **options, keep=3)
    training = next((tmp_path / "b" / "rungs").iterdir()) / "checkpoints"
    for newer in sorted(training.iterdir())[1:]:
        shutil.rmtree(newer)
    again = layerwise.fit(resume=tmp_path / "b", console=QUIET)
    a, b = whole.model.network.state_dict(), again.model.network.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert again.score == whole.score


# ---- with a base ---------------------------------------------------------------------------------
def test_the_ladder_climbs_on_a_base(base, tmp_path: pathlib.Path):
    rng = np.random.default_rng(2)
    rows = [(t, label if rng.random() < 0.8 else "mixed") for t, label in rows_of(300, 3)]
    path = write(tmp_path / "doubtful.tsv", rows)  # so that no rung is perfect
    result = layerwise.fit(path, base=str(base), output=str(tmp_path / "run"), steps=20, **FAST)
    scores = {r["name"]: r["score"] for r in result.ladder}
    assert set(scores) == {"knn", "probe", "lora", "full"}
    assert min(scores["lora"], scores["full"]) > scores["probe"] - 0.1  # where the probe was
    assert layerwise.load(result.folder).predict(["the film drags"])[0].label in SAID


@pytest.mark.parametrize("method", ["probe", "lora"])
def test_each_way_is_saved_whole(reviews, base, method: str, tmp_path: pathlib.Path):
    options = {**FAST, "base": str(base), "method": method, "steps": 5}
    result = layerwise.fit(reviews, output=str(tmp_path / "run"), **options)
    texts = [text for text, _ in rows_of(30, 4)]
    a, b = (m.predict(texts) for m in (result.model, layerwise.load(result.folder)))
    assert [p.row() for p in a] == [p.row() for p in b]


@pytest.mark.parametrize(
    ("width", "rate"),
    [(0, 5e-5), (768, 5e-5), (384, 2e-4), (1024, 2.8e-5), (128, 3e-4), (4096, 2e-5)],
)
def test_narrow_networks_take_a_higher_rate(width: int, rate: float):
    s, full, lora = settings(), STARTS["rows"]["full"], STARTS["rows"]["lora"]
    assert recipe_for(full, 1000, s, width=width).lr == pytest.approx(rate, rel=0.01)
    assert recipe_for(lora, 1000, s, width=width).lr == 5e-4
    assert recipe_for(full, 1000, settings(lr=7e-5), width=width).lr == 7e-5


@pytest.mark.parametrize(("n_rows", "steps"), [(16, 20), (320, 200), (3200, 600), (64_000, 6000)])
def test_little_data_takes_more_passes(n_rows: int, steps: int):
    full = STARTS["rows"]["full"]
    assert recipe_for(full, n_rows, settings()).steps == steps
    assert recipe_for(full, n_rows, settings(epochs=1)).steps == max(1, n_rows // 32)
    large = recipe_for(full, 3200, settings(device_batch_size=64, grad_accum_steps=4))
    assert large.steps * large.global_batch_size <= 19_200


def test_memory_is_planned_and_saved_by_the_longest_texts(tmp_path, monkeypatch):
    def planned(*args):
        plan = plan_contender(*args)
        seen.append((plan, plan.suggest(plan.memory["peak"].value - 2e6)))
        return plan

    rows = rows_of(200, 5)
    rows[::20] = [(" ".join([text] * 60), label) for text, label in rows[::20]]
    path, plan_contender, seen = write(tmp_path / "uneven.tsv", rows), ladder.plan_contender, []
    monkeypatch.setattr(ladder, "plan_contender", planned)
    layerwise.fit(path, base="none", output=str(tmp_path / "run"), **FAST | {"steps": 1})
    plan, ways = seen[0]
    usual, longest = plan.setting, plan.request.setting
    assert usual.grad_accum_steps == 1 < longest.grad_accum_steps
    assert usual.global_batch_size == longest.global_batch_size
    assert ways
    assert all(way.words for way in ways)  # each changes something
    assert all(way.plan.memory["peak"].value < plan.memory["peak"].value for way in ways)


def test_features_do_not_see_padding(reviews, base):
    from layerwise.fitting.probes import features_of

    rows = open_data(reviews)
    task, machine = task_for(rows), start(dtype="fp32")
    model = for_task(layerwise.load(base), ends_of(task), settings())
    some = rows.subset(np.arange(40))
    together = features_of(model, some, task, machine)
    alone = [features_of(model, some.subset(np.array([i])), task, machine) for i in range(40)]
    assert np.abs(together - np.concatenate(alone)).max() < 1e-5
    with torch.inference_mode():
        own = [model.network(model.processor([row])["tokens"]) for row in some.rows()]
    assert np.abs(together - torch.cat(own).numpy()).max() < 1e-5


def test_a_published_base_is_opened_with_its_own_reader(base):
    model = layerwise.load(base)
    assert model.kind.name == "text"
    assert model.processor.max_seq_len == 48  # of sentence_bert_config.json, not the network's 64
    assert model.processor.token_types
    with pytest.raises(DataError, match="one text per row"):
        model.predict(["a text"])


@pytest.mark.oracle
def test_transformers_opens_what_was_tuned(tuned):
    transformers = import_transformers()
    folder = str(pathlib.Path(tuned.folder) / "model")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [text for text, _ in rows_of(12, 5)]
    given = words(texts, return_tensors="pt", padding=True)
    ours = layerwise.load(folder)
    with torch.inference_mode():
        want = theirs(**given).logits
        got = ours.network(**ours.processor(texts))
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    assert tuple(theirs.config.id2label[i] for i in range(3)) == ours.labels


def test_what_transformers_has_no_class_for_is_not_exported(fitted, tmp_path: pathlib.Path):
    with pytest.raises(WeightsError, match=r"no other tool .* --method lora and full make"):
        layerwise.export(fitted.folder, str(tmp_path / "out"), to="huggingface")
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_told_apart(base, tmp_path: pathlib.Path):
    """Whether two reviews agree: nothing in either alone says it."""
    a, b = rows_of(240, 1), rows_of(240, 2)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(240):
        (x, lx), (y, ly) = a[i], b[rng.integers(240)]
        rows.append((x, y, "same" if lx == ly else "different"))
    path = write(tmp_path / "pairs.tsv", rows, "sentence1\tsentence2\tlabel")
    options = {**FAST, "base": str(base), "method": "full", "steps": 4}
    result = layerwise.fit(path, output=str(tmp_path / "run"), **options)
    rows = open_data(path).subset(np.arange(8))
    batch = batch_of(result.model.answers(), rows, result.model.processors)
    assert int(batch["token_types"].max()) == 1
    assert result.model.labels == ("different", "same")


def test_numbers_and_several_labels_too(base, tmp_path: pathlib.Path):
    stars = {"good": "4.5", "mixed": "3.0", "bad": "1.5"}
    rows = [(text, stars[label]) for text, label in rows_of(200, 6)]
    rng = np.random.default_rng(0)
    rows = [(t, f"{float(s) + rng.normal(0, 0.2):.2f}") for t, s in rows]
    path = write(tmp_path / "stars.tsv", rows, "text\trating")
    result = layerwise.fit(
        path, base=str(base), method="probe", output=str(tmp_path / "run"), target="rating", **FAST
    )
    assert result.score_name == "rmse"
    assert result.score < 2 * result.ladder[0]["score"]  # the head says what the probe said
    assert result.model.predict(["the film drags and bores"])[0].value is not None


def test_columns_of_labels_are_scored_as_they_were_learned(tmp_path: pathlib.Path):
    rows = [(t, *(str(int(k in label)) for k in "gb")) for t, label in rows_of(200, 6)]
    path = write(tmp_path / "several.tsv", rows, "text\twith g\twith b")
    result = layerwise.fit(path, base="none", output=str(tmp_path / "run"), steps=5, **FAST)
    found = layerwise.evaluate(tmp_path / "run", path)
    assert (found.score_name, found.score) == (result.score_name, pytest.approx(result.score))
    with pytest.raises(OptionError, match=r"below 1; 2\.0 was given"):
        layerwise.fit(path, label_smoothing=2.0)


def test_models_of_other_classes_are_not_paired(fitted, reviews, tmp_path: pathlib.Path):
    rows = [*rows_of(90, 3), *(("no such film", "unknown"),) * 10]
    path = write(tmp_path / "more.tsv", rows)
    other = layerwise.fit(path, base="none", output=str(tmp_path / "run"), steps=5, **FAST)
    for a, b in ((fitted.model, other.model), (other.model, fitted.model)):
        with pytest.raises(DataError, match="only one of the models knows unknown"):
            layerwise.compare(a, b, reviews)


# ---- order and lengths ---------------------------------------------------------------------------
def test_outputs_keep_the_order_of_the_rows(reviews, base):
    rows = open_data(reviews).subset(np.arange(50))
    task = task_for(rows)
    model = for_task(layerwise.load(base), ends_of(task), settings())
    model.network.reset_head(task.n_outputs, task.head_kind)
    feed = Feed(task, rows, model.processors)
    found = predict_rows(model.network, feed, start(dtype="fp32"), 8)
    with torch.no_grad():
        at_once = task.predict(model.network.eval(), batch_of(task, rows, model.processors))
    together, whole = (task.scored(said, rows)[0] for said in (found, at_once))
    assert np.abs(together - whole).max() < 1e-3 * whole.std(0).min()


def test_evaluation_puts_like_lengths_together(reviews):
    rows = open_data(reviews)
    processor = TextProcessor(train_wordpiece([r["text"] for r in rows.rows()], 400))
    source = Texts(rows, processor)
    order = np.concatenate(source.parts())
    assert (np.diff(source.lengths[order]) >= 0).all()
    assert sorted(order.tolist()) == list(range(len(rows)))


# ---- what goes wrong -----------------------------------------------------------------------------
def test_labels_that_training_never_saw(fitted, tmp_path: pathlib.Path):
    rows = [(text, "awful" if label == "bad" else label) for text, label in rows_of(30, 7)]
    with pytest.raises(DataError, match="does not know: awful"):
        layerwise.evaluate(fitted.folder, write(tmp_path / "strange.tsv", rows))


def test_long_texts_are_cut_and_said(base, tmp_path: pathlib.Path, capsys):
    rows = [(" and ".join([text] * (1 + 20 * (i % 10 == 0))), label)
            for i, (text, label) in enumerate(rows_of(120, 8))]  # fmt: skip
    path = write(tmp_path / "long.tsv", rows)
    options = {**FAST, "console": Console(), "base": str(base), "method": "probe"}
    layerwise.fit(path, output=str(tmp_path / "run"), **options)
    said = capsys.readouterr().out
    assert re.search(r"cut at their end: \d+ of \d+ rows, [\d.]+% of all tokens", said)
    with pytest.raises(OptionError, match="at most 64 tokens"):
        layerwise.fit(path, output=str(tmp_path / "b"), max_seq_len=100, **options)


def test_empty_texts_are_set_aside(tmp_path: pathlib.Path):
    rows = [
        ("..." if i % 20 == 0 else text, label) for i, (text, label) in enumerate(rows_of(100, 2))
    ]
    path = write(tmp_path / "gaps.tsv", rows)
    result = layerwise.fit(path, base="none", output=str(tmp_path / "run"), steps=2, **FAST)
    page = json.loads((pathlib.Path(result.folder) / "result.json").read_text())
    assert sum(page["rows"].values()) == 95
    assert any(f["kind"] == "empty" for f in page["audit"]["findings"])


def test_a_tokenizer_of_other_weights(base, fitted, tmp_path: pathlib.Path):
    other = shutil.copytree(base, tmp_path / "other")
    train_wordpiece([text for text, _ in rows_of(300, 9)], 150).save(other)
    with pytest.raises(WeightsError, match="do not belong together"):
        layerwise.load(other)
    run = shutil.copytree(pathlib.Path(fitted.folder) / "model", tmp_path / "run")
    file = run / "tokenizer.json"
    values = json.loads(file.read_text())
    vocab = values["model"]["vocab"]
    first, second = list(vocab)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="not the one the weights were trained with"):
        layerwise.load(run)


def test_what_does_not_fit_is_refused(reviews, base, fitted, tmp_path: pathlib.Path):
    options = {**FAST, "output": str(tmp_path / "run")}
    with pytest.raises(OptionError, match="--task regress does not fit"):
        layerwise.fit(reviews, task="regress", **options)
    with pytest.raises(OptionError, match="reads texts"):
        layerwise.fit(
            pictures(tmp_path), base=str(base), **{**options, "output": str(tmp_path / "c")}
        )
    with pytest.raises(OptionError, match="does not read whole texts"):
        layerwise.fit(reviews, model="gpt2", **{**options, "output": str(tmp_path / "d")})
    talk = tmp_path / "talk.jsonl"
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    talk.write_text("".join(json.dumps({"messages": said}) + "\n" for _ in range(30)))
    with pytest.raises(DataError, match="does not learn from this form"):
        layerwise.fit(talk, **{**options, "output": str(tmp_path / "e")})


def pictures(folder: pathlib.Path) -> pathlib.Path:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 2
    np.savez(folder / "pictures.npz", images=images, labels=labels)
    return folder / "pictures.npz"


def test_a_bert_is_planned_by_name():
    found = layerwise.plan("bert-tiny", batch=4, classes=3, max_seq_len=32, rows=40, epochs=1)
    assert found.params > 4e6
    assert settings(task="classify").task == "classify"
