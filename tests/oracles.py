"""Reference packages the tests compare with: imported here, never by the package itself."""

import contextlib
import importlib.util
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import time
import warnings
from types import ModuleType
from typing import Any, Self

import numpy as np
import pytest
import torch

_declared: list[torch.library.Library] = []  # kept alive: a library's operators vanish with it


def import_torchvision() -> ModuleType:
    """torchvision, or a skipped test where it is not installed.

    The registry's wheel looks for compiled operators that fail to load beside a CPU build of torch.
    Declared without a kernel they satisfy the import; no classification network calls them.
    """
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    if not _declared and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
    return _import_quietly("torchvision")


def import_timm() -> ModuleType:
    """timm (which imports torchvision), or a skipped test."""
    import_torchvision()
    return _import_quietly("timm")


def import_transformers() -> ModuleType:
    """transformers (which imports torchvision for its vision models), or a skipped test."""
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()
    return _import_quietly("transformers")


def _import_quietly(name: str) -> ModuleType:
    """The module, with its own import-time deprecation warnings not counted as ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


class Child:
    """A Python script in a process of its own, for what may hang or crash: a line of JSON is asked,
    a line of JSON answered. It is killed when an answer takes too long, and at the end."""

    def __init__(self, script: pathlib.Path, *arguments: str, seconds: float = 120.0):
        self.seconds, self.rest = seconds, b""
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [sys.executable, str(script), *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.said)

    def ask(self, question: Any) -> Any:
        """The answer. Errors: TimeoutError when none came in time, RuntimeError when it died."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, and is asked why below
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        return json.loads(self.line())

    def line(self) -> bytes:
        assert self.process.stdout is not None
        ended = time.monotonic() + self.seconds
        while b"\n" not in self.rest:
            left = max(0.0, ended - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                self.close()
                raise TimeoutError(f"no answer within {self.seconds:g} s")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                code = self.process.wait()
                raise RuntimeError(f"it ended with {code}: {self.last_words()}")
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def last_words(self) -> str:
        self.said.seek(0)
        return self.said.read().decode(errors="replace")[-2000:]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self.said.close()


class LlamaCpp(Child):
    """llama.cpp with a GGUF file open, through xllamacpp, or a skipped test.

    Its server ends its threads in its destructor, which has waited for ever: hence the process.
    """

    def __init__(self, path: pathlib.Path | None = None):
        if importlib.util.find_spec("xllamacpp") is None:
            pytest.skip("xllamacpp is not installed")
        script = pathlib.Path(__file__).with_name("llama_cpp.py")
        super().__init__(script, *([] if path is None else [str(path)]))

    def tokens(self, text: str) -> list[int]:
        values = {"content": text, "add_special": True, "parse_special": True}
        return self.ask(("tokenize", values))["tokens"]

    def chat(self, messages: list[dict]) -> str:
        return self.ask(("apply-template", {"messages": messages}))["prompt"]

    def continued(self, ids: list[int], n: int, n_tokens: int) -> tuple[list[int], torch.Tensor]:
        """The likeliest tokens, and the logarithm of all tokens' probabilities (n, V)."""
        values = {"prompt": ids, "n_predict": n, "temperature": 0.0, "top_k": 1,
                  "n_probs": n_tokens, "cache_prompt": False, "return_tokens": True}  # fmt: skip
        answer = self.ask(("completion", values))
        scores = torch.full((len(answer["completion_probabilities"]), n_tokens), -torch.inf)
        for row, step in zip(scores, answer["completion_probabilities"], strict=True):
            for other in step["top_logprobs"]:
                row[other["id"]] = other["logprob"]
        return answer["tokens"], scores

    def quantized(self, rows: np.ndarray, nbytes: int, kind: int) -> np.ndarray:
        """fp32 numbers (n, k) as llama.cpp packs them, in bytes; no model is open then."""
        with tempfile.TemporaryDirectory() as folder:
            paths = {"rows": f"{folder}/rows.npy", "packed": f"{folder}/packed.npy"}
            np.save(paths["rows"], np.ascontiguousarray(rows, np.float32))
            np.save(paths["packed"], np.zeros(nbytes, np.uint8))
            assert self.ask(("quantize", {**paths, "kind": kind})) == nbytes
            return np.load(paths["packed"])
