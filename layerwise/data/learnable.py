"""Data that nothing can be learned from is an error, before any time is spent on it."""

import numpy as np

from layerwise.data.examples import Examples
from layerwise.data.naming import about, some
from layerwise.errors import DataError


def check_learnable(examples: Examples, noun: str) -> None:
    """Errors for data that nothing can be learned from; loose images are for predicting and pass.

    noun: what its rows are called, as "images".

    One class or value, one image per class, all given as test, classes that only the test has.
    """
    name, n, y = f"'{examples.source}'", len(examples), examples.targets
    if not n:
        raise DataError(f"{name} has no usable row left; see what was set aside")
    if y is None and examples.fields.keys() <= examples.kinds.keys():
        return
    training = ~np.isin(examples.given, ("test", "val"))
    if not training.any():
        raise DataError(
            f"{name}: every row is given as {' or '.join(sorted(set(examples.given)))}, none to "
            "train on; add training rows, or evaluate a trained model on it"
        )
    kind, labels, why = examples.target_kind, examples.labels, ""
    if kind == "class":
        return _check_classes(examples, training, noun)
    if y is None:
        if examples.has("tags") and len(labels) == 1:
            why = f"every word has the one tag '{labels[0]}', so there is nothing to learn; are "
            why += "the tags in the last column?"
    elif kind == "number" and len(np.unique(y)) == 1:
        why = f"the target has the one value {y[0]:g} in all {n:,} rows, so there is nothing to "
        why += "learn; name another with --target"
    elif kind == "classes" and (y.sum(0) == n).all():
        why = f"every row has the same labels ({some(labels)}), so there is nothing to learn; add "
        why += "rows without them"
    elif kind == "classes" and y.sum(0).max() < 2:
        why = f"none of the {len(labels):,} labels (such as {some(labels, 2)}) occurs in two rows; "
        why += "name another column with --target"
    if why:
        raise DataError(f"{name}: {why}")


def _check_classes(examples: Examples, training: np.ndarray, what: str) -> None:
    name, labels, y = f"'{examples.source}'", np.array(examples.labels), examples.targets
    assert y is not None
    counts, trained = (np.bincount(c, minlength=len(labels)) for c in (y, y[training]))
    occurs = np.flatnonzero(counts)
    only_held, why = labels[(counts > 0) & (trained == 0)], ""
    if len(occurs) == 1:
        why = f" has the one class '{labels[occurs[0]]}' in all {len(examples):,} {what}; expected "
        why += (
            "at least two classes: add another (for images, a folder per class), or name another "
        )
        why += "column with --target"
    elif counts.max() == 1:
        why = f" has one {what[:-1]} for each of its {len(occurs):,} classes, which leaves nothing "
        why += "to test on; add more of each (10 or more is a start)"
    elif len(only_held):
        parts = " and ".join(sorted(set(examples.given[~training])))
        why = f": the classes of train and {parts} differ: {some(only_held)} never occur in train; "
        why += "add examples, rename them, or remove them"
    if why:
        raise DataError(name + why)
    single, never = labels[counts == 1].tolist(), labels[counts == 0].tolist()
    cure = "add more, or remove the class: it cannot be tested"
    examples.findings += about("few", "warning", single, f"classes have one {what[:-1]}", cure)
    examples.findings += about("few", "warning", never, "classes have no example")
