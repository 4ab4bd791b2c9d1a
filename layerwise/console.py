"""What a person reads while a run goes on: live on a terminal, plain lines in a pipe.

`--json` keeps standard output for one JSON document; everything here then goes to standard error.
"""

import os
import sys
import time
from typing import Any, TextIO

COLOURS = {"loss": "\033[32m{}\033[0m", "seen": "\033[2m{}\033[0m", "cut": "\033[9;31m{}\033[0m"}
BRACKETS = {"loss": "[{}]", "seen": "{}", "cut": "~{}~"}


class Console:
    """Says lines, and shows progress: one line rewritten on a terminal, else one every few seconds.

    quiet: say nothing (for tests and for use as a library).
    """

    def __init__(self, stream: TextIO | None = None, quiet: bool = False):
        self.stream = stream or sys.stdout
        self.quiet = quiet
        self.live = not quiet and self.stream.isatty()
        self.shown = 0  # characters of the live line
        self.last = 0.0

    def say(self, text: str = "") -> None:
        if self.quiet:
            return
        self.clear()
        print(text, file=self.stream, flush=True)

    def head(self, text: str) -> None:
        """A heading, bold on a terminal."""
        self.say(f"\033[1m{text}\033[0m" if self.live else text)

    def progress(self, text: str, every: float = 10.0) -> None:
        """A state that the next one replaces; in a pipe at most one line in `every` seconds."""
        if self.quiet:
            return
        now = time.monotonic()
        if self.live and now - self.last > 0.1:
            self.clear()
            self.stream.write(text[:200])
            self.stream.flush()
            self.shown, self.last = len(text[:200]), now
        elif not self.live and now - self.last > every:
            print(text, file=self.stream, flush=True)
            self.last = now

    def clear(self) -> None:
        if self.shown:
            self.stream.write("\r" + " " * self.shown + "\r")
            self.shown = 0

    def marks(self, row: list[tuple[str, str]]) -> None:
        """A text in stretches of a kind each: what carries loss, is seen only, or was cut.

        In colour on a terminal, unless NO_COLOR is set; else [loss], seen, ~cut~.
        """
        kinds = COLOURS if self.live and not os.environ.get("NO_COLOR") else BRACKETS
        self.say("  " + "".join(kinds[kind].format(text) for text, kind in row))

    def table(self, head: list[str], rows: list[list[Any]]) -> None:
        for line in table_lines(head, rows):
            self.say(line)


def table_lines(head: list[str], rows: list[list[Any]]) -> list[str]:
    """Columns padded to their widest cell; numbers to the right."""
    cells = [head, *[[str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    right = [bool(rows) and all(is_number(row[i]) for row in cells[1:]) for i in range(len(head))]
    out = []
    for row in cells:
        both = zip(row, widths, right, strict=True)
        parts = [c.rjust(width) if number else c.ljust(width) for c, width, number in both]
        out.append("  " + "  ".join(parts).rstrip())
    return out


def is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] == "-"


def duration(seconds: float) -> str:
    """ "0.4 s", "42 s", "3 min 20 s", "2 h 5 min", "3.5 days"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    if minutes >= 48 * 60:
        return f"{minutes / 1440:.1f} days"
    return f"{minutes // 60} h {minutes % 60} min"
