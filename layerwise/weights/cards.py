"""Weight cards: for each published file, what it is, where it comes from, how to feed it.

A card says which family, size and naming the file has, so nothing is guessed from its tensors.
Scores are percent as published by the source; "top1" and "top5" on ImageNet-1k's validation set,
"error" on CIFAR-10's test set. timm's are from its `results/results-imagenet.csv` at the size and
crop of the card; torchvision's from its model documentation.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from layerwise.kinds.image.processor import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor

HALF = (0.5, 0.5, 0.5)  # mean and std that bring pixels to -1..1
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer",
           "dog", "frog", "horse", "ship", "truck")  # fmt: skip


@dataclass(frozen=True)
class Card:
    """One published set of weights.

    source: a hub id ("timm/resnet18.a1_in1k"), a URL, or in words what the file was made from.
    sha256: of the file; a beginning of it (at least 8 digits) where only that is published.
    processor: `preprocessor_config.json`. labels: the class names, or the name of a list of them.
    config: fields in which the network departs from the family's size `variant`.
    problem: Hugging Face's problem_type of a classification head whose outputs are not one class.
    """

    name: str
    family: str
    variant: str
    format: str
    source: str
    processor: Mapping[str, Any]
    licence: str = "unknown"
    paper: str = ""
    labels: str | tuple[str, ...] = "imagenet-1k"
    trained_on: str = "unknown"
    scores: Mapping[str, float] = field(default_factory=dict)
    sha256: str = ""
    filename: str = "model.safetensors"
    config: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def _imagenet(name: str, family: str, paper: str, top1: float, top5: float, **fields: Any) -> Card:
    """A network for ImageNet-1k's classes; what its name begins with is its variant."""
    fields = {"trained_on": "ImageNet-1k", "scores": {"top1": top1, "top5": top5}, **fields}
    return Card(name, family, name.partition(".")[0], paper=f"arXiv:{paper}", **fields)


