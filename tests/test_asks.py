"""What users of other packages asked for in vain, end to end: each ask by its number and its hurt.

Threads are repository#number of public trackers.
"""

import json
import pathlib
import shutil
import signal
import warnings
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv as arrow
from pyarrow import parquet
from sklearn.metrics import accuracy_score, f1_score, log_loss
from torch import Tensor

import layerwise
from layerwise.errors import DataError, WeightsError
from layerwise.runtime import start
from layerwise.tokens.training import train_bpe
from layerwise.train import loop
from tests import oracles, test_labelled
from tests.parity import relative_error
from tests.rows import sentences
from tests.test_export import continuing
from tests.test_labelled import QUIET, SAID, review, rows_of, write

base = test_labelled.base  # the fixture
FAST = {**test_labelled.FAST, "audit": False, "depth": False}
MERGED = 1e-4  # how far a merge may change an output, relative to the largest


def fit(data: pathlib.Path, folder: pathlib.Path, **options: Any):
    return layerwise.fit(data, output=str(folder), **{**FAST, **options})


def page(run) -> dict:
    return json.loads((pathlib.Path(run.folder) / "result.json").read_text())


def blocks(model) -> Tensor:
    """All weights between embedding and head, in one vector."""
    return torch.cat([p.detach().flatten() for p in model.network.blocks.parameters()])


def exported(run, path: pathlib.Path) -> str:
    to = {"quantize": "f32"} if path.suffix == ".gguf" else {"to": "huggingface"}
    return layerwise.export(run.folder, str(path), **to).path


def apart(said: dict[str, Tensor], want: Tensor) -> dict[str, float]:
    return {k: e for k, v in said.items() if not (e := relative_error(v, want)) <= MERGED}


def logits(predictions) -> np.ndarray:
    return np.stack([p.logits for p in predictions])


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Reviews, a fifth of them mislabelled, with a column that says which are for the test."""
    rng = np.random.default_rng(0)
    rows = [(t, label if rng.random() > 0.2 else str(rng.choice(list(SAID))),
             "train" if i < 200 else "val" if i < 250 else "test")
            for i, (t, label) in enumerate(rows_of(370, 5))]  # fmt: skip
    return write(tmp_path_factory.mktemp("divided") / "a.tsv", rows, "text\tlabel\tsplit")


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small decoder of random weights, as others leave theirs in a folder."""
    folder = tmp_path_factory.mktemp("writer")
    continuing(train_bpe([sentences(300, 0)], 300)).save(folder)
    (folder / "layerwise.json").unlink()
    return folder


