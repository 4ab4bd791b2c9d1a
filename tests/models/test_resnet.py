"""ResNet beside torchvision, timm and transformers, and the published errors on CIFAR-10."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from layerwise.errors import WeightsError
from layerwise.models import resnet
from layerwise.weights.files import load_into, read_tensors
from layerwise.weights.names import COUNTER, publish, rename
from tests import oracles, parity

BASIC = resnet.Config(n_classes=10, depths=(1, 1, 1, 2))
BOTTLENECK = replace(BASIC, bottleneck=True, depths=(1, 2, 1, 1))
# every case: a name, our config, and the reference's own word for the block
TORCHVISION = [("basic", BASIC, "BasicBlock"), ("bottleneck", BOTTLENECK, "Bottleneck")]
SMALL_HF = resnet.Config(7, depths=(1, 2), widths=(8, 16))
HUGGINGFACE = [
    ("basic", SMALL_HF, "basic"),
    ("bottleneck", replace(SMALL_HF, bottleneck=True), "bottleneck"),
]
TIMM = [(v, replace(resnet.VARIANTS[v], n_classes=10)) for v in ("resnet18", "resnet50")]


def images() -> Tensor:
    return parity.images(2, 3, 64, 96)


def check(key: str, load: parity.Load, config: resnet.Config, source: str) -> None:
    parity.check_against_reference(key, load, "resnet", config, source, images())


# ---- parity ------------------------------------------------------------------------------------
@pytest.mark.oracle
@pytest.mark.parametrize(("key", "config", "block"), TORCHVISION)
def test_parity_with_torchvision(key: str, config: resnet.Config, block: str):
    module = oracles.import_torchvision().models.resnet
    theirs = module.ResNet(getattr(module, block), list(config.depths), num_classes=10)
    check(f"resnet/torchvision/{key}", parity.into(theirs), config, "torchvision")


@pytest.mark.oracle
@pytest.mark.parametrize(("variant", "config"), TIMM)
def test_parity_with_timm(variant: str, config: resnet.Config):
    theirs = oracles.import_timm().create_model(variant, num_classes=10)
    check(f"resnet/timm/{variant}", parity.into(theirs), config, "timm")


@pytest.mark.oracle
@pytest.mark.parametrize(("key", "config", "kind"), HUGGINGFACE)
def test_parity_with_transformers(key: str, config: resnet.Config, kind: str, tmp_path: Path):
    transformers = oracles.import_transformers()
    wide = 4 if config.bottleneck else 1
    theirs = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[wide * w for w in config.widths],
        depths=list(config.depths),
        layer_type=kind,
        num_labels=7,
    )
    load = parity.through_files(transformers.ResNetForImageClassification, theirs, tmp_path)
    check(f"resnet/huggingface/{key}", load, config, "huggingface")


@pytest.mark.parametrize(
    ("key", "config", "source"),
    [
        (f"resnet/{source}/{case[0]}", case[1], source)
        for source, cases in (
            ("torchvision", TORCHVISION),
            ("timm", TIMM),
            ("huggingface", HUGGINGFACE),
        )
        for case in cases
    ],
)
def test_parity_with_stored_outputs(key: str, config: resnet.Config, source: str):
    parity.check_against_stored(key, "resnet", config, source, images())


# ---- the published CIFAR networks ----------------------------------------------------------------
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
# wrong among the first 1,000 of the 10,000 test images; on all of them these networks have
# 8.27, 7.37 and 6.89 %, published are 8.27, 7.37 and 6.90 %
CHECKPOINTS = {"resnet20-12fca82f": 85, "resnet32-d509ac18": 72, "resnet44-014dd654": 67}


def cifar_test(folder: Path, n: int) -> tuple[Tensor, Tensor]:
    """The first n test images, normalised as the checkpoints want them, and their classes."""
    strips = sorted((folder / "cifar10").glob("test-*.webp"))[: -(-n // 500)]
    pixels = np.concatenate([np.asarray(Image.open(s)).reshape(-1, 32, 32, 3) for s in strips])
    x = (torch.from_numpy(pixels[:n]).float() / 255 - MEAN) / STD  # (n, 32, 32, 3)
    with np.load(folder / "cifar10" / "labels.npz") as labels:
        y = torch.from_numpy(labels["test"][:n].astype(np.int64))
    return x.permute(0, 3, 1, 2), y


def published_network(path: Path) -> tuple[resnet.ResNet, dict[str, Tensor]]:
    tensors = read_tensors(path)
    network = resnet.Model(resnet.VARIANTS[path.stem.split("-")[0]]).eval()
    rules = resnet.PUBLISHED["akamaster"]
    load_into(network, rename(tensors, rules, network.state_dict()))
    return network, tensors


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_error_on_cifar10(name: str, shared_data: Path):
    network, _ = published_network(shared_data / "weights" / "resnet-cifar10" / f"{name}.th")
    x, y = cifar_test(shared_data, 1000)
    with torch.inference_mode():
        scores = torch.cat([network(part) for part in x.split(250)])
    wrong = int((scores.argmax(1) != y).sum())
    # one more or less: rounding differs between machines
    assert abs(wrong - CHECKPOINTS[name]) <= 1, f"{wrong} of 1,000 wrong"


@pytest.mark.data
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_weights_come_back_bit_for_bit(name: str, shared_data: Path):
    path = shared_data / "weights" / "resnet-cifar10" / f"{name}.th"
    network, tensors = published_network(path)
    ours = {n: t for n, t in network.state_dict().items() if not n.endswith(COUNTER)}
    back = publish(ours, resnet.PUBLISHED["akamaster"])
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[n], t) for n, t in tensors.items())


@pytest.mark.data
def test_weights_of_another_depth_are_refused(shared_data: Path):
    path = shared_data / "weights" / "resnet-cifar10" / "resnet32-d509ac18.th"
    network = resnet.Model(resnet.VARIANTS["resnet20"])
    with pytest.raises(WeightsError, match=r"module\.layer1\.3\.conv1\.weight"):
        rename(read_tensors(path), resnet.PUBLISHED["akamaster"], network.state_dict())


# ---- its own parts -----------------------------------------------------------------------------
def test_option_a_subsamples_and_pads_with_zero_channels():
    x = torch.randn(2, 4, 6, 6)
    y = resnet.PadShortcut(4, 8, stride=2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert y[:, :2].abs().max() == y[:, 6:].abs().max() == 0


@pytest.mark.parametrize("bottleneck", [False, True])
def test_zero_init_starts_every_block_as_its_shortcut(bottleneck: bool):
    config = replace(BASIC, bottleneck=bottleneck, zero_init=True)
    network = resnet.Model(config)
    stage = network.stages[3]
    c_out, c_in = config.widths[3] * stage[0].expansion, config.widths[2] * stage[0].expansion
    x = torch.randn(2, c_in, 4, 4)
    torch.testing.assert_close(stage[0](x), stage[0].shortcut(x).relu())
    x = torch.rand(2, c_out, 2, 2)
    assert torch.equal(stage[1](x), x)


@pytest.mark.parametrize(
    ("variant", "size", "shape"),
    [
        ("resnet18", 224, (512, 7, 7)),
        ("resnet50", 224, (2048, 7, 7)),
        ("resnet20", 32, (64, 8, 8)),
        ("resnet18_cifar", 32, (512, 4, 4)),
    ],
)
def test_maps_have_the_sizes_of_the_paper(variant: str, size: int, shape: tuple[int, ...]):
    with torch.device("meta"):
        network = resnet.Model(resnet.VARIANTS[variant])
        x = network.pool(network.stem(torch.empty(1, 3, size, size)))
    for stage in network.stages:
        x = stage(x)
    assert x.shape == (1, *shape)
    assert len(network.layers()) == 2 + sum(network.config.depths)
