"""Reference packages the tests compare with: imported here, never by the package itself."""

import ctypes
import importlib.util
import json
import pathlib
import urllib.request
import warnings
from types import ModuleType

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


class LlamaCpp:
    """llama.cpp with a GGUF file open, through xllamacpp, or a skipped test."""

    def __init__(self, path: pathlib.Path):
        package = pytest.importorskip("xllamacpp")
        params = package.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_predict = 256, 1, 64
        params.warmup, params.cache_ram_mib, params.verbosity = False, 0, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.hostnames, params.port = ["127.0.0.1"], 0
        self.server = package.Server(params)

    @staticmethod
    def library() -> ctypes.CDLL:
        return ctypes.CDLL(pytest.importorskip("xllamacpp.xllamacpp").__file__)

    def _asked(self, what: str, values: dict) -> dict:
        request = urllib.request.Request(
            f"{self.server.listening_address}/{what}",
            json.dumps(values).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read())

    def tokens(self, text: str) -> list[int]:
        values = {"content": text, "add_special": True, "parse_special": True}
        return self._asked("tokenize", values)["tokens"]

    def chat(self, messages: list[dict]) -> str:
        return self._asked("apply-template", {"messages": messages})["prompt"]

    def continued(self, ids: list[int], n: int, n_tokens: int) -> tuple[list[int], torch.Tensor]:
        """The likeliest tokens, and the logarithm of all tokens' probabilities (n, V)."""
        values = {"prompt": ids, "n_predict": n, "temperature": 0.0, "top_k": 1,
                  "n_probs": n_tokens, "cache_prompt": False, "return_tokens": True}  # fmt: skip
        answer = self._asked("completion", values)
        scores = torch.full((len(answer["completion_probabilities"]), n_tokens), -torch.inf)
        for row, step in zip(scores, answer["completion_probabilities"], strict=True):
            for other in step["top_logprobs"]:
                row[other["id"]] = other["logprob"]
        return answer["tokens"], scores
