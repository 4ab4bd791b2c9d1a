"""From raw files to a model that is saved, opened, scored and resumed: the verbs together."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import layerwise
from layerwise import runtime
from layerwise.console import Console
from layerwise.errors import DataError, DoesNotFit, LayerwiseError, OptionError, StorageError

QUIET = Console(quiet=True)
FAST = {"steps": 30, "device_batch_size": 32, "threads": 1, "depth": False, "dtype": "fp32"}


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three classes of 16 x 16 pictures that differ in the direction of their bars."""
    root = tmp_path_factory.mktemp("bars")
    rng = np.random.default_rng(0)
    for name in ("across", "down", "plain"):
        (root / name).mkdir()
        for i in range(60):
            x = rng.integers(40, 90, (16, 16, 3))
            at = rng.integers(2, 13)
            if name == "across":
                x[at : at + 2] += 150
            if name == "down":
                x[:, at : at + 2] += 150
            Image.fromarray(x.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def fitted(bars: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return layerwise.fit(
        bars, console=QUIET, output=str(folder), base="none", **{**FAST, "steps": 60}
    )


def test_it_learns_scores_and_reports(fitted, bars: pathlib.Path):
    assert fitted.finished
    assert fitted.score > 0.8
    assert fitted.low <= fitted.score <= fitted.high
    page = pathlib.Path(fitted.report).read_text()
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is fetched
    assert "rows never seen" in page
    result = json.loads((pathlib.Path(fitted.folder) / "result.json").read_text())
    assert sum(result["rows"].values()) == 180
    assert result["plan"][0]["actual"] > 0
    assert fitted.model.labels == ("across", "down", "plain")


ANY_MODEL = {"airbench94": 32, "mobilenetv2_035": 32, "mobilenet_v1_025": 64, "squeezenet1_1": 64,
             "vit_tiny_patch4_32": 32, "resnet20": 16, "alexnet_owt": 64, "mlp": 16}  # fmt: skip


@pytest.mark.parametrize("model", ANY_MODEL)
def test_any_family_can_be_fitted(bars: pathlib.Path, tmp_path: pathlib.Path, model: str):
    """Three steps are enough to go through plan, loop, scoring, saving and opening."""
    options = {**FAST, "steps": 3, "model": model, "image_size": ANY_MODEL[model], "audit": False}
    result = layerwise.fit(bars, console=QUIET, output=str(tmp_path / "run"), **options)
    again = layerwise.load(result.folder)
    assert again.variant == model
    one = again.predict(bars / "down")[0]
    assert one.label in ("across", "down", "plain")


def test_grey_images_leave_channels_without_variance(tmp_path: pathlib.Path):
    """The whitened first layer gives them nothing in colour; normalising that must stay finite."""
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    images = rng.integers(0, 40, (240, 28, 28), dtype=np.uint8)
    images[:, :6] = 0
    for image, label in zip(images, labels, strict=True):
        image[8 + 6 * label : 12 + 6 * label] += 150
    np.savez(tmp_path / "grey.npz", images=images, labels=labels)
    options = {**FAST, "steps": 12, "model": "airbench94", "dtype": "auto", "audit": False}
    result = layerwise.fit(
        tmp_path / "grey.npz", console=QUIET, output=str(tmp_path / "run"), **options
    )
    assert result.score > 0.8


def test_the_saved_model_says_the_same(fitted, bars: pathlib.Path):
    again = layerwise.load(fitted.folder)
    a, b = (m.predict(bars / "down", confidence=0.9) for m in (fitted.model, again))
    assert [p.row() for p in a] == [p.row() for p in b]
    assert all(p.set is not None for p in a)
    assert np.mean([p.label == "down" for p in a]) > 0.8
    one = again.predict(bars / "down" / "0.png")[0]
    assert one.label == a[0].label
    assert one.probability == pytest.approx(a[0].probability, abs=0.02)


def test_evaluate_and_compare(fitted, bars: pathlib.Path):
    found = layerwise.evaluate(fitted.folder, bars)
    assert (found.split, found.n) == ("test", 36)  # what it was not trained on
    assert found.score == fitted.score > 0.8
    both = layerwise.compare(fitted.folder, fitted.folder, bars)
    assert both.difference == 0
    assert both.p == 1


def test_inspect_reads_a_saved_model(fitted, bars: pathlib.Path):
    report = layerwise.inspect(fitted.folder, bars, rows=90)
    assert [row["name"] for row in report.to_dict()["layers"]][-1] == "head"
    assert [row[0] for row in report.table()[1]][-1] == "head"
    assert report.sentences()


def test_the_same_seed_gives_the_same_weights(bars: pathlib.Path, tmp_path: pathlib.Path):
    runs = [
        layerwise.fit(bars, console=QUIET, output=str(tmp_path / name), base="none", seed=5, **FAST)
        for name in "ab"
    ]
    a, b = (r.model.network.state_dict() for r in runs)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_resume_ends_in_the_same_weights(
    bars: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    options = {**FAST, "checkpoint_every": 5, "evaluate_every": 10, "keep": 3}
    whole = layerwise.fit(bars, console=QUIET, output=str(tmp_path / "a"), base="none", **options)
    layerwise.fit(bars, console=QUIET, output=str(tmp_path / "b"), base="none", **options)
    training = next((tmp_path / "b" / "rungs").iterdir()) / "checkpoints"
    kept = sorted(training.iterdir())
    for newer in kept[1:]:  # as if the run had died after the oldest checkpoint that is left
        for file in newer.iterdir():
            file.unlink()
        newer.rmdir()
    died, looks = int(kept[0].name.removeprefix("step-")), training.parent / "watch.json"
    seen = [look for look in json.loads(looks.read_text()) if look["step"] < died]
    assert seen
    decided = json.loads((training.parent / "compiled.json").read_text())
    assert (decided["compiled"], decided["why"][:12]) == (False, "not compiled")
    monkeypatch.setattr("layerwise.train.run.whether_to_compile", None)  # it is not asked again
    again = layerwise.fit(resume=tmp_path / "b", console=QUIET)
    assert json.loads(looks.read_text())[: len(seen)] == seen
    a, b = whole.model.network.state_dict(), again.model.network.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert again.score == whole.score


def test_a_table_with_missing_cells_and_categories(tmp_path: pathlib.Path):
    rng = np.random.default_rng(1)
    rows = ["size,colour,empty,price"]
    for _ in range(300):
        size, colour = rng.uniform(0, 10), rng.choice(["red", "blue"])
        price = 3 * size + (10 if colour == "red" else 0) + rng.normal(0, 0.5)
        rows.append(f"{size:.3f},{colour if rng.random() > 0.1 else ''},,{price:.3f}")
    (tmp_path / "houses.csv").write_text("\n".join(rows))
    result = layerwise.fit(
        tmp_path / "houses.csv", console=QUIET, target="price", output=str(tmp_path / "run"),
        **{**FAST, "steps": 400, "lr": 0.005},
    )  # fmt: skip
    assert result.score_name == "rmse"
    assert result.metrics["r2"] > 0.8
    (tmp_path / "new.csv").write_text("size,colour,empty\n5.0,red,\n5.0,blue,\n")
    red, blue = result.model.predict(tmp_path / "new.csv", confidence=0.9)
    assert red.value - blue.value == pytest.approx(10, abs=4)
    assert red.interval[0] < red.value < red.interval[1]


def test_a_run_is_scored_again_in_its_own_arithmetic(tmp_path: pathlib.Path):
    """Ask 24: tables are trained in fp32, also where images are not."""
    rng = np.random.default_rng(0)
    lines = [f"{x:.3f},{y:.3f},{'big' if x + y + e > 0 else 'small'},{'test' if i % 3 else 'train'}"
             for i, (x, y, e) in enumerate(rng.normal(size=(600, 3)))]  # fmt: skip
    (tmp_path / "a.csv").write_text("\n".join(["wide,long,kind,split", *lines]))
    options = {**FAST, "dtype": "auto", "console": QUIET, "output": str(tmp_path / "run")}
    run = layerwise.fit(tmp_path / "a.csv", **options)
    assert layerwise.evaluate(run.folder, tmp_path / "a.csv", split="test").metrics == run.metrics


@pytest.mark.parametrize(
    "options", [{"steps": 3, "nonsense": 1}, {"budget": "soon"}, {"model": "resnet19"}]
)
def test_wrong_options_are_said_before_anything_is_trained(bars, tmp_path, options):
    with pytest.raises(OptionError):
        layerwise.fit(bars, console=QUIET, output=str(tmp_path / "r"), base="none", **options)


def test_an_existing_run_is_not_overwritten(fitted, bars: pathlib.Path):
    with pytest.raises(OptionError, match="--resume"):
        layerwise.fit(bars, console=QUIET, output=fitted.folder)


def test_no_permission_is_said(bars: pathlib.Path, tmp_path: pathlib.Path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "mkdir", denied)
    with pytest.raises(StorageError, match=r"no permission.*--output"):
        layerwise.fit(bars, console=QUIET, output=str(tmp_path / "r"))


def test_what_does_not_fit_is_refused_with_what_would(bars, tmp_path, monkeypatch):
    import importlib

    hardware = importlib.import_module("layerwise.planning.hardware")
    monkeypatch.setattr(hardware, "available_memory", lambda: 60_000_000)
    with pytest.raises(DoesNotFit, match=r"memory"):
        layerwise.fit(bars, console=QUIET, output=str(tmp_path / "r"), base="none", **FAST)


def test_loose_images_cannot_be_learned_from(bars: pathlib.Path, tmp_path: pathlib.Path):
    with pytest.raises(DataError, match="label"):
        layerwise.fit(bars / "down", console=QUIET, output=str(tmp_path / "r"))


def test_a_table_model_refuses_images(fitted, tmp_path: pathlib.Path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    with pytest.raises(LayerwiseError, match="reads images"):
        fitted.model.predict(tmp_path / "t.csv")


def test_ctrl_c_once_then_resume_ends_as_undisturbed(bars: pathlib.Path, tmp_path: pathlib.Path):
    """A real Ctrl-C to a real process: it finishes the step, reports, exits 130, and resumes."""
    import signal
    import time

    whole = layerwise.fit(bars, console=QUIET, output=str(tmp_path / "a"), base="none", **FAST)
    arguments = [sys.executable, "-m", "layerwise.cli", "fit", str(bars), "--base", "none"]
    for name, value in FAST.items():
        flag = "--" + name.replace("_", "-")
        arguments += [f"--no-{name}"] if value is False else [flag, str(value)]
    arguments += ["--output", str(tmp_path / "b"), "--checkpoint-every", "1"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "b" / "rungs" / "scratch" / "checkpoints"
    ended = time.monotonic() + 120
    while time.monotonic() < ended and not list(checkpoints.glob("step-0000000[2-9]")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    if process.returncode == 0:
        pytest.skip("the machine was so quick that the run had ended")
    assert process.returncode == 130, (out, err)
    assert "--resume" in out
    again = layerwise.fit(resume=tmp_path / "b", console=QUIET)
    assert again.finished
    a, b = whole.model.network.state_dict(), again.model.network.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_runtime_says_what_it_chose():
    machine = runtime.start(threads=1)
    assert machine.notes
    with pytest.raises(OptionError, match="did you mean 'cuda'"):
        runtime.start(device="cudda")


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is reset on Linux only")
def test_the_peak_of_one_rung_is_not_that_of_another():
    block = torch.ones(100_000_000)  # 400 MB
    before = runtime.peak_memory_mb()
    del block
    runtime.forget_peak()
    assert runtime.peak_memory_mb() < before - 300
