"""Tables: reading them as people write them, and turning rows into features."""

import datetime
import gzip
import json
import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from made_examples import table as table_examples
from pyarrow import parquet

from layerwise.data.examples import Examples
from layerwise.data.table import Table
from layerwise.errors import DataError
from layerwise.kinds.opening import open_data
from layerwise.kinds.table.processor import TableProcessor


def write(path, text: str):
    path.write_bytes(text.encode("utf8"))
    return path


def rows(n: int, line) -> str:
    return "\n".join(line(i) for i in range(n)) + "\n"


def refused(path, *patterns, **options):
    with pytest.raises(DataError) as caught:
        open_data(path, **options)
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), f"{pattern!r} not in {caught.value!s}"


def found(examples: Examples, kind: str) -> str:
    return " ".join(f.message for f in examples.findings if f.kind == kind)


def column(examples: Examples, name: str) -> list:
    return examples["table"].column(name).to_pylist()


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("packed", [False, True])
def test_delimiters_and_gzip(tmp_path, mark, packed):
    text = f"a{mark}b{mark}kind\n" + rows(6, lambda i: f"{i}.5{mark}'x, y'{mark}k{i % 2}")
    if mark == ",":
        text = text.replace("'", '"')
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    opened = open_data(path)
    assert column(opened, "a") == [i + 0.5 for i in range(6)]
    assert opened.labels == ("k0", "k1")
    assert "6 rows and 1 columns" in opened.understood  # b has one value only
    assert "'b' was dropped" in found(opened, "dropped_column")


def test_the_target_is_named_or_last_and_it_is_said(tmp_path):
    path = write(tmp_path / "a.csv", "x,Label,z\n" + rows(9, lambda i: f"{i % 4}.5,{i % 3},{i}.25"))
    assert "the target is 'Label' (by its name): 3 classes" in open_data(path).understood
    asked = open_data(path, target="z")
    assert "the target is 'z' (as asked): a number from 0.25 to 8.25" in asked.understood
    refused(
        path, "no column 'labl'; did you mean 'Label'", "it has 'x', 'Label', 'z'", target="labl"
    )
    path = write(tmp_path / "a.csv", "x,y2,z\n" + rows(9, lambda i: f"{i % 4}.5,{i % 3},{i}.25"))
    assert "'z' (the last column; name another with --target)" in open_data(path).understood


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (lambda i: "yes" if i % 2 else "no", "class"),
        (lambda i: i % 20, "class"),
        (lambda i: i % 21, "number"),
        (lambda i: f"{i % 2}.0", "class"),
        (lambda i: f"{i % 2}.5", "number"),
        (lambda i: ("true", "false")[i % 2], "class"),
    ],
)
def test_classes_or_a_quantity(tmp_path, cell, kind):
    path = write(tmp_path / "a.csv", "x,y\n" + rows(84, lambda i: f"{i % 5}.5,{cell(i)}"))
    assert open_data(path).target_kind == kind
    assert open_data(path, target_kind="class").target_kind == "class"


def test_cells_are_numbers_dates_text_or_missing(tmp_path):
    lines = ["1,2020-01-31,red,true,00501,31.12.2020", "?,2021-02-28,,false,00502,01.01.2021"]
    lines += ["3.5e2,NA,blue,true,00501,", " -4 , 2022-03-01 ,red,False,00502,05.06.2021"]
    path = write(
        tmp_path / "a.csv",
        "n,d,c,b,zip,e,y\n" + "".join(f"{r},{i % 2}\n" for i, r in enumerate(lines)),
    )
    opened = open_data(path)
    assert column(opened, "n") == [1, None, 350, -4]
    assert column(opened, "d")[0] == datetime.datetime(2020, 1, 31)
    assert column(opened, "d")[2] is None
    assert column(opened, "c") == ["red", None, "blue", "red"]
    assert column(opened, "b") == ["true", "false", "true", "false"]
    assert column(opened, "zip")[0] == "00501"  # a code, not the number 501
    assert column(opened, "e")[3] == datetime.datetime(2021, 6, 5)
    missing = {name: column(opened, name).index(None) for name in "ndce"}
    assert missing == {"n": 1, "d": 2, "c": 1, "e": 2}
    assert opened["table"][1]["b"] == "false"
    assert opened["table"][-1] == opened["table"].take([3])[0]


