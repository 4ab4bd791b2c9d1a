"""What is recorded of a golden fit, and how two records are compared.

Everything that depends on time, memory, paths or the machine is left out: seconds, peak memory, the
plan, the environment. How `result.json` names things is known to the accessors below alone.
"""

import hashlib
import json
import math
import pathlib
import platform
import re
from typing import Any

import numpy as np
import PIL
import sklearn
import torch
from safetensors.torch import load_file

import layerwise

Json = Any
SHOWN = 10  # differences in a message
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")


# ---- accessors: the only place that knows the keys of result.json --------------------------------
def understood(page: Json) -> str:
    return page["understood"]


def findings(page: Json) -> list[Json]:
    return [{k: f[k] for k in ("kind", "severity", "message")} for f in page["audit"]["findings"]]


def row_counts(page: Json) -> dict[str, int]:
    return page["rows"]


def model_facts(page: Json) -> Json:
    keys = ("variant", "family", "params", "why", "way", "recipe", "labels", "flops_per_sample")
    return {k: page["model"][k] for k in keys}


def ladder(page: Json) -> list[Json]:
    keys = ("name", "score", "low", "high", "note", "chosen")
    return [{k: rung[k] for k in keys} for rung in page["ladder"]]


def score(page: Json) -> Json:
    return page["score"]


def test_metrics(page: Json) -> Json:
    return page["test_metrics"]


def ends(page: Json) -> list[str]:
    """What goes in and what comes out, in a word each."""
    return [page["reads"], page["gives"]]


def answers(page: Json) -> Json:
    """What was answered rightly and wrongly, and how sure the model was."""
    keys = ("calibration", "conformal", "confusion", "mistakes", "scatter", "kinds")
    return {k: page.get(k) or None for k in keys}


def lens(page: Json) -> Json:
    found = page["lens"]
    return found and {"said": found["said"], "rows": found["rows"]}


def curve(page: Json) -> list[Json]:
    """The loss and the validations, step by step."""
    kept = re.compile(r"step|loss|lr|guardian|val_\w+")
    return [{k: v for k, v in row.items() if kept.fullmatch(k)} for row in page["metrics"]]


def diagnoses(page: Json) -> list[Json]:
    keys = ("fault", "layer", "evidence", "cure", "cure_options")
    return [{k: d[k] for k in keys} for d in page["diagnoses"]]


def sentences(page: Json) -> list[str]:
    """What is said of the depth, or of how texts are read."""
    return page.get("depth", {}).get("sentences", [])


def layers(page: Json) -> list[Json]:
    """By layer: probes, rank, likeness, gradients, favourite units."""
    return page["layers"]


def inside(page: Json) -> Json:
    return {k: page.get(k) for k in ("reading", "saliency")}


def next_commands(page: Json) -> list[Json]:
    return page["next"]


def kept_model(run: pathlib.Path) -> pathlib.Path:
    return run / "model"


def kept_adapter(run: pathlib.Path) -> pathlib.Path:
    """Where LoRA's updates lie by themselves, if there are any."""
    return run / "adapter"


# ---- a record ------------------------------------------------------------------------------------
def record(result: Any, data: pathlib.Path, new: Any, root: pathlib.Path) -> Json:
    """Everything that a fit came to, as JSON; `root` is left out of every path.

    result: what `fit` gave back. data: what it was fitted on. new: rows to ask about.
    """
    run = pathlib.Path(result.folder)
    page = json.loads((run / "result.json").read_text("utf-8"))
    out = {
        "result": returned(result),
        "understood": understood(page),
        "findings": findings(page),
        "rows": row_counts(page),
        "model": model_facts(page),
        "ladder": ladder(page),
        "score": score(page),
        "test_metrics": test_metrics(page),
        "ends": ends(page),
        "answers": answers(page),
        "lens": lens(page),
        "curve": curve(page),
        "diagnoses": diagnoses(page),
        "sentences": sentences(page),
        "layers": layers(page),
        "inside": inside(page),
        "next": next_commands(page),
        "files": files_of(kept_model(run)),
        "adapter": files_of(kept_adapter(run)),
        "said": said_of(layerwise.load(kept_model(run)), new),
        "evaluated": evaluated(kept_model(run), data),
    }
    return plain(out, str(root))


def returned(result: Any) -> Json:
    names = ("score_name", "score", "low", "high", "metrics", "finished")
    return {name: getattr(result, name) for name in names} | {"labels": result.model.labels}


def exported(done: Any, root: pathlib.Path) -> Json:
    """What `export` gave back, but for the size: the card inside names the folders of the run."""
    names = ("path", "form", "difference", "agreement")
    return plain({name: getattr(done, name) for name in names}, str(root))


def said_of(model: Any, new: Any) -> Json:
    """What a saved model says of new rows: predictions, a text, or vectors."""
    task = model.task.name
    if task == "masked":
        return None
    if task == "causal":
        return model.generate(new, 24)
    if task == "embed":
        embedder = layerwise.Embedder(model, dtype="fp32", threads=1)
        return layerwise.embed(embedder, new).tolist()
    return [p.row() for p in model.predict(new, confidence=confidence(model), threads=1)]


