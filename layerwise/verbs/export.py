"""`export`: a model as other tools read it, opened again and compared before it is handed over."""

import copy
import pathlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.errors import OptionError, WeightsError, unknown
from layerwise.model.evaluation import Named, as_model
from layerwise.model.model import Model
from layerwise.model.saved import OURS, saved_format
from layerwise.models.network import head_kind, reads_tokens
from layerwise.weights.gguf.models import load_gguf, save_gguf
from layerwise.weights.published import load_published

FORMS = ("gguf", "huggingface")
# how far the outputs may be from the model's, relative to their size: what rounding explains
LIMITS = {"f32": 1e-4, "f16": 1e-2, "bf16": 0.1, "q8_0": 0.2, "q4_0": 0.8}
PROMPTS, LENGTH = 4, 64


@dataclass
class Export:
    """What was written, and what it was found to say when it was opened again.

    difference: of the outputs, relative to their size; agreement: how often the likeliest next
    token is the model's.
    """

    path: str
    form: str
    bytes: int
    difference: float
    agreement: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def export(model: Named, output: str = "", to: str = "gguf", quantize: str = "bf16") -> Export:
    """Write `model` (or the one at this path) for other tools.

    to: "gguf", a file with tokenizer and chat template inside, for llama.cpp and what builds on it;
        or "huggingface", a folder that transformers (of images: timm) opens.
    quantize: how a GGUF file keeps its weights: f32, f16, bf16, q8_0 or q4_0.
    Errors: WeightsError where the other tool would compute something else, and where what was
    written does not say the same when it is opened again: it is deleted then.
    """
    if to not in FORMS:
        raise unknown("form", to, FORMS)
    if quantize.lower() not in LIMITS:
        raise OptionError(f"--quantize {quantize} is not written here, only {', '.join(LIMITS)}")
    loaded = with_temperature(as_model(model))
    form = to if to == "huggingface" else f"gguf {quantize}"
    path = pathlib.Path(output or f"{_stem(model)}-{form.replace(' ', '-')}")
    if to == "huggingface":
        again = _folder(loaded, path)
        files, limit = list(path.iterdir()), LIMITS["f32"]
    else:
        path = path if path.suffix == ".gguf" else path.with_name(f"{path.name}.gguf")
        again = _gguf(loaded, path, quantize, _stem(model))
        files, limit = [path], LIMITS[quantize.lower()]
    difference, agreement = compared(loaded, again)
    if not difference <= limit:
        path.unlink() if path.is_file() else (path / "model.safetensors").unlink()
        off = f"{difference:.2g} off the model's, more than the {limit:g} that rounding explains"
        raise WeightsError(f"{path}: opened again, its outputs were {off}; it was deleted")
    size = sum(f.stat().st_size for f in files)
    return Export(str(path), form, size, difference, agreement)


def _stem(model: Named) -> str:
    """A name for the file: of the run's folder, the file or the published model."""
    if isinstance(model, Model):
        return model.variant or model.family
    path = pathlib.Path(model)
    return path.parent.name if path.name == "model" and path.parent.name else path.stem


def _gguf(loaded: Model, path: pathlib.Path, kind: str, name: str) -> nn.Module:
    if "causal" not in loaded.network.HEADS:
        raise OptionError("GGUF is for models that continue text; take --to huggingface")
    keys = {"general.name": name, **loaded.tokenizer.to_gguf()}
    save_gguf(path, loaded.family, loaded.network, kind, keys)
    return load_gguf(path, torch.float32)[0]


def _folder(loaded: Model, path: pathlib.Path) -> nn.Module:
    averages = head_kind(loaded.network) == "pooled"
    if saved_format(loaded) == OURS or averages:
        raise WeightsError(
            f"no other tool has a network like this {loaded.family}; `RUN/model` is its folder"
            + "; of texts, transformers knows what --method lora and full make of a base" * averages
        )
    loaded.save(path)
    return load_published(path)[0]  # by its config.json, as others would


def with_temperature(loaded: Model) -> Model:
    """The model with its temperature in the weights of the head: others know of no temperature."""
    temperature = loaded.calibration.temperature
    if temperature == 1:
        return loaded
    network = copy.deepcopy(loaded.network)
    *_, last = (m for m in network.head.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    with torch.no_grad():
        for p in last.parameters():
            p.div_(temperature)
    calibration = replace(loaded.calibration, temperature=1.0)
    return replace(loaded, network=network, calibration=calibration)


@torch.inference_mode()
def compared(loaded: Model, again: nn.Module) -> tuple[float, float]:
    """The largest relative difference of the outputs for a few made-up inputs, and agreement."""
    network = loaded.network.eval()
    device = next(network.parameters()).device
    seeded = torch.Generator().manual_seed(0)
    if reads_tokens(network):
        size = (PROMPTS, min(LENGTH, loaded.processor.max_seq_len))
        inputs = torch.randint(loaded.tokenizer.vocab_size, size, generator=seeded)
    else:
        inputs = torch.randn(PROMPTS, 3, *loaded.processor.size, generator=seeded)
    ours, theirs = network(inputs.to(device)), again.to(device)(inputs.to(device))
    same = (ours.argmax(-1) == theirs.argmax(-1)).float().mean()
    return relative(theirs, ours), float(same)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-9))
