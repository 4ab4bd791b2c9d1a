"""Training throughput on images: this package's own loop beside timm, Keras and plain PyTorch.

    python bench/training.py [--quick]

Work: ResNet-18 on 32 x 32 at batch 128, ResNet-50 and AlexNet on 224 x 224 at batch 32; random
images already in memory, so that only the step is timed. MFU is against the matrix product in the
same dtype, measured in the same child process.
"""

import contextlib
import json
import sys
import time

import sidebyside

WORK = {  # name: (batch, side, classes)
    "resnet18_cifar": (128, 32, 10),
    "resnet50": (32, 224, 1000),
    "alexnet_owt": (32, 224, 1000),
}
CONTENDERS = (
    "ours", "timm", "timm bf16 channels_last", "keras", "fastai",
)  # fmt: skip


def data(name: str):
    import torch

    batch, side, classes = WORK[name]
    return torch.randn(batch, 3, side, side), torch.randint(classes, (batch,))


def ours(name: str, seconds: float) -> dict:
    """The product's loop as `fit` runs it: dtype, channels last, allocator and optimiser."""
    import numpy as np
    import torch

    from layerwise import models, runtime
    from layerwise.adapt.groups import parameter_groups
    from layerwise.data.examples import Batch
    from layerwise.planning import forward_flops
    from layerwise.tasks.classify import Classify
    from layerwise.train.checkpoint import State
    from layerwise.train.loop import Course, Hooks, train
    from layerwise.train.optim import build_optimizer
    from layerwise.train.run import fresh

    machine = runtime.start(threads=2)
    x, y = data(name)
    family, config = models.resolve(name)
    network = fresh(lambda: models.build(family, config), 0)
    batch = Batch(
        {"inputs": x.to(memory_format=torch.channels_last), "targets": y}, np.arange(len(y))
    )
    task = Classify([str(i) for i in range(config.n_classes)])
    optimizer = build_optimizer("sgd", parameter_groups(network, 5e-4, 1.0), 0.05)
    stamps: list[float] = []
    ended = time.perf_counter() + seconds + 4

    class Same:
        def __getitem__(self, step: int) -> Batch:
            stamps.append(time.perf_counter())
            if stamps[-1] > ended and len(stamps) > 6:
                raise StopIteration
            return batch

    with contextlib.suppress(StopIteration):
        train(network, task, Same(), optimizer, Course(10**6, 0.05), State(), machine, Hooks())
    steps = np.diff(stamps[2:])
    images = len(y) / float(np.median(steps))
    flops = 3 * forward_flops(network, x[:1])
    return {"images": images, "mfu": images * flops / sidebyside.product_rate(machine.dtype)}


def plain(network, name: str, seconds: float, bf16: bool) -> dict:
    """The loop everybody writes."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(2)
    x, y = data(name)
    if bf16:
        network = network.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()

    return {"images": sidebyside.rate(step, len(y), seconds)}


def timm_network(name: str):
    if name == "alexnet_owt":
        from layerwise import models  # timm has no AlexNet: the same network, in a plain loop

        return models.build(*models.resolve(name))
    from torch import nn

    network = sidebyside.import_timm().create_model(
        name.removesuffix("_cifar"), num_classes=WORK[name][2]
    )
    if name.endswith("_cifar"):
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network.train()


def keras_child(name: str, seconds: float) -> dict:
    import os

    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    import numpy as np

    batch, side, classes = WORK[name]
    if name != "resnet50":
        raise SystemExit("keras.applications has no such network")
    network = keras.applications.ResNet50(
        weights=None, input_shape=(side, side, 3), classes=classes
    )
    network.compile("sgd", "sparse_categorical_crossentropy")
    x = np.random.rand(batch, side, side, 3).astype("float32")
    y = np.random.randint(classes, size=batch)
    return {"images": sidebyside.rate(lambda: network.train_on_batch(x, y), batch, seconds)}


def fastai_child(name: str, seconds: float) -> dict:
    import fastai.callback.progress  # noqa: F401  gives learners `no_bar`
    import torch
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat

    torch.set_num_threads(2)
    x, y = data(name)

    class Repeat:
        def __init__(self, n: int):
            self.n = n

        def __iter__(self):
            return iter([(x, y)] * self.n)

        def __len__(self) -> int:
            return self.n

    learner = Learner(
        DataLoaders(Repeat(3), Repeat(1)), timm_network(name), loss_func=CrossEntropyLossFlat()
    )
    with learner.no_bar(), learner.no_logging():
        learner.create_opt()
        return {"images": sidebyside.rate(lambda: learner.fit(1), 3 * len(y), seconds)}


def child(contender: str, name: str, seconds: float) -> None:
    if contender == "ours":
        out = ours(name, seconds)
    elif contender == "keras":
        out = keras_child(name, seconds)
    elif contender == "fastai":
        out = fastai_child(name, seconds)
    else:
        out = plain(timm_network(name), name, seconds, "bf16" in contender)
    print(json.dumps(out | {"peak_mb": sidebyside.peak_mb()}))


def main() -> None:
    quick = "--quick" in sys.argv
    for name in WORK:
        runs = sidebyside.rounds(
            __file__, CONTENDERS, [name, "4" if quick else "10"], 1 if quick else 3
        )
        rows = []
        for contender, r in runs.items():
            ours_by = sidebyside.ratio(runs["ours"], r, "images")
            mfu = f"{100 * sidebyside.median(r, 'mfu'):.0f}%" if "mfu" in r[0] else ""
            images, peak = (f"{sidebyside.median(r, k):.3g}" for k in ("images", "peak_mb"))
            rows.append([name, contender, images, f"{ours_by:.2f}x", mfu, peak])
        head = ["network", "who", "images/s", "ours is faster by", "MFU", "peak MB"]
        sidebyside.markdown(head, rows)


if __name__ == "__main__":
    if "--child" in sys.argv:
        i = sys.argv.index("--child")
        child(sys.argv[i + 1], sys.argv[i + 2], float(sys.argv[i + 3]))
    else:
        main()