def confidence(model: Any) -> float:
    return 0.9 if model.calibration.conformal else 0.0


def evaluated(model: pathlib.Path, data: pathlib.Path) -> Json:
    """The score of the saved model on the rows of its data that it never saw."""
    found = layerwise.evaluate(model, data, threads=1)
    names = ("score_name", "score", "low", "high", "n", "split", "metrics", "ece")
    return {name: getattr(found, name) for name in names}


def files_of(folder: pathlib.Path) -> dict[str, str]:
    """{file: hash}; of what holds paths or the licence of a base the name alone."""
    if not folder.exists():
        return {}
    inner = ("layerwise.json", "adapter_config.json", "README.md")
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {
        str(p.relative_to(folder)): "" if p.name in inner else sha256(contents(p)) for p in paths
    }


def contents(path: pathlib.Path) -> bytes:
    """The bytes of a file; of tensors their names, dtypes, shapes and bytes, in order of names."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    parts = []
    for name, tensor in sorted(load_file(path).items()):
        parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        parts.append(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return b"\n".join(parts)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def plain(value: Any, root: str) -> Json:
    """As JSON gives it back: lists, text, numbers; without the folder that the fits lie in."""
    if isinstance(value, dict):
        return {str(k): plain(v, root) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, root) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # NaN is not equal to itself
    return value.replace(root, "ROOT") if isinstance(value, str) else value


def machine() -> dict[str, Any]:
    """What the last bits of a result depend on: processor, instructions, versions."""
    words: dict[str, str] = {}
    if pathlib.Path("/proc/cpuinfo").exists():
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        words = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = words.get("flags", "").split()
    return {
        "processor": words.get("model name") or platform.processor(),
        "model": " ".join(words.get(k, "") for k in ("cpu family", "model", "stepping")),
        "flags": [flag for flag in FLAGS if flag in flags],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "pillow": PIL.__version__,
    }


# ---- comparing -----------------------------------------------------------------------------------
def differences(want: Json, got: Json, at: str = "", loose: bool = False) -> list[str]:
    """Where two records differ, each with both values.

    loose: for another machine, where arithmetic rounds in another way: numbers with a fraction may
    differ by 0.2 or a quarter (runs of 20 steps are half-way up), digits in sentences do not count.
    """
    if isinstance(want, dict) and isinstance(got, dict):
        keys = [*want, *(k for k in got if k not in want)]
        pairs = [(f"{at}.{k}", want.get(k, "(none)"), got.get(k, "(none)")) for k in keys]
    elif isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        pairs = [(f"{at}[{i}]", a, b) for i, (a, b) in enumerate(zip(want, got, strict=True))]
    else:
        same = near(want, got) if loose else want == got and type(want) is type(got)
        return [] if same else [f"{at.lstrip('.')}: {brief(want)} was recorded, {brief(got)} came"]
    return [line for pair in pairs for line in differences(pair[1], pair[2], pair[0], loose)]


def near(want: Json, got: Json) -> bool:
    if isinstance(want, float) and isinstance(got, float):
        return abs(want - got) <= max(0.2, 0.25 * abs(want))
    if isinstance(want, str) and isinstance(got, str):
        return re.sub(r"[-\d.e+]+", "#", want) == re.sub(r"[-\d.e+]+", "#", got)
    return want == got


def brief(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]} ... ({len(text)} characters)"


def robust(found: Json) -> Json:
    """The part of a record that other arithmetic does not turn over.

    Left out: hashes, curves, diagnoses, what single rows are answered, sentences that name the best
    of several layers or heads, and, where several ways were tried, which one won.
    """
    several = len(found["ladder"]) > 1
    ours = {k: found[k] for k in ("understood", "rows", "ends", "lens", "next", "findings")}
    ours["findings"] = [f for f in found["findings"] if f["kind"] != "wrong_label"]
    turned = ("why", "way", "recipe", "flops_per_sample") if several else ()
    ours["model"] = {k: v for k, v in found["model"].items() if k not in turned}
    ours["ladder"] = [{k: rung[k] for k in ("name", "score")} for rung in found["ladder"]]
    ours["score"] = {k: found["score"][k] for k in ("name", "value", "n")}
    ours["evaluated"] = {k: found["evaluated"][k] for k in ("score_name", "n", "split")}
    ours["metrics"] = sorted(found["test_metrics"])
    ours["layers"] = [layer["name"] for layer in found["layers"]]
    ours["files"] = sorted(found["files"])
    return ours


# ---- on disk -------------------------------------------------------------------------------------
def read(path: pathlib.Path) -> Json:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def write(path: pathlib.Path, found: Json) -> None:
    """One line for each key, so that a change shows where it is."""
    path.parent.mkdir(exist_ok=True)
    rows = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in found.items()]
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")
