"""Pairs of texts as what a contrastive loss learns from: texts that match, and hard negatives."""

from dataclasses import replace

import numpy as np

from layerwise.data.examples import Examples, listed
from layerwise.errors import DataError
from layerwise.kinds.text.documents import text_examples
from layerwise.kinds.text.layouts import FIELDS

LIKE = ("entailment", "paraphrase", "duplicate", "similar", "positive", "1", "true", "yes")
UNLIKE = ("contradiction", "not_paraphrase", "not_duplicate", "different", "negative", "0", "false",
          "no")  # fmt: skip
Found = dict[str, list[tuple[int, str]]]  # of each first text: rows, and their second texts


def matches(examples: Examples) -> Examples:
    """Scored pairs, triples, and pairs without a label, as they are; of others those that match.

    Where a first text also has a second one that contradicts it (NLI) or is no duplicate, that
    makes a triple; the third text is empty where there is none. What is neutral is left out.
    Errors: DataError for one text per row, and where no label says that two texts match.
    """
    if examples.has("score"):
        return examples
    if not examples.has("text_a", "text_b") and not examples.has("anchor", "positive"):
        raise DataError(
            f"{examples.understood}: vectors are learned from two texts per row (pairs that match, "
            "pairs with a score) or three (a text, one like it and one unlike it)"
        )
    if examples.target_kind != "class":
        return replace(examples, targets=None, target_kind="none")
    like, unlike = by_label(examples)
    made = []  # (row, its two texts, a third)
    for anchor, found in like.items():
        others = [text for _, text in unlike.get(anchor, [(0, "")])]
        for k, (row, second) in enumerate(found):
            made.append((row, anchor, second, others[k % len(others)]))
    made.sort()
    hard = sum(third != "" for *_, third in made)
    form, rows = "triples" if hard else "pairs", np.array([row for row, *_ in made])
    texts = [dict(zip(FIELDS[form], texts, strict=False)) for _, *texts in made]
    names = [str(examples.names[i]) for i in rows]
    out = text_examples(form, texts, names, examples.given[rows])
    said = f"{examples.understood}; {len(made):,} match, {hard:,} of them with one that does not"
    return replace(out, understood=said, source=examples.source, findings=examples.findings)


def by_label(examples: Examples) -> tuple[Found, Found]:
    """The second texts of each first one that match, and those that do not."""
    says = [label.lower().replace(" ", "_") for label in examples.labels]
    says = says if len(says) < 3 else ["" if s in ("0", "1") else s for s in says]  # mere numbers
    if not set(says) & set(LIKE):
        raise DataError(
            f"{examples.source}: vectors are learned from pairs that match, and no label says that "
            f"two do ({', '.join(examples.labels[:6])}); expected one of {', '.join(LIKE)}"
        )
    found: tuple[Found, Found] = ({}, {})
    pairs = zip(listed(examples["text_a"]), listed(examples["text_b"]), strict=True)
    for i, (first, second) in enumerate(pairs):
        said = says[np.asarray(examples.targets)[i]]
        for side, words in zip(found, (LIKE, UNLIKE), strict=True):
            if said in words:
                side.setdefault(first, []).append((i, second))
    return found
