"""Batches are a pure function of (seed, step), whatever threads, prefetching and resuming do."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_examples import images
from PIL import Image

from layerwise.data import loader
from layerwise.data.examples import Batch, Examples
from layerwise.data.loader import Batches, Prefetch, in_order
from layerwise.errors import DataError, OptionError, StorageError
from layerwise.kinds.image.augment import Augment, augment_named
from layerwise.kinds.image.processor import ImageProcessor
from layerwise.kinds.image.source import Images, images_at_once
from layerwise.kinds.text.source import TOKENS, Texts
from layerwise.tasks import task_for
from layerwise.tasks.classify import Classify
from layerwise.tasks.feed import Feed

PROCESSOR = ImageProcessor((16, 16), 16)
LARGE = ImageProcessor((80, 80), 92)  # more than a thumbnail: presets cut and resize


def digits(n=23, kind="class"):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (n, 16, 16, 3), np.uint8)
    targets = {
        "class": rng.integers(0, 4, n),
        "classes": rng.integers(0, 2, (n, 4)).astype(np.uint8),
        "number": rng.normal(size=n),
        "none": None,
    }[kind]
    return images(pixels, targets, kind, "abcd")


def feed(examples, processor=PROCESSOR, augment=None, **options):
    """Rows for a loader. augment: a name, too."""
    task = Classify(("a", "b")) if examples.targets is None else task_for(examples)
    augment = augment_named(augment) if isinstance(augment, str) else augment
    return Feed(task, examples, {examples.kind: processor}, augment, **options)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i in range(10):
        paths.append(tmp_path / f"{i}.jpg")
        size = rng.integers(90, 150, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(paths[-1])
    return images(paths, np.arange(10) % 2, names=[p.name for p in paths])


def same(a: Batch, b: Batch) -> bool:
    return (
        np.array_equal(a.rows, b.rows)
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a[k], b[k]) for k in a.tensors)
    )


# ---- what a batch is -----------------------------------------------------------------------------


def test_images_are_normalised_and_channels_last():
    batch = Batches(feed(digits()), 8)[0]
    assert batch["image"].shape == (8, 3, 16, 16)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    expected = PROCESSOR([digits()["image"][i] for i in batch.rows])
    assert torch.equal(batch["image"], expected)
    assert torch.equal(batch["targets"], torch.from_numpy(digits().targets[batch.rows]))
    half = Batches(feed(digits(), dtype=torch.bfloat16), 8)[0]
    assert half["image"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [
        ("class", (8,), torch.int64),
        ("classes", (8, 4), torch.float32),
        ("number", (8,), torch.float32),
    ],
)
def test_targets_of_each_kind(kind, shape, dtype):
    targets = Batches(feed(digits(kind=kind)), 8)[0]["targets"]
    assert targets.shape == shape
    assert targets.dtype == dtype


def test_images_without_targets_have_none():
    bare = feed(digits(kind="none"))
    assert "targets" not in Batches(bare, 8)[0].tensors
    assert all("targets" not in b.tensors for b in in_order(bare, 8))


def test_an_epoch_has_each_row_once_and_drops_the_last_part():
    batches = Batches(feed(digits(23)), 5)
    assert batches.steps_per_epoch == 4
    for epoch in range(3):
        rows = np.concatenate([batches.rows(epoch * 4 + i) for i in range(4)])
        assert len(set(rows)) == 20
    left = [
        set(range(23)) - set(np.concatenate([batches.rows(e * 4 + i) for i in range(4)]))
        for e in range(9)
    ]
    assert len({frozenset(x) for x in left}) > 3  # other rows are left out each time


def test_fewer_rows_than_a_batch():
    batches = Batches(feed(digits(3)), 64)
    assert batches.steps_per_epoch == 1
    assert sorted(batches[7].rows) == [0, 1, 2]


def test_mixed_targets_are_shares():
    targets = Batches(feed(digits(), augment=Augment(mixup=1.0)), 8)[0]["targets"]
    assert targets.shape == (8, 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))


# ---- purity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["none", "light", "flip_crop", "full"])
def test_a_step_is_the_same_after_resuming_there(augment):
    make = lambda seed=3: Batches(feed(digits(), augment=augment), 5, seed)  # noqa: E731
    run = make()
    straight = [run[s] for s in range(12)]
    resumed = make()
    for step in (11, 4, 7, 0):  # in any order
        assert same(resumed[step], straight[step])
    assert not same(make(4)[0], straight[0])
    assert not np.array_equal(straight[0].rows, straight[4].rows)  # another epoch


@pytest.mark.parametrize("augment", ["light", "full"])
def test_photographs_are_the_same_for_any_threads_and_cache(photos, tmp_path, augment):
    make = lambda **options: Batches(feed(photos, LARGE, augment, **options), 4)  # noqa: E731
    reference = make(cache_dir=tmp_path / "a")
    for threads, folder in ((3, "b"), (2, "a")):
        other = make(cache_dir=tmp_path / folder, threads=threads)
        with Prefetch(other) as ahead:
            assert all(same(ahead[s], reference[s]) for s in range(5))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert all(same(make()[s], reference[s]) for s in (0, 3))
    torch.set_num_threads(before)


def test_alternating_flip_through_the_loader():
    batches = Batches(feed(digits(8), augment=Augment(flip="alternate")), 8)
    seen = []
    for epoch in range(3):
        batch = batches[epoch]
        seen.append(batch["image"][torch.from_numpy(np.argsort(batch.rows))])
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[0], seen[1].flip(3))


def test_the_loader_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _ = Batches(feed(digits(), augment="full"), 8)[2]
    assert torch.equal(torch.rand(3), expected)


# ---- prefetching ---------------------------------------------------------------------------------


class Slow:
    """Batches that note which steps were asked for."""

    def __init__(self, fails_at=-1):
        self.fails_at, self.made = fails_at, []

    def __getitem__(self, step):
        self.made.append(step)
        if step == self.fails_at:
            raise DataError(f"row {step} is bad")
        return Batch({"inputs": torch.tensor([step])}, np.array([step]))


def test_prefetch_works_ahead_and_may_jump_back():
    slow = Slow()
    with Prefetch(slow, start=10, depth=3) as ahead:
        order = [10, 11, 12, 5, 6, 30]
        assert [int(ahead[s]["inputs"]) for s in order] == order
    assert [slow.made.count(s) for s in order] == [1] * len(order)


def test_prefetch_does_not_work_past_the_stop():
    slow = Slow()
    with Prefetch(slow, depth=4, stop=3) as ahead:
        for step in range(3):
            _ = ahead[step]
    assert slow.made == [0, 1, 2]


def test_stall_is_what_the_caller_waited(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loader, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Late:
        """A batch on its way, so many seconds from being ready."""

        def __init__(self, seconds):
            self.seconds = seconds

        def result(self):
            now[0] += self.seconds

    with Prefetch(Slow(), depth=1) as ahead:
        ahead.waiting[0] = Late(0.05)  # type: ignore[assignment]
        _ = ahead[0]
        assert ahead.stall_seconds == 0.05
        now[0] += 0.2  # training: the next batch is ready meanwhile
        ahead.waiting[1] = Late(0.0)  # type: ignore[assignment]
        _ = ahead[1]
        assert ahead.stall_seconds == 0.05


def test_an_error_in_the_thread_reaches_the_step_it_belongs_to():
    with Prefetch(Slow(fails_at=2), depth=2) as ahead:
        assert int(ahead[0]["inputs"]) == 0
        assert int(ahead[1]["inputs"]) == 1
        with pytest.raises(DataError, match="row 2"):
            _ = ahead[2]
        assert int(ahead[3]["inputs"]) == 3


def test_prefetching_leaves_the_trainers_threads_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []

    class Look(Slow):
        def __getitem__(self, step):
            seen.append(torch.get_num_threads())
            return super().__getitem__(step)

    with Prefetch(Look()) as ahead:
        _ = ahead[0]
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


# ---- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_in_order_gives_every_row_once_exactly(photos, cached, threads):
    batches = list(in_order(feed(photos, LARGE, threads=threads, cached=cached), 4))
    assert [len(b) for b in batches] == [4, 4, 2]
    assert np.concatenate([b.rows for b in batches]).tolist() == list(range(10))
    assert torch.equal(torch.cat([b["image"] for b in batches]), LARGE(photos["image"]))
    assert torch.cat([b["targets"] for b in batches]).tolist() == photos.targets.tolist()


class Words:
    """A processor whose texts are token numbers already."""

    def encode(self, rows: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
        return [row["text"] for row in rows]

    def length(self, row: np.ndarray) -> int:
        return len(row)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("longest", [9, 400, 3000])
def test_texts_looked_at_together_have_few_tokens(longest: int, times: int):
    rng = np.random.default_rng(0)
    rows = [np.zeros(n, int) for n in rng.integers(1, longest, 300)]
    bare = Examples({"text": rows}, {"text": "text"}, [""] * 300, np.full(300, ""))
    source = Texts(bare, Words())
    parts = source.parts(times=times)
    assert sorted(np.concatenate(parts).tolist()) == list(range(300))
    whole = [len(part) * max(len(rows[i]) for i in part) for part in parts]
    assert all(n <= times * TOKENS or len(p) == 1 for n, p in zip(whole, parts, strict=True))
    twos = [(len(a) + len(b)) * len(rows[b[-1]]) for a, b in pairwise(parts)]
    assert all(n > times * TOKENS for n in twos)  # and none too few
    assert max(map(len, source.parts(7))) == 7


def test_images_looked_at_together_have_few_pixels():
    assert [images_at_once(size) for size in ((32, 32), (224, 224), (2000, 2000))] == [256, 20, 1]
    assert images_at_once((224, 224), 2) == 40


def test_in_order_may_be_left_early():
    for batch in in_order(feed(digits()), 5):
        assert len(batch) == 5
        break


def test_no_rows():
    none = feed(digits().subset(np.array([], int)))
    assert list(in_order(none, 4)) == []
    with pytest.raises(DataError, match="no rows"):
        Batches(none)
    for batch_size in (0, -1):
        with pytest.raises(OptionError, match="at least 1"):
            Batches(feed(digits()), batch_size)
    with pytest.raises(OptionError, match="at least 1"):
        list(in_order(feed(digits()), -1))


def test_errors_reach_the_caller(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="LAYERWISE_CACHE"):
        feed(photos, LARGE, cache_dir=tmp_path / "file" / "below")
    photos["image"][6].write_bytes(b"")
    for cached in (True, False):
        with pytest.raises(DataError, match=r"6\.jpg"):
            list(in_order(feed(photos, LARGE, cached=cached), 4))


# ---- tables --------------------------------------------------------------------------------------


class Columns(list):
    """Rows of numbers that can be taken from, as a Table can."""

    def take(self, rows):
        return Columns(self[i] for i in rows)


def test_tables_become_one_tensor_once():
    rows = Columns([float(i), float(-i)] for i in range(10))
    names, given = [f"t.csv row {i}" for i in range(10)], np.full(10, "")
    examples = Examples(
        {"table": rows}, {"table": "table"}, names, given, "", np.arange(10.0), "number"
    )
    calls = []

    def processor(inputs):
        calls.append(len(inputs))
        return torch.tensor(list(inputs)).reshape(-1, 2)

    batches = Batches(feed(examples, processor), 4, seed=1)
    for step in range(5):
        batch = batches[step]
        assert batch["table"][:, 0].tolist() == batch.rows.tolist()
        assert batch["targets"].tolist() == batch.rows.tolist()
    assert calls == [10]
    ordered = torch.cat([b["table"] for b in in_order(feed(examples, processor), 3)])
    assert ordered[:, 0].tolist() == list(range(10))


@pytest.mark.data
def test_real_photographs_end_to_end(shared_data, tmp_path):
    paths = sorted((shared_data / "hymenoptera/train").glob("*/*.jpg"))[::12]
    targets = np.array([p.parent.name == "bees" for p in paths]).astype(int)
    examples = images(paths, targets, labels=("ants", "bees"), names=[p.name for p in paths])
    made = feed(examples, ImageProcessor(), "light", cache_dir=tmp_path)
    batches = Batches(made, 8)
    with Prefetch(batches) as ahead:
        assert same(ahead[1], batches[1])
    (source,) = made.sources
    assert isinstance(source, Images)
    assert source.cache is not None
    assert 0 < source.cache.bytes < len(paths) * 260 * 600 * 3
