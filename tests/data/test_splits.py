"""Splits: by content, stratified, seeded, whatever the order of the rows."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_examples import images as images_of
from made_examples import table as table_of

from layerwise.data.examples import Examples
from layerwise.data.splits import content_hashes, split
from layerwise.data.table import Table
from layerwise.errors import OptionError
from layerwise.kinds.opening import open_data


def images(targets, kind="class", given=None, same=None) -> Examples:
    """One 3 x 3 picture per row; rows with the same number in `same` have the same pixels."""
    targets = np.asarray(targets)
    n = len(targets)
    same = np.arange(n) if same is None else np.asarray(same)
    pixels = np.zeros((n, 3, 3), np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = same % 256, same // 256
    return images_of(pixels, targets, kind, "abcdefghij", given=given)


def check_partition(parts, n: int):
    rows = np.concatenate(list(parts.values()))
    assert sorted(rows.tolist()) == list(range(n))
    assert all((np.diff(r) > 0).all() for r in parts.values())


def test_classes_are_spread_evenly():
    examples = images(np.repeat([0, 1, 2], [500, 300, 20]))
    parts = split(examples, seed=1)
    check_partition(parts, 820)
    assert {k: len(v) for k, v in parts.items()} == {"train": 574, "val": 82, "test": 164}
    for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        counts = np.bincount(examples.targets[parts[name]])
        assert np.abs(counts - share * np.array([500, 300, 20])).max() <= 1


def test_small_classes_keep_an_example_to_learn_from():
    examples = images(np.arange(20) // 2)
    parts = split(examples)
    check_partition(parts, 20)
    assert set(examples.targets[parts["train"]]) == set(range(10))
    assert (len(parts["test"]), len(parts["val"])) == (4, 2)
    tiny = split(images([0, 0, 1, 1]))
    assert {k: len(v) for k, v in tiny.items()} == {"train": 2, "val": 1, "test": 1}


def test_numbers_by_quantile():
    rng = np.random.default_rng(0)
    examples = images(rng.lognormal(0, 2, 1000), "number")
    parts = split(examples)
    edges = np.quantile(examples.targets, np.linspace(0, 1, 11))[1:-1]
    for name, share in (("test", 20), ("val", 10)):
        counts = np.bincount(np.searchsorted(edges, examples.targets[parts[name]]), minlength=10)
        assert np.abs(counts - share).max() <= 1


def test_several_labels_by_the_rarest():
    rng = np.random.default_rng(0)
    targets = (rng.random((1000, 3)) < [0.6, 0.3, 0.02]).astype(np.uint8)
    parts = split(images(targets, "classes"))
    rare = targets[:, 2].sum()
    assert abs(targets[parts["test"], 2].sum() - 0.2 * rare) <= 1


def test_seeded_and_no_other_way():
    examples = images(np.arange(300) % 3)
    a, b, other = split(examples, seed=7), split(examples, seed=7), split(examples, seed=8)
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(a["test"], other["test"])


@pytest.mark.parametrize("kind", ["class", "number", "none"])
def test_the_order_of_the_rows_does_not_matter(kind):
    rng = np.random.default_rng(0)
    examples = images(np.arange(300) % 3 if kind == "class" else rng.normal(size=300), kind)
    if kind == "none":
        examples.targets = None
    order = rng.permutation(300)
    parts, shuffled = split(examples), split(examples.subset(order))
    for name in parts:
        assert set(parts[name]) == set(order[shuffled[name]])


def test_the_same_content_is_never_on_both_sides():
    rng = np.random.default_rng(0)
    same = rng.integers(0, 120, 400)  # the same picture several times, under several labels
    examples = images(rng.integers(0, 4, 400), same=same)
    for seed in range(20):
        parts = split(examples, seed=seed)
        check_partition(parts, 400)
        sides = [set(same[rows]) for rows in parts.values()]
        assert sum(map(len, sides)) == len(set.union(*sides))


def test_given_train_and_test_are_kept_and_val_comes_out_of_train():
    examples = images(np.arange(100) % 2, given=["train"] * 80 + ["test"] * 20)
    parts = split(examples, val=0.1, test=0.5)
    check_partition(parts, 100)
    assert parts["test"].tolist() == list(range(80, 100))
    assert len(parts["val"]) == 8
    assert "8 validation rows were taken out of train" in parts.findings[0].message


def test_given_val_alone_is_the_test():
    examples = images(np.arange(100) % 2, given=["train"] * 80 + ["val"] * 20)
    parts = split(examples)
    assert parts["test"].tolist() == list(range(80, 100))
    assert (len(parts["val"]), len(parts["train"])) == (8, 72)
    assert "validation rows are the test" in parts.findings[0].message


def test_all_three_given_or_train_alone_or_rows_without_a_split():
    given = ["train"] * 60 + ["val"] * 20 + ["test"] * 20
    parts = split(images(np.arange(100) % 2, given=given))
    assert [len(parts[k]) for k in ("train", "val", "test")] == [60, 20, 20]
    assert parts.findings == []
    parts = split(images(np.arange(100) % 2, given=["train"] * 100))
    assert [len(parts[k]) for k in ("train", "val", "test")] == [70, 10, 20]
    parts = split(images(np.arange(100) % 2, given=[""] * 90 + ["test"] * 10))
    assert [len(parts[k]) for k in ("train", "val", "test")] == [81, 9, 10]
    parts = split(images(np.arange(10) % 2, given=["test"] * 10))
    assert [len(parts[k]) for k in ("train", "val", "test")] == [0, 0, 10]


def test_shares_that_leave_nothing_are_refused():
    for val, test in ((0.5, 0.5), (-0.1, 0.2), (0, 1)):
        with pytest.raises(OptionError, match="leave something to train on"):
            split(images([0, 1, 0, 1]), val=val, test=test)
    parts = split(images(np.arange(10) % 2), val=0, test=0.2)
    assert (len(parts["val"]), len(parts["test"])) == (0, 2)


# -- content hashes -------------------------------------------------------------------------------


def hashes_of(inputs) -> list[bytes]:
    return content_hashes((table_of if isinstance(inputs, Table) else images_of)(inputs))


def test_files_are_hashed_by_their_bytes_not_their_names(tmp_path):
    paths: list[Path] = []
    for i in range(200):
        paths.append(tmp_path / f"{i}.jpg")
        paths[-1].write_bytes(b"x" * 5000 + bytes([i % 100]))
    hashes = hashes_of(paths)
    assert len(set(hashes)) == 100
    assert hashes[:100] == hashes[100:]
    assert hashes == hashes_of([path.read_bytes() for path in paths])
    paths[0].unlink()  # gone since it was listed: the audit will name it
    assert len(set(hashes_of(paths))) == 101


def test_pixels_are_hashed_with_their_shape():
    a = np.arange(12, dtype=np.uint8)
    apart = hashes_of([a.reshape(3, 4), a.reshape(4, 3), a.reshape(3, 4).copy()])
    assert apart[0] == apart[2] != apart[1]
    whole = hashes_of(np.stack([a.reshape(3, 4)] * 2))
    assert whole == [apart[0]] * 2
    every_other = np.stack([a.reshape(3, 4)] * 4)[::2]
    assert hashes_of(every_other) == whole


def test_rows_are_hashed_by_their_cells():
    table = Table.of({"a": [1.0, 1.0, None, 1.5], "b": ["x", "x", "x", None]})
    hashes = hashes_of(table)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert hashes_of(Table(table.data.select(["b", "a"]))) == hashes  # the order of columns is none


def test_sixty_thousand_small_pictures_take_few_calls_each():
    pixels = np.random.default_rng(0).integers(0, 256, (60_000, 32, 32, 3), np.uint8)
    examples = images(np.arange(60_000) % 10)
    examples.fields["image"] = pixels
    calls = Counter()
    sys.setprofile(lambda frame, event, what: calls.update([event]))
    try:
        parts = split(examples)
    finally:
        sys.setprofile(None)
    assert calls["call"] + calls["c_call"] < 12 * len(examples)
    assert len(parts["test"]) == 12_000


@pytest.mark.data
def test_ants_and_bees_keep_their_given_split(shared_data):
    examples = open_data(shared_data / "hymenoptera")
    parts = split(examples)
    assert len(parts["test"]) == 153
    assert len(parts["train"]) + len(parts["val"]) == 243
