"""Array files: idx, CIFAR batches, npz; and pickles that must not run."""

import gzip
import io
import os
import pickle
import re
import struct
import tarfile

import numpy as np
import pytest

from layerwise.data.examples import Examples
from layerwise.data.pickles import read_pickle
from layerwise.errors import DataError
from layerwise.kinds.opening import open_data

RANDOM = np.random.default_rng(0)


def refused(path, *patterns, **options):
    with pytest.raises(DataError) as caught:
        open_data(path, **options)
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), f"{pattern!r} not in {caught.value!s}"


def idx(array: np.ndarray) -> bytes:
    kind = {"u1": 8, "i4": 12, "f4": 13}[array.dtype.str[1:]]
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def pixels(n: int, *shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (n, *shape)).astype(np.uint8)


# -- idx ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_as_published(tmp_path, ending):
    x, y = pixels(9, 5, 4), np.arange(9, dtype=np.uint8) % 3
    pack = gzip.compress if ending else bytes
    for part, rows in (("train", slice(0, 6)), ("t10k", slice(6, 9))):
        (tmp_path / f"{part}-images-idx3-ubyte{ending}").write_bytes(pack(idx(x[rows])))
        (tmp_path / f"{part}-labels-idx1-ubyte{ending}").write_bytes(pack(idx(y[rows])))
    opened = open_data(tmp_path)
    assert np.array_equal(opened["image"], x)
    assert opened.given.tolist() == ["train"] * 6 + ["test"] * 3
    assert opened.targets.tolist() == y.tolist()
    assert opened.labels == ("0", "1", "2")
    assert "9 images of 5 x 4 pixels (grey), 3 classes, from idx files" in opened.understood
    for name in ("images-idx3", "labels-idx1"):  # one file finds the other
        one = open_data(tmp_path / f"train-{name}-ubyte{ending}")
        assert (len(one), one.given.tolist(), one.target_kind) == (6, [""] * 6, "class")


def test_idx_of_images_alone_and_of_labels_alone(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx(pixels(3, 5, 4)))
    assert open_data(path).target_kind == "none"
    path.rename(tmp_path / "kept")
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(3, np.uint8)))
    refused(labels, "train-labels-idx1-ubyte' holds labels without images", "beside it")


def test_truncated_idx(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx(pixels(3, 5, 4))[:-7])
    refused(path, "promises 60 bytes for 3 x 5 x 4", "53 came", "download it again")
    packed = tmp_path / "t10k-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(idx(pixels(90, 5, 4)))[:-90])
    refused(packed, "t10k-images-idx3-ubyte.gz' is a damaged gzip")


def test_idx_of_different_lengths(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(pixels(3, 5, 4)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    refused(tmp_path, "has 3 inputs but 'train-labels-idx1-ubyte' 4 targets")


# -- npz ------------------------------------------------------------------------------------------


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "names",
    ["x_train y_train x_test y_test", "train_images train_labels test_images test_labels"],
)
def test_npz_with_splits_and_class_names(tmp_path, names):
    x, y = pixels(10, 6, 5, 3), np.arange(10) % 3
    arrays = dict(zip(names.split(), (x[:7], y[:7], x[7:], y[7:, None]), strict=True))
    arrays["y_train" if "y_train" in arrays else "train_labels"] = y[:7, None]  # as MedMNIST
    path = npz(tmp_path / "a.npz", **arrays)
    (tmp_path / "classes.txt").write_text("zebra\nape\ncow\n")
    opened = open_data(path)
    assert opened.labels == ("ape", "cow", "zebra")
    assert [opened.labels[t] for t in opened.targets[:3]] == ["zebra", "ape", "cow"]
    assert opened.given.tolist() == ["train"] * 7 + ["test"] * 3
    assert np.array_equal(opened["image"], x)
    assert open_data(tmp_path).labels == opened.labels  # the folder, too


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda x: x, (8, 6, 5, 3)),
        (lambda x: x.transpose(0, 3, 1, 2), (8, 6, 5, 3)),
        (lambda x: x[..., :1], (8, 6, 5)),
        (lambda x: x[..., 0], (8, 6, 5)),
        (lambda x: x / np.float32(255), (8, 6, 5, 3)),
        (lambda x: x.astype(np.float64), (8, 6, 5, 3)),
        (lambda x: x / 127.5 - 1, (8, 6, 5, 3)),
        (lambda x: x.astype(np.uint16) * 257, (8, 6, 5, 3)),
        (lambda x: x.astype(np.int64), (8, 6, 5, 3)),
    ],
)
def test_npz_pixels_of_any_layout_and_type(tmp_path, make, shape):
    x = pixels(8, 6, 5, 3)
    x[0, 0, 0] = 0
    x[0, 0, 1] = 255
    opened = open_data(npz(tmp_path / "a.npz", x=make(x), y=np.arange(8) % 2))
    assert opened["image"].dtype == np.uint8
    assert opened["image"].shape == shape
    assert np.array_equal(opened["image"], x if len(shape) == 4 else x[..., 0])


