"""Words for messages: names as they can be printed, the first few of many, what went wrong."""

from collections.abc import Iterable
from pathlib import Path

from layerwise.data.examples import Finding, Severity


def shown(name: str | Path | tuple[str, ...]) -> str:
    """A path as it can be printed anywhere: bytes that are not text are escaped."""
    text = "/".join(name) if isinstance(name, tuple) else str(name)
    return text.encode("utf8", "backslashreplace").decode("utf8")


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of many names: `'a', 'b', 'c' and 12 more`."""
    names = list(names)
    text = ", ".join(f"'{n}'" for n in names[:most])
    return text + (f" and {len(names) - most:,} more" if len(names) > most else "")


def reason(error: BaseException) -> str:
    """What a library said went wrong, short and on one line."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    return said[0][:100].rstrip(": ")


def about(
    kind: str, severity: Severity, names: Iterable[str], what: str, cure: str = ""
) -> list[Finding]:
    """A finding about these files, rows or classes: their number, `what`, and the first of them.

    None where there are no names.
    """
    names = tuple(names)
    message = f"{len(names):,} {what}: {some(names)}"
    return [Finding(kind, severity, message, names, cure)] if names else []
