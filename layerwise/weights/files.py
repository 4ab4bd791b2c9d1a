"""Tensors in files: read safely, load strictly, save whole or not at all.

Read: `.safetensors`; PyTorch's `.pth .pt .th .bin` through `weights_only=True`, which executes
nothing; sharded files by their index. The content decides, not the suffix.
Written: `.safetensors` alone.
"""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from layerwise.errors import WeightsError
from layerwise.models import family as family_module
from layerwise.models.network import Network
from layerwise.storage import replacing
from layerwise.weights.names import Rules, mismatch, rename, sized

NESTED = ("state_dict", "model", "state_dict_ema", "model_ema")  # where checkpoints keep weights
IN_A_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


# ---- reading -----------------------------------------------------------------------------------
def weights_file(folder: Path) -> Path:
    """The file with the weights in a model folder of the Hugging Face layout."""
    found = [folder / name for name in IN_A_FOLDER if (folder / name).is_file()]
    if not found:
        raise WeightsError(f"{folder}: no weights in this folder; expected {IN_A_FOLDER[0]}")
    return found[0]


def read_tensors(path: Path | str, key: str | None = None) -> dict[str, Tensor]:
    """All tensors of a weights file, by the names they have there, on the CPU.

    path: a `.safetensors` or PyTorch file, the `.index.json` of a sharded one, or a model folder.
    key: which dictionary of a PyTorch checkpoint holds the weights, where it has several.
    Errors: WeightsError for a file that is absent, truncated, no weights file, or has code in it.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_file(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    kind = _kind(path)
    if kind == "torch":
        return _read_torch(path, key)
    if kind != "safetensors":
        raise WeightsError(f"{path}: {kind}; expected .safetensors or a PyTorch .pth/.pt/.th/.bin")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError) as e:
        raise _damaged(path, e) from e


FOREIGN = {  # how files begin that people take for weights
    b"version https://git-lfs": "a pointer of git-lfs, not the weights (`git lfs pull` gets them)",
    b"<": "a web page, not the weights (download the file itself)",
    b"\x89HDF": "a Keras HDF5 file",
    b"GGUF": "a GGUF file",
}


def _kind(path: Path) -> str:
    """ "safetensors", "torch", or what is wrong with the file."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror})") from e
    if not start:
        return "the file is empty (an interrupted download?)"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    if meaning := foreign(start):
        return meaning
    known = start[8:9] == b"{" or path.suffix == ".safetensors"
    return "safetensors" if known else "not a weights file"


def foreign(start: bytes) -> str:
    """What a file that begins so is, where it is none with weights that we read; "" if unknown."""
    return next((meaning for magic, meaning in FOREIGN.items() if start.startswith(magic)), "")


def _damaged(path: Path, reason: object) -> WeightsError:
    short = str(reason).strip().split("\n")[0].split(". This is")[0][:160]
    return WeightsError(
        f"{path}: damaged or truncated, {path.stat().st_size:,} bytes long ({short}); "
        f"download or copy it again"
    )


def _read_torch(path: Path, key: str | None) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated storages in old files: they still load
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as e:  # damaged bytes raise nearly any type
        raise _unloadable(path, str(e)) from e
    return _tensors_in(path, loaded, key)


def _unloadable(path: Path, reason: str) -> WeightsError:
    if "TorchScript" in reason:
        what = "a TorchScript program, which is code"
        return WeightsError(f"{path}: {what}; expected a file of tensors only")
    named = re.search(r"GLOBAL (\S+)", reason)
    if "Weights only load failed" in reason and (named or "Unsupported" in reason):
        what = f" ({named[1]})" if named else ""
        return WeightsError(
            f"{path}: a pickle with code or Python objects in it{what}, not only tensors. "
            f"Nothing of it was run. Ask its author for a .safetensors file, or save the bare "
            f"state dict where you trust it."
        )
    return _damaged(path, reason)