def test_npz_targets_of_every_kind(tmp_path):
    x = pixels(6, 5, 5)
    read = lambda y, **more: open_data(npz(tmp_path / "a.npz", images=x, labels=y, **more))  # noqa: E731
    assert read(np.array(list("abcabc"))).labels == ("a", "b", "c")
    assert read(np.eye(3, dtype=int)[[2, 0, 1, 2, 0, 1]]).targets.tolist() == [2, 0, 1, 2, 0, 1]
    several = read(np.array([[1, 1], [0, 1], [0, 0]] * 2), classes=np.array(["sun", "sea"]))
    assert (several.target_kind, several.labels) == ("classes", ("sun", "sea"))
    assert read(np.linspace(0, 1, 6)).target_kind == "number"
    assert read(np.array([3, 5, -1, 3, 5, 5])).labels == ("3", "5")
    assert len(read(np.array([3, 5, -1, 3, 5, 5]))) == 5


def test_npz_of_rows_is_a_table(tmp_path):
    x = RANDOM.normal(size=(30, 4))
    x[3, 2], x[4, 1] = np.inf, np.nan
    opened = open_data(npz(tmp_path / "a.npz", X=x, y=np.arange(30) % 2))
    assert (opened.kind, opened["table"].columns) == ("table", ("x0", "x1", "x2", "x3"))
    assert opened["table"][3]["x2"] is None
    assert [f.names for f in opened.findings if f.kind == "infinite"] == [("row[3]",)]
    flat = open_data(npz(tmp_path / "b.npz", X=pixels(8, 16), y=np.arange(8) % 2), kind="image")
    assert flat["image"].shape == (8, 4, 4)


def test_npz_of_different_lengths(tmp_path):
    refused(
        npz(tmp_path / "a.npz", x_train=pixels(5, 4, 4), y_train=np.arange(4)),
        "x_train of 'a.npz' has 5 inputs but y_train 4 targets",
        "save both with the same length",
    )


def test_npz_that_cannot_be_used(tmp_path):
    path = npz(tmp_path / "a.npz", x=pixels(5, 4, 4), y=np.array(list("ababa"), object))
    refused(path, "pickled Python objects", "dtype=str")
    refused(npz(tmp_path / "b.npz", weights=np.ones(3)), "should have arrays such as", "weights")
    path.write_bytes(path.read_bytes()[:80])
    refused(path, "a.npz' is a damaged .npz")
    x = RANDOM.normal(size=(4, 5, 5, 3)) * 3
    refused(npz(tmp_path / "c.npz", x=x, y=[0, 1, 0, 1]), "pixels should lie in", "save rows")
    x[2] = np.nan
    refused(npz(tmp_path / "c.npz", x=x, y=[0, 1, 0, 1]), "image 2 has pixels that are NaN")
    refused(npz(tmp_path / "d.npz", x=np.ones((4, 5, 5, 2)), y=[0, 1, 0, 1]), "the shape is")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    refused(
        npz(tmp_path / "e.npz", x=pixels(4, 5, 5), y=[0, 1, 2, 1]), "name class 2", "classes.txt"
    )


# -- CIFAR ----------------------------------------------------------------------------------------


