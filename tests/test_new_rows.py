"""Rows, tasks and networks that the package does not have go through all its verbs: a row of a
picture and a text, a task that draws noise, and one whose prediction is a picture.

They are in `toys/`, added by the tables that a newcomer would add a line to.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import layerwise
from layerwise import kinds, models, tasks
from layerwise.data.sources import Draw
from layerwise.kinds.opening import open_data
from layerwise.settings import Settings
from layerwise.tasks.feed import Feed, batch_of

SIDE = 16


@pytest.fixture(scope="module", autouse=True)
def added():
    """A line in each table."""
    patch = pytest.MonkeyPatch()
    patch.setitem(kinds.KINDS, "pairs", "tests.toys.pairs:Pairs")
    patch.setitem(models.FAMILIES, "two_towers", "tests.toys.two_towers")
    patch.setitem(models.FAMILIES, "cleaner", "tests.toys.cleaner")
    patch.setitem(tasks.TASKS, "clean", "tests.toys.clean:Clean")
    yield
    patch.undo()
    kinds.kind.cache_clear()


def write_pairs(root, n, captions=True):
    """Squares, dark or bright, of captions that say "day" or "night": odd where they disagree."""
    root.mkdir(parents=True)
    rng, said = np.random.default_rng(n), {}
    for i in range(n):
        bright, day = i % 2, i // 2 % 2
        pixels = rng.integers(0, 90, (SIDE, SIDE, 3)) + 150 * bright
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i:03}.png")
        time, label = ("night", "day")[day], ("odd", "fitting")[bright == day]
        caption = f"this one was taken by {time} from the hill number {i}"
        said[f"{i:03}.png"] = [caption, label] if captions else ["", ""]
    (root / "pairs.json").write_text(json.dumps(said))
    return root


# ---- a row of a picture and a text ---------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(Result, data, folder of the run): neither the picture nor the text alone tells the class."""
    root = tmp_path_factory.mktemp("two")
    data = write_pairs(root / "data", 240)
    folder = root / "run"
    return layerwise.fit(data, output=folder, model="two_towers", steps=200, lr=0.01), data, folder


def test_both_are_learned_from(two):
    result, _, _ = two
    assert result.score > 0.95
    assert set(result.model.processors) == {"image", "text"}


def test_a_saved_model_reads_both(two):
    result, data, folder = two
    model = layerwise.load(folder)
    rows = open_data(data)
    for a, b in zip(result.model.predict(rows), model.predict(str(data)), strict=True):
        assert a.label == b.label
        assert a.probability == pytest.approx(b.probability, abs=1e-5)
    value = {"image": np.full((SIDE, SIDE, 3), 190, np.uint8), "text": "taken by day"}
    dark = value | {"image": np.full((SIDE, SIDE, 3), 40, np.uint8)}
    assert [p.label for p in model.predict([value, dark])] == ["fitting", "odd"]
    assert layerwise.evaluate(model, data, split="test").score == result.score


def test_the_report_shows_both(two, tmp_path):
    result, data, folder = two
    again = layerwise.fit(data, output=tmp_path / "run", model="two_towers", steps=2)
    html = (tmp_path / "run/report.html").read_text("utf-8")
    assert again.score < 0.9
    assert "Its worst mistakes" in html
    shots = html.split("Its worst mistakes")[1]
    assert "data:image/" in shots
    assert "from the hill number" in shots
    assert (folder / "report.html").exists()
    assert result.finished


def test_rows_are_copies_only_where_both_are_alike(tmp_path):
    data = write_pairs(tmp_path / "data", 12)
    said = json.loads((data / "pairs.json").read_text())
    for copy, of in (("same.png", "000.png"), ("other.png", "001.png")):
        (data / copy).write_bytes((data / of).read_bytes())
    said["same.png"] = said["000.png"]
    said["other.png"] = ["the same picture with another text", "odd"]
    (data / "pairs.json").write_text(json.dumps(said))
    examples, report = layerwise.audit(data)
    exact = dict(zip(examples.names, report.looks.exact.tolist(), strict=True))
    assert exact["same.png"] == exact["000.png"]
    assert exact["other.png"] != exact["001.png"]


# ---- drawn noise, and a picture as the prediction ------------------------------------------------


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    data = write_pairs(root / "data", 120, captions=False)
    folder = root / "run"
    return layerwise.fit(data, output=folder, model="cleaner", steps=150, lr=0.01), data, folder


def test_noise_is_drawn_once_for_a_step_and_always_the_same_for_scoring(tmp_path):
    rows = open_data(write_pairs(tmp_path / "data", 8, captions=False))
    task = tasks.task_for(rows)
    processors = {"image": kinds.kind("image").processor_for(rows, None, Settings())}
    feed = Feed(task, rows, processors)
    some = np.arange(8)
    first, again, other = (feed.learn(some, Draw(1, step, 0)) for step in (3, 3, 4))
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])
    whole = first.split(1)[0]
    halves = first.split(2)
    assert torch.equal(torch.cat([half["image"] for half in halves]), whole["image"])
    assert torch.equal(feed.look(some)["image"], batch_of(task, rows, processors)["image"])
    assert not torch.equal(first["image"], first["targets"])


def test_noise_is_taken_away(cleaned):
    result, _, _ = cleaned
    assert result.score_name == "distance"
    assert result.score < 0.25  # the noise itself is 1/3, a grey picture 1


def test_a_picture_is_predicted_as_one(cleaned):
    result, data, folder = cleaned
    model = layerwise.load(folder)
    path = sorted(data.glob("*.png"))[0]
    (said,) = model.predict([path])
    assert said.picture.shape == (3, SIDE, SIDE)
    assert said.row()["picture"].startswith("data:image/")
    np.testing.assert_allclose(said.picture, result.model.predict([path])[0].picture, atol=1e-5)
    assert layerwise.evaluate(model, data, split="test").score == pytest.approx(result.score)


def test_its_report_is_written(cleaned):
    _, _, folder = cleaned
    html = (folder / "report.html").read_text("utf-8")
    assert "off by" in html
    assert "a grey picture" in html
