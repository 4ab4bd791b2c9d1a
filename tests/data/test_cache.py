"""The store of decoded pixels: exact, found again, whole or absent, and clear when it cannot be."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from made_examples import images
from PIL import Image

from layerwise.errors import DataError, StorageError
from layerwise.kinds.image import cache as cache_module
from layerwise.kinds.image.cache import PixelCache
from layerwise.kinds.image.processor import ImageProcessor
from layerwise.storage import cache_folder

PROCESSOR = ImageProcessor((24, 24), 28)
SIZES = [(40, 60), (60, 40), (30, 30), (26, 90), (50, 50)]


def make_examples(inputs, names=None):
    return images(inputs, np.arange(len(inputs)) % 2, names=names)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for i, (h, w) in enumerate(SIZES):
        paths.append(folder / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).save(paths[-1])
    return make_examples(paths, [p.name for p in paths])


@pytest.mark.parametrize("threads", [1, 3])
def test_evaluation_pixels_are_the_processors(photos, tmp_path, threads):
    cache = PixelCache(photos, PROCESSOR, tmp_path / "c", threads=threads)
    rows = np.array([3, 0, 3])
    expected = np.stack([PROCESSOR.pixels(photos["image"][i]) for i in rows])
    assert np.array_equal(cache.gather(rows), expected)
    assert cache.uniform
    assert cache.bytes == 5 * 24 * 24 * 3 == cache.path.stat().st_size


def test_whole_images_keep_their_aspect_and_are_never_enlarged(photos, tmp_path):
    cache = PixelCache(photos, PROCESSOR, tmp_path, short_side=32)
    gathered = cache.gather(np.arange(5))
    assert not cache.uniform
    shapes = [tuple(i.shape[:2]) for i in gathered]
    assert shapes == [(32, 48), (48, 32), (30, 30), (26, 90), (32, 32)]
    assert np.array_equal(gathered[3], np.asarray(Image.open(photos["image"][3])))


def test_a_second_run_decodes_nothing(photos, tmp_path, monkeypatch):
    first = PixelCache(photos, PROCESSOR, tmp_path)
    monkeypatch.setattr("layerwise.kinds.image.cache.write_store", None)
    again = PixelCache(photos, PROCESSOR, tmp_path)
    assert (first.built, again.built) == (True, False)
    assert np.array_equal(first.gather(np.arange(5)), again.gather(np.arange(5)))


def test_a_subset_is_served_from_the_whole(photos, tmp_path):
    whole = PixelCache(photos, PROCESSOR, tmp_path)
    rows = np.array([4, 1, 4])
    part = PixelCache(photos.subset(rows), PROCESSOR, tmp_path)
    assert not part.built
    assert np.array_equal(part.gather(np.arange(3)), whole.gather(rows))


def test_mean_and_std_share_a_store_but_geometry_does_not(photos, tmp_path):
    PixelCache(photos, PROCESSOR, tmp_path)
    other_mean = ImageProcessor((24, 24), 28, mean=(0, 0, 0))
    assert not PixelCache(photos, other_mean, tmp_path).built
    for other in (ImageProcessor((24, 24), 30), ImageProcessor((24, 24), 28, "bicubic")):
        assert PixelCache(photos, other, tmp_path).built
    assert PixelCache(photos, PROCESSOR, tmp_path, short_side=28).built


def test_a_changed_file_is_decoded_again(photos, tmp_path):
    PixelCache(photos, PROCESSOR, tmp_path / "c")
    path, times = photos["image"][2], os.stat(photos["image"][2])
    pixels = 255 - np.asarray(Image.open(path))
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as some copying tools do
    cache = PixelCache(photos, PROCESSOR, tmp_path / "c")
    assert cache.built
    assert np.array_equal(cache.gather(np.array([2]))[0], PROCESSOR.pixels(pixels))


def test_bytes_arrays_and_repeated_rows(tmp_path, photos):
    raw = [p.read_bytes() for p in photos["image"]] * 2
    cache = PixelCache(make_examples(raw), PROCESSOR, tmp_path)
    assert cache.bytes == 5 * 24 * 24 * 3  # equal rows are stored once
    assert np.array_equal(cache.gather(np.array([1]))[0], cache.gather(np.array([6]))[0])
    grey = np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8)
    cache = PixelCache(make_examples(grey), PROCESSOR, tmp_path)
    assert np.array_equal(cache.gather(np.array([2]))[0], PROCESSOR.pixels(grey[2]))


@pytest.mark.parametrize("shape", [(6, 24, 24, 3), (6, 24, 24, 1), (6, 24, 24)])
def test_arrays_of_the_right_size_need_no_file(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pixels.flags.writeable = False  # as arrays over a file's bytes are
    processor = ImageProcessor((24, 24), 24)
    cache = PixelCache(make_examples(pixels), processor, tmp_path / "never")
    assert cache.path is None
    assert not (tmp_path / "never").exists()
    expected = np.stack([processor.pixels(pixels[i]) for i in (5, 0)])
    assert np.array_equal(cache.gather(np.array([5, 0])), expected)


def test_a_store_that_is_damaged_is_built_again(photos, tmp_path):
    path = PixelCache(photos, PROCESSOR, tmp_path).path
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1])
    assert PixelCache(photos, PROCESSOR, tmp_path).built
    path.with_suffix(".json").write_text("{not json")
    assert PixelCache(photos, PROCESSOR, tmp_path).built
    path.with_suffix(".json").write_text(json.dumps({"bytes": path.stat().st_size}))
    assert PixelCache(photos, PROCESSOR, tmp_path).built


# ---- what can go wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_an_unreadable_row_is_named_and_leaves_nothing(photos, tmp_path, threads):
    photos["image"][3].write_bytes(b"words")
    with pytest.raises(DataError, match=r"3\.png.*not an image"):
        PixelCache(photos, PROCESSOR, tmp_path / "c", threads=threads)
    assert list((tmp_path / "c").iterdir()) == []
    photos["image"][3].unlink()
    with pytest.raises(DataError, match=r"3\.png.*cannot be opened"):
        PixelCache(photos, PROCESSOR, tmp_path / "c")


def test_a_disk_too_small_is_known_before_decoding(photos, tmp_path, monkeypatch):
    nearly_full = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: nearly_full)
    with pytest.raises(StorageError, match=r"full.*need about.*MB.*LAYERWISE_CACHE"):
        PixelCache(photos, PROCESSOR, tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_breaks_nothing(photos, tmp_path, monkeypatch):
    kept = PixelCache(photos, ImageProcessor((8, 8), 8), tmp_path)
    before = sorted(tmp_path.glob("*.*"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.os, "fsync", full)
    with pytest.raises(StorageError, match="full"):
        PixelCache(photos, PROCESSOR, tmp_path)
    assert sorted(tmp_path.glob("*.*")) == before
    assert not PixelCache(photos, ImageProcessor((8, 8), 8), tmp_path).built
    assert len(kept.gather(np.arange(5))) == 5


def test_a_folder_that_cannot_be_written_to(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written.*LAYERWISE_CACHE"):
        PixelCache(photos, PROCESSOR, tmp_path / "file" / "below")


def test_where_stores_lie(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERWISE_CACHE", str(tmp_path / "mine"))
    cache = PixelCache(photos, PROCESSOR)
    assert cache.path is not None
    assert cache.path.parent == tmp_path / "mine" == cache_folder()
    monkeypatch.delenv("LAYERWISE_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "layerwise")


def test_progress_is_told_row_by_row(photos, tmp_path):
    told = []
    PixelCache(photos, PROCESSOR, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 5) for i in range(1, 6)]