def test_words_among_numbers_and_ambiguous_dates_are_said(tmp_path):
    text = "n,d,y\n" + rows(
        40, lambda i: f"{'unknown' if i == 7 else i}.0,0{i % 9 + 1}/02/2020,{i % 2}"
    )
    opened = open_data(write(tmp_path / "a.csv", text.replace("unknown.0", "unknown")))
    assert column(opened, "n")[7] is None
    assert "'unknown' among numbers, taken as missing (first: a.csv row 9)" in found(
        opened, "assumed"
    )
    assert "month before day" in found(opened, "assumed")


def test_columns_without_use_are_dropped_with_a_note(tmp_path):
    text = ",user_id,name,empty,same,x,y\n" + rows(
        30, lambda i: f"{i},{900 - 7 * i},person {i},,1,{i % 7}.5,{i % 2}"
    )
    opened = open_data(write(tmp_path / "a.csv", text))
    assert opened["table"].columns == ("x",)
    said = found(opened, "dropped_column")
    for name in ("column_1", "user_id", "name", "empty", "same"):
        assert f"column '{name}' was dropped" in said
    few = open_data(write(tmp_path / "a.csv", "name,x,y\nann,1.5,0\nbob,2,1\ncy,3,0\n"))
    assert "name" in few["table"].columns  # among three rows, different names prove nothing


def test_files_without_a_header(tmp_path):
    uci = "39, State-gov, 77516.5, <=50K\n50, Private, 83311, >50K\n38, ?, 215646, <=50K\n" * 5
    opened = open_data(write(tmp_path / "adult.data", uci))
    assert "without a header" in opened.understood
    assert "the target is 'column_4' (the last column" in opened.understood
    assert (len(opened), opened.labels) == (15, ("<=50K", ">50K"))
    assert opened.names[0] == "adult.data row 1"
    mushrooms = "p,x,s\ne,x,y\np,b,s\ne,b,y\n" * 3
    assert len(open_data(write(tmp_path / "m.data", mushrooms))) == 12
    named = open_data(
        write(tmp_path / "b.csv", "colour,size\nred,big\nblue,small\nred,small\nblue,big\n")
    )
    assert (len(named), named.names[0]) == (4, "b.csv row 2")
    counted = "0,1,2,target\n" + rows(5, lambda i: f"{i}.5,{i * i}.5,{7 - i}.5,{i % 2}")
    assert open_data(write(tmp_path / "c.csv", counted))["table"].columns == ("0", "1", "2")


def test_columns_aligned_with_blanks(tmp_path):
    text = rows(8, lambda i: f"  {i}.25   {i * i:6.2f}  {'odd' if i % 2 else 'even'}")
    opened = open_data(write(tmp_path / "housing.data", text))
    assert opened.labels == ("even", "odd")
    assert column(opened, "column_2")[3] == 9


def test_quotes_after_a_blank_newlines_in_cells_and_other_encodings(tmp_path):
    opened = open_data(
        write(tmp_path / "a.csv", 'c, t, y\n"a, b", "x", 1\n"c", "z", 2\n"d", "x", 1\n')
    )
    assert column(opened, "c") == ["a, b", "c", "d"]
    text = 'c,x,y\n"two\nlines",1.5,0\n"one",2.5,1\n"1",1,1\n'
    assert column(open_data(write(tmp_path / "a.csv", text)), "c") == ["two\nlines", "one", "1"]
    (tmp_path / "w.csv").write_bytes("größe,y\n1.5,ä\n2.5,b\n".encode("cp1252"))
    opened = open_data(tmp_path / "w.csv", target="y", target_kind="class", learn=False)
    assert (opened["table"].columns, opened.labels) == (("größe",), ("ä", "b"))
    assert "not UTF-8" in found(opened, "encoding")
    (tmp_path / "u.csv").write_text("größe\ty\n1.5\ta\n2.5\tb\n", encoding="utf-16")
    assert open_data(tmp_path / "u.csv", learn=False)["table"].columns == ("größe", "y")


