"""Augmentation: a pure function of the generator, and each kind does what its paper says."""

import numpy as np
import pytest
import torch
from oracles import import_torchvision

from layerwise.errors import OptionError
from layerwise.kinds.image.augment import AUGMENTS, THUMBNAIL, Augment, augment_named, parity
from layerwise.kinds.image.distort import (
    colour,
    crop_boxes,
    cutmix,
    cutout,
    flip,
    mixup,
    pad_crop,
    resized_crops,
)


def batch(n: int = 6, h: int = 32, w: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, h, w, 3), generator=generator(7), dtype=torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_presets_are_pure_functions_of_the_generator(name, side, dtype):
    images, targets = batch(8, side, side).to(dtype), torch.arange(8) % 3
    kept = images.clone()
    apply = lambda seed: augment_named(name)(images, targets, generator(seed), n_classes=3)  # noqa: E731
    (first, soft), (again, soft_again), (other, _) = apply(1), apply(1), apply(2)
    assert first.shape == images.shape
    assert first.dtype == dtype
    assert torch.equal(first, again)
    assert torch.equal(soft, soft_again)
    assert torch.equal(images, kept)
    assert torch.equal(first, other) == (name == "none")
    assert 0 <= int(first.min()) <= int(first.max()) <= 255


@pytest.mark.parametrize("name", AUGMENTS)
def test_the_same_for_any_thread_count(name):
    images, targets = batch(5, 224, 224), torch.arange(5)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(augment_named(name)(images, targets, generator(3), n_classes=5)[0])
    torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)


def test_none_changes_nothing():
    images, targets = batch(), torch.arange(6)
    out, kept = Augment()(images, targets, generator())
    assert torch.equal(out, images)
    assert kept is targets


def test_flip_mirrors_the_chosen_only():
    images = batch(3)
    out = flip(images, np.array([True, False, True]))
    assert torch.equal(out[0], images[0].flip(1))
    assert torch.equal(out[1], images[1])
    assert torch.equal(out[2], images[2].flip(1))


def test_alternating_flip_shows_both_sides_in_turn():
    images, rows = batch(6), np.array([5, 900, 17, 3, 41, 8])
    augment = Augment(flip="alternate")
    seen = [augment(images, None, generator(e), rows=rows, epoch=e)[0] for e in range(4)]
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    for even, odd in zip(seen[0], seen[1], strict=True):
        assert torch.equal(even, odd.flip(1))
    assert abs(parity(np.arange(10_000)).mean() - 0.5) < 0.02


def test_pad_crop_is_a_shift_over_reflected_borders():
    images = batch(40, 16, 12)
    out = pad_crop(images, 0.125, rng()).numpy()
    padded = np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    shifts = set()
    for got, wide in zip(out, padded, strict=True):
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(wide[y : y + 16, x : x + 12], got)
        ]
        assert found
        shifts.add(found[0])
    assert len(shifts) > 10


def test_crop_boxes_fit_and_have_the_area_and_aspect_asked_for():
    sizes = np.tile([[100, 140], [300, 200]], (500, 1))
    top, left, h, w = crop_boxes(sizes, (0.3, 0.6), (3 / 4, 4 / 3), rng()).T
    assert ((top >= 0) & (left >= 0) & (top + h <= sizes[:, 0]) & (left + w <= sizes[:, 1])).all()
    share = h * w / sizes.prod(1)
    assert 0.29 < share.min() < 0.33
    assert 0.57 < share.max() < 0.61
    assert 0.74 < (w / h).min() < 0.78
    assert 1.28 < (w / h).max() < 1.36


def test_crop_boxes_of_slivers_fall_back_to_the_largest_aspect():
    _, _, h, w = crop_boxes(
        np.array([[10, 1000], [1000, 10], [1, 1]]), (0.9, 1), (0.75, 4 / 3), rng()
    ).T
    assert list(zip(h, w, strict=True)) == [(10, 13), (13, 10), (1, 1)]


@pytest.mark.oracle
def test_resized_crops_are_torchvisions_to_one_level():
    import_torchvision()
    from PIL import Image
    from torchvision.transforms import functional as T

    images = list(batch(4, 120, 90))
    flips = np.array([False, True, False, True])
    out = resized_crops(images, (64, 48), flips, (0.2, 0.9), (0.75, 4 / 3), rng(5))
    boxes = crop_boxes(np.full((4, 2), (120, 90)), (0.2, 0.9), (0.75, 4 / 3), rng(5))
    for image, got, box, mirrored in zip(images, out, boxes, flips, strict=True):
        theirs = T.resized_crop(Image.fromarray(image.numpy()), *box.tolist(), (64, 48))
        theirs = np.asarray(T.hflip(theirs) if mirrored else theirs)
        assert np.abs(theirs.astype(int) - got.numpy().astype(int)).max() <= 1


