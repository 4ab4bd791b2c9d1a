"""The house holds: imports go down only, importing does no work, and names are subjects."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "layerwise"
FLOORS = {
    "errors": 0, "settings": 0, "console": 0, "storage": 0,
    "runtime": 1,
    "layers": 2, "data": 2, "tokens": 2, "optim": 2,
    "models": 3,
    "kinds": 4,
    "weights": 5, "planning": 5,
    "adapt": 6, "generation": 6, "inspection": 6,
    "tasks": 7,
    "train": 8,
    "model": 9,
    "report": 9,
    "fitting": 10,
    "verbs": 11,
    "serve": 12, "commands": 13, "cli": 14,
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
            assert FLOORS[there] < FLOORS[here] or same_storey(here, there), (
                f"{path.relative_to(ROOT)} (floor {FLOORS[here]}) imports {module} "
                f"(floor {FLOORS[there]})"
            )


def same_storey(here: str, there: str) -> bool:
    """Single files of one floor may use each other (runtime and errors, fit and ladder)."""
    single = lambda name: (PACKAGE / f"{name}.py").exists() or name == "report"  # noqa: E731
    return FLOORS[here] == FLOORS[there] and single(here) and single(there)


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
        "import layerwise, layerwise.plan, layerwise.fit; from layerwise.inspect import watch; "
        "assert all(callable(v) for v in (layerwise.plan, layerwise.fit, layerwise.inspect))"
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
