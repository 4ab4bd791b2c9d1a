"""Architectures, data and injected faults for `bench/diagnosis.py`, and one training of them."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import text_faults
import torch
import torch.nn.functional as F
from plain_conv import PlainConfig, PlainConv
from sklearn.datasets import load_digits
from torch import Tensor, nn

from layerwise import models, runtime
from layerwise.data.examples import Batch
from layerwise.data.sources import Draw
from layerwise.errors import DataError, TrainingStopped
from layerwise.inspection.diagnosis import Diagnosis, diagnose, split_cure
from layerwise.inspection.watch import Watch
from layerwise.models.network import Network
from layerwise.tasks.causal import Causal
from layerwise.tasks.classify import Classify
from layerwise.train.checkpoint import State
from layerwise.train.loop import Hooks, LoopConfig, train
from layerwise.train.optim import build_optimizer

LABELS = tuple(str(i) for i in range(10))
TEXT = ("decoder", "encoder")
ADAPTIVE = ("vit", *TEXT)  # nobody trains these with plain SGD


# ---- architectures -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Arch:
    name: str
    build: Callable[[Any], Network]
    config: Any
    data: str
    steps: int
    lr: float
    deep: int = 0  # layers for the faults of depth; 0: not a plain stack


def architectures() -> list[Arch]:
    mlp, resnet, vit, mobilenet = (models.family(n) for n in ("mlp", "resnet", "vit", "mobilenet"))
    small = {"n_classes": 10}
    vit_config = vit.Config(image_size=16, patch_size=4, dim=48, n_layers=4, n_heads=3, mlp_dim=96)
    slim = mobilenet.Config(
        stem_channels=16, channels=(16, 24, 32), repeats=(1, 2, 2), strides=(1, 2, 2),
        last_channels=64, expansion=3, dropout=0.0, **small,
    )  # fmt: skip
    thin = resnet.Config(depths=(1, 1, 1), widths=(12, 24, 48), small_stem=True, pad_shortcut=True)
    return [
        Arch("mlp", mlp.Model, mlp.Config(dim=64, n_layers=5), "digits", 100, 1e-3, deep=30),
        Arch("plain conv", PlainConv, PlainConfig(), "digits16", 100, 2e-3, deep=24),
        Arch("vit", vit.Model, dataclasses.replace(vit_config, **small), "digits16", 150, 3e-3),
        Arch("resnet", resnet.Model, dataclasses.replace(thin, **small), "cifar", 100, 2e-3),
        Arch("mobilenet", mobilenet.Model, slim, "digits16", 100, 2e-3),
        *(Arch(*parts) for parts in text_faults.architectures()),
    ]


# ---- data ----------------------------------------------------------------------------------------


@functools.cache
def load(name: str, folder: pathlib.Path) -> tuple[Tensor, Tensor]:
    """Inputs (standardised) and classes: digits as (n, 64) or (n, 3, 16, 16), CIFAR-10 halved; text
    as tokens."""
    if name in ("shakespeare", "ag_news"):
        return text_faults.load(name, folder)
    if name == "cifar" and (folder / "cifar10").exists():
        from PIL import Image

        strips = sorted((folder / "cifar10").glob("train-*.webp"))[:4]
        pixels = np.concatenate([np.asarray(Image.open(s)).reshape(-1, 32, 32, 3) for s in strips])
        y = np.load(folder / "cifar10" / "labels.npz")["train"][: len(pixels)]
        x = F.avg_pool2d(torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), 2)
    else:
        x, y = load_digits(return_X_y=True)
        x = torch.from_numpy(x).float()
        if name != "digits":
            x = x.reshape(-1, 1, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = x.expand(-1, 3, -1, -1).contiguous()
    return (x - x.mean()) / x.std(), torch.from_numpy(np.asarray(y)).long()


class Rows:
    """Batches as a function of (seed, step), and rows held out."""

    def __init__(self, x: Tensor, y: Tensor, seed: int, options: dict[str, Any]):
        order = torch.randperm(len(y), generator=runtime.generator(seed))
        y = text_faults.spoilt(y, options, runtime.generator(seed, 1))
        cut, batch_size = len(y) * 3 // 4, 64 if x.is_floating_point() else 16
        self.x, self.y, self.seed, self.batch_size = x, y, seed, batch_size
        self.train, self.test = order[:cut], order[cut:]

    def __getitem__(self, step: int) -> Batch:
        pick = torch.randint(
            len(self.train), (self.batch_size,), generator=runtime.generator(self.seed, step)
        )
        return self.batch(self.train[pick])

    def draw(self, step: int) -> Draw:
        return Draw(self.seed, step, 0)

    def batch(self, rows: Tensor) -> Batch:
        if not self.x.is_floating_point():
            return text_faults.batch_of(self.x, self.y, rows)
        name = "table" if self.x.ndim == 2 else "image"
        return Batch({name: self.x[rows], "targets": self.y[rows]}, rows.numpy())


# ---- faults --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fault:
    """How a run is broken, and which diagnosis names it rightly."""

    name: str
    right: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    break_: Callable[[Network], Any] | None = None  # undone by fresh weights
    archs: tuple[str, ...] = ()  # empty: all
    by_hand: bool = False


def scale_weights(factor: float) -> Callable[[nn.Module], None]:
    def scale(network: nn.Module) -> None:
        for name, p in network.named_parameters():
            if p.ndim >= 2 and "head" not in name and "embed" not in name:
                p.data *= factor

    return scale


def kill_units(network: Network) -> None:
    """Biases (of the norm, where there is one) so low that no ReLU ever opens."""
    normed = {id(m.bias) for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
    for layer in list(network.layers().values())[1:-1]:
        for part, p in layer.named_parameters():
            last = "norm2" in part or "project" in part  # added to a shortcut: no ReLU of its own
            if part.endswith("bias") and (not normed or id(p) in normed) and not last:
                p.data -= 8


def freeze(network: Network) -> None:
    names = list(network.layers())
    for name in names[: len(names) * 2 // 3]:
        network.layers()[name].requires_grad_(False)


def detach(network: Network) -> None:
    names = list(network.layers())
    layer = network.layers()[names[len(names) // 2]]
    layer.register_forward_hook(lambda module, args, out: out.detach())


def faults(arch: Arch) -> list[Fault]:
    """Those that make sense for an architecture: norm and shortcuts make some harmless."""
    deep, plain = arch.deep, ("mlp", "plain conv")
    sigmoid = {"activation": "sigmoid", "init": "default", "n_layers": deep // 2}
    tanh = {"activation": "tanh", "init": "large"}
    grow, swell = scale_weights(1.8), scale_weights(40)
    with_relu = (*plain, "resnet", "mobilenet")
    high = {"lr": 30.0, "optimizer": "sgd"}
    low = {"lr": 1e-6, "optimizer": "sgd"}
    tiny, half = {"dtype": "fp16", "faint": 1e-5}, {"masked": 0.5}
    sharp, collapse, kill = text_faults.sharpen, text_faults.collapse, text_faults.kill_heads
    found = [
        Fault("vanishing gradients", "vanishing_gradients", sigmoid, archs=plain),
        Fault("exploding gradients", "exploding_gradients", {"n_layers": deep}, {}, grow, plain),
        Fault("dead ReLUs", "dead_units", break_=kill_units, archs=with_relu),
        Fault("saturated sigmoids", "saturated_units", tanh, archs=plain),
        Fault("init too small", "init_too_small", {"init": "small"}, archs=plain),
        Fault("init too large", "init_too_large", {"init": "large"}, archs=plain),
        Fault("init too large", "init_too_large", break_=swell, archs=("vit", *TEXT)),
        Fault("no residuals", "no_residuals", {"n_layers": deep * 2}, archs=plain),
        Fault("lr too high", "lr_too_high", settings={"lr": arch.lr * 1000}),
        Fault("lr too low", "lr_too_low", settings={"lr": arch.lr / 1000}),
        Fault("lr too high, sgd", "lr_too_high", settings=high, archs=with_relu),
        Fault("lr too low, sgd", "lr_too_low", settings=low, archs=with_relu),
        Fault("frozen layers", "frozen_layer", break_=freeze),
        Fault("detached layers", "detached_layer", break_=detach, by_hand=True),
        Fault("shuffled labels", "shuffled_labels", settings={"shuffled": True}, by_hand=True),
        Fault("fp16 underflow", "fp16_underflow", settings=tiny),
        Fault("saturated attention", "saturated_attention", break_=sharp, archs=TEXT),
        Fault("embedding collapse", "embedding_collapse", break_=collapse, archs=TEXT),
        Fault("dead heads", "dead_heads", break_=kill, archs=TEXT),
        Fault("half the rows masked", "masked_labels", {}, half, archs=TEXT[:1], by_hand=True),
        Fault("all rows masked", "refused", {}, {"masked": 2.0}, archs=TEXT[:1], by_hand=True),
    ]
    return [f for f in found if not f.archs or arch.name in f.archs]


def healthy(arch: Arch) -> list[tuple[str, Fault]]:
    """Sound runs: rates a factor of 6 apart, three optimisers, other activations, norms, depths."""
    ways: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("adamw", {}, {}),
        ("adamw, lr / 3", {}, {"lr": arch.lr / 3}),
        ("adamw, lr x 2", {}, {"lr": arch.lr * 2}),
        ("muon", {}, {"lr": 0.005, "optimizer": "muon"}),
        ("bf16", {}, {"dtype": "bf16"}),
    ]
    if arch.name not in ADAPTIVE:
        ways += [("sgd", {}, {"lr": 0.05, "optimizer": "sgd"})]
    if arch.deep:
        ways += [
            ("tanh", {"activation": "tanh"}, {}),
            ("gelu, norm", {"activation": "gelu", "norm": "batch"}, {}),
            (
                "deep, residual, norm",
                {"n_layers": arch.deep, "residual": True, "norm": "batch"},
                {},
            ),
            ("PyTorch's init", {"init": "default"}, {}),
        ]
    if arch.name == "decoder":
        ways += [
            ("norms of query and key", {"qk_norm": True}, {}),
            ("one head", {"n_heads": 1, "n_kv_heads": 1}, {}),
            ("shared keys, own head", {"n_kv_heads": 1, "tied_head": False}, {}),
        ]
    return [(name, Fault("healthy", "", config, settings)) for name, config, settings in ways]


# ---- one training --------------------------------------------------------------------------------


class Faint:
    """A task with its loss in a far smaller unit: harmless, until numbers have few bits."""

    def __init__(self, task: Any, unit: float):
        self.task, self.unit = task, unit

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = self.task.loss(network, batch)
        return total * self.unit, parts


@dataclasses.dataclass
class Outcome:
    diagnoses: list[Diagnosis]
    loss: float
    accuracy: float


def run(
    arch: Arch, fault: Fault, seed: int, data: tuple[Tensor, Tensor], cure: Diagnosis | None = None
) -> Outcome:
    """Train with a fault, or with what a diagnosis says against it; diagnose and score."""
    options = {
        "lr": arch.lr,
        "optimizer": "adamw",
        "dtype": "fp32",
        "grad_clip": 1.0,
    } | fault.settings
    config = dataclasses.replace(arch.config, **fault.config)
    break_ = fault.break_
    if cure is not None:
        change, fields = split_cure(cure.cure_options, config)
        options |= change
        config = dataclasses.replace(config, **fields)
        by_person = fault.by_hand and cure.fault == fault.right
        if by_person:
            options |= {"shuffled": False, "masked": 0.0}
        if by_person or "init" in cure.cure_options or "unfreeze" in cure.cure_options:
            break_ = None  # fresh weights, everything trains
    with runtime.seeded(seed):
        network = arch.build(config)
    if break_ is not None:
        break_(network)
    rows = Rows(*data, seed, options)
    return fit(network, rows, options, arch, seed)


def fit(network: Network, rows: Rows, options: dict[str, Any], arch: Arch, seed: int) -> Outcome:
    learned = Causal() if arch.name == "decoder" else Classify(LABELS)
    task: Any = Faint(learned, options.get("faint", 1))
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [{"params": parameters, "weight_decay": 0.0}]
    optimizer = build_optimizer(options["optimizer"], groups, options["lr"])
    curve: list[dict[str, Any]] = []
    watch = Watch(network.layers(), optimizer, every=20, budget=1.0)
    hooks = Hooks(log=lambda step, **v: curve.append({"step": step, **v}), watch=watch)
    hooks.names = [str(i) for i in range(len(rows.y))]
    config = LoopConfig(arch.steps, options["lr"], warmup_steps=0, grad_clip=options["grad_clip"])
    machine = runtime.Runtime("cpu", runtime.DTYPES[options["dtype"]], torch.get_num_threads())
    stopped = ""
    try:
        train(network, task, rows, optimizer, config, State(seed=seed), machine, hooks)
    except TrainingStopped as e:
        stopped = str(e)
    except DataError as e:
        return Outcome([Diagnosis("refused", "", str(e), "")] if not curve else [], math.inf, 0.0)
    watch.detach()
    test = rows.batch(rows.test)
    found = diagnose(
        watch.history, network, curve, probe=rows.batch(rows.train[:600]), held_out=test,
        lr=options["lr"], optimizer=options["optimizer"], stopped=stopped,
    )  # fmt: skip
    loss, accuracy = text_faults.scores(network, test)
    return Outcome(found, loss if math.isfinite(loss) else math.inf, accuracy)


def helped(before: Outcome, after: Outcome) -> bool:
    return after.loss < 0.9 * before.loss or after.accuracy > before.accuracy + 0.05