@pytest.fixture
def theirs():
    """transformers and PEFT, whose warnings are their own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield oracles.import_transformers(), pytest.importorskip("peft")


# ---- 7: adapter, merged and exported model are not the same model --------------------------------
@pytest.mark.oracle
@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_7_a_classifier_adapted_merged_exported(variant, divided, base, theirs, tmp_path):
    """vllm#10798, #5148; peft#1836: the score fell from 0.965 to 0.496 with the merge."""
    transformers, peft = theirs
    texts = [text for text, _ in rows_of(30, 4)]
    options = {"method": "lora", "lora_variant": variant, "lora_rank": 4, "steps": 25, "lr": 1e-2}
    run = fit(divided, tmp_path / "run", base=str(base), **options)
    assert relative_error(blocks(run.model), blocks(layerwise.load(base))) > 100 * MERGED
    folder, again = exported(run, tmp_path / "out"), layerwise.load(run.folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    given = words(texts, padding=True, return_tensors="pt")
    opened = transformers.AutoModelForSequenceClassification.from_pretrained
    bare, adapter = opened(base, num_labels=3), f"{run.folder}/adapter"
    adapted = peft.PeftModel.from_pretrained(bare, adapter).eval()
    with torch.no_grad():
        want = run.model.network(**run.model.processor(texts))
        said = {
            "opened again": again.network(**again.processor(texts)),
            "exported": opened(folder).eval()(**given).logits * again.calibration.temperature,
            "adapted by PEFT": adapted(**given).logits,
            "merged by PEFT": adapted.merge_and_unload()(**given).logits,
        }
    assert apart(said, want) == {}
    best = opened(folder).eval()(**given).logits.softmax(-1).max(-1)
    found = again.predict(texts)
    assert [p.label for p in found] == [again.labels[i] for i in best.indices]
    assert [p.probability for p in found] == pytest.approx(best.values.tolist(), abs=1e-4)
    (rung,) = run.ladder  # scored with the adapter beside its base
    assert layerwise.evaluate(run.folder, divided, split="val").score == rung["score"]


@pytest.mark.oracle
def test_7_a_writer_adapted_merged_exported(writer, theirs, tmp_path):
    """vllm#10798, LlamaFactory#10596; MiniCPM-V#502: trained in half precision, merged in it."""
    transformers, peft = theirs
    (tmp_path / "book.txt").write_text(sentences(400, 1))
    options = {"method": "lora", "steps": 12, "lr": 1e-2, "max_seq_len": 32, "dtype": "bf16"}
    run = fit(tmp_path / "book.txt", tmp_path / "run", base=str(writer), **options)
    adapter, prompt = f"{run.folder}/adapter", "the cat sat on a mat while"
    folder, file = exported(run, tmp_path / "out"), exported(run, tmp_path / "a.gguf")
    ours = {name: layerwise.load(name) for name in (run.folder, adapter, folder, file)}
    opened = transformers.AutoModelForCausalLM.from_pretrained
    adapted = peft.PeftModel.from_pretrained(opened(writer), adapter).eval()
    ids = torch.tensor([run.model.processor.tokenizer.encode(prompt)])
    with torch.no_grad():
        want = run.model.network.eval()(ids)
        said = {name: model.network(ids) for name, model in ours.items()}
        said["exported"] = opened(folder).eval()(ids).logits
        said["adapted by PEFT"] = adapted(ids).logits
        said["merged by PEFT"] = adapted.merge_and_unload()(ids).logits
        assert relative_error(layerwise.load(writer).network(ids), want) > 100 * MERGED
    assert apart(said, want) == {}
    assert {m.generate(prompt, 12) for m in ours.values()} == {run.model.generate(prompt, 12)}


# ---- 8: accumulated gradients are other gradients ------------------------------------------------
def uneven(kind: str, folder: pathlib.Path) -> pathlib.Path:
    """Rows of a few words and of many."""
    rng, labels = np.random.default_rng(3), [*SAID] * 22
    sizes = [1 if i % 3 else int(rng.integers(4, 12)) for i in range(66)]
    texts = [" and ".join(review(label, rng) for _ in range(n))
             for label, n in zip(labels, sizes, strict=True)]  # fmt: skip
    rows = {
        "classify": [{"text": t, "label": label} for t, label in zip(texts, labels, strict=True)],
        "words": [{"tokens": t.split(), "tags": [w[:2] for w in t.split()]} for t in texts],
        "causal": [{"text": text} for text in texts],
    }[kind]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "a.jsonl"


@pytest.mark.parametrize("kind", ["classify", "words", "causal"])
def test_8_accumulation_in_uneven_parts_is_the_large_batch(kind, base, writer, tmp_path):
    """transformers PR#34191, #37766; ms-swift PR#10084: a last partial window of half the gradient.

    Every step has all rows, which the parts do not divide; dropout would draw anew for each part.
    """
    if kind != "causal":
        writer = shutil.copytree(base, tmp_path / "still")
        names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
        values = json.loads((writer / "config.json").read_text()) | dict.fromkeys(names, 0.0)
        (writer / "config.json").write_text(json.dumps(values))
    options = {"base": str(writer), "method": "full", "optimizer": "sgd", "lr": 0.02, "steps": 3}
    options |= {"device_batch_size": 4096, "evaluate_every": 3, "max_seq_len": 48}
    data = uneven(kind, tmp_path)
    one = fit(data, tmp_path / "1", **options)
    parts = next(n for n in (4, 3, 5, 7) if page(one)["metrics"][0]["rows"] % n)
    four = fit(data, tmp_path / "4", grad_accum_steps=parts, **options)
    steps = [[r for r in page(run)["metrics"] if "loss" in r] for run in (one, four)]
    for a, b in zip(*steps, strict=True):
        assert a == pytest.approx(b, rel=1e-4)  # loss and norm of the gradient
    before, a, b = (blocks(model) for model in (layerwise.load(writer), one.model, four.model))
    assert (a - b).norm() < 1e-3 * (a - before).norm()


# ---- 9: a resumed run is another run -------------------------------------------------------------
LONG = {"base": "none", "steps": 12, "checkpoint_every": 3, "evaluate_every": 4, "ema": 0.9,
        "grad_accum_steps": 2, "device_batch_size": 8}  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(divided, tmp_path_factory: pytest.TempPathFactory):
    return fit(divided, tmp_path_factory.mktemp("unbroken") / "run", **LONG)


@pytest.mark.parametrize("times", [1, 2])  # the first Ctrl-C ends the step and saves it
def test_9_a_resumed_run_is_the_run(times, unbroken, divided, tmp_path, monkeypatch):
    """transformers#11323, #12942 (its average training loss "is not saved"), Lightning#17543.

    Every logged number of every step, so any average of them, and what the report says of the run.
    """
    lr_factor = loop.lr_factor

    def interrupted(step: int, *rest) -> float:
        for _ in range(times * (step == 7)):
            signal.raise_signal(signal.SIGINT)
        return lr_factor(step, *rest)

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(loop, "lr_factor", interrupted)
        assert not fit(divided, tmp_path / "run", **LONG).finished
    again = layerwise.fit(resume=tmp_path / "run", console=QUIET)
    assert again.finished
    assert len(page(again)["metrics"]) == 12 + 3  # steps, evaluations
    a, b = again.model.network.state_dict(), unbroken.model.network.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in b)
    for key in ("metrics", "score", "test_metrics", "calibration", "conformal", "mistakes"):
        assert page(again)[key] == page(unbroken)[key], key


