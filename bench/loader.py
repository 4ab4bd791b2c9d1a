"""Batches from the cache beside torch's DataLoader over image files, with the same augmentation.

Command    python bench/loader.py [--quick]
Hardware   2 CPU cores
Time       about 6 minutes (--quick: 1)
Expected   at least 5 times the DataLoader's best; training waits less than 2% of its time

Contenders: `Prefetch(Batches(...))` on a cache that is built, with one thread as in `fit` and with
two; and DataLoader over files decoded with Pillow, with 0 and 2 worker processes. Photographs at
224 (random resized crop, flip; batches of 32) and CIFAR-10 as PNG files at 32 (reflected shift of
up to 4, flip; batches of 128); float32, normalised. "waits" is the share of its time that the
training of a small network (bf16, or fp32 where the processor has no bf16) spent waiting for
batches. Memory: the largest proportional share (PSS) of the process with its workers, PyTorch
itself included. CPU time per image counts all threads and workers; other work on the machine
disturbs it less than it does images/s.

Data: the folder LAYERWISE_DATA names (default ../shared/data); skipped with the reason without it.
"""

import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import sidebyside

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = pathlib.Path(os.environ.get("LAYERWISE_DATA", ROOT / "../shared/data"))
SETS = {"photographs, 224": (224, 32, 976), "CIFAR-10 PNG, 32": (32, 128, 10_000)}
QUICK = {"photographs, 224": 244, "CIFAR-10 PNG, 32": 2_000}
OURS, OURS_2 = "layerwise, 1 thread", "layerwise, 2 threads"
PEERS = ("DataLoader, 0 workers", "DataLoader, 2 workers")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, RATIO = (0.35, 1.0), (3 / 4, 4 / 3)


# ---- the data: real files ------------------------------------------------------------------------


def prepare(side: int, folder: pathlib.Path, count: int) -> None:
    """`count` image files in class folders."""
    return photographs(folder, count) if side == 224 else cifar10(folder, count)


