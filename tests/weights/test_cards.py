"""Cards agree with the families, with timm and torchvision, and with the files they describe."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from layerwise.kinds.image.processor import ImageProcessor
from layerwise.models import build, family, resolve
from layerwise.weights.cards import CARDS, Card, card_for_file, imagenet_labels, labels_of
from layerwise.weights.hub import is_hub_id
from layerwise.weights.names import publish
from tests.oracles import import_timm, import_torchvision

TIMM = [c for c in CARDS.values() if c.source.startswith("timm/")]
TORCHVISION = [c for c in CARDS.values() if c.source.startswith("https://download.pytorch.org/")]
by_name = pytest.mark.parametrize("card", CARDS.values(), ids=lambda c: c.name)


@by_name
def test_card_describes_a_network_that_exists(card: Card):
    assert CARDS[card.name] is card
    name, config = resolve(card.variant, **card.config)
    assert name == card.family
    assert len(labels_of(card)) == config.n_classes
    assert ImageProcessor.from_dict(dict(card.processor)).to_dict() == card.processor
    json.dumps(dataclasses.asdict(card))  # travels in a saved model
    with torch.device("meta"):
        network = build(name, config)
    published = publish(network.state_dict(), family(name).PUBLISHED[card.format])
    assert len(published) > 10
    assert card.licence
    assert card.paper.startswith("arXiv:")
    assert is_hub_id(card.source) or len(card.sha256) >= 8


@pytest.mark.oracle
@pytest.mark.parametrize("card", TIMM, ids=lambda c: c.name)
def test_timm_agrees(card: Card):
    import_timm()
    from timm.models import get_pretrained_cfg

    theirs = get_pretrained_cfg(card.name)
    assert theirs is not None
    assert theirs.hf_hub_id in (card.source, "timm/")
    assert theirs.license.lower() == card.licence.lower()
    side = theirs.input_size[-1]
    expected = ImageProcessor.from_crop_pct(
        side,
        theirs.crop_pct,
        mean=theirs.mean,
        std=theirs.std,
        interpolation=theirs.interpolation,
    )
    assert expected.to_dict() == card.processor


@pytest.mark.oracle
@pytest.mark.parametrize("card", TORCHVISION, ids=lambda c: c.name)
def test_torchvision_agrees(card: Card):
    models = import_torchvision().models
    found = {w.url: w for name in models.list_models() for w in models.get_model_weights(name)}[
        card.source
    ]
    theirs = found.transforms()
    assert theirs.crop_size == [224]
    expected = ImageProcessor(
        resize=theirs.resize_size[0],
        interpolation=theirs.interpolation.value,
        mean=tuple(theirs.mean),
        std=tuple(theirs.std),
    )
    assert expected.to_dict() == card.processor
    metrics = found.meta["_metrics"]["ImageNet-1K"]
    assert card.scores == {"top1": metrics["acc@1"], "top5": metrics["acc@5"]}
    _, config = resolve(card.variant, **card.config)
    with torch.device("meta"):
        count = sum(p.numel() for p in build(card.family, config).parameters())
    assert count == found.meta["num_params"]


@pytest.mark.data
def test_files_are_known_by_their_content(shared_data: Path, tmp_path: Path):
    names = {"resnet20", "resnet32", "resnet44", "mobilenet_v1_075", "squeezenet1_0"}
    files = [
        *(shared_data / "weights").glob("resnet-cifar10/*.th"),
        *(shared_data / "weights").glob("*-imagenet/*.safetensors"),
    ]
    found = [card_for_file(path) for path in files]
    assert {card.variant for card in found if card} == names
    assert all(card and card.filename == p.name for card, p in zip(found, files, strict=True))
    (tmp_path / "other.pth").write_bytes(b"something else")
    assert card_for_file(tmp_path / "other.pth") is None


def test_imagenet_labels():
    labels = imagenet_labels()
    assert len(labels) == len(set(labels)) == 1000
    assert (labels[0], labels[1], labels[999]) == ("tench", "goldfish", "toilet tissue")
    assert (labels[134], labels[517]) == ("crane bird", "crane")
    assert (labels[638], labels[639]) == ("maillot", "tank suit")


@pytest.mark.data
def test_imagenet_labels_are_in_the_order_of_the_samples(shared_data: Path):
    """File names hold the WordNet id and a name; most names are ours, all ranks have to agree."""
    files = sorted((shared_data / "imagenet-1k-samples").glob("*.jpg"))
    theirs = [p.stem.split("_", 1)[1].replace("_", " ") for p in files]
    same = sum(a.lower() == b.lower() for a, b in zip(theirs, imagenet_labels(), strict=True))
    assert same > 950, same