def binary_cifar(root, x, y):
    """x: (6, 32, 32, 3); the first four rows in two training batches."""
    rows = np.concatenate([y[:, None], x.transpose(0, 3, 1, 2).reshape(6, -1)], 1).astype(np.uint8)
    (root / "data_batch_1.bin").write_bytes(rows[:2].tobytes())
    (root / "data_batch_2.bin").write_bytes(rows[2:4].tobytes())
    (root / "test_batch.bin").write_bytes(rows[4:].tobytes())
    (root / "batches.meta.txt").write_text("plane\ncar\n\n")


class Python2(pickle._Pickler):
    """Writes text as Python 2 did: as byte strings (the published batches are of that kind)."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_str2(self, value):
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = save_str2
    dispatch[bytes] = save_str2

    def save_global(self, value, name=None):
        module = {"numpy._core.multiarray": "numpy.core.multiarray"}.get(value.__module__)
        module = module or value.__module__
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())
        self.memoize(value)

    dispatch[type] = save_global
    dispatch[type(len)] = save_global
    dispatch[type(np.dtype.__reduce__)] = save_global
    dispatch[type(test_npz_that_cannot_be_used)] = save_global


def as_python2(value) -> bytes:
    out = io.BytesIO()
    Python2(out, 2).dump(value)
    return out.getvalue()


def python_cifar(root, x, y, dump=as_python2):
    data = x.transpose(0, 3, 1, 2).reshape(len(x), -1).copy()
    batch = lambda rows: {  # noqa: E731
        "data": data[rows],
        "labels": y[rows].tolist(),
        "batch_label": "batch",
        "filenames": [f"{i}.png" for i in range(len(y[rows]))],
    }
    (root / "data_batch_1").write_bytes(dump(batch(slice(0, 2))))
    (root / "data_batch_2").write_bytes(dump(batch(slice(2, 4))))
    (root / "test_batch").write_bytes(dump(batch(slice(4, 6))))
    (root / "batches.meta").write_bytes(dump({"label_names": ["plane", "car"], "num_vis": 3072}))


@pytest.fixture
def six():
    return pixels(6, 32, 32, 3), np.array([0, 1, 1, 0, 1, 0])


def check_cifar(opened: Examples, six):
    x, y = six
    assert np.array_equal(opened["image"], x)
    assert [opened.labels[t] for t in opened.targets] == [("plane", "car")[i] for i in y]
    assert opened.given.tolist() == ["train"] * 4 + ["test"] * 2
    assert "CIFAR-10" in opened.understood


@pytest.mark.parametrize(
    "form",
    [
        binary_cifar,
        python_cifar,
        lambda *a: python_cifar(*a, dump=lambda v: pickle.dumps(v, 2)),
        lambda *a: python_cifar(*a, dump=pickle.dumps),
    ],
    ids=["binary", "python 2", "python 3, protocol 2", "python 3"],
)
@pytest.mark.parametrize("place", ["folder", "nested", "archive", "folder with archive"])
def test_cifar10_as_published(tmp_path, six, form, place):
    inner = tmp_path / "data" / "cifar-10-batches"
    inner.mkdir(parents=True)
    form(inner, *six)
    archive = tmp_path / "pack" / "cifar-10.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(inner, "cifar-10-batches")
    where = {"folder": inner, "nested": inner.parent, "archive": archive}
    check_cifar(open_data(where.get(place, archive.parent)), six)


def test_cifar100_fine_and_coarse(tmp_path, six):
    x, y = six
    data = x.transpose(0, 3, 1, 2).reshape(6, -1)
    rows = np.concatenate([1 - y[:, None], y[:, None], data], 1).astype(np.uint8)
    binary, python = tmp_path / "binary", tmp_path / "python"
    binary.mkdir(), python.mkdir()
    for name, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        (binary / f"{name}.bin").write_bytes(rows[part].tobytes())
        batch = {
            "data": data[part].copy(),
            "fine_labels": y[part].tolist(),
            "coarse_labels": (1 - y[part]).tolist(),
        }
        (python / name).write_bytes(as_python2(batch))
    (binary / "fine_label_names.txt").write_text("f0\nf1\n")
    (binary / "coarse_label_names.txt").write_text("c0\nc1\n")
    names = {"fine_label_names": ["f0", "f1"], "coarse_label_names": ["c0", "c1"]}
    (python / "meta").write_bytes(as_python2(names))
    for folder in (binary, python):
        fine = open_data(folder)
        assert [fine.labels[t] for t in fine.targets] == [f"f{i}" for i in y]
        assert "with fine classes" in fine.understood
        coarse = open_data(folder, target="coarse")
        assert [coarse.labels[t] for t in coarse.targets] == [f"c{1 - i}" for i in y]


def test_one_cifar_batch(tmp_path, six):
    python_cifar(tmp_path, *six)
    opened = open_data(tmp_path / "data_batch_1", learn=False)
    assert (len(opened), opened.labels, opened.given.tolist()) == (2, ("car", "plane"), ["", ""])
    assert np.array_equal(opened["image"], six[0][:2])


def test_truncated_cifar(tmp_path, six):
    binary_cifar(tmp_path, *six)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-5])
    refused(tmp_path, "data_batch_2.bin' is cut off: 6,141 bytes", "records of 3,073")
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "test_batch.bin", "test_batch.bin")
    archive.write_bytes(archive.read_bytes()[:-2000])
    refused(archive, "a.tar.gz' is a damaged archive")


def test_cut_off_python_batch(tmp_path, six):
    python_cifar(tmp_path, *six)
    path = tmp_path / "data_batch_2"
    path.write_bytes(path.read_bytes()[:4000])
    refused(tmp_path, "data_batch_2' is a pickle that is damaged", "again")


# -- pickles that do more than hold data ----------------------------------------------------------


class Runs:
    """What an attacker would write: unpickling it calls a function."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, protocol):
    mark = tmp_path / "ran"
    for call, args in ((os.mkdir, (str(mark),)), (eval, (f"open({str(mark)!r}, 'w')",))):
        content = pickle.dumps({"data": Runs(call, *args)}, protocol)
        with pytest.raises(DataError, match=r"asks for '(posix|nt|builtins|__builtin__)\.\w+'"):
            read_pickle(content, "batch")
        assert not mark.exists()