def photographs(folder: pathlib.Path, count: int) -> None:
    sources = sorted((DATA / "hymenoptera/train").glob("*/*.jpg"))
    for i in range(count):  # copies, so that nobody profits from meeting one file twice
        source = sources[i % len(sources)]
        target = folder / source.parent.name / f"{i // len(sources)}-{source.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def cifar10(folder: pathlib.Path, count: int) -> None:
    from PIL import Image

    for n, path in enumerate(sorted((DATA / "cifar10").glob("train-*.webp"))[: count // 500]):
        with Image.open(path) as strip:  # 500 images, one below the other
            for i in range(500):
                target = folder / str(i % 10) / f"{n:03d}{i:03d}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                strip.crop((0, 32 * i, 32, 32 * i + 32)).save(target)


def listing(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str], list[int]]:
    paths = sorted(p for p in folder.glob("*/*") if p.suffix in (".jpg", ".png"))
    labels = sorted({p.parent.name for p in paths})
    return paths, labels, [labels.index(p.parent.name) for p in paths]


# ---- the peer: one image at a time, as an image folder with the usual transforms -----------------


class Files:
    def __init__(self, folder: pathlib.Path, side: int):
        self.paths, _, self.targets = listing(folder)
        self.change = cut if side == 224 else shift
        self.side = side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        import numpy as np
        import torch
        from PIL import Image

        with Image.open(self.paths[i]) as file:
            image = self.change(file.convert("RGB"), self.side)
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        return x.sub_(mean).div_(std), self.targets[i]


def cut(image: Any, side: int) -> Any:
    """A random resized crop: the first of ten boxes that fits."""
    import random

    w, h = image.size
    for _ in range(10):
        area = w * h * random.uniform(*SCALE)
        aspect = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        bw, bh = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if bw <= w and bh <= h:
            break
    else:
        bw = bh = min(w, h)
    left, top = random.randint(0, w - bw), random.randint(0, h - bh)
    return image.crop((left, top, left + bw, top + bh)).resize((side, side), 2)  # 2: bilinear


def shift(image: Any, side: int) -> Any:
    import random

    import numpy as np
    from PIL import Image

    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    top, left = random.randint(0, 8), random.randint(0, 8)
    return Image.fromarray(padded[top : top + side, left : left + side])


def peer(folder: pathlib.Path, side: int, batch: int, workers: int) -> Callable[[], Any]:
    """A function that gives the next batch (inputs, targets), for ever."""
    from torch.utils.data import DataLoader

    files: Any = Files(folder, side)
    loader = DataLoader(
        files,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    batches = endless()
    return lambda: next(batches)


# ---- ours ----------------------------------------------------------------------------------------


def ours(
    folder: pathlib.Path, side: int, batch: int, threads: int
) -> tuple[Callable[[], Any], dict[str, float]]:
    """As `peer`; and what the first pass took where this call made it."""
    import numpy as np

    from layerwise.data.examples import Examples
    from layerwise.data.loader import Batches, Prefetch
    from layerwise.kinds.image.augment import Augment
    from layerwise.kinds.image.processor import ImageProcessor
    from layerwise.kinds.image.source import Images
    from layerwise.tasks import task_for
    from layerwise.tasks.feed import Feed

    paths, labels, targets = listing(folder)
    names, given = [p.name for p in paths], np.full(len(paths), "")
    examples = Examples(
        {"image": paths}, {"image": "image"}, names, given,
        targets=np.array(targets), target_kind="class", labels=tuple(labels),
    )  # fmt: skip
    augment = Augment("random", scale=SCALE) if side == 224 else Augment("random", pad=0.125)
    started = time.perf_counter()
    processors, cache = {"image": ImageProcessor((side, side), side)}, folder / "cache"
    options = {"cache_dir": cache, "threads": threads}
    feed = Feed(task_for(examples), examples, processors, augment, **options)
    batches, (source,) = Batches(feed, batch), feed.sources
    assert isinstance(source, Images)
    assert source.cache is not None
    facts = {"store_mb": source.cache.bytes / 1e6}
    if source.cache.built:
        facts["first_pass"] = len(paths) / (time.perf_counter() - started)
    ahead, step = Prefetch(batches, depth=4), iter(range(sys.maxsize))

    def following() -> Any:
        made = ahead[next(step)]
        return made["image"], made["targets"]

    return following, facts


# ---- what is measured ----------------------------------------------------------------------------


def child(who: str, name: str, folder: pathlib.Path, seconds: float) -> None:
    from layerwise import runtime

    runtime.start(threads=2)  # its allocator for the peer as well
    side, batch, _ = SETS[name]
    n = int(who.split()[1])
    if who in PEERS:
        following, facts = peer(folder, side, batch, n), {}
    else:
        following, facts = ours(folder, side, batch, n)
    facts["images"], facts["cpu"] = throughput(following, batch, seconds)
    facts["waits"], facts["trained"] = waits(following, side, batch, seconds)
    facts["memory"] = memory_mb()
    print(json.dumps(facts), flush=True)
    os._exit(0)  # workers and prefetching threads need not finish what nobody wants


def throughput(following: Callable[[], Any], batch: int, seconds: float) -> tuple[float, float]:
    """Images per second, once what was made ahead is used up; seconds of CPU time per image."""
    for _ in range(12):
        following()
    started, cpu, n = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - started < seconds:
        following()
        n += batch
    return n / (time.perf_counter() - started), (cpu_seconds() - cpu) / n


def waits(
    following: Callable[[], Any], side: int, batch: int, seconds: float
) -> tuple[float, float]:
    """The share of the time in which training waits for batches, and its images per second."""
    import torch
    import torch.nn.functional as F

    network = small_network(side).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    bf16 = sidebyside.multiplies_in_bf16()
    waited, started, steps = 0.0, time.perf_counter(), -3
    while time.perf_counter() - started < seconds or steps < 3:
        if steps == 0:  # after a few steps of warm-up
            waited, started = 0.0, time.perf_counter()
        asked = time.perf_counter()
        inputs, targets = following()
        waited += time.perf_counter() - asked
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    elapsed = time.perf_counter() - started
    return waited / elapsed, steps * batch / elapsed


def small_network(side: int) -> Any:
    """Four convolutions: less work per image than any network worth its data."""
    from torch import nn

    stride = 4 if side == 224 else 1
    layers: list[nn.Module] = []
    for c_in, c_out, s in ((3, 32, stride), (32, 64, 2), (64, 128, 2), (128, 256, 2)):
        layers += [nn.Conv2d(c_in, c_out, 3, s, 1), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


def processes() -> list[str]:
    """This process and its children."""
    me = str(os.getpid())
    return [me, *pathlib.Path(f"/proc/{me}/task/{me}/children").read_text().split()]


def cpu_seconds() -> float:
    """What they have spent so far, in all their threads."""
    stats = [pathlib.Path(f"/proc/{p}/stat").read_text().rpartition(")")[2] for p in processes()]
    ticks = sum(int(field) for stat in stats for field in stat.split()[11:13])  # user, system
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb() -> float:
    """Their proportional share of memory."""
    total = 0
    for process in processes():
        lines = pathlib.Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += next(int(x.split()[1]) for x in lines if x.startswith("Pss:"))
    return total * 1024 / 1e6


def main() -> None:
    quick = "--quick" in sys.argv
    if not (DATA / "hymenoptera").is_dir():
        print(f"skipped: no data at {DATA}; set LAYERWISE_DATA to the data folder")
        return
    rows = []
    for name, (side, _, count) in SETS.items():
        contenders = (OURS, *((OURS_2,) if side == 224 else ()), *PEERS)
        with tempfile.TemporaryDirectory() as folder:
            prepare(side, pathlib.Path(folder), QUICK[name] if quick else count)
            arguments = [name, folder, "2" if quick else "6"]
            runs = sidebyside.rounds(__file__, contenders, arguments, 1 if quick else 3)
        if OURS not in runs or PEERS[1] not in runs:
            raise SystemExit(f"{name}: one side did not run, so there is nothing to compare")
        first = runs[OURS][0]
        print(
            f"{name}: first pass {first['first_pass']:.0f} images/s, one thread; "
            f"store {first['store_mb']:.0f} MB; load of the machine {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        best = max((who for who in PEERS if who in runs), key=lambda w: speed(runs[w]))
        rows += [row(name, who, runs[who], runs[best]) for who in runs]
    sidebyside.markdown(HEAD, rows)


HEAD = (
    "data",
    "loader",
    "images/s",
    "of the best DataLoader",
    "CPU ms per image",
    "training, images/s",
    "waits",
    "memory MB",
)


def speed(runs: list[dict[str, Any]]) -> float:
    return sidebyside.median(runs, "images")


def row(name: str, who: str, runs: list[dict[str, Any]], best: list[dict[str, Any]]) -> list[str]:
    return [
        name,
        who,
        f"{speed(runs):,.0f}",
        f"{sidebyside.ratio(runs, best, 'images'):.1f}x",
        f"{1000 * sidebyside.median(runs, 'cpu'):.3f}",
        f"{sidebyside.median(runs, 'trained'):,.0f}",
        f"{100 * sidebyside.median(runs, 'waits'):.1f}%",
        f"{sidebyside.median(runs, 'memory'):.0f}",
    ]


if __name__ == "__main__":
    if "--child" in sys.argv:
        i = sys.argv.index("--child")
        who, name, folder, seconds = sys.argv[i + 1 : i + 5]
        child(who, name, pathlib.Path(folder), float(seconds))
    else:
        main()
