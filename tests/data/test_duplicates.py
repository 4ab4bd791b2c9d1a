"""Copies are found through common changes; what is only alike is not called a copy."""

import gzip
import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from layerwise.data.groups import groups_of
from layerwise.kinds.image.audit import with_thumbnail
from layerwise.kinds.image.duplicates import near_duplicates


def photographs(n, seed=0):
    """Pictures with structure at several sizes, as photographs have."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        layers = [
            np.asarray(
                Image.fromarray(rng.integers(256, size=(s, s, 3), dtype=np.uint8)).resize(
                    (96, 96), Image.Resampling.BICUBIC
                ),
                np.float32,
            )
            for s in (3, 8, 24)
        ]
        made.append(Image.fromarray(np.mean(layers, 0).astype(np.uint8)))
    return made


def thumbnails(images):
    looks = [with_thumbnail(im, (), b"") for im in images]
    return np.stack([x.grey for x in looks]), np.stack([x.colour for x in looks])


def jpeg(image, quality):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


CHANGES = {
    "jpeg": lambda im: jpeg(im, 20),
    "half": lambda im: im.resize((48, 48), Image.Resampling.BICUBIC),
    "wider": lambda im: im.resize((160, 96)),
    "brighter": lambda im: ImageEnhance.Brightness(im).enhance(1.2),
    "flatter": lambda im: ImageEnhance.Contrast(im).enhance(0.7),
    "blurred": lambda im: im.filter(ImageFilter.GaussianBlur(0.7)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(change):
    originals = photographs(150)
    grey, colour = thumbnails(originals + [CHANGES[change](im) for im in originals])
    pairs = near_duplicates(grey, colour)
    right = (pairs[:, 1] - pairs[:, 0] == 150).sum()
    assert len(pairs) == right
    assert right >= 145


def test_another_colour_is_another_picture():
    rng = np.random.default_rng(0)
    grey = rng.integers(60, 200, size=(1, 32, 32), dtype=np.uint8).repeat(2, 0)
    red = np.full((1, 4, 4, 3), (200, 60, 60), np.uint8)
    blue = np.full((1, 4, 4, 3), (60, 60, 200), np.uint8)
    assert len(near_duplicates(grey, np.concatenate([red, blue]))) == 0
    assert len(near_duplicates(grey, np.concatenate([red, red]))) == 1
    assert len(near_duplicates(grey)) == 1


def test_like_strokes_are_not_copies():
    """Slanted lines of a hand, like "1"s: nearly the same, each drawn anew."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    slant, place = rng.normal(0, 0.25, 400), rng.normal(16, 1.5, 400)
    gap = x - place[:, None, None] - slant[:, None, None] * (y - 16)
    wobble = np.cumsum(rng.normal(0, 0.15, (400, 32, 1)), 1)
    thick = rng.uniform(1.2, 2.2, (400, 1, 1))
    inside = (y > 5) & (y < 27)
    strokes = (255 * np.exp(-(((gap + wobble) / thick) ** 2)) * inside).astype(np.uint8)
    assert len(near_duplicates(strokes)) == 0


def test_blank_pictures_and_few_rows_are_never_claimed():
    blank = np.full((50, 32, 32), 200, np.uint8)
    blank[::2, 3, 3] = 203
    assert near_duplicates(blank).shape == (0, 2)
    assert near_duplicates(blank[:1]).shape == (0, 2)
    assert near_duplicates(blank[:0]).shape == (0, 2)
    one = np.random.default_rng(0).integers(256, size=(1, 32, 32), dtype=np.uint8)
    assert near_duplicates(np.concatenate([one, blank[:3], one])).tolist() == [[0, 4]]


def test_many_copies_of_one_picture_are_one_group():
    (one,) = photographs(1, seed=5)
    copies = [jpeg(one, q) for q in range(30, 90)]
    grey, colour = thumbnails([*photographs(60, seed=6), *copies])
    groups = groups_of(120, near_duplicates(grey, colour))
    assert (groups[:60] == np.arange(60)).all()
    assert (groups[60:] == 60).all()


def test_groups_are_the_connected_rows():
    pairs = np.array([[8, 9], [1, 4], [4, 7], [2, 9], [7, 3]])
    assert groups_of(10, pairs).tolist() == [0, 1, 2, 1, 1, 5, 6, 1, 2, 2]
    chain = np.stack([np.arange(999), np.arange(1, 1000)], 1)
    assert (groups_of(1000, chain[::-1]) == 0).all()
    assert groups_of(3, np.zeros((0, 2), int)).tolist() == [0, 1, 2]


@pytest.mark.data
def test_no_two_digits_of_mnist_are_called_the_same(shared_data):
    with gzip.open(shared_data / "mnist/train-images-idx3-ubyte.gz") as file:
        raw = file.read()
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)[:20_000]
    grey = np.zeros((len(pixels), 32, 32), np.uint8)
    grey[:, 2:30, 2:30] = pixels
    assert len(near_duplicates(grey)) == 0
