"""Tables: `fit` beside scikit-learn's gradient boosting on the same rows, honestly printed.

    python bench/tables.py

Adult (classes) with its own test file, California housing (a number) with our seeded split. Both
see the same training and validation rows; boosting stops early on the validation rows.
"""

import gzip
import os
import pathlib
import shutil
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import sidebyside

import layerwise
from layerwise import runtime, tasks
from layerwise.console import Console
from layerwise.data.examples import Examples
from layerwise.data.table import Table
from layerwise.fitting.run import prepare_rows
from layerwise.settings import settings
from layerwise.tasks.scores import intervals

HERE = pathlib.Path(__file__).resolve().parent
DATA = pathlib.Path(os.environ.get("LAYERWISE_DATA", HERE.parent / "../shared/data"))
SETS = {  # name: (files, target)
    "adult": (("adult.data.gz", "adult.test.gz"), ""),
    "california housing": (("california_housing.csv.gz",), "median_house_value"),
}


def matrix(rows: Examples) -> tuple[np.ndarray, list[bool]]:
    """Columns as floats, categories as codes; which columns are categories."""
    columns, categories = [], []
    table = Table.of(rows["table"])
    for name in table.columns:
        column = table.column(name)
        is_text = pa.types.is_string(column.type) or pa.types.is_boolean(column.type)
        if is_text:
            codes = column.cast(pa.string()).to_pylist()
            columns.append(np.array([hash_code(c) for c in codes], np.float64))
        else:
            columns.append(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        categories.append(is_text)
    return np.stack(columns, 1), categories


CODES: dict[str, int] = {}


def hash_code(text: str | None) -> float:
    return np.nan if text is None else float(CODES.setdefault(text, len(CODES)))


def boosted(parts: dict[str, Examples]) -> tuple[np.ndarray, float]:
    """What gradient boosting says of the test rows, as `Task.scored` has it, and its seconds."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    CODES.clear()
    known = [matrix(parts[n]) for n in ("train", "val", "test")]
    categories = known[0][1]
    x = np.concatenate([known[0][0], known[1][0]])
    y = np.concatenate([parts["train"].targets, parts["val"].targets])
    for j in np.flatnonzero(categories):  # codes from 0 up per column, as scikit-learn wants
        values, codes = np.unique(np.concatenate([x[:, j], known[2][0][:, j]]), return_inverse=True)
        codes = np.where(np.isnan(values[codes]), np.nan, codes)
        x[:, j], known[2][0][:, j] = codes[: len(x)], codes[len(x) :]
    kind = HistGradientBoostingClassifier
    if parts["train"].target_kind == "number":
        kind = HistGradientBoostingRegressor
    started = time.perf_counter()
    model = kind(
        max_iter=1000, learning_rate=0.06, early_stopping=True, n_iter_no_change=30,
        categorical_features=categories, random_state=0,
    ).fit(x, y)  # fmt: skip
    seconds = time.perf_counter() - started
    if kind is HistGradientBoostingRegressor:
        return model.predict(known[2][0]), seconds
    return np.log(np.maximum(model.predict_proba(known[2][0]), 1e-12)), seconds


def main() -> None:
    if not (DATA / "tabular").exists():
        print(f"skipped: no data at {DATA}; set LAYERWISE_DATA")
        return
    out = []
    for name, (files, target) in SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            out += beside(name, files, target, pathlib.Path(folder))
    sidebyside.markdown(["data", "who", "score", "95% interval", "seconds", "rows"], out)


def beside(name: str, files: tuple[str, ...], target: str, folder: pathlib.Path) -> list[list]:
    source = folder / "data"
    source.mkdir()
    for file in files:
        with gzip.open(DATA / "tabular" / file) as f, open(source / file[:-3], "wb") as g:
            shutil.copyfileobj(f, g)
    quiet = Console(sys.stderr)
    path = source if len(files) > 1 else source / files[0][:-3]
    options = {"target": target} if target else {}
    result = layerwise.fit(path, console=quiet, output=str(folder / "run"), depth=False, **options)
    from layerwise.kinds.opening import open_data

    examples = open_data(path, target=target or None)
    learned = tasks.class_for(examples)
    rows = prepare_rows(examples, learned, settings(**options), quiet, None, runtime.start())
    parts = {"train": rows.train, "val": rows.val, "test": rows.test}
    outputs, seconds = boosted(parts)
    task = result.model.task
    ours, targets = task.scored(result.model.predictions(rows.test), rows.test)
    theirs = intervals.interval(task.metric, outputs, targets)
    found = intervals.compare(task.metric, outputs, ours, targets, task.higher_is_better)
    print(f"{name}: A is gradient boosting, B is ours. {found.sentence}")
    took = float(result.ladder[-1]["seconds"])
    return [
        [name, "layerwise", f"{result.score:.4g}", f"{result.low:.4g} to {result.high:.4g}",
         f"{took:.0f}", len(rows.train)],
        [name, "gradient boosting", f"{theirs.value:.4g}", f"{theirs.low:.4g} to {theirs.high:.4g}",
         f"{seconds:.1f}", len(rows.train)],
    ]  # fmt: skip


if __name__ == "__main__":
    main()