def _tensors_in(path: Path, loaded: object, key: str | None) -> dict[str, Tensor]:
    """The tensors of a checkpoint: those on top, under `key`, or in the one place they can be."""
    tables = {k: v for k, v in loaded.items() if _is_table(v)} if isinstance(loaded, dict) else {}
    if key is not None:
        if key not in tables:
            found = sorted(tables) or "none"
            raise WeightsError(f"{path}: no tensors under '{key}'; found {found}")
        return dict(tables[key])
    if _is_table(loaded):
        return dict(loaded)
    known = [k for k in NESTED if k in tables] if len(tables) > 1 else list(tables)
    if len(known) == 1:
        return dict(tables[known[0]])
    if tables:
        raise WeightsError(f"{path}: several sets of tensors, {sorted(tables)}; name one as `key`")
    what = f"holds a {type(loaded).__name__} without a table of named tensors"
    raise WeightsError(f"{path}: {what}; expected a state dict")


def _is_table(value: object) -> TypeGuard[dict[str, Tensor]]:
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of a sharded file, each from the shard that its index names."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise WeightsError(f"{index}: not the index of a sharded weights file ({e!r})") from e
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise WeightsError(f"{index}: names a shard outside its own folder: '{shard}'")
        if not (index.parent / shard).is_file():
            raise WeightsError(f"{index}: shard {shard} is missing; {len(shards)} are needed")
        found = read_tensors(index.parent / shard)
        tensors |= {n: t for n, t in found.items() if places.get(n) == shard}
    if lacking := sorted(set(places) - set(tensors)):
        raise WeightsError(f"{index}: tensors that no shard holds: {', '.join(lacking[:8])}")
    return tensors


# ---- loading -----------------------------------------------------------------------------------
def load_into(network: nn.Module, tensors: Mapping[str, Tensor], what: str = "the weights") -> None:
    """Fill a network with tensors under our names: all of them and nothing else.

    A network on the meta device takes the tensors over without a copy; another is copied into.
    Floating tensors take the network's precision. Errors: WeightsError listing both sides.
    """
    wanted = network.state_dict()
    unused = [sized(n, t) for n, t in tensors.items() if n not in wanted]
    unfilled = [sized(n, t) for n, t in wanted.items() if n not in tensors]
    both = [(n, t, tensors[n].shape) for n, t in wanted.items() if n in tensors]
    misshapen = [f"{sized(n, t)}: the file's is {tuple(s)}" for n, t, s in both if s != t.shape]
    if unused or unfilled or misshapen:
        raise mismatch(what, unused, unfilled, misshapen)
    cast = {n: t.to(wanted[n].dtype) for n, t in tensors.items()}
    on_meta = any(t.is_meta for t in wanted.values())
    network.load_state_dict(cast, strict=True, assign=on_meta)


def filled(
    family: str,
    config: object,
    tensors: Mapping[str, Tensor],
    rules: Rules | None = None,
    what: str = "the weights",
    dtype: torch.dtype | None = None,
) -> Network:
    """A network around these tensors, in evaluation mode, nothing of it allocated twice.

    rules: the naming of the tensors where it is not ours. dtype: float32 by default.
    """
    with torch.device("meta"):
        network = family_module(family).Model(config).to(dtype or torch.float32)
    if rules is not None:
        tensors = rename(tensors, rules, network.state_dict(), what)
    load_into(network, tensors, what)
    return network.eval()


# ---- saving ------------------------------------------------------------------------------------
def save_tensors(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a `.safetensors` file, whole or not at all: until then the earlier file stays.

    Errors: StorageError when the disk is full or the folder cannot be written to.
    """
    header = {"format": "pt", **(metadata or {})}
    with replacing(path) as temporary:
        safetensors.torch.save_file(_apart(tensors), temporary, header)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, none sharing memory with another (tied ones copied)."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.numel() < tensor.untyped_storage().nbytes() // tensor.element_size():
            tensor = tensor.clone()  # a view of something larger
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen and tensor.numel() else tensor
        seen.add(place)
    return apart
