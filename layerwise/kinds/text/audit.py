"""What is wrong with texts: damaged encoding, copies, secrets, overlap with an evaluation set.

Copies: exact ones by their content; near ones by MinHash over runs of 3 words (Broder, 1997) in 16
bands of 4 (Leskovec et al., "Mining of Massive Datasets", section 3.4), every candidate then
compared exactly. Two texts are near copies when their runs agree to 70 %. Texts of fewer than 8
words are compared as a whole, case and blanks aside.
Overlap with an evaluation set: half of a text's runs of 8 words occur in the training texts.

Legend: n texts, S runs of words in all of them, m pairs.
"""

import re
from collections.abc import Sequence

import numpy as np

from layerwise.data.examples import Examples, Finding, Severity
from layerwise.data.groups import first_alike, groups_of
from layerwise.data.naming import about
from layerwise.data.splits import content_hashes
from layerwise.data.text_files import MARKS
from layerwise.kinds.contract import Looks
from layerwise.kinds.text.documents import texts_of

RUN, EVALUATION_RUN = 3, 8  # words
SHORT = 8  # words; what has fewer is compared as a whole
BANDS, ROWS = 16, 4
ALIKE, CONTAINED = 0.7, 0.5
WORD = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u2600-\u27bf\U0001f000-\U0001faff]"  # emoji, too
    f"|(?:[^\\W\u3040-\u30ff\u3400-\u9fff]|[{MARKS}])+"
)

# UTF-8 read as Windows-1252: e-acute becomes A-tilde and (c), an apostrophe a-circumflex ...
_HIGH = "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122"
MOJIBAKE = re.compile(f"[\u00c2\u00c3][{_HIGH}]|\u00e2[\u20ac\u0080-\u0099\u201a-\u201e][{_HIGH}]")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
DAMAGE = (
    ("mojibake", MOJIBAKE, "characters of UTF-8 that was read as Windows-1252", "read them again "
     "from the original as UTF-8, or undo it: text.encode('cp1252').decode('utf-8')"),
    ("replacement", re.compile("\ufffd"), "replacement characters (U+FFFD), where text was lost",
     "read them again from the original in its true encoding"),
    ("control", CONTROL, "control characters", "remove them"),
)  # fmt: skip

PRIVATE: dict[tuple[str, Severity, str], dict[str, str]] = {  # kind, severity and cure
    ("secret", "warning", "remove it, and revoke it"): {
        "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY",
        "AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
        "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,})",
        "GitLab token": r"\bglpat-[\w-]{20,}",
        "API key": r"\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}",
        "Google key": r"\bAIza[\w-]{35}",
        "Hugging Face token": r"\bhf_[A-Za-z]{30,}",
        "Slack token": r"\bxox[abprs]-[\w-]{10,}",
        "JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
        "password": r"(?i)\b(?:passw(?:or)?d|pwd|secret|api_?key)\s*[=:]\s*['\"][^'\"\s]{6,}['\"]",
    },
    ("personal", "note", "remove or replace it"): {
        "email address": r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}",
        "card number": r"(?<![\d.-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\d-])",
        "social security number": r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\d-])",
        "phone number": r"(?<![\w.,-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}"
        r"|(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4})(?![\w-])",
    },
}
NEEDS = {"email address": "@", "social security number": "-"}  # what a text must hold, to be quick


def look_at_texts(rows: Examples) -> Looks:
    """Every row of a text set, looked at once; rows that say nothing are not kept."""
    exact = first_alike(content_hashes(rows))
    texts, names = texts_of(rows), list(map(str, rows.names))
    keep = np.array([any(map(str.isalnum, text)) for text in texts], bool)
    empty = [name for name, kept in zip(names, keep, strict=True) if not kept]
    what = "texts hold no letter and no digit and are set aside"
    found = about("empty", "error", empty, what, "fill them in, or remove them")
    found += damage(texts, names) + private(texts, names) + _tag_conflicts(rows, names)
    return Looks(keep, exact, exact if rows.together else copies(texts, exact), found)


def damage(texts: Sequence[str], names: Sequence[str]) -> list[Finding]:
    """Traces of a wrong encoding, with the first place."""
    found = []
    for kind, pattern, what, cure in DAMAGE:
        hits = [(name, m) for name, t in zip(names, texts, strict=True) if (m := pattern.search(t))]
        if hits:
            match = hits[0][1]
            around = match.string[max(0, match.start() - 15) : match.end() + 15]
            said = f"of {len(texts):,} texts hold {what} (the first: {around!r})"
            found += about(kind, "warning", [name for name, _ in hits], said, cure)
    return found


def private(texts: Sequence[str], names: Sequence[str]) -> list[Finding]:
    """Keys, tokens, addresses and numbers that should not be learned; never shown in full."""
    found = []
    for (kind, severity, cure), patterns in PRIVATE.items():
        for what, pattern in patterns.items():
            rows = []
            for name, text in zip(names, texts, strict=True):
                hits = re.findall(pattern, text) if NEEDS.get(what, "") in text else []
                hits = [hit for hit in hits if what != "card number" or luhn(hit)]
                if hits:
                    rows.append(f"{name}: {', '.join(dict.fromkeys(map(masked, hits)))}")
            article = "an" if what[0] in "aeiouAEIOU" else "a"
            said = f"of {len(texts):,} texts hold what looks like {article} {what}"
            found += about(kind, severity, rows, said, cure)
    return found


def luhn(number: str) -> bool:
    """Whether the digits have the check digit of a payment card (ISO/IEC 7812-1)."""
    digits = [int(d) for d in number if d.isdigit()][::-1]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[1::2]]
    return len(set(digits)) > 1 and (sum(digits[0::2]) + sum(doubled)) % 10 == 0


