"""The line ledger: lines of code and of text per folder, so that a change shows what it adds.

Code is what the interpreter runs; text is comments and docstrings. Blank lines count as neither.
"""

import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUDGET = 22_750  # lines of code that the package is meant to stay under; docs/log.md says why


def count(path: pathlib.Path) -> tuple[int, int]:
    """Lines of code and lines of text of one file."""
    source = path.read_text("utf-8")
    lines = source.splitlines()
    text = {i for i, line in enumerate(lines, 1) if line.lstrip().startswith("#")}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                text |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    filled = {i for i, line in enumerate(lines, 1) if line.strip()}
    return len(filled - text), len(filled & text)


def main() -> int:
    """Print the ledger; exit 1 when the package's code is over its budget."""
    rooms: dict[str, list[tuple[int, int]]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0].startswith(".") or parts[0] in ("build", "runs"):
            continue
        room = "/".join(parts[: 2 if parts[0] == "layerwise" and len(parts) > 2 else 1])
        rooms.setdefault(room, []).append(count(path))
    code = text = 0
    print(f"{'':24} files    code    text  largest")
    for room, sizes in rooms.items():
        c, t = sum(s[0] for s in sizes), sum(s[1] for s in sizes)
        if room.startswith("layerwise"):
            code, text = code + c, text + t
        print(f"{room:24} {len(sizes):5} {c:7} {t:7} {max(sum(s) for s in sizes):8}")
    print(f"{'the package':24} {'':5} {code:7} {text:7}   at most {BUDGET} of code")
    return code > BUDGET


if __name__ == "__main__":
    sys.exit(main())
