"""Arrays of pixels or features, as array files hold them, to examples.

Pixels become uint8 (n, h, w) or (n, h, w, c): colours-first is turned round, fractions from 0 to 1
are multiplied by 255. Rows of two axes are a table. Legend: n images of h x w pixels, c channels.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layerwise.data.examples import Examples, Finding, TargetKind
from layerwise.data.folders import splits_said
from layerwise.data.formats import Arrays
from layerwise.data.listing import natural
from layerwise.data.table import Table
from layerwise.data.targets import Targets, label_text, read_targets
from layerwise.errors import DataError

CHANNELS = (1, 3, 4)
CLASS_FILES = ("classes.txt", "class_names.txt", "labels.txt", "label_names.txt")


def open_arrays(
    arrays: Arrays, folder: Path, kind: str | None = None, target_kind: TargetKind | None = None
) -> Examples:
    """Examples of what a reader found; names of classes from a classes.txt in `folder` too.

    Errors: shapes that differ between splits, shapes or values that are no pictures.
    """
    order = [split for split in ("", "train", "val", "test") if split in arrays.inputs]
    labelled = [split for split in order if split in arrays.targets]
    findings = list(arrays.findings)
    if labelled and len(labelled) < len(order):
        left = ", ".join(split for split in order if split not in labelled)
        findings.append(Finding("unlabelled", "note", f"'{left}' has no targets: left out"))
        order = labelled
    x = _together([arrays.inputs[split] for split in order], arrays.source)
    lengths = [len(arrays.inputs[split]) for split in order]
    given = np.repeat(np.array(order, "U5"), lengths)
    names = [f"{s or 'row'}[{i}]" for s, n in zip(order, lengths, strict=True) for i in range(n)]
    table = kind == "table" or (x.ndim == 2 and kind != "image")
    inputs: Any = _features(x) if table else _pixels(x, arrays.source, findings)
    examples = Examples(
        "table" if table else "image", inputs, None, "none", (), names, given, "", findings=findings
    )
    what = f"{len(x):,} {'rows' if table else 'images'} of {_size(x if table else inputs)}"
    if labelled:
        y = np.concatenate([arrays.targets[split] for split in order])
        targets = _targets(y, arrays.class_names or class_file(folder), arrays.source, target_kind)
        examples = with_targets(examples, targets)
        what += f", {targets.said},"
    examples.understood = f"{what} from {arrays.source}{splits_said(given)}"
    return examples


def with_targets(examples: Examples, targets: Targets) -> Examples:
    """The labelled rows, with their targets."""
    if not targets.labelled.all():
        examples = examples.subset(targets.labelled)
    examples.targets, examples.target_kind = targets.values, targets.kind
    examples.labels = targets.labels
    examples.findings = examples.findings + targets.findings
    return examples


def class_file(folder: Path) -> tuple[str, ...]:
    """The class names of a classes.txt, one on each line, in the order of their numbers."""
    for name in CLASS_FILES:
        path = folder / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            return tuple(label_text(line) for line in lines if line.strip())
    return ()


def _together(parts: list[np.ndarray], source: str) -> np.ndarray:
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = " and ".join(str(part.shape) for part in parts)
        raise DataError(f"{source}: the splits have inputs of different shapes, {shapes}")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _size(x: np.ndarray | Table) -> str:
    if isinstance(x, Table):
        return f"{len(x.columns)} numbers"
    if x.ndim == 2:
        return f"{x.shape[1]} numbers"
    return f"{x.shape[1]} x {x.shape[2]} pixels ({'colour' if x.ndim == 4 else 'grey'})"


def _features(x: np.ndarray) -> Table:
    flat = x.reshape(len(x), -1).astype(np.float64)  # (n, features)
    columns, infinite = {}, {}
    for i in range(flat.shape[1]):
        cells = flat[:, i]
        rows = np.flatnonzero(np.isinf(cells))
        if len(rows):
            infinite[f"x{i}"] = rows
        columns[f"x{i}"] = pa.array(cells, mask=~np.isfinite(cells))
    return Table(pa.table(columns), infinite)


def _pixels(x: np.ndarray, source: str, findings: list[Finding]) -> np.ndarray:
    """uint8 (n, h, w) or (n, h, w, c)."""
    x = _shaped(x, source)
    if x.dtype == np.uint8:
        return x
    if x.dtype == bool:
        return x.astype(np.uint8) * 255
    if x.dtype.kind not in "iuf":
        raise DataError(f"{source}: pixels should be numbers; they are of type {x.dtype}")
    finite = np.isfinite(x).reshape(len(x), -1).all(1) if x.dtype.kind == "f" else None
    if finite is not None and not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise DataError(f"{source}: image {row} has pixels that are NaN or infinite; mend the data")
    return _scaled(x, source, findings)


def _scaled(x: np.ndarray, source: str, findings: list[Finding]) -> np.ndarray:
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    if x.dtype.kind == "f" and low >= 0 and high <= 1:
        rule, scaled = "from 0..1 to 0..255", x * 255
    elif x.dtype.kind == "f" and low >= -1 and low < 0 and high <= 1:
        rule, scaled = "from -1..1 to 0..255", (x + 1) * 127.5
    elif low >= 0 and high <= 255:
        rule, scaled = "rounded to 0..255", x
    elif low >= 0 and x.dtype == np.uint16:
        rule, scaled = "from 16 bits to 8", x / 257
    else:
        raise DataError(
            f"{source}: pixels should lie in 0..255, 0..1 or -1..1; they lie in {low:g}..{high:g}. "
            "Undo the standardisation, or save rows (n, features) to learn from them as a table"
        )
    findings.append(Finding("pixels", "note", f"pixels of type {x.dtype} were brought {rule}"))
    return np.rint(scaled).astype(np.uint8)


def _shaped(x: np.ndarray, source: str) -> np.ndarray:
    """(n, h, w) or (n, h, w, c), from colours first or last or, where asked, squares laid flat."""
    if x.ndim == 2 and int(x.shape[1] ** 0.5) ** 2 == x.shape[1]:
        side = int(x.shape[1] ** 0.5)
        x = x.reshape(-1, side, side)
    if x.ndim == 4 and x.shape[-1] not in CHANNELS and x.shape[1] in CHANNELS:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    if x.ndim == 4 and x.shape[-1] == 1:
        x = x[..., 0]
    if x.ndim == 3 or (x.ndim == 4 and x.shape[-1] in CHANNELS):
        return x
    raise DataError(
        f"{source}: expected images (n, h, w), (n, h, w, c) or (n, c, h, w) with 1, 3 or 4 "
        f"channels, or rows (n, features); the shape is {x.shape}"
    )


def _targets(
    y: np.ndarray, names: tuple[str, ...], source: str, target_kind: TargetKind | None
) -> Targets:
    """Class numbers, one-hot or several-hot rows, quantities or names, to targets."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim == 2 and np.isin(y, (0, 1)).all():
        if target_kind == "classes" or (target_kind is None and (y.sum(1) != 1).any()):
            labels = _enough(names, y.shape[1], source) or tuple(map(str, range(y.shape[1])))
            every = np.ones(len(y), bool)
            said = f"{len(labels):,} labels, any number of them per row"
            return Targets(y.astype(np.uint8), "classes", labels, every, said)
        y = y.argmax(1)
    if y.ndim != 1:
        raise DataError(
            f"{source}: targets should be one per row (n,) or rows of 0 and 1 (n, classes); the "
            f"shape is {y.shape}"
        )
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf8")
    if y.dtype.kind in "iub" and target_kind in (None, "class"):
        return numbered_targets(y.astype(np.int64), names, source)
    return read_targets(y.tolist(), f"the targets of {source}", target_kind)


