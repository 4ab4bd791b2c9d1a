"""Columns of rows of text: what each holds, and flat ones (as of a table) told apart as text,
label, score or neither. The names decide where they say something, else the contents do: texts
have several words and hardly repeat, labels repeat, scores are numbers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from layerwise.data.delimited import NUMBER, Row
from layerwise.data.naming import some
from layerwise.data.targets import SEVERAL
from layerwise.kinds.text.dialogue import completion_row
from layerwise.kinds.text.layouts import Aside, Layout, Made, Names, named_so, texts_layout

_TEXT = "text content document body sentence review comment tweet post raw_content question title"
_LABEL = """label labels target targets class category categories sentiment topic intent emotion
stars rating gold_label label_text polarity coarse_label fine_label"""
_PAIRS = """sentence1:sentence2 sentence_a:sentence_b premise:hypothesis question1:question2
text1:text2 text_a:text_b anchor:positive query:document query:passage sentence:sentence2 s1:s2
first:second source_sentence:target_sentence set1:set2"""
_TITLES = """title:text title:body title:description title:content subject:body headline:body
summary:text"""
SCORES = ("score", "similarity", "similarity_score", "sim", "relatedness_score", "rating")
LONG, SHORT = 200, 4  # words: of a document; of what is a text at all beside other columns
MOST_OTHERS = 8  # columns beside the text; more make a table


@dataclass
class ColumnProfile:
    """What a column holds, from a sample of its values."""

    name: str
    kind: str  # "text", "word", "number", "bool", "list", "dict", "none"
    words: float = 0.0  # per value
    size: float = 0.0  # characters per value
    distinct: int = 0
    n: int = 0
    values: list[Any] = field(default_factory=list)

    @property
    def is_text(self) -> bool:
        return self.kind == "text"

    @property
    def repeats(self) -> bool:
        """Whether its values recur as labels do."""
        return self.distinct <= max(20, self.n // 20) and self.distinct * 2 <= self.n


Columns = Sequence[ColumnProfile]


def profile(name: str, rows: Sequence[Row]) -> ColumnProfile:
    values = [v for row in rows if (v := row.get(name)) not in (None, "", [])]
    if not values:
        return ColumnProfile(name, "none")
    kinds, n = {type(v) for v in values}, len(values)
    whole = list(map(str, values))
    texts, size = [t[:5000] for t in whole], sum(map(len, whole)) / n
    words = sum(len(t.split()) for t in texts) / max(1, sum(map(len, texts))) * size
    distinct = len(set(texts))
    if list in kinds or dict in kinds:
        kind, words, distinct = "dict" if dict in kinds else "list", 0, n
    elif kinds == {bool}:
        kind = "bool"
    elif kinds <= {int, float, bool} or (kinds == {str} and all(map(NUMBER.fullmatch, whole))):
        kind = "number"
    else:
        foreign = sum(len(t) >= 8 and not t.isascii() for t in texts) > n / 2  # without blanks
        said = (words >= 2.5 or foreign) and (distinct > 0.3 * n or words >= 8)
        kind = "text" if said else "word"
    return ColumnProfile(name, kind, words, size, distinct, n, values)


def answering(prompt: str, completion: str, columns: Columns = ()) -> Layout:
    """columns: all of them, for those that go with an answer."""
    make = lambda raw: completion_row(raw, prompt, completion)  # noqa: E731
    said, uses = _both([prompt, completion]), (prompt, completion, *besides(columns))
    return Layout("prompt_completion", make, said, uses)


def besides(columns: Columns) -> list[str]:
    """The columns that go with a conversation: its tools, and a verdict."""
    return [c.name for c in columns if c.name == "tools" or (c.name, c.kind) == ("label", "bool")]


# ---- flat columns --------------------------------------------------------------------------------
def flat_layout(
    columns: Columns, lower: Names, target: str | None, asked: bool, learn: bool
) -> Layout | None:
    """Texts with or without a label beside them; None for a table."""
    texts = [c for c in columns if c.is_text and c.name != target]
    if not texts and asked:
        texts = sorted((c for c in columns if c.kind == "word"), key=lambda c: -c.size)[:1]
    others = [c for c in columns if c not in texts and c.kind != "none"]
    if not texts or not (asked or _mostly_text(texts, others)):
        return None
    named = {c.name: c for c in texts}
    pairs, titles = named_so(_PAIRS, named, lower), named_so(_TITLES, named, lower)
    known = [named[lower[n]] for n in _TEXT.split() if lower.get(n) in named]
    main = known[0] if known else max(texts, key=lambda c: c.size)
    if len(texts) == 3 and not (pairs or titles or known or others) and main.words < LONG:
        return texts_layout("triples", list(named))
    label = _label(others, main, lower) if learn and target is None else target or ""
    if not pairs and not titles and len(texts) == 2 and not known:
        pairs = [list(named)]
        if not others and not _overlap(*texts):
            return answering(texts[0].name, texts[1].name)
    if pairs:
        return _pair(pairs[0], others, lower, label, target)
    several = tuple(c.name for c in others if set(map(str, c.values)) <= {"0", "1"})
    if not label and learn and len(several) > 1 and len(texts) == 1:
        said = f"'{main.name}', labels {some(several, 6)}"
        return texts_layout("labelled", [main.name], said=said, labels=several)
    if titles and label:
        return _titled(titles[0], label)
    said = f"'{main.name}'" + (f", the label '{label}'" if label else "")
    return texts_layout("labelled" if label else "plain", [main.name], label, said)


def _overlap(a: ColumnProfile, b: ColumnProfile) -> bool:
    """Whether two texts share words as sentences on one thing do, not as question and answer."""
    words = [[set(str(v).lower().split()) for v in x.values] for x in (a, b)]
    shares = [len(v & w) / max(1, len(v | w)) for v, w in zip(*words, strict=False)]
    return sum(shares) > 0.15 * len(shares)


def _mostly_text(texts: Columns, others: Columns) -> bool:
    said, beside = sum(x.size for x in texts), sum(x.size for x in others)
    long = max(x.words for x in texts) >= SHORT or max(x.size for x in texts) >= 24
    several = sum(x.kind in ("number", "bool") and x.distinct <= 2 for x in others)
    return said >= beside and long and len(others) - several <= MOST_OTHERS


def _label(others: Columns, main: ColumnProfile, lower: Names) -> str:
    """The column that is the target: by its name, or the one whose values recur."""
    names = [x.name for x in others]
    if known := [lower[n] for n in (*_LABEL.split(), *SEVERAL) if lower.get(n) in names]:
        return known[0]
    if main.words >= LONG and lower:
        return ""  # documents with what is known about them
    likely = [x for x in others if x.repeats]
    if len(likely) == 1 or (likely and not lower):
        return likely[-1].name
    scored = len(others) == 1 and others[0].kind == "number" and names[0].lower() in SCORES
    return names[0] if scored else ""


def _pair(pair: list[str], others: Columns, lower: Names, label: str, target: str | None) -> Layout:
    """Two texts: scored, labelled or bare."""
    numbers = [x for x in others if x.kind == "number" and not _counts(x)]
    scores = [x.name for x in numbers if x.name.lower() in SCORES]
    scores += [x.name for x in numbers if any(float(v) % 1 for v in x.values)]
    score = target if target in [x.name for x in numbers] else (scores or [""])[0]
    if score and (score == target or not label or label in scores or not lower):
        return texts_layout("scored_pairs", pair, score, f"{_both(pair)}, the score '{score}'")
    said = f"{_both(pair)}, the label '{label}'" if label else ""
    return texts_layout("pairs", pair, label, said)


def _counts(x: ColumnProfile) -> bool:
    """Numbers of rows or years, not scores: whole and hardly two alike, or with zeros in front."""
    whole = not any(float(v) % 1 for v in x.values)
    differ = whole and x.n > 20 and x.distinct > 0.9 * x.n
    return differ or any(re.match(r"0\d", str(v)) for v in x.values)


def _both(pair: list[str]) -> str:
    return f"'{pair[0]}' and '{pair[1]}'"


def _titled(columns: list[str], label: str) -> Layout:
    """A title and a body as one text."""

    def make(raw: Row) -> Made:
        parts = [str(raw.get(c) or "").strip() for c in columns]
        text = "\n\n".join(part for part in parts if part)
        return {"text": text} if text else Aside("empty", "no text")

    said = f"{_both(columns)} together, the label '{label}'"
    return replace(texts_layout("labelled", columns, label, said), make=make)
