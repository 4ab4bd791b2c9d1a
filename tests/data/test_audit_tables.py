"""Columns that say nothing, miss much or know too much, and rows that occur twice."""

import gzip

import numpy as np
import pytest
from made_examples import table

from layerwise.kinds.audit import audit
from layerwise.kinds.opening import open_data
from layerwise.kinds.table.audit import rank_correlation


def table_examples(columns, targets, kind="class", given=None, labels=("no", "yes")):
    names = [f"data.csv row {i + 2}" for i in range(len(targets))]
    labels = labels if kind == "class" else ()
    return table(columns, targets, kind, labels, names, given, "data.csv")


def found(report, kind):
    return next((f for f in report.findings if f.kind == kind), None)


@pytest.fixture
def columns():
    rng = np.random.default_rng(0)
    n = 300
    return {
        "age": rng.normal(40, 10, n).tolist(),
        "city": rng.choice(["Ulm", "Bern", "Graz"], n).tolist(),
    }


@pytest.fixture
def outcome():
    return np.random.default_rng(1).integers(2, size=300)


def test_healthy_columns_are_passed(columns, outcome):
    assert audit(table_examples(columns, outcome)).findings == []


def test_constant_and_missing_columns_are_named(columns, outcome):
    columns["unit"] = ["cm"] * 300
    columns["note"] = [None] * 200 + ["x", "y"] * 50
    columns["age"][:3] = [None] * 3
    report = audit(table_examples(columns, outcome))
    assert found(report, "constant_column").names == ("unit",)
    gaps = [f for f in report.findings if f.kind == "missing_cells"]
    assert [(f.severity, f.names) for f in gaps] == [("warning", ("note",)), ("note", ("age",))]
    assert "'note' 66.7%" in gaps[0].message
    assert "'age' 1.0%" in gaps[1].message


def test_equal_rows_are_followed_across_splits_and_labels(columns, outcome):
    given = ["train"] * 200 + ["test"] * 100
    for name in columns:
        columns[name][250] = columns[name][10]
        columns[name][251] = columns[name][11]
    outcome[[10, 250, 11, 251]] = [0, 1, 1, 1]
    report = audit(table_examples(columns, outcome, given=given))
    assert set(found(report, "leak").names) == {
        "data.csv row 252 = data.csv row 12", "data.csv row 253 = data.csv row 13",
    }  # fmt: skip
    assert found(report, "label_conflict").names == (
        "data.csv row 12 (no)", "data.csv row 252 (yes)",
    )  # fmt: skip
    assert set(report.clean_test) == set(range(200, 300)) - {250, 251}


def test_columns_that_tell_the_class_are_suspected(columns, outcome):
    rng = np.random.default_rng(2)
    columns["closed_on"] = np.where(outcome, rng.uniform(1, 9, 300), -1.0).tolist()
    columns["reason"] = [f"r{3 * y + rng.integers(3)}" for y in outcome]
    columns["hint"] = [f"h{y if rng.random() < 0.9 else 1 - y}" for y in outcome]
    columns["name"] = [f"person {i}" for i in range(300)]
    report = audit(table_examples(columns, outcome))
    assert set(found(report, "giveaway").names) == {"closed_on", "reason"}


def test_columns_that_tell_the_number_are_suspected(columns):
    rng = np.random.default_rng(3)
    price = rng.lognormal(10, 1, 300)
    columns["price_in_dollars"] = (price * 1.1).tolist()
    columns["log_price"] = (np.log(price) + rng.normal(0, 1e-4, 300)).tolist()
    columns["size"] = (price + rng.normal(0, price.std() / 3, 300)).tolist()
    columns["lot"] = [f"lot {i}" for i in range(300)]
    report = audit(table_examples(columns, price, "number"))
    assert set(found(report, "giveaway").names) == {"price_in_dollars", "log_price"}


def test_rank_correlation_equals_scipy():
    from scipy import stats

    rng = np.random.default_rng(0)
    x, y = rng.integers(9, size=80).astype(float), rng.normal(size=80)
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert rank_correlation(np.ones(5), np.arange(5.0)) == 0


@pytest.mark.data
@pytest.mark.parametrize("name", ["iris", "titanic", "california_housing"])
def test_real_tables_are_audited(shared_data, tmp_path, name):
    path = tmp_path / f"{name}.csv"
    packed = (shared_data / f"tabular/{name}.csv.gz").read_bytes()
    path.write_bytes(gzip.decompress(packed))
    target = {"iris": "species", "titanic": "survived", "california_housing": None}[name]
    if target is None:
        target = path.read_text().splitlines()[0].split(",")[-2]
    report = audit(open_data(path, target=target))
    assert report.keep.all()
    assert not [f for f in report.findings if f.severity == "error"]
