"""Reference packages the tests compare with: imported here, never by the package itself."""

import importlib.util
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