# ---- files that are not on the hub -------------------------------------------------------------
AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
AKAMASTER_FILES = (  # variant, error, sha256
    ("resnet20", 8.27, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    ("resnet32", 7.37, "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850"),
    ("resnet44", 6.90, "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4"),
)
CIFAR_PROCESSOR = ImageProcessor(size=(32, 32), resize=(32, 32))  # ImageNet's mean and std
CAFFE_PROCESSOR = ImageProcessor(  # pixels in 0..255 minus a mean per channel, blue first
    size=(227, 227),
    mean=(104 / 255, 117 / 255, 123 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    channel_order="BGR",
    crop_down=True,
)


def _akamaster() -> Iterator[Card]:
    for variant, error, sha256 in AKAMASTER_FILES:
        yield Card(
            *(f"{variant}.akamaster_cifar10", "resnet", variant, "akamaster"),
            source=f"{AKAMASTER}{variant}-{sha256[:8]}.th",
            licence="BSD-2-Clause",
            paper="arXiv:1512.03385",
            processor=CIFAR_PROCESSOR.to_dict(),
            labels="cifar-10",
            trained_on="CIFAR-10",
            scores={"error": error},
            sha256=sha256,
            filename=f"{variant}-{sha256[:8]}.th",
        )


def _converted() -> Iterator[Card]:
    yield _imagenet(
        *("mobilenet_v1_075.google_in1k", "mobilenet", "1704.04861"),
        *(68.4, 88.2),  # tensorflow/models, slim/nets/mobilenet_v1.md
        format="keras",
        source="Google's MobileNet v1 0.75 224, from tangmingsh/ml5featureExtractormodel 238fbc5 "
        "(TF.js shards, converted)",
        licence="Apache-2.0",
        processor=ImageProcessor(mean=HALF, std=HALF, crop_down=True).to_dict(),
        sha256="dc4776d22d5b179f260bc4915548a2db0e99bb0f6c1e3848cea161d6553f8c58",
        filename="mobilenet_v1_0.75_224.safetensors",
    )
    yield _imagenet(
        *("squeezenet1_0.deep_compression_in1k", "squeezenet", "1602.07360"),
        *(57.5, 80.3),  # table 2 of the paper
        format="deep_compression",
        source="songhan/SqueezeNet-Deep-Compression fb13faa compressed_SqueezeNet.net, decoded",
        licence="BSD-2-Clause",
        processor=CAFFE_PROCESSOR.to_dict(),
        sha256="d2797a11aa9aadeb10902f281089a09976aac0c6391188267b82a5ed9f2c0de6",
        filename="squeezenet_v1.0_deep_compression.safetensors",
    )


# ---- torchvision -------------------------------------------------------------------------------
PYTORCH = "https://download.pytorch.org/models/"  # a file's name ends in the start of its sha256
TORCHVISION = (  # variant, family, file, paper, top-1, top-5, short side
    ("alexnet_owt", "alexnet", "alexnet-owt-7be5be79", "1404.5997", 56.522, 79.066, 256),
    ("squeezenet1_0", "squeezenet", "squeezenet1_0-b66bff10", "1602.07360", 58.092, 80.42, 256),
    ("squeezenet1_1", "squeezenet", "squeezenet1_1-b8a52dc0", "1602.07360", 58.178, 80.624, 256),
    ("mobilenetv2_100", "mobilenet", "mobilenet_v2-7ebf99e0", "1801.04381", 72.154, 90.822, 232),
    ("mobilenetv3_large_100", "mobilenetv3", "mobilenet_v3_large-5c1a4163", "1905.02244",
     75.274, 92.566, 232),
    ("mobilenetv3_small_100", "mobilenetv3", "mobilenet_v3_small-047dcff4", "1905.02244",
     67.668, 87.402, 256),
    ("resnet18", "resnet", "resnet18-f37072fd", "1512.03385", 69.758, 89.078, 256),
    ("resnet34", "resnet", "resnet34-b627a593", "1512.03385", 73.314, 91.42, 256),
    ("resnet50", "resnet", "resnet50-11ad3fa6", "1512.03385", 80.858, 95.434, 232),
    ("resnet101", "resnet", "resnet101-cd907fc2", "1512.03385", 81.886, 95.78, 232),
    ("resnet152", "resnet", "resnet152-f82ba261", "1512.03385", 82.284, 96.002, 232),
)  # fmt: skip
TORCHVISION_FORMATS = {
    "squeezenet1_1": "torchvision_1_1",
    "mobilenetv3_small_100": "torchvision_small",
}


def _torchvision() -> Iterator[Card]:
    for variant, family, file, paper, top1, top5, short in TORCHVISION:
        yield _imagenet(
            *(f"{variant}.tv_in1k", family, paper, top1, top5),
            format=TORCHVISION_FORMATS.get(variant, "torchvision"),
            source=f"{PYTORCH}{file}.pth",
            licence="BSD-3-Clause",
            processor=ImageProcessor(resize=short).to_dict(),
            sha256=file.rsplit("-", 1)[1],
            filename=f"{file}.pth",
            config={"norm_eps": 1e-3} if family == "mobilenetv3" else {},
        )


# ---- timm --------------------------------------------------------------------------------------
TIMM = (  # name, family, paper, top-1, top-5, crop fraction, mean and std
    ("resnet18.a1_in1k", "resnet", "2110.00476", 71.504, 90.086, 0.95, "imagenet"),
    ("resnet34.a1_in1k", "resnet", "2110.00476", 76.420, 92.896, 0.95, "imagenet"),
    ("resnet50.a1_in1k", "resnet", "2110.00476", 80.382, 94.598, 0.95, "imagenet"),
    ("resnet101.a1_in1k", "resnet", "2110.00476", 81.494, 95.164, 0.95, "imagenet"),
    ("mobilenetv1_100.ra4_e3600_r224_in1k", "mobilenet", "1704.04861", 75.388, 92.310, 0.875,
     "half"),
    ("mobilenetv1_125.ra4_e3600_r224_in1k", "mobilenet", "1704.04861", 76.92, 93.232, 0.9, "half"),
    ("mobilenetv2_050.lamb_in1k", "mobilenet", "1801.04381", 65.928, 86.114, 0.875, "imagenet"),
    ("mobilenetv2_100.ra_in1k", "mobilenet", "1801.04381", 72.910, 91.000, 0.875, "imagenet"),
    ("mobilenetv2_140.ra_in1k", "mobilenet", "1801.04381", 76.528, 93.008, 0.875, "imagenet"),
    ("mobilenetv3_small_100.lamb_in1k", "mobilenetv3", "1905.02244", 67.636, 87.638, 0.875,
     "imagenet"),
    ("mobilenetv3_large_100.ra_in1k", "mobilenetv3", "1905.02244", 75.784, 92.528, 0.875,
     "imagenet"),
    ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "vit", "2106.10270", 75.452, 92.858, 0.9, "half"),
    ("vit_small_patch16_224.augreg_in21k_ft_in1k", "vit", "2106.10270", 81.402, 96.15, 0.9, "half"),
    ("vit_base_patch16_224.augreg_in21k_ft_in1k", "vit", "2106.10270", 84.534, 97.3, 0.9, "half"),
)  # fmt: skip
STATISTICS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": (HALF, HALF)}


def _timm() -> Iterator[Card]:
    for name, family, paper, top1, top5, crop, statistics in TIMM:
        mean, std = STATISTICS[statistics]
        pixels = ImageProcessor.from_crop_pct(
            224, crop, mean=mean, std=std, interpolation="bicubic"
        )
        yield _imagenet(
            *(name, family, paper, top1, top5),
            format="timm",
            source=f"timm/{name}",
            licence="Apache-2.0",
            processor=pixels.to_dict(),
            trained_on="ImageNet-21k, then ImageNet-1k" if "in21k" in name else "ImageNet-1k",
        )


CARDS = {card.name: card for card in (*_akamaster(), *_converted(), *_torchvision(), *_timm())}


# ---- finding a card, and its labels ------------------------------------------------------------
def sha256_of(path: Path | str) -> str:
    """The sha256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def card_for_file(path: Path | str) -> Card | None:
    """The card of exactly this file, by its content; None for a file that no card knows."""
    digest = sha256_of(path)
    return next((c for c in CARDS.values() if c.sha256 and digest.startswith(c.sha256)), None)


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 class names of ImageNet-1k in their order, that of the sorted WordNet ids."""
    text = resources.files("layerwise.weights").joinpath("imagenet_labels.txt").read_text("utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def numbered(n_classes: int) -> tuple[str, ...]:
    """Names for classes that came without."""
    return tuple(f"class {i}" for i in range(n_classes))


def labels_for(n_classes: int) -> str | tuple[str, ...]:
    """What the outputs of a network of so many classes are called when nothing says it."""
    return "imagenet-1k" if n_classes == 1000 else numbered(n_classes)


def named_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels in Hugging Face's `config.json`, in their order; () where it has none."""
    names = config.get("id2label") or {}
    return tuple(names[k] for k in sorted(names, key=int))


def labels_of(card: Card) -> tuple[str, ...]:
    """The class names of a card, in the order of the network's outputs."""
    if isinstance(card.labels, tuple):
        return card.labels
    return {"imagenet-1k": imagenet_labels, "cifar-10": lambda: CIFAR10}[card.labels]()
