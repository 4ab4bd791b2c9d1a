"""The audit finds every sort of bad picture, follows copies across splits, and names the files."""

import io
import struct
import zlib

import numpy as np
import pytest
from made_examples import images
from PIL import Image

from layerwise.errors import DataError
from layerwise.kinds.audit import audit, audit_labels
from layerwise.kinds.image import audit as audit_images
from layerwise.kinds.image.processor import decode
from layerwise.kinds.opening import open_data


def picture(seed=0, side=64):
    """Something with edges everywhere: smooth random colours, (side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = rng.integers(256, size=(12, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def encoded(form="PNG", seed=0, **options):
    out = io.BytesIO()
    Image.fromarray(picture(seed)).save(out, form, **options)
    return out.getvalue()


def examples_of(inputs, targets=None, given=None, labels=("a", "b")):
    names = [getattr(x, "name", f"row {i}") for i, x in enumerate(inputs)]
    return images(inputs, targets, None, labels, names, given, "test data")


def found(report, kind):
    return next((f for f in report.findings if f.kind == kind), None)


def bomb():
    """A valid PNG header that promises 50,000 x 50,000 pixels."""

    def chunk(kind, body):
        whole = kind + body
        return struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


@pytest.fixture
def zoo(tmp_path):
    """A folder with one file of every sort, as {sort: paths}."""
    grey16 = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    rgba = np.dstack([picture(3), np.full((64, 64), 120, np.uint8)])
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.fromarray(picture(4)).save(turned, "JPEG", exif=exif)
    made = {
        "empty": {"empty.jpg": b""},
        "unreadable": {
            "text.jpg": b"this is no picture",
            "zip.png": b"PK\x03\x04" * 9,
            "cut.webp": encoded("WEBP", 8, lossless=True)[:-200],  # its decoder says no more
        },
        "truncated": {
            "cut.jpg": encoded("JPEG", 5)[:900],
            "cut.png": encoded("PNG", 6)[:2000],
            "cut.gif": encoded("GIF", 7)[:1500],
        },
        "too_large": {"bomb.png": bomb()},
        "wrong_extension": {"jpeg.png": encoded("JPEG", 9)},
        "rotated": {"turned.jpg": turned.getvalue()},
        "fine": {"fine.jpg": encoded("JPEG", 1), "fine.JPEG": encoded("JPEG", 2)},
    }
    for files in made.values():
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
    Image.fromarray(picture(10)).convert("CMYK").save(tmp_path / "print.jpg")
    Image.fromarray(grey16).save(tmp_path / "deep.png")
    Image.fromarray(rgba).save(tmp_path / "glass.png")
    frames = [Image.fromarray(picture(s)) for s in (11, 12)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (40, 40), (9, 90, 200)).save(tmp_path / "blue.png")
    sorts = {sort: set(files) for sort, files in made.items()}
    sorts |= {"cmyk": {"print.jpg"}, "sixteen_bit": {"deep.png"}, "alpha": {"glass.png"}}
    sorts |= {"animated": {"film.gif"}, "blank": {"blue.png"}}
    return tmp_path, sorts


# ---- single pictures -------------------------------------------------------------------------


def test_every_sort_of_picture_is_named_and_only_bad_ones_are_set_aside(zoo):
    folder, sorts = zoo
    files = sorted(folder.iterdir())
    report = audit(examples_of(files))
    for sort in set(sorts) - {"fine"}:
        finding = found(report, sort)
        assert finding, sort
        assert set(finding.names) == sorts[sort], sort
    bad = set().union(*(sorts[s] for s in audit_images.BAD))
    assert {f.name for f, kept in zip(files, report.keep, strict=True) if not kept} == bad
    for finding in report.findings:
        assert (finding.severity == "error") == (finding.kind in audit_images.BAD)
        assert finding.cure
    lines = report.lines()
    assert lines[0].startswith("error: ")
    assert lines[-1].startswith("note: ")


def test_what_the_audit_refuses_is_what_decoding_refuses(zoo):
    folder, _ = zoo
    files = sorted(folder.iterdir())
    report = audit(examples_of(files))
    for path, kept in zip(files, report.keep, strict=True):
        if kept:
            assert decode(path).shape[2] == 3
        else:
            with pytest.raises(DataError, match=path.name):
                decode(path)


def test_a_file_that_vanished_or_cannot_be_opened_is_a_finding(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded())
    (tmp_path / "folder.png").mkdir()
    files = [tmp_path / n for n in ("good.png", "gone.png", "folder.png")]
    report = audit(examples_of(files))
    assert set(found(report, "unreadable").names) == {"gone.png", "folder.png"}
    assert report.keep.tolist() == [True, False, False]


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"'test data': nothing is left.*2 of 2 pictures are empty"):
        audit(examples_of(sorted(tmp_path.iterdir())))
    with pytest.raises(DataError, match="no rows"):
        audit(examples_of([]))


def test_unreadable_files_are_no_copies_of_each_other(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "d.png").write_bytes(encoded())
    report = audit(examples_of(sorted(tmp_path.iterdir())))
    assert found(report, "duplicate") is None


def test_bytes_and_arrays_are_looked_at_alike():
    pixels = np.stack([picture(s) for s in range(6)])
    raw = [encoded("PNG", s) for s in range(6)]
    a, b = (audit_images.look_at_all(x, [str(i) for i in range(6)]) for x in (pixels, raw))
    assert np.abs(a.grey.astype(int) - b.grey).max() <= 2
    assert np.abs(a.colour.astype(int) - b.colour).max() <= 2
    grey = pixels[..., 0]
    c = audit_images.look_at_all(grey[..., None], list("012345"))
    np.testing.assert_array_equal(c.grey, audit_images.look_at_all(grey, list("012345")).grey)
    mixed = audit_images.look_at_all([pixels[0], grey[1, :30], pixels[2]], list("abc"))
    assert mixed.usable.all()


# ---- copies ----------------------------------------------------------------------------------


def test_copies_are_found_across_splits_and_with_other_labels(tmp_path):
    contents = {
        "train_0.png": encoded("PNG", 0),
        "train_0_again.png": encoded("PNG", 0),
        "train_1.png": encoded("PNG", 1),
        "train_2.png": encoded("PNG", 2),
        "test_0.png": encoded("PNG", 0),
        "test_1.jpg": encoded("JPEG", 1, quality=60),
        "test_3.png": encoded("PNG", 3),
        "val_2.webp": encoded("WEBP", 2),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / name for name in contents]
    given = [name.split("_")[0] for name in contents]
    report = audit(examples_of(files, [0, 0, 0, 1, 0, 1, 1, 1], given))
    assert set(found(report, "duplicate").names) == {
        "train_0.png", "train_0_again.png", "test_0.png",
    }  # fmt: skip
    near = found(report, "near_duplicate")
    assert set(near.names) == {"train_1.png", "test_1.jpg", "train_2.png", "val_2.webp"}
    leaks = [f for f in report.findings if f.kind == "leak"]
    assert leaks[0].names == ("val_2.webp = train_2.png",)
    assert set(leaks[1].names) == {"test_0.png = train_0.png", "test_1.jpg = train_1.png"}
    assert "2 of 3 test rows" in leaks[1].message
    assert found(report, "label_conflict").names == ("train_1.png (a)", "test_1.jpg (b)")
    assert report.clean_test.tolist() == [6]
    assert report.keep.all()
    assert report.looks.groups.tolist() == [0, 0, 2, 3, 0, 2, 6, 3]


def test_splits_given_to_the_audit_come_before_those_of_the_data():
    pixels = np.stack([picture(s) for s in (0, 1, 0, 2)])
    rows = {"train": np.array([0, 1]), "val": np.array([], int), "test": np.array([2, 3])}
    report = audit(examples_of(pixels, [0, 1, 0, 1], ["test"] * 4), rows)
    assert report.clean_test.tolist() == [3]
    assert found(report, "leak").names == ("row 2 = row 0",)


def test_targets_of_several_labels_conflict_too():
    pixels = np.stack([picture(0), picture(0)])
    targets = np.array([[1, 0], [1, 1]], np.uint8)
    several = images(pixels, targets, "classes", ("cat", "dog"), ["x", "y"])
    assert found(audit(several), "label_conflict").names == ("x (cat)", "y (cat, dog)")


# ---- classes ---------------------------------------------------------------------------------


def test_uneven_rare_and_untested_classes_are_said():
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], [120, 30, 4])
    pixels = rng.integers(256, size=(154, 16, 16), dtype=np.uint8)
    given = np.array(["train"] * 154)
    given[:5] = "test"
    given[121] = "test"
    report = audit(examples_of(pixels, targets, given, ("cat", "dog", "emu")))
    uneven = found(report, "imbalance")
    assert uneven.names == ("emu",)
    assert "'cat' (115 train rows, 4 of 'emu'" in uneven.message
    assert "29 to 1" in uneven.message
    assert found(report, "few_rows").names == ("emu",)
    assert found(report, "untested_class").names == ("emu",)


def test_labels_are_judged_from_small_pixels():
    rng = np.random.default_rng(0)
    bases = np.stack([picture(100, 16), picture(101, 16)]).astype(int)
    truth = rng.integers(2, size=200)
    pixels = (bases[truth] + rng.normal(0, 40, (200, 16, 16, 3))).clip(0, 255).astype(np.uint8)
    labels = truth.copy()
    changed = np.array([3, 50, 120, 199])
    labels[changed] = 1 - labels[changed]
    examples = examples_of(pixels, labels)
    finding = audit_labels(examples, audit(examples))
    assert {n.split(" (")[0] for n in finding.names} == {f"row {i}" for i in changed}
    assert "looks like" in finding.names[0]
    assert audit_labels(examples_of(pixels), audit(examples_of(pixels))) is None


# ---- real data -------------------------------------------------------------------------------


@pytest.mark.data
def test_photographs_of_ants_and_bees_are_clean(shared_data):
    examples = open_data(shared_data / "hymenoptera")
    report = audit(examples)
    assert report.keep.all()
    assert [f.kind for f in report.findings if f.severity != "note"] == []


@pytest.mark.data
@pytest.mark.slow
def test_cifar_10_has_the_same_pictures_in_train_and_test(shared_data):
    def read(part):
        files = sorted((shared_data / "cifar10").glob(f"{part}-*.webp"))
        strips = [np.asarray(Image.open(f).convert("RGB")) for f in files]
        return np.concatenate(strips).reshape(-1, 32, 32, 3)

    train, test = read("train"), read("test")
    given = np.array(["train"] * len(train) + ["test"] * len(test))
    examples = examples_of(np.concatenate([train, test]), given=given)
    report = audit(examples)
    assert 70 <= 10_000 - len(report.clean_test) <= 90  # each looked at: 76 are true copies
    assert len(found(report, "near_duplicate").names) > 500
    assert found(report, "duplicate") is None