# ---- 13: which columns does it want? -------------------------------------------------------------
def spelled(path: pathlib.Path, names: tuple, rows: list[tuple]) -> pathlib.Path:
    """Rows as this kind of file, under these names of their columns."""
    table = pa.table(dict(zip(names or "ab", zip(*rows, strict=True), strict=True)))
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        arrow.write_csv(table, path, arrow.WriteOptions(include_header=bool(names), delimiter=mark))
    return path


def test_13_texts_with_a_label_under_any_names(tmp_path):
    """trl#2541, #4110, unsloth#252, open-r1#340: the answer there is to read the documentation."""
    rows = [(text, int(label == "good")) for text, label in rows_of(90, 7)]
    turned = [(label, text) for text, label in rows]
    files = {  # by the name of the label
        "label": spelled(tmp_path / "a.csv", ("sentence", "label"), rows),
        "category": spelled(tmp_path / "b.jsonl", ("text", "category"), rows),
        "target": spelled(tmp_path / "c.tsv", ("content", "target"), rows),
        "Sentiment": spelled(tmp_path / "d.parquet", ("Sentiment", "Review"), turned),
        "column_1": spelled(tmp_path / "e.tsv", (), turned),
    }
    runs = {name: fit(f, tmp_path / name, base="none", steps=2) for name, f in files.items()}
    first = runs["label"]
    want = layerwise.evaluate(first.folder, files["label"], split="all")
    assert first.model.labels == ("0", "1")
    for name, run in runs.items():
        assert f"the label '{name}'" in page(run)["understood"]
        assert (page(run)["rows"], run.model.labels) == (page(first)["rows"], first.model.labels)
        assert torch.equal(blocks(run.model), blocks(first.model)), name
        found = layerwise.evaluate(first.folder, files[name], target=name, split="all")
        assert found.metrics == want.metrics
    with pytest.raises(DataError, match="name their column with --target"):
        layerwise.evaluate(first.folder, files["category"])


# ---- 22: the order of classes is lost ------------------------------------------------------------
@pytest.mark.oracle
@pytest.mark.parametrize("name", ["grade {}", "{}"])
def test_22_twelve_classes_keep_their_order_everywhere(name, base, theirs, tmp_path):
    """fastai#3945: sorted as strings, 10 before 2; deit#130: 27 of 7,000 right."""
    transformers, _ = theirs
    labels, rng = [name.format(i) for i in range(12)], np.random.default_rng(0)
    rows = [(f"the film {chr(97 + i)} {chr(97 + i)} {rng.integers(1000)}", labels[i])
            for i in rng.integers(12, size=420)]  # fmt: skip
    options = {"base": str(base), "method": "full", "steps": 150, "lr": 5e-3}
    run = fit(write(tmp_path / "a.tsv", rows), tmp_path / "run", **options)
    assert run.score > 0.8  # a twelfth by chance
    folder = exported(run, tmp_path / "out")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    asked = [text for text, _ in rows[:60]]
    best = network(**words(asked, padding=True, return_tensors="pt")).logits.argmax(-1)
    want = [network.config.id2label[int(i)] for i in best]
    for part in (network, words):
        part.save_pretrained(tmp_path / "theirs")  # its config.json has "10" before "2"
    for source in (run.folder, folder, tmp_path / "theirs"):
        again = layerwise.load(source)
        assert again.labels == tuple(labels), source
        assert [p.label for p in again.predict(asked)] == want, source

    some = [row for row in rows if row[1] in (labels[10], labels[2], labels[11])]
    said = run.model.predict([text for text, _ in some])
    right = [p.label == label for p, (_, label) in zip(said, some, strict=True)]
    found = layerwise.evaluate(run.folder, write(tmp_path / "some.tsv", some))
    assert found.score == np.mean(right) > 0.5
    other = [(text, name.format(labels.index(label) + 1)) for text, label in rows]
    with pytest.raises(DataError, match=f"does not know: {name.format(12)}"):
        layerwise.evaluate(run.folder, write(tmp_path / "other.tsv", other))