def masked(secret: str) -> str:
    return f"{secret[:4]}...{secret[-2:]} ({len(secret)} characters)"


def _tag_conflicts(examples: Examples, names: Sequence[str]) -> list[Finding]:
    """The same sentence with different tags: one of them is wrong."""
    if not examples.has("tokens", "tags"):
        return []
    rows: dict[str, list[int]] = {}
    for i, tokens in enumerate(examples["tokens"]):
        rows.setdefault("\0".join(tokens), []).append(i)
    tags = examples["tags"]
    bad = [same for same in rows.values() if any(tags[i] != tags[same[0]] for i in same)]
    what = f"rows, of {len(bad):,} sentences, carry different tags"
    conflicts = [names[i] for same in bad for i in same]
    return about("label_conflict", "warning", conflicts, what, "correct the tags")


# ---- copies --------------------------------------------------------------------------------------
def copies(texts: Sequence[str], exact: np.ndarray) -> np.ndarray:
    """The group of each text (n,): the first row that says the same, or nearly."""
    n, (ids, ends) = len(texts), words_of(texts)
    same, sizes = first_alike([_bare(t) or t for t in texts]), np.diff(ends, prepend=0)
    long = (exact == np.arange(n)) & (sizes >= SHORT)
    pairs = [np.stack([first, np.arange(n)], 1) for first in (exact, same)]
    if long.any():
        near = near_copies(ids[np.repeat(long, sizes)], np.cumsum(sizes[long]))
        pairs.append(np.flatnonzero(long)[near])
    return groups_of(n, np.concatenate(pairs))


def _bare(text: str) -> str:
    """The words alone, without case and punctuation."""
    return " ".join(WORD.findall(text.casefold()))


def words_of(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The words of all texts as numbers, one after the other, and where each text ends: (n,)."""
    number: dict[str, int] = {}
    ids, ends = [], []
    for text in texts:
        ids += [number.setdefault(word, len(number)) for word in WORD.findall(text.casefold())]
        ends.append(len(ids))
    return np.array(ids, np.uint64), np.array(ends, np.int64)


def runs_of(ids: np.ndarray, ends: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A hash of each run of `length` words within one text, and the text it is of: both (S,)."""
    of = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    count = max(0, len(ids) - length + 1)
    mixed = np.zeros(count, np.uint64)
    for i in range(length):
        mixed = scramble(mixed ^ ids[i : i + count])
    whole = of[:count] == of[length - 1 :][:count]
    return mixed[whole], of[:count][whole]


def scramble(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers that looks random (splitmix64: Steele et al., OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def near_copies(ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Pairs of texts (m, 2), smaller first, whose runs of words agree to ALIKE."""
    runs, of = runs_of(ids, ends, RUN)
    starts = np.searchsorted(of, np.arange(len(ends)))
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 1 << 63, BANDS * ROWS, np.uint64) * np.uint64(2) + np.uint64(1)
    found = [np.zeros((0, 2), np.int64)]
    for band in range(BANDS):
        key = np.zeros(len(ends), np.uint64)
        for factor in factors[band * ROWS : (band + 1) * ROWS]:
            least = np.minimum.reduceat(runs * factor, starts)  # (n,), of one random order
            key = scramble(key ^ least)
        found.append(_sharing(key))
    pairs = np.unique(np.concatenate(found), axis=0)
    stops = np.append(starts[1:], len(runs))
    sets = {i: np.unique(runs[starts[i] : stops[i]]) for i in np.unique(pairs).tolist()}
    alike = [jaccard(sets[a], sets[b]) >= ALIKE for a, b in pairs.tolist()]
    return pairs[np.array(alike, bool)]


def _sharing(key: np.ndarray) -> np.ndarray:
    """Pairs of rows with equal keys: each with the one before it and the first of all (m, 2)."""
    order = np.argsort(key, kind="stable")
    equal = key[order[1:]] == key[order[:-1]]
    first = np.maximum.accumulate(np.where(np.append(True, ~equal), np.arange(len(key)), 0))
    after = np.flatnonzero(equal) + 1
    pairs = [np.stack([order[before], order[after]], 1) for before in (after - 1, first[after])]
    return np.concatenate(pairs)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """What two sets (sorted, unique) share, of all that is in them."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)


# ---- overlap with an evaluation set --------------------------------------------------------------
def overlap(
    texts: Sequence[str], evaluation: Sequence[str], names: Sequence[str], called: str = ""
) -> Finding | None:
    """Evaluation texts that the training texts hold, whole or in good part; None where none are.

    names: of the evaluation texts. called: the evaluation set's name, for the message.
    """
    ids, ends = words_of([*texts, *evaluation])
    runs, of = runs_of(ids, ends, EVALUATION_RUN)
    training, n = of < len(texts), len(evaluation)
    known, held = np.isin(runs[~training], runs[training]), of[~training] - len(texts)
    share = np.bincount(held, known, n) / np.bincount(held, minlength=n).clip(1)
    whole = set(map(_bare, texts))
    equal = np.array([_bare(text) in whole for text in evaluation], bool)
    rows = [str(names[i]) for i in np.flatnonzero((share >= CONTAINED) | equal).tolist()]
    called = f" of '{called}'" if called else ""
    what = f"of {n:,} evaluation texts{called} stand in training texts, so a score "
    what, cure = what + "on them says little", "remove them from the training texts"
    return next(iter(about("evaluation_overlap", "warning", rows, what, cure)), None)
