"""A reference in a process of its own cannot hold up or end the tests."""

import pathlib

import pytest

from tests.oracles import Child

SCRIPT = """
import json, os, sys, time
for line in sys.stdin:
    what = json.loads(line)
    if what == "hang":
        time.sleep(600)
    if what == "crash":
        print("out of cards", file=sys.stderr, flush=True)
        os.abort()
    print(json.dumps([what] * 50_000), flush=True)
"""


@pytest.fixture
def script(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_it_answers_what_it_is_asked(script):
    with Child(script) as child:
        assert child.ask("a") == ["a"] * 50_000
        assert child.ask(2)[-1] == 2
    assert child.process.returncode is not None


def test_one_that_hangs_is_killed(script):
    with Child(script, seconds=1.0) as child, pytest.raises(TimeoutError, match="within 1 s"):
        child.ask("hang")
    assert child.process.returncode == -9


def test_one_that_crashes_says_its_last_words(script):
    with Child(script) as child, pytest.raises(RuntimeError, match="ended with -6: out of cards"):
        child.ask("crash")