def test_the_message_names_the_file_and_what_to_do(tmp_path, six):
    python_cifar(tmp_path, *six)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(Runs(os.system, "true"), 2))
    refused(
        tmp_path, "data_batch_2' is a pickle that asks for 'posix.system'", "nothing .* was run"
    )


@pytest.mark.parametrize(
    "value",
    [np.array([Runs(os.getcwd)], object), np.array(["text"]), np.zeros(2, "datetime64[s]")],
    ids=["objects", "text", "dates"],
)
def test_arrays_of_anything_but_numbers_are_refused(value):
    with pytest.raises(DataError, match="batch"):
        read_pickle(pickle.dumps(value, 2), "batch")


def test_odd_instructions_are_refused():
    for content in (
        b"\x80\x02P1\n.",  # a persistent id
        b"\x80\x02\x82\x01.",  # an extension
        b"(i__builtin__\neval\n.",  # INST
        b"\x80\x05\x96\xff\xff\xff\xff\x0f\0\0\0.",  # a byte array that would fill the memory
        b"\x80\x02cnumpy\ndtype\n(U\x02u1tR(dtb.",
        b"",
        b"not a pickle",
    ):
        with pytest.raises(DataError, match="'batch'"):
            read_pickle(content, "batch")
    assert read_pickle(b"\x80\x02]r\xff\xff\xff\x7f.", "batch") == []  # a place far out: no harm


def test_plain_data_comes_back():
    array = np.arange(6, dtype=">i4").reshape(2, 3)
    value = {
        "a": [1, -2, 3.5, None, True],
        "t": (1, "x"),
        "x": array,
        "f": np.asfortranarray(array),
    }
    for protocol in range(5):
        read = read_pickle(pickle.dumps(value, protocol), "batch")
        assert read["a"] == value["a"]
        assert read["t"] == value["t"]
        assert np.array_equal(read["x"], array)
        assert np.array_equal(read["f"], array)


@pytest.mark.data
def test_mnist_of_the_data_folder(shared_data):
    opened = open_data(shared_data / "mnist")
    assert (len(opened), len(opened.labels)) == (70_000, 10)
    assert opened["image"].shape == (70_000, 28, 28)
    assert np.bincount(opened.targets[opened.given == "test"]).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