# ---- 24: numbers that do not match ---------------------------------------------------------------
def test_24_one_score_by_fit_by_evaluate_and_by_hand(divided, tmp_path):
    """lm-evaluation-harness#1841, lighteval#649 (0.0015 or 0.69), LlamaFactory#1232.

    Of a corpus: tests/test_language.py; of a table: tests/test_fit.py.
    """
    run = fit(divided, tmp_path / "run", base="none", steps=40)  # in fp32, also where bf16 is usual
    found = layerwise.evaluate(run.folder, divided)
    assert (found.split, found.n, found.metrics) == ("test", 120, run.metrics)
    assert (found.score, found.low, found.high) == (run.score, run.low, run.high)

    rows = [line.split("\t")[:2] for line in divided.read_text().splitlines()[-120:]]
    texts, truth = zip(*rows, strict=True)
    model = layerwise.load(run.folder)
    said = model.predict(texts)
    named, shares = [p.label for p in said], [[s for _, s in sorted(p.top)] for p in said]
    assert run.score == pytest.approx(accuracy_score(truth, named), abs=1e-9)
    assert run.score < 0.95  # so that there is something to get wrong
    by_hand = f1_score(truth, named, average="macro"), log_loss(truth, shares)
    assert by_hand == pytest.approx((run.metrics["macro_f1"], run.metrics["log_loss"]), abs=1e-5)
    mixed = [rows[i] for i in np.random.default_rng(1).permutation(120)]
    again = layerwise.evaluate(run.folder, write(tmp_path / "mixed.tsv", mixed))
    assert again.metrics == pytest.approx(run.metrics, abs=1e-5)
    whole = logits(model.predictions(model.rows(texts)))
    for size in (1, 7, 120):
        part = logits(model.predictions(model.rows(texts), start(dtype="fp32"), batch_size=size))
        assert np.abs(part - whole).max() < 1e-5 * np.abs(whole).max()
    alone = [model.predict([text])[0].probability for text in texts[:20]]
    assert alone == pytest.approx([p.probability for p in said[:20]], abs=1e-5)


# ---- 27: tokens that were added ------------------------------------------------------------------
@pytest.mark.oracle
def test_27_added_tokens_survive_every_hand_over(writer, theirs, tmp_path):
    """peft#2898, #1457, #1300; unsloth#1343, #237: size mismatch on reload, or another token."""
    transformers, peft = theirs
    opened = transformers.AutoModelForCausalLM.from_pretrained
    network, words = opened(writer), transformers.AutoTokenizer.from_pretrained(writer)
    V, text = len(words), "the cat <ticket> sat"
    words.add_tokens(["<ticket>"], special_tokens=True)
    ids = words(text, return_tensors="pt")["input_ids"]
    assert ids[0].tolist().count(V) == 1
    words.save_pretrained(shutil.copytree(writer, tmp_path / "forgotten"))
    with pytest.raises(WeightsError, match=f"{V + 1} tokens, the network knows {V}: .* enlarged"):
        layerwise.load(tmp_path / "forgotten")

    network.resize_token_embeddings(V + 3)  # the token, and rows to spare
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(network, config)
    torch.manual_seed(0)
    for name, p in adapted.named_parameters():
        p.data += 0.1 * torch.randn_like(p) * ("lora_" in name)
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)
    with pytest.raises(WeightsError, match=f"of {V + 3} tokens, this base has {V}: .* Merge it"):
        layerwise.load(tmp_path / "adapter")
    merged = adapted.merge_and_unload()  # what the error advises
    for part in (merged, words):
        part.save_pretrained(tmp_path / "merged")

    @torch.no_grad()
    def same(source: Any, theirs: Any) -> None:
        model = layerwise.load(source)
        assert model.processor.tokenizer.encode(text) == ids[0].tolist(), source
        assert apart({str(source): model.network(ids)}, theirs.eval()(ids).logits) == {}

    same(tmp_path / "merged", merged)
    (tmp_path / "book.txt").write_text(sentences(400, 3).replace(" sat ", " <ticket> "))
    options = {"method": "lora", "steps": 5, "max_seq_len": 32, "base": str(tmp_path / "merged")}
    run = fit(tmp_path / "book.txt", tmp_path / "run", **options)
    folder, file = exported(run, tmp_path / "out"), exported(run, tmp_path / "a.gguf")
    for source in (run.folder, f"{run.folder}/adapter", folder, file):
        same(source, opened(folder))
    assert transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == ids[0].tolist()
