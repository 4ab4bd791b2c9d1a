"""Who gets how much of a budget, and who is kept."""

import pathlib
import types

import pytest
import torch
from torch import nn

from layerwise.console import Console
from layerwise.fitting import contenders
from layerwise.fitting.contenders import FIRST, compete, has_time
from layerwise.fitting.job import Contender, Job, Rung
from layerwise.kinds.contract import Choice
from layerwise.runtime import Runtime
from layerwise.settings import settings
from layerwise.train.run import Recipe

SECONDS = 100.0
STEP = 0.1


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(value=0.0)
    monkeypatch.setattr(contenders.time, "monotonic", lambda: now.value)
    return now


def contender(way: str, steps: int) -> Contender:
    seconds = types.SimpleNamespace(value=STEP * steps)
    plan = types.SimpleNamespace(seconds=seconds, steps=steps)
    choice = Choice("", "", None, {}, "")
    recipe = Recipe(steps, global_batch_size=32)
    return Contender(way, nn.Identity(), choice, recipe, plan=plan)  # type: ignore[arg-type]


def shares(clock, monkeypatch, all_of_them, scores, deadline: float = SECONDS):
    """The seconds that each was given, and who was kept."""
    given = {}

    def train_within(job, c, share):
        given[c.way] = share
        clock.value += min(share, STEP * c.recipe.steps)
        low, high = scores[c.way] - 0.1, min(1.0, scores[c.way] + 0.1)
        c.rung = Rung(c.way, scores[c.way], low, high, 1.0, 1.0)

    monkeypatch.setattr(contenders, "train_within", train_within)
    task = types.SimpleNamespace(higher_is_better=True)
    machine, quiet = Runtime("cpu", torch.float32, 1), Console(quiet=True)
    job = Job(settings(), pathlib.Path(), task, [], [], machine, quiet, deadline=deadline)  # type: ignore[arg-type]
    kept = compete(job, all_of_them)
    return given, kept.way, [r.name for r in job.rungs]


def test_the_first_gets_most_and_the_rest_is_shared(clock, monkeypatch):
    three = [contender(way, 10_000) for way in ("full", "lora", "scratch")]
    scores = {"full": 0.5, "lora": 0.6, "scratch": 0.1}
    given, kept, tried = shares(clock, monkeypatch, three, scores)
    assert given == pytest.approx({"full": 60, "lora": 20, "scratch": 20})
    assert (kept, tried) == ("lora", ["full", "lora", "scratch"])


def test_what_a_short_recipe_leaves_goes_to_the_others(clock, monkeypatch):
    two = [contender("full", 100), contender("scratch", 10_000)]  # 10 s and 1,000
    given, kept, _ = shares(clock, monkeypatch, two, {"full": 0.8, "scratch": 0.4})
    assert given == pytest.approx({"full": FIRST * SECONDS, "scratch": SECONDS - 10})
    assert kept == "full"
    alone, _, _ = shares(
        clock, monkeypatch, [contender("full", 100)], {"full": 0.8}, clock.value + 7
    )
    assert alone == pytest.approx({"full": 7})


def test_nobody_follows_who_cannot_be_beaten(clock, monkeypatch):
    two = [contender("full", 100), contender("lora", 100)]
    given, kept, tried = shares(clock, monkeypatch, two, {"full": 0.95, "lora": 0.99})
    assert list(given) == tried == [kept] == ["full"]


def test_there_is_time_while_the_least_share_tells(clock):
    task, machine = types.SimpleNamespace(), Runtime("cpu", torch.float32, 1)
    quiet, first = Console(quiet=True), [contender("full", 100)]
    make = lambda seconds: Job(  # noqa: E731
        settings(), pathlib.Path(), task, [], [], machine, quiet, deadline=seconds
    )
    assert has_time(make(SECONDS), first, 3)  # 20 s for each, of which 40 steps take 4
    assert not has_time(make(15.0), first, 3)
    assert has_time(make(15.0), first, 2)
    long = [contender("full", 2_400)]  # 240 s, of which a quarter is 60
    assert has_time(make(SECONDS), long, 2)
    assert not has_time(make(SECONDS - 1), long, 2)
    assert has_time(make(SECONDS - 1), long, 1)
