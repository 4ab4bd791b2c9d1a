"""Rows made in code for several tests: words without meaning, and texts as Examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from layerwise.data.examples import Examples
from layerwise.kinds.text.documents import plain_examples

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "one", "dog", "ran", "over", "hill", "and"]


def sentences(n: int, seed: int) -> str:
    """n lines of 8 words each."""
    rng = np.random.default_rng(seed)
    lines = (" ".join(rng.choice(WORDS, 8)) + "." for _ in range(n))
    return "\n".join(lines)


def texts(rows: Sequence[str], source: str = "t.txt") -> Examples:
    """Plain texts without targets."""
    examples = plain_examples(list(rows), [f"row {i}" for i in range(len(rows))])
    examples.source = source
    return examples


def numbered(n: int, **fields: Any) -> Examples:
    """n rows without values of their own. fields: of Examples, as `targets`."""
    names, given = [f"row {i}" for i in range(n)], np.full(n, "", "U5")
    return Examples({}, {}, names, given, **fields)