def numbered_targets(y: np.ndarray, names: tuple[str, ...], source: str) -> Targets:
    """Class numbers (n,) to targets; a negative number means no label, as Hugging Face writes -1.

    names: of all classes in the order of their numbers, or () where the numbers are the names.
    """
    labelled = y >= 0
    if not labelled.any():
        raise DataError(f"{source}: no row has a label; there is nothing to learn from")
    known = y[labelled]
    if names:
        labels = _enough(names, int(known.max()) + 1, source)
    else:
        numbers, known = np.unique(known, return_inverse=True)
        labels = tuple(str(n) for n in numbers)
    order = sorted(range(len(labels)), key=lambda i: natural(labels[i]))
    place = np.argsort(order)  # where each class number comes in natural order
    said = f"{len(labels):,} classes"
    findings = []
    if not labelled.all():
        message = f"{int((~labelled).sum()):,} rows have no label (a negative number): set aside"
        findings = [Finding("unlabelled", "error", message)]
    labels = tuple(labels[i] for i in order)
    return Targets(place[known], "class", labels, labelled, said, findings)


def _enough(names: tuple[str, ...], wanted: int, source: str) -> tuple[str, ...]:
    if names and len(names) < wanted:
        raise DataError(
            f"{source}: the targets name class {wanted - 1} (counted from 0), but there are only "
            f"{len(names)} class names; complete classes.txt, one name on each line"
        )
    return names
