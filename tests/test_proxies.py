"""Small runs on the corpus itself: exact branches, kept results, and a choice that follows them."""

import json
import pathlib

import pytest
import torch

import layerwise
from layerwise import runtime
from layerwise.cli import main
from layerwise.console import Console
from layerwise.data.loader import Batches
from layerwise.errors import DataError, OptionError
from layerwise.fitting import scaling as proxies
from layerwise.fitting.job import Job
from layerwise.fitting.recipes import recipe_for
from layerwise.fitting.run import as_task_rows, prepare_rows, understand
from layerwise.kinds.text import language
from layerwise.kinds.text.kind import STARTS
from layerwise.settings import settings
from layerwise.tasks.causal import Causal
from layerwise.tasks.feed import Feed
from layerwise.train.checkpoint import State
from layerwise.train.loop import LoopConfig
from tests.rows import sentences

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of seconds hardly get past the frequencies of tokens; here they count all the same."""
    monkeypatch.setattr(proxies, "PLATEAU", 9.0)
    monkeypatch.setattr(proxies, "LEAST_SECONDS", 2.0)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(sentences(3000, 0))
    return path


@pytest.fixture(scope="module")
def job(book: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
    chosen = settings(budget="10s", max_seq_len=32)
    machine = runtime.start(dtype="fp32", threads=1)
    examples, learned = understand(str(book), chosen, QUIET)
    assert learned is Causal
    rows = prepare_rows(examples, chosen, QUIET)
    rows, reader = as_task_rows(rows, Causal(), None, chosen, QUIET)
    folder = tmp_path_factory.mktemp("proxies")
    return Job(chosen, folder, Causal(), rows.train, rows.val, machine, QUIET), reader


def proxy_of(job: Job, reader) -> proxies.Proxy:
    config = language.decoder_of(32, reader.tokenizer.vocab_size, 32)
    recipe = recipe_for(STARTS["windows"]["scratch"], len(job.train), job.settings)
    feed = Feed(job.task, job.train, {"text": reader})
    return proxies.Proxy(job, config, recipe, Batches(feed, 4, 0))


def test_a_branch_is_to_the_bit_the_run_of_its_length(job):
    job, reader = job
    branched, straight = proxy_of(job, reader), proxy_of(job, reader)
    lr, held = branched.recipe.lr, Feed(job.task, job.val, {"text": reader})
    branched.advance(LoopConfig(8, lr, "constant", 2))
    early = branched.decayed(LoopConfig(10, lr, "wsd", 2), held)
    branched.advance(LoopConfig(16, lr, "constant", 2))
    late = branched.decayed(LoopConfig(20, lr, "wsd", 2), held)
    straight.train(
        straight.network, straight.optimizer, LoopConfig(20, lr, "wsd", 2), State(seed=0)
    )
    assert proxies.predict_rows(straight.network, held, job.machine) == late
    assert bits(job, late) < bits(job, early)


def bits(job: Job, said) -> float:
    return job.task.metric(*job.task.scored(said, job.val))


def test_the_law_chooses_and_resuming_measures_nothing_anew(job, monkeypatch):
    job, reader = job
    choice, outlook = proxies.choose_by_law(job, reader, 10.0)
    best = outlook.best
    assert best.loss.value == min(c.loss.value for c in outlook.curve)
    assert best.loss.low < best.loss.value < best.loss.high
    assert choice.config.dim == int(best.name.split("x")[0])
    assert choice.fitted["steps"] <= choice.most_steps
    kept = json.loads((job.folder / "proxies.json").read_text())
    assert len({r["width"] for r in kept["runs"]}) == 2
    assert len(outlook.runs) == 6

    def forbidden(*args, **values):
        raise AssertionError("measured anew")

    monkeypatch.setattr(proxies, "run_proxy", forbidden)
    monkeypatch.setattr(proxies, "affordable_flops", forbidden)
    again, _ = proxies.choose_by_law(job, reader, 99.0)
    assert (again.config, again.fitted) == (choice.config, choice.fitted)


def test_where_nothing_was_learned_there_is_no_forecast(job, monkeypatch):
    job, reader = job
    proxies.choose_by_law(job, reader, 10.0)
    monkeypatch.setattr(proxies, "PLATEAU", 0.1)
    choice, outlook = proxies.choose_by_law(job, reader, 10.0)
    assert outlook is None
    assert "too short" in choice.why
    assert choice.fitted["steps"] >= proxies.LEAST_STEPS


def test_the_pace_is_that_of_the_runs():
    runs = [{"params": n, "pace": 2e-6 + 3e-12 * n} for n in (1e5, 4e5, 1e6)]
    assert proxies.pace_of(runs)(1e7) == pytest.approx(3.2e-5, rel=1e-6)


def test_parameters_that_multiply_are_counted_as_they_are(job):
    reader = job[1]
    from layerwise.models.llama import Model

    for width in (32, 96, 192):
        config = language.decoder_of(width, reader.tokenizer.vocab_size, 32)
        with torch.device("meta"):
            matrices = [p for p in Model(config).parameters() if p.ndim == 2]
        assert proxies.multiplied(config) == sum(p.numel() for p in matrices)


def test_fit_shows_the_forecast_beside_what_came(book: pathlib.Path, tmp_path: pathlib.Path):
    folder = tmp_path / "run"
    options = {"budget": "12s", "threads": 1, "dtype": "fp32", "max_seq_len": 32, "depth": False}
    result = layerwise.fit(book, console=QUIET, base="none", output=str(folder), **options)
    found = result.details["forecast"]
    assert found["came"] == result.ladder[-1]["score"]
    assert found["within"] == (found["low"] <= found["came"] <= found["high"])
    assert "The forecast beside what came" in (folder / "report.html").read_text()
    assert json.loads((folder / "result.json").read_text())["lens"]["carried"] > 0


def test_plan_of_a_corpus(book: pathlib.Path, capsys: pytest.CaptureFixture):
    assert main(["plan", "--data", str(book), "--budget", "10s"]) == 0
    said = capsys.readouterr().out
    assert "bits per byte expected of each size" in said
    assert said.count("best") == 1
    with pytest.raises(OptionError, match="--budget 30m"):
        layerwise.plan(data=str(book))
    with pytest.raises(OptionError, match="name it"):
        layerwise.plan("resnet20", budget="10s")


def test_plan_of_a_corpus_that_is_none(tmp_path: pathlib.Path):
    rows = "\n".join(f"{i},{i % 2}" for i in range(50))
    (tmp_path / "t.csv").write_text("x,label\n" + rows + "\n")
    with pytest.raises(DataError, match="no column to learn"):
        layerwise.plan(data=str(tmp_path / "t.csv"), budget="10s")
