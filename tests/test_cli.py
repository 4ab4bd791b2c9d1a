"""The command line: clear errors, exit codes, JSON alone on standard output."""

import json
import subprocess
import sys

import pytest

from layerwise import cli, settings
from layerwise.errors import OptionError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "x", "--epoch", "3"], "did you mean --epochs"),
        (["fit", "x", "--lr", "fast"], "invalid float value: 'fast'"),
        (["fit", "x", "--schedule", "cosin"], "choose from"),
        (["fitt", "x"], "invalid choice: 'fitt'"),
        (["fit", "x", "--keep", "0"], "--keep must be 1 or more; 0 was given"),
        (["fit", "x", "--test", "1.5"], "--test must be at least 0 and below 1"),
        (["fit"], "data was expected"),
        (["fit", "--resume", "nowhere"], "nowhere holds no run.json"),
        (["evaluate", "only_one"], "layerwise evaluate MODEL DATA"),
        (["plan", "resnet5"], "or 'resnet50'?"),
        (["models", "resnets"], "did you mean 'resnet'"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_exit_code_2(
    arguments, said, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in err
    assert out == ""


def test_json_errors_are_json(capsys):
    assert cli.main(["plan", "resnet5", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == 2
    assert "resnet50" in found["error"]


def test_debug_shows_the_traceback():
    with pytest.raises(OptionError):
        cli.main(["plan", "resnet5", "--debug"])


def test_plan_prints_one_json_document(capsys):
    assert cli.main(["plan", "resnet20", "--batch", "8", "--rows", "64", "--json"]) == 0
    out, _ = capsys.readouterr()
    found = json.loads(out)
    assert found["params"] == 269_722


def test_doctor_and_version_run(capsys):
    assert cli.main(["--version"]) == 0
    assert cli.main(["doctor", "--json"]) == 0
    out = capsys.readouterr().out
    facts = json.loads(out[out.index("{") :])
    assert {"layerwise", "torch", "device", "threads"} <= set(facts)


def test_every_verb_has_help():
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as stop:
            cli.main([verb, "--help"])
        assert stop.value.code == 0


def test_out_of_memory_says_what_to_do(capsys, monkeypatch):
    def starve(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(cli, "run", starve)
    assert cli.main(["doctor"]) == 5
    assert "--device-batch-size" in capsys.readouterr().err


def test_a_pipe_that_closes_early_is_no_error():
    command = f"{sys.executable} -m layerwise.cli models mlp --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_settings_refuse_unknown_names_and_types():
    with pytest.raises(OptionError, match="did you mean 'epochs'"):
        settings.settings(epoch=3)
    with pytest.raises(OptionError, match="--epochs takes float; '3' was given"):
        settings.settings(epochs="3")
    with pytest.raises(OptionError, match="--seed takes int"):
        settings.settings(seed=True)
    assert settings.settings(epochs=3).epochs == 3.0


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("7", 7)])
def test_times_are_read(text, value):
    assert settings.seconds(text) == value


@pytest.mark.parametrize("text", ["", "ten", "-3m", "5y", "m"])
def test_what_is_no_time_is_said(text):
    with pytest.raises(OptionError, match="a time such as 90s, 10m or 2h"):
        settings.seconds(text)
