"""The lens says which tokens carry loss and what was cut; a run without loss is refused."""

import io
import pathlib
from typing import Any

import numpy as np
import pytest
import torch

import layerwise
from layerwise.console import Console
from layerwise.data.examples import Batch, Examples
from layerwise.errors import DataError
from layerwise.fitting.lens import Lens, lens_of, show
from layerwise.kinds.text.corpus import Windows, tokenise
from layerwise.kinds.text.language import windows_of
from layerwise.kinds.text.processor import TextProcessor
from layerwise.tasks.causal import Causal
from layerwise.tasks.feed import batch_of
from layerwise.tasks.task import Task
from layerwise.tokens.training import train_bpe
from tests.rows import sentences, texts


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([sentences(50, i) for i in range(4)], 300)


class Answers(Task):
    """A task on texts whose lens gives one answer per row, or marks of its own."""

    def __init__(self, count: int = 1, rows: Any = None):
        self.n, self.rows = count, rows

    def count(self, batch: Batch) -> int:
        return self.n

    def lens(self, batch: Batch) -> Any:
        return self.rows or ["good"] * len(batch)


def looked(rows: Examples, processor: TextProcessor, task: Task) -> Lens:
    found = lens_of(rows, {"text": processor}, task)
    assert found is not None
    return found


def test_every_predicted_token_is_marked(tokenizer):
    pieces = [sentences(6, 0), sentences(5, 1)]
    corpus, readers = tokenise(pieces, tokenizer), {"text": TextProcessor(tokenizer, 32)}
    rows = windows_of(texts(pieces), readers["text"])
    found = looked(rows, readers["text"], Causal())
    batch = batch_of(Causal(), rows, readers)
    assert found.carried == Causal().count(batch)
    assert found.cut_rows == 0
    marked = Causal().lens(batch)
    windows = Windows(corpus, 32)
    for i, row in enumerate(marked):  # every window's own tokens, in their order
        assert [token for token, _ in row] == windows[i][: len(row)].tolist()
    firsts = set(corpus.starts[1:-1].tolist())
    for i, row in enumerate(marked):
        for t, (_, carries) in enumerate(row):
            assert carries == (t > 0 and i * 32 + t not in firsts)


def test_what_is_cut_is_counted(tokenizer):
    rows = ["the cat sat", sentences(3, 0), "a dog"]
    processor = TextProcessor(tokenizer, 12)
    found = looked(texts(rows), processor, Answers())
    long = len(tokenizer.encode(rows[1]))
    whole = sum(len(tokenizer.encode(row)) for row in rows)
    assert found.cut_rows == 1
    assert f"1 of 3 rows, {(long - 12) / whole:.1%} of all tokens" in found.said()
    assert [kind for _, kind in found.rows[0]] == ["seen", "loss", "cut"]
    assert found.rows[0][1][0] == " -> good"


def test_a_run_without_loss_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"none of the tokens in 2 rows of t\.txt carries loss"):
        looked(texts(["a cat", "a dog"]), TextProcessor(tokenizer, 12), Answers(0))


def test_marks_of_a_task(tokenizer):
    ids = tokenizer.encode("the cat sat on a mat")
    rows = [[(t, i in (1, 2)) for i, t in enumerate(ids)]] * 2
    found = looked(texts(["x", "y"]), TextProcessor(tokenizer, 12), Answers(4, rows))
    assert [k for _, k in found.rows[0]] == ["seen", "loss", "seen"]
    assert "".join(text for text, _ in found.rows[0]) == "the cat sat on a mat"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_on_a_terminal_and_marks_in_a_pipe(tokenizer, monkeypatch: pytest.MonkeyPatch):
    rows = ["the cat sat on a mat while one dog ran over the hill", "a dog"]
    found = looked(texts(rows), TextProcessor(tokenizer, 8), Answers())
    said = {}
    for name, stream, colour in (
        ("pipe", io.StringIO(), ""), ("terminal", Terminal(), ""), ("plain", Terminal(), "1"),
    ):  # fmt: skip
        monkeypatch.setenv("NO_COLOR", colour)
        show(found, Console(stream))
        said[name] = stream.getvalue()
    assert "\033[32m" in said["terminal"]
    assert "\033[9;31m" in said["terminal"]
    assert "\033" not in said["pipe"] + said["plain"]
    assert "[ -> good]" in said["pipe"]
    assert "~" in said["pipe"]
    assert all(len(line) < 220 for line in said["pipe"].splitlines())


def test_padding_is_not_shown(tokenizer):
    found = looked(texts(["a cat sat on a mat", "a"]), TextProcessor(tokenizer, 12), Answers())
    assert sum(len(text) for text, kind in found.rows[1] if kind == "seen") == 1


def test_fit_shows_it_before_the_first_step(tmp_path: pathlib.Path):
    path, out = tmp_path / "book.txt", io.StringIO()
    path.write_text(sentences(400, 0))
    layerwise.fit(
        path, console=Console(out), output=str(tmp_path / "run"), steps=2, device_batch_size=4,
        threads=1, dtype="fp32", depth=False,
    )  # fmt: skip
    said = out.getvalue()
    assert said.index("lens: ") < said.index("plan (scratch)")
    assert "nothing is cut" in said
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What carries loss" in page
    assert '<span class="loss">' in page


def test_all_targets_masked_is_refused_by_the_task():
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    batch = Batch({"tokens": tokens, "targets": tokens - 100}, np.arange(2))
    with pytest.raises(DataError, match="no token of this batch carries loss"):
        Causal().count(batch)
