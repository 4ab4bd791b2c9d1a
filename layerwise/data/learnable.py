"""What nothing can be learned from is an error before any time is spent on it."""

from collections import Counter

import numpy as np

from layerwise.data.examples import Examples, Finding
from layerwise.data.listing import some
from layerwise.errors import DataError


def check_learnable(examples: Examples) -> None:
    """Errors for data that nothing can be learned from; loose images are for predicting and pass.

    One class or value, one image per class, all given as test, classes that only the test has.
    """
    if not len(examples):
        raise DataError(f"'{examples.source}' has no usable row left; see what was set aside")
    if examples.target_kind == "none":
        return
    training = ~np.isin(examples.given, ("test", "val"))
    if not training.any():
        raise DataError(
            f"'{examples.source}': every row is given as {' or '.join(sorted(set(examples.given)))}"
            ", none to train on; add training rows, or evaluate a trained model on it"
        )
    if examples.target_kind == "number":
        _check_numbers(examples)
    elif examples.target_kind == "class":
        _check_classes(examples, training)
    else:
        _check_several(examples)


def _check_numbers(examples: Examples) -> None:
    assert examples.targets is not None
    if len(np.unique(examples.targets)) == 1:
        raise DataError(
            f"'{examples.source}': the target has the one value {examples.targets[0]:g} in all "
            f"{len(examples):,} rows, so there is nothing to learn; name another with --target"
        )


def _check_several(examples: Examples) -> None:
    assert examples.targets is not None
    if not examples.labels or bool((examples.targets.sum(0) == len(examples)).all()):
        raise DataError(
            f"'{examples.source}': every row has the same labels ({some(examples.labels)}), so "
            "there is nothing to learn; add rows without them"
        )
    if int(examples.targets.sum(0).max()) < 2:
        raise DataError(
            f"'{examples.source}': none of the {len(examples.labels):,} labels (such as "
            f"{some(examples.labels, 2)}) occurs in two rows; name the column of labels with "
            "--target"
        )


def _check_classes(examples: Examples, training: np.ndarray) -> None:
    targets, labels, what = examples.targets, examples.labels, _what(examples)
    assert targets is not None
    counts = Counter(targets.tolist())
    if len(counts) == 1:
        only = labels[next(iter(counts))]
        raise DataError(
            f"'{examples.source}' has the one class '{only}' in all {len(examples):,} {what}; "
            "expected at least two classes: add another (for images, a folder per class), or name "
            "another column with --target"
        )
    if max(counts.values()) == 1:
        raise DataError(
            f"'{examples.source}' has one {what.rstrip('s')} for each of its {len(counts):,} "
            "classes, which leaves nothing to test on; add more of each (10 or more is a start)"
        )
    trained = set(targets[training].tolist())
    only_held = sorted(set(targets[~training].tolist()) - trained)
    if only_held:
        parts = sorted({str(p) for p in examples.given[~training]})
        raise DataError(
            f"'{examples.source}': the classes of train and {' and '.join(parts)} differ: "
            f"{some(labels[i] for i in only_held)} never occur in train; add examples, rename "
            "them, or remove them"
        )
    _note_few(examples, counts, trained)


def _note_few(examples: Examples, counts: Counter, trained: set[int]) -> None:
    few = [examples.labels[i] for i in sorted(counts) if counts[i] == 1]
    never = [label for i, label in enumerate(examples.labels) if i not in trained]
    if few:
        message = f"{len(few):,} classes have a single {_what(examples)[:-1]}: {some(few)}"
        cure = "add more, or remove the class: it cannot be tested"
        examples.findings.append(Finding("few", "warning", message, tuple(few), cure))
    if never:
        message = f"{len(never):,} classes have no example: {some(never)}"
        examples.findings.append(Finding("few", "warning", message, tuple(never)))


def _what(examples: Examples) -> str:
    return {"image": "images", "text": "texts"}.get(examples.kind, "rows")
