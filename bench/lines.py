"""The line ledger: lines of code and of text per folder, so that a change shows what it adds."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUDGET = 15_000  # of the package, for all families


def count(path: pathlib.Path) -> int:
    return sum(1 for line in path.read_text("utf-8").splitlines() if line.strip())


def main() -> int:
    """Print the ledger; exit 1 when the package is over its budget."""
    totals: dict[str, list[int]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0].startswith(".") or parts[0] in ("build", "runs"):
            continue
        room = "/".join(parts[: 2 if parts[0] == "layerwise" and len(parts) > 2 else 1])
        totals.setdefault(room, []).append(count(path))
    package = 0
    for room, sizes in totals.items():
        if room.startswith("layerwise"):
            package += sum(sizes)
        print(f"{room:24} {len(sizes):4} files {sum(sizes):7} lines, largest {max(sizes)}")
    print(f"{'the package':24} {package:19} lines of at most {BUDGET}")
    return package > BUDGET


if __name__ == "__main__":
    sys.exit(main())