def test_decimal_commas(tmp_path):
    text = "a;y\n" + rows(5, lambda i: f"{i},5;{i % 2}")
    assert column(open_data(write(tmp_path / "a.csv", text)), "a")[2] == 2.5


def test_parquet_and_json_lines(tmp_path):
    data = {
        "n": pa.array([1, None, 3, 4], pa.int32()),
        "c": pa.array(["a", "b", "a", None]).dictionary_encode(),
        "d": pa.array([datetime.date(2020, 1, i + 1) for i in range(4)]),
        "list": pa.array([[1], [2], [3], [4]]),
        "y": pa.array([0.5, 1.5, float("nan"), 2.5]),
    }
    parquet.write_table(pa.table(data), tmp_path / "a.parquet")
    opened = open_data(tmp_path / "a.parquet")
    assert (opened.target_kind, opened["table"].columns) == ("number", ("n", "c", "d"))
    assert opened.targets.tolist() == [0.5, 1.5, 2.5]  # NaN target: set aside
    assert "a.parquet row 2" in found(opened, "unlabelled")
    assert "column 'list' was dropped" in found(opened, "dropped_column")
    lines = [json.dumps({"x": i + 0.5, "c": "ab"[i % 2], "y": i % 2}) for i in range(6)]
    opened = open_data(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert (opened["table"].columns, opened.labels) == (("x", "c"), ("0", "1"))


def test_a_split_column(tmp_path):
    text = "x,y,split\n" + rows(8, lambda i: f"{i}.5,{i % 2},{'test' if i > 5 else 'train'}")
    opened = open_data(write(tmp_path / "a.csv", text))
    assert (opened.given == "test").sum() == 2
    assert opened["table"].columns == ("x",)
    text = text.replace("split", "part")
    opened = open_data(write(tmp_path / "a.csv", text), target="y", split_column="part")
    assert (opened.given == "test").sum() == 2
    text = text.replace("5,1,test", "5,1,tset")
    refused(
        write(tmp_path / "a.csv", text), "a.csv row 9 has 'tset'", split_column="part", target="y"
    )


def pair(folder, train: str, test: str, names="adult.data adult.test"):
    folder.mkdir(exist_ok=True)
    for name, text in zip(names.split(), (train, test), strict=True):
        write(folder / name, text)
    return folder


BODY = rows(12, lambda i: f"{i}, {'abc'[i % 3]}, {'<=50K' if i % 2 else '>50K'}")


@pytest.mark.parametrize(
    "names", ["adult.data adult.test", "train.csv test.csv", "a_train.csv a_test.csv"]
)
def test_a_train_and_a_test_file(tmp_path, names):
    test = "|1x3 Cross validator\n" + BODY.replace("50K", "50K.")  # as UCI publishes it
    opened = open_data(pair(tmp_path / "d", BODY, test, names))
    assert opened.given.tolist() == ["train"] * 12 + ["test"] * 12
    assert opened.labels == ("<=50K", ">50K")
    assert "dot" in found(opened, "target")


def test_a_header_in_one_of_two_files(tmp_path):
    opened = open_data(pair(tmp_path / "d", "n,c,y\n" + BODY, BODY))
    assert (opened["table"].columns, len(opened)) == (("n", "c"), 24)


def test_a_test_file_without_target_is_left_out(tmp_path):
    test = "n,c\n" + rows(5, lambda i: f"{i},a")
    opened = open_data(pair(tmp_path / "d", "n,c,price\n" + BODY, test, "train.csv test.csv"))
    assert len(opened) == 12
    assert "no column 'price'" in found(opened, "unlabelled")
    assert "'test.csv'" in found(opened, "unlabelled")


def test_to_predict_every_column_is_kept_and_no_target_is_guessed(tmp_path):
    path = write(tmp_path / "a.csv", "x,label,same\n1.5,,7\n")
    opened = open_data(path, learn=False)
    assert (opened["table"].columns, opened.target_kind) == (("x", "label", "same"), "none")
    assert open_data(path, target="y", learn=False).target_kind == "none"
    path = write(tmp_path / "a.csv", "x,label,same\n1.5,a,7\n")
    scored = open_data(path, target="label", learn=False)  # one class, one row: enough to score
    assert (scored["table"].columns, scored.labels) == (("x", "same"), ("a",))


# -- bad input ------------------------------------------------------------------------------------


def test_infinite_cells_are_missing_and_named(tmp_path):
    text = "x,y\n" + rows(8, lambda i: f"{'-inf' if i == 4 else i},{i % 2}")
    opened = open_data(write(tmp_path / "a.csv", text))
    assert column(opened, "x")[4] is None
    assert "1 rows are infinite in column 'x'" in found(opened, "infinite")
    assert "'a.csv row 6'" in found(opened, "infinite")


def test_nan_and_infinite_targets_are_set_aside(tmp_path):
    text = "x,price\n" + rows(30, lambda i: f"{i % 7},{ {3: 'nan', 5: 'inf'}.get(i, f'{i}.5') }")
    opened = open_data(write(tmp_path / "a.csv", text))
    assert len(opened) == 28
    assert "a.csv row 5" not in opened.names
    assert "1 of 30 rows have no target" in found(opened, "unlabelled")
    assert "infinite column 'price' of a.csv: 'a.csv row 7'" in found(opened, "infinite_target")


def test_target_all_one_value_or_empty_or_an_id(tmp_path):
    path = write(tmp_path / "a.csv", "x,y\n" + rows(8, lambda i: f"{i},2.5"))
    refused(path, "one value 2.5 in all 8 rows", "--target")
    path = write(tmp_path / "a.csv", "x,y\n" + rows(8, lambda i: f"{i},no"))
    refused(path, "one class 'no' in all 8 rows", "--target")
    path = write(tmp_path / "a.csv", "x,y\n" + rows(8, lambda i: f"{i},"))
    refused(path, "column 'y' of a.csv is empty in all 8 rows", "--target")
    path = write(tmp_path / "a.csv", "x,y\n" + rows(50, lambda i: f"{i % 3}.5,name {i}"))
    refused(path, "column 'y' of a.csv has 50 different values", "--target")


def test_a_number_was_asked_for(tmp_path):
    path = write(tmp_path / "a.csv", "x,y\n" + rows(8, lambda i: f"{i},{'low' if i == 3 else i}"))
    refused(
        path, "should be a number in every row, but a.csv row 5 has 'low'", target_kind="number"
    )


def test_duplicated_column_names(tmp_path):
    path = write(tmp_path / "a.csv", "x,size,size,y\n1,2,3,0\n4,5,6,1\n")
    refused(path, "a.csv' has 2 columns named 'size' .columns 2, 3.", "its own name")


def test_ragged_row(tmp_path):
    text = "a,b,y\n" + rows(9, lambda i: f"{i},{i},{i % 2}" + (",9" if i == 4 else ""))
    path = write(tmp_path / "a.csv", text)
    refused(path, "a.csv row 6 has 4 cells where 3 were expected", "'4,4,0,9'", "commas", "fix")


def test_no_rows_and_one_column(tmp_path):
    refused(write(tmp_path / "a.csv", "a,b\n"), "column names but no rows")
    refused(write(tmp_path / "a.csv", "\n\n"), "has no rows")
    refused(write(tmp_path / "a.csv", "a\n1\n2\n"), "single column 'a'", "delimiter")


def test_train_and_test_files_that_differ(tmp_path):
    head = "n,c,y\n"
    other = pair(tmp_path / "a", head + BODY, "n,d,y\n" + BODY)
    refused(
        other, "'adult.data' and 'adult.test' should have the same columns", "lacks 'c'", "has 'd'"
    )
    classes = pair(tmp_path / "b", head + BODY, head + BODY.replace("<=", "<"))
    refused(classes, "classes of train and test differ: '<50K' never occur in train")


def test_tables_that_do_not_belong_together(tmp_path):
    pair(tmp_path / "d", BODY, BODY, "cars.csv boats.csv")
    refused(
        tmp_path / "d", "2 tables that do not belong together: 'boats.csv', 'cars.csv'", "name one"
    )


# -- the processor --------------------------------------------------------------------------------


def test_numbers_are_centred_on_the_median_and_scaled_robustly():
    x = np.random.default_rng(0).normal(50, 4, 4000)
    x[0] = 1e6  # an outlier moves neither centre nor scale, and is held at the clip
    features = TableProcessor.fit(table_examples({"x": x}), ranges=0)(Table.of({"x": x}))
    assert features.dtype == torch.float32
    assert features.shape == (4000, 1)
    assert abs(float(features[1:].mean())) < 0.05
    assert abs(float(features[1:].std()) - 1) < 0.05
    assert float(features[0, 0]) == 8


def test_skewed_numbers_take_a_logarithm_and_it_is_recorded():
    x = np.exp(np.random.default_rng(0).normal(5, 2, 2000))
    processor = TableProcessor.fit(table_examples({"x": x, "z": np.log(x)}), ranges=0)
    assert [column.log for column in processor.columns] == [True, False]
    assert float(processor({"x": x, "z": np.log(x)}).abs().max()) < 8


def test_missing_numbers_have_an_indicator_where_training_had_any():
    processor = TableProcessor.fit(
        table_examples({"a": [1.0, None, 3.0, 5.0], "b": [1.0, 2, 3, 4]})
    )
    assert processor.features == ("a", "a missing", "b")
    served = processor([{"a": None, "b": float("inf")}, {"a": "3", "b": "junk"}])
    assert served.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_categories_rare_unknown_and_missing():
    cells = ["red"] * 40 + ["blue"] * 40 + ["odd1", "odd2"] + [None]
    processor = TableProcessor.fit(table_examples({"c": cells}))
    assert processor.features == ("c = blue", "c = red", "c = other", "c = missing")
    served = processor({"c": ["red", "odd1", "never seen", None, "?", " blue "]})
    assert served.argmax(1).tolist() == [1, 2, 2, 3, 3, 0]
    plain = TableProcessor.fit(table_examples({"c": ["a", "b"] * 5}))
    assert plain.features == ("c = a", "c = b")
    assert plain({"c": ["z", None, "b"]}).tolist() == [[0, 0], [0, 0], [0, 1]]


def test_many_levels_keep_the_most_frequent():
    cells = [f"v{i % 100}" for i in range(300)] + ["v7"] * 50
    processor = TableProcessor.fit(table_examples({"c": cells}))
    assert processor.n_in == 65
    assert "c = v7" in processor.features


def test_dates_become_parts():
    days = [datetime.datetime(2020, 1, 1, 6) + datetime.timedelta(days=i) for i in range(730)]
    processor = TableProcessor.fit(table_examples({"d": [*days[:-1], None]}))
    assert processor.n_in == 8  # days since, year, week and day as sine and cosine, missing
    served = processor({"d": ["2020-12-31 06:00", "2021-01-01 06:00", None]})
    assert (served[0, 1:3] - served[1, 1:3]).abs().max() < 0.03  # December lies beside January
    assert served[2].tolist() == [0] * 7 + [1]
    dates = TableProcessor.fit(table_examples({"d": [d.date() for d in days]}))
    assert dates.n_in == 5


def test_piecewise_ranges():
    x = np.arange(101.0)
    processor = TableProcessor.fit(table_examples({"x": x}), ranges=4)
    assert processor.columns[0].edges == (0, 25, 50, 75, 100)
    assert processor({"x": [30.0]})[0, 1:].tolist() == pytest.approx([1, 0.2, 0, 0])


@pytest.mark.parametrize(
    ("n", "columns", "ranges"),
    [(399, 1, 0), (400, 1, 8), (5000, 8, 32), (5000, 64, 16), (5000, 200, 0)],
)
def test_as_many_ranges_as_the_rows_can_fill(n, columns, ranges):
    x = np.random.default_rng(0).normal(size=(columns, n))
    processor = TableProcessor.fit(table_examples({f"x{i}": cells for i, cells in enumerate(x)}))
    assert processor.n_in == columns * (1 + ranges)


def test_what_was_learned_survives_being_written():
    columns = {
        "n": [1.0, None, 3.0, 1e9] * 5,
        "c": ["a", "b", "ü", None] * 5,
        "d": [datetime.datetime(2020, 1, 1 + i) for i in range(20)],
    }
    processor = TableProcessor.fit(table_examples(columns), ranges=3)
    again = TableProcessor.from_dict(json.loads(json.dumps(processor.to_dict())))
    assert again == processor
    assert torch.equal(again(columns), processor(columns))
    assert hash(processor) == hash(again)  # nothing in it can change
    order = np.array([7, 0, 7])
    assert torch.equal(processor(Table.of(columns).take(order)), processor(columns)[order])


def test_serving_rows_of_other_types_gives_the_same_features(tmp_path):
    text = "n,flag,level,y\n" + rows(
        40, lambda i: f"{i % 9}.5,{'True' if i % 3 else 'False'},{i % 4},{i % 2}"
    )
    opened = open_data(write(tmp_path / "a.csv", text))
    processor = TableProcessor.fit(opened)
    served = [
        {"n": i % 9 + 0.5, "flag": bool(i % 3), "level": i % 4, "more": "ignored"}
        for i in range(40)
    ]
    assert torch.equal(processor(served), processor(opened["table"]))
    quoted = [{k: str(v) for k, v in row.items()} for row in served]
    assert torch.equal(processor(quoted), processor(opened["table"]))


def test_one_row_may_come_as_a_dict():
    processor = TableProcessor.fit(table_examples({"age": [1.0, 2, 3], "size": ["s", "m", "m"]}))
    row = {"age": 3, "size": "m"}
    assert torch.equal(processor(row), processor([row]))


def test_a_missing_column_is_an_error():
    processor = TableProcessor.fit(table_examples({"age": [1.0, 2, 3], "size": [3.0, 2, 1]}))
    with pytest.raises(
        DataError, match=r"lacks 1 of the 2 columns.*'age'; did you mean 'Age'.*add"
    ):
        processor([{"Age": 3, "size": 1}])


@pytest.mark.data
def test_real_tables(shared_data):
    houses = open_data(
        shared_data / "tabular/california_housing.csv.gz", target="median_house_value"
    )
    assert (len(houses), houses.target_kind) == (20_640, "number")
    assert houses["table"].column("total_bedrooms").null_count == 207
    processor = TableProcessor.fit(houses)
    assert processor.features[-5:] == tuple(
        f"ocean_proximity = {level}"
        for level in ("<1H OCEAN", "INLAND", "NEAR BAY", "NEAR OCEAN", "other")
    )
    assert bool(torch.isfinite(processor(houses["table"])).all())
    iris = open_data(shared_data / "tabular/iris.csv.gz")
    assert iris.labels == ("setosa", "versicolor", "virginica")
    with pytest.raises(DataError, match="5 tables that do not belong together"):
        open_data(shared_data / "tabular")


@pytest.mark.data
def test_adult(shared_data, tmp_path):
    for part in ("data", "test"):
        packed = (shared_data / f"tabular/adult.{part}.gz").read_bytes()
        (tmp_path / f"adult.{part}").write_bytes(gzip.decompress(packed))
    opened = open_data(tmp_path)
    counts = [(opened.given == part).sum() for part in ("train", "test")]
    assert counts == [32_561, 16_281]
    assert opened.labels == ("<=50K", ">50K")
    assert opened["table"].column("occupation").null_count == 1843 + 966
