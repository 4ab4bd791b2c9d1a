"""The house holds: imports go down only, importing does no work, and names are subjects."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from layerwise.kinds import KINDS
from layerwise.tasks import TASKS

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "layerwise"
FLOORS = {
    "errors": 0,
    "settings": 1, "console": 1, "storage": 1,
    "runtime": 2,
    "layers": 3, "data": 3, "tokens": 3, "optim": 3,
    "models": 4,
    "kinds": 5,
    "weights": 6, "planning": 6,
    "adapt": 7, "generation": 7, "inspection": 7,
    "tasks": 8,
    "train": 9,
    "model": 10,
    "report": 10,
    "fitting": 11,
    "verbs": 12,
    "serve": 13, "commands": 14, "cli": 15,
}  # fmt: skip
TORCH_FREE = ("errors", "settings", "console", "cli", "__init__")
DRAWERS = {"utils", "util", "common", "helpers", "misc"}


def rooms() -> list[pathlib.Path]:
    return sorted(p for p in PACKAGE.rglob("*.py"))


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: pathlib.Path) -> set[str]:
    """Every module of the package that a file imports, anywhere in it."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            out.add(node.module)
            if node.module == "layerwise":
                out |= {f"layerwise.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
    return {m for m in out if m.startswith("layerwise.")}


@pytest.mark.parametrize("path", rooms(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: pathlib.Path):
    here = room_of(path)
    if here == "__init__":
        return
    assert here in FLOORS, f"{here} has no floor: give it one here, and say why in the commit"
    for module in imports(path):
        there = module.split(".")[1]
        if there in FLOORS and there != here:
            assert FLOORS[there] < FLOORS[here], (
                f"{path.relative_to(ROOT)} (floor {FLOORS[here]}) imports {module} "
                f"(floor {FLOORS[there]})"
            )


def test_families_do_not_import_each_other():
    for path in (PACKAGE / "models").glob("*.py"):
        if path.stem != "__init__":
            assert not [m for m in imports(path) if m.startswith("layerwise.models")], path


@pytest.mark.parametrize("path", rooms(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_drawers_and_no_star_imports(path: pathlib.Path):
    assert path.stem not in DRAWERS
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert "*" not in [a.name for a in node.names], path


@pytest.mark.parametrize("path", rooms(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_importing_does_no_work(path: pathlib.Path):
    """At the top level: definitions, constants, imports; no bare call."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{path}:{node.lineno} calls at import"
        assert not isinstance(node, ast.For | ast.While | ast.With), f"{path}:{node.lineno}"


# ---- one door for every kind, task and network ---------------------------------------------------
# What is compared elsewhere is a door that a new one would have to find. Each exception says why.
COMPARES_KIND = {
    "fitting/finish.py": "the keys of what a page shows of a row: a text, a picture",
    "inspection/depth.py": "the name of a tensor: properties of pictures are read from pixels",
}
COMPARES_TASK = {
    "model/saved.py": "the head that an adapter brings, not a task",
}
ASKS_FOR_ATTRIBUTES = {
    "adapt/packed.py": "a packed network passes on what it is asked for",
    "inspection/taps.py": "what torch.compile leaves on a module",
    "inspection/structure.py": "nodes of autograd's graph, which are of many types",
    "planning/owners.py": "nodes of autograd's graph, which are of many types",
    "planning/rehearsal.py": "layers that `adapt`, a floor above, has packed",
}
OF_NETWORKS = {"network", "config", "task", "base", "model", "m", "module", "child", "node"}


def compared(path: pathlib.Path, names: set[str]) -> list[str]:
    """Comparisons with one of these names; what a network ends in is not one."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Compare | ast.match_case):
            said = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
            text = ast.unparse(node)
            if said & names and not any(w in text for w in ("head", "HEADS", "ends.kind")):
                found.append(text)
    return found


@pytest.mark.parametrize(
    ("room", "table", "allowed"),
    [("kinds", KINDS, COMPARES_KIND), ("tasks", TASKS, COMPARES_TASK)],
)
def test_a_kind_or_task_is_compared_only_where_it_lives(room, table, allowed):
    below = {r for r, floor in FLOORS.items() if floor < FLOORS[room]}  # they cannot know it
    above = {r for r in FLOORS if r not in below and r not in ("kinds", room)}
    found = {
        str(path.relative_to(PACKAGE)): compared(path, set(table))
        for path in rooms()
        if room_of(path) in above
    }
    assert {name: lines for name, lines in found.items() if lines and name not in allowed} == {}
    assert set(allowed) <= {name for name, lines in found.items() if lines}, "no longer needed"


def test_networks_configs_and_tasks_are_not_asked_what_they_have():
    """`hasattr` and `getattr` on them, from `weights` up."""
    found: dict[str, list[str]] = {}
    for path in rooms():
        if FLOORS.get(room_of(path), 0) < FLOORS["weights"]:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                of = ast.unparse(node.args[0]).split(".")[-1] if node.args else ""
                if name in ("hasattr", "getattr") and of in OF_NETWORKS:
                    found.setdefault(str(path.relative_to(PACKAGE)), []).append(ast.unparse(node))
    assert {name: c for name, c in found.items() if name not in ASKS_FOR_ATTRIBUTES} == {}
    assert set(ASKS_FOR_ATTRIBUTES) <= set(found), "no longer needed"


def test_types_say_what_is_meant():
    text = "\n".join(path.read_text("utf-8") for path in rooms())
    assert len(re.findall(r": Any\b", text)) <= 90
    assert len(re.findall("type: ignore", text)) <= 30


def test_help_and_import_are_quick_because_they_load_little():
    """The budget is 0.2 s on a quiet machine; what is counted is what takes the time."""
    code = (
        "import sys; before = set(sys.modules); import layerwise; from layerwise import cli; "
        "cli.parser().format_help(); print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = done.stdout.split()
    foreign = {m.split(".")[0] for m in loaded} - sys.stdlib_module_names - {"layerwise"}
    assert not foreign  # torch, numpy and all else that is installed come when a verb needs them
    assert len([m for m in loaded if m.startswith("layerwise")]) < 12
    assert len(loaded) < 120


def test_verbs_stay_verbs_when_their_modules_are_imported():
    code = (
        "import layerwise, layerwise.verbs.plan, layerwise.verbs.inspect, layerwise.fitting.run; "
        "assert all(callable(v) for v in (layerwise.plan, layerwise.fit, layerwise.inspect)); "
        "assert type(layerwise) is type(__import__('os'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_same_oldest_python_is_promised_everywhere():
    said = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "Makefile")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    oldest = project["project"]["requires-python"].removeprefix(">=")
    assert all(f"python3 ({oldest} or newer)" in text for text in said.values())
    assert project["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    for lock in ROOT.glob("requirements*.lock"):
        assert "python_version" not in lock.read_text("utf-8"), lock