def test_images_of_several_sizes_become_one_batch():
    images = [batch(1, h, w)[0] for h, w in ((70, 90), (120, 80), (30, 40))]
    out, _ = AUGMENTS["full"](images, None, generator(), size=(80, 72))
    assert out.shape == (3, 80, 72, 3)


def test_one_preset_shifts_thumbnails_and_cuts_photographs():
    preset = AUGMENTS["flip_crop"]
    assert not preset.resizes((THUMBNAIL, THUMBNAIL))
    assert preset.resizes((224, 224))
    assert Augment(scale=(0.2, 1)).resizes((32, 32))
    assert not Augment(pad=0.1).resizes((224, 224))


def test_colour_without_strength_changes_nothing():
    images = batch(30)
    assert torch.equal(colour(images, *(np.ones(30),) * 3), images)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_colour_is_torchvisions(kind, factor):
    import_torchvision()
    from torchvision.transforms import functional as T

    images = batch(4) // 2 + 60
    factors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, kind: factor}
    got = colour(images, *(np.full(4, f) for f in factors.values())).int()
    theirs = getattr(T, f"adjust_{kind}")(images.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
    assert (got - theirs.int()).abs().max() <= 1


def test_cutout_paints_one_square_of_each_image():
    images = torch.full((50, 20, 24, 3), 7, dtype=torch.uint8)
    out = cutout(images, 0.4, (1, 2, 3), rng())
    painted = (out != 7).all(-1)
    assert (painted.sum((1, 2)) <= 64).all()
    assert (painted.sum((1, 2)) >= 16).all()  # at most reaching over a corner
    assert out[painted].unique(dim=0).tolist() == [[1, 2, 3]]
    assert (images == 7).all()


def test_mixup_blends_pixels_and_targets_alike():
    images, targets = batch(4), torch.tensor([0, 1, 2, 0])
    out, soft = Augment(mixup=1.0)(images, targets, generator(2), n_classes=3)
    assert soft is not None
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    share, partner = 0.25, torch.tensor([1, 2, 3, 0])
    blended, kept = mixup(images, partner, share, rng())
    expected = (images.float() * share + images[partner].float() * (1 - share)).round()
    assert kept == share
    assert torch.equal(blended, expected.to(torch.uint8))
    assert not torch.equal(out, images)


def test_cutmix_pastes_a_box_and_counts_its_area():
    black, partner = torch.zeros(6, 20, 30, 3, dtype=torch.uint8), torch.tensor([3, 4, 5, 0, 1, 2])
    images = black.clone()
    images[3:] = 255
    shares = []
    for seed in range(20):
        out, share = cutmix(images, partner, 0.5, rng(seed))
        pasted = (out[:3] == 255).all(-1).float().mean((1, 2))
        torch.testing.assert_close(pasted, torch.full((3,), 1 - share))
        assert torch.equal(out[3:], 255 - out[:3])
        shares.append(share)
    assert len(set(shares)) > 5


def test_soft_targets_of_several_labels_and_numbers():
    images = batch(4)
    many = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    _, mixed = Augment(mixup=1.0)(images, many, generator())
    assert mixed is not None
    assert mixed.shape == (4, 2)
    torch.testing.assert_close(mixed.sum(0), many.sum(0))
    _, numbers = Augment(cutmix=1.0)(images, torch.tensor([1.0, 2.0, 3.0, 4.0]), generator())
    assert numbers is not None
    torch.testing.assert_close(numbers.sum(), torch.tensor(10.0))


def test_mix_share_leaves_the_other_batches_hard():
    augment, images, targets = (
        Augment(mixup=1.0, mix_share=0.3),
        batch(2, 4, 4),
        torch.tensor([0, 1]),
    )
    kinds = [augment(images, targets, generator(i), n_classes=2)[1].ndim for i in range(300)]
    assert 60 < kinds.count(2) < 120


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"flip": "alternating"}, "alternate"),
        ({"pad": 4}, "pad"),
        ({"mixup": -0.1}, "mixup"),
        ({"scale": (0.9, 0.1)}, "scale"),
    ],
)
def test_values_out_of_range_are_refused(fields, says):
    with pytest.raises(OptionError, match=says):
        Augment(**fields)


def test_an_unknown_preset_gets_the_nearest_name():
    with pytest.raises(OptionError, match="flip_crop"):
        augment_named("flipcrop")
