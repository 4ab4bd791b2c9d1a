"""Published networks: loaded strictly, scored as published, saved back bit for bit."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from layerwise import kinds
from layerwise.errors import LayerwiseError, WeightsError
from layerwise.kinds.image.processor import ImageProcessor
from layerwise.models import build, family, resolve
from layerwise.weights import hub
from layerwise.weights.cards import CARDS
from layerwise.weights.files import read_tensors, save_tensors
from layerwise.weights.names import COUNTER, publish
from layerwise.weights.published import in_reach, labels_of, load_published
from tests.oracles import import_timm, import_transformers
from tests.parity import images, relative_error, seeded_weights

LOCAL = {
    "resnet20.akamaster_cifar10": "resnet-cifar10/resnet20-12fca82f.th",
    "resnet32.akamaster_cifar10": "resnet-cifar10/resnet32-d509ac18.th",
    "resnet44.akamaster_cifar10": "resnet-cifar10/resnet44-014dd654.th",
    "mobilenet_v1_075.google_in1k": "mobilenet-v1-075-imagenet/mobilenet_v1_0.75_224.safetensors",
    "squeezenet1_0.deep_compression_in1k": (
        "squeezenet-imagenet/squeezenet_v1.0_deep_compression.safetensors"
    ),
}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return set(found) == set(expected) and all(
        torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in expected.items()
    )


def write_back(network: nn.Module, name: str, form: str, path: Path, like: Path) -> None:
    """Under the published names, with BatchNorm's batch counters where `like` has them."""
    counters = any(n.endswith(COUNTER) for n in read_tensors(like))
    ours = {n: t for n, t in network.state_dict().items() if counters or not n.endswith(COUNTER)}
    save_tensors(path, publish(ours, family(name).PUBLISHED[form]))


# ---- real files --------------------------------------------------------------------------------
@pytest.mark.data
@pytest.mark.parametrize("name", LOCAL)
def test_real_files_there_and_back(shared_data: Path, tmp_path: Path, name: str):
    path = shared_data / "weights" / LOCAL[name]
    network, card = load_published(path)
    assert card.name == name
    assert not network.training
    assert not any(t.is_meta for t in network.state_dict().values())
    back = tmp_path / "back.safetensors"
    write_back(network, card.family, card.format, back, path)
    assert same(read_tensors(back), read_tensors(path))


def ranks(network: nn.Module, inputs: torch.Tensor, first: int, every: int = 1) -> torch.Tensor:
    """How many classes are likelier than the true one, image by image of every so many classes."""
    with torch.no_grad():
        logits = network(inputs)
    truth = first + every * torch.arange(len(inputs))[:, None]
    return (logits > logits.gather(1, truth)).sum(1)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "top1", "top5"),
    [
        ("mobilenet_v1_075.google_in1k", 209, 239),  # of all 1,000: 82.1% and 95.4%
        ("squeezenet1_0.deep_compression_in1k", 161, 203),  # 60.9% and 82.9%
    ],
)
def test_scores_on_the_samples(shared_data: Path, name: str, top1: int, top5: int):
    """On every fourth class exactly what counted towards the scores that the data folder's README
    measured, through the card's processor."""
    network, card = load_published(shared_data / "weights" / LOCAL[name])
    process = ImageProcessor.from_dict(dict(card.processor))
    files = sorted((shared_data / "imagenet-1k-samples").glob("*.jpg"))  # one per class, in order
    assert len(files) == 1000
    parts = [(i, process(files[i : i + 200 : 4])) for i in range(0, 1000, 200)]
    found = torch.cat([ranks(network, inputs, first, 4) for first, inputs in parts])
    assert [int((found < k).sum()) for k in (1, 5)] == [top1, top5]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "least"),
    [("mobilenet_v1_075.google_in1k", 35), ("squeezenet1_0.deep_compression_in1k", 25)],
)
def test_the_processor_of_the_card_serves_photographs(shared_data: Path, name: str, least: int):
    """Files through the card's processor: of 50 classes of fish and birds, most are named."""
    network, card = load_published(shared_data / "weights" / LOCAL[name])
    process = ImageProcessor.from_dict(dict(card.processor))
    files = sorted((shared_data / "imagenet-1k-samples").glob("*.jpg"))[:50]
    assert int((ranks(network, process(files), 0) < 1).sum()) >= least


@pytest.mark.data
def test_card_names_load_from_a_folder_of_weights(shared_data: Path, monkeypatch):
    monkeypatch.setenv("LAYERWISE_WEIGHTS", str(shared_data / "weights"))
    reach = in_reach(kinds.kind("image"))
    assert "mobilenet_v1_075.google_in1k" in reach
    assert "resnet20.akamaster_cifar10" not in reach  # no base for photographs
    assert reach.index("mobilenet_v1_075.google_in1k") < reach.index(
        "squeezenet1_0.deep_compression_in1k"
    )
    _, card = load_published("resnet20.akamaster_cifar10")
    assert labels_of(card)[3] == "cat"


@pytest.mark.data
def test_damaged_copies_of_known_files(shared_data: Path, tmp_path: Path):
    path = shared_data / "weights" / LOCAL["resnet20.akamaster_cifar10"]
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="damaged or truncated"):
        load_published(copy)
    tensors = read_tensors(path)
    torch.save({n: t + 1 for n, t in tensors.items()}, copy)
    with pytest.raises(WeightsError, match=r"sha256 .* was expected"):
        load_published(copy)


# ---- every format of every family --------------------------------------------------------------
SIZES = [
    ("alexnet_owt", "torchvision"),
    ("squeezenet1_0", "torchvision"),
    ("squeezenet1_0", "deep_compression"),
    ("squeezenet1_1", "torchvision_1_1"),
    ("mobilenet_v1_025", "keras"),
    ("mobilenet_v1_075", "keras"),
    ("mobilenetv1_100", "timm"),
    ("mobilenetv2_100", "timm"),
    ("mobilenetv2_100", "torchvision"),
    ("mobilenetv3_large_100", "timm"),
    ("mobilenetv3_large_100", "torchvision"),
    ("mobilenetv3_small_100", "timm"),
    ("mobilenetv3_small_100", "torchvision_small"),
    ("resnet20", "akamaster"),
    *((v, f) for v in ("resnet18", "resnet50") for f in ("timm", "torchvision", "huggingface")),
    ("vit_tiny_patch16_224", "timm"),
    ("vit_tiny_patch16_224", "huggingface"),
]


@pytest.mark.parametrize(("variant", "source"), SIZES)
def test_published_there_and_back(tmp_path: Path, variant: str, source: str):
    name, config = resolve(variant, n_classes=10)
    with torch.device("meta"):
        names = publish(build(name, config).state_dict(), family(name).PUBLISHED[source])
    tensors = seeded_weights(names)
    theirs, back = tmp_path / "theirs.safetensors", tmp_path / "back.safetensors"
    save_tensors(theirs, tensors)
    network, _ = load_published(theirs, variant, source, n_classes=10)
    write_back(network, name, source, back, theirs)
    assert same(read_tensors(back), tensors)
    assert back.read_bytes() == theirs.read_bytes()


def test_every_format_is_tried():
    tried = {(resolve(variant)[0], source) for variant, source in SIZES}
    every = {
        (card.family, source) for card in CARDS.values() for source in family(card.family).PUBLISHED
    }
    assert every <= tried


# ---- folders -----------------------------------------------------------------------------------
@pytest.mark.oracle
@pytest.mark.parametrize("variant", ["resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_a_folder_of_timm(tmp_path: Path, variant: str):
    timm = import_timm()
    theirs = timm.create_model(variant, num_classes=3).eval()
    theirs.load_state_dict(seeded_weights(theirs.state_dict()))
    timm.models.save_for_hf(theirs, tmp_path, model_config={"label_names": ["a", "b", "c"]})
    network, card = load_published(tmp_path)
    assert labels_of(card) == ("a", "b", "c")
    given = theirs.pretrained_cfg
    process = ImageProcessor.from_dict(dict(card.processor))
    assert process.mean == given["mean"]
    assert process.size == given["input_size"][1:]
    x = images(2, 3, 224, 224)
    with torch.no_grad():
        assert relative_error(network(x), theirs(x)) <= 1e-5


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("layer_type", "widths"), [("basic", [16, 24, 32, 48]), ("bottleneck", [64, 128, 192, 256])]
)
def test_a_folder_of_hugging_face_resnet(tmp_path: Path, layer_type: str, widths: list[int]):
    transformers = import_transformers()
    config = transformers.ResNetConfig(
        layer_type=layer_type,
        depths=[1, 2, 1, 1],
        embedding_size=16,
        hidden_sizes=widths,
        id2label={0: "ant", 1: "bee", 2: "cat"},
    )
    check_hugging_face(transformers.ResNetForImageClassification(config), tmp_path, 64)


@pytest.mark.oracle
def test_a_folder_of_hugging_face_vit(tmp_path: Path):
    transformers = import_transformers()
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=64,
        id2label={0: "ant", 1: "bee", 2: "cat"},
    )
    check_hugging_face(transformers.ViTForImageClassification(config), tmp_path, 64)


def check_hugging_face(theirs: nn.Module, folder: Path, side: int) -> None:
    theirs.load_state_dict(seeded_weights(theirs.state_dict()))
    theirs.eval().save_pretrained(folder)  # type: ignore[operator]
    network, card = load_published(folder)
    assert labels_of(card) == ("ant", "bee", "cat")
    x = images(2, 3, side, side)
    with torch.no_grad():
        assert relative_error(network(x), theirs(x).logits) <= 1e-5
    write_back(network, card.family, card.format, folder / "back.safetensors", folder)
    assert same(read_tensors(folder / "back.safetensors"), read_tensors(folder))


def folder_with(folder: Path, config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    safetensors.torch.save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t5"}, "model_type 't5' is not one that layerwise reads"),
        ({"architecture": "resnet81"}, "unknown model 'resnet81'; did you mean"),
        ({"architecture": "resnet18", "model_args": {"stem_width": 9}}, "stem_width"),
        ({"architecture": "resnet18", "model_args": {"in_chans": 1}}, "in_chans = 1 changes"),
        ({"model_type": "resnet", "embedding_size": 32}, "embedding_size = 32 is not supported"),
        ({"model_type": "vit", "hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ({"architecture": "resnet18"}, "these are not the weights of this network"),
        ([1], "a list came"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path: Path, config: object, message: str):
    with pytest.raises(LayerwiseError, match=message):
        load_published(folder_with(tmp_path, config))


def test_a_folder_without_a_config(tmp_path: Path):
    save_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load_published(tmp_path)


# ---- sources that are not there or not known ---------------------------------------------------
def test_a_hub_id(tmp_path: Path, monkeypatch):
    """From the hub's cache, as timm lays its repositories out."""
    name, config = resolve("mobilenetv2_035", n_classes=4)
    with torch.device("meta"):
        names = publish(build(name, config).state_dict(), family(name).PUBLISHED["timm"])
    save_tensors(tmp_path / "model.safetensors", seeded_weights(names))
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "mobilenetv2_035", "num_classes": 4}), encoding="utf-8"
    )

    def fetch(hub_id: str, filename: str) -> Path:
        if not (tmp_path / filename).exists():
            raise hub.MissingFileError(f"{hub_id}: no {filename}")
        return tmp_path / filename

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "cached", lambda *a: None)
    network, card = load_published("someone/something")
    assert card.source == "someone/something"
    assert network(images(1, 3, 64, 64)).shape == (1, 4)


def test_a_hub_id_that_has_a_card(tmp_path: Path, monkeypatch):
    names = []
    monkeypatch.setattr(hub, "cached", lambda hub_id, name: names.append((hub_id, name)))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source in ("timm/resnet18.a1_in1k", "resnet18.a1_in1k"):
        with pytest.raises(WeightsError, match="not in the cache"):
            load_published(source)
    assert set(names) == {("timm/resnet18.a1_in1k", "model.safetensors")}


@pytest.mark.parametrize("source", ["resnet18.a1", "here/there/w.pth", "weights/w.safetensors"])
def test_a_source_that_is_not_there(source: str):
    with pytest.raises(WeightsError, match="neither a file or folder here"):
        load_published(source)


def test_a_file_that_no_card_knows(tmp_path: Path):
    save_tensors(tmp_path / "mine.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(WeightsError, match="it has to be said which network it holds"):
        load_published(tmp_path / "mine.safetensors")
    with pytest.raises(WeightsError, match="say in which naming it is"):
        load_published(tmp_path / "mine.safetensors", "resnet18")
    with pytest.raises(
        LayerwiseError, match="unknown format of resnet 'tinm'; did you mean 'timm'"
    ):
        load_published(tmp_path / "mine.safetensors", "resnet18", "tinm")


def test_another_number_of_classes_is_said(tmp_path: Path):
    with torch.device("meta"):
        network = build(*resolve("squeezenet1_1", n_classes=7))
    rules = family("squeezenet").PUBLISHED["torchvision_1_1"]
    save_tensors(tmp_path / "w.safetensors", seeded_weights(publish(network.state_dict(), rules)))
    with pytest.raises(WeightsError, match="build the network with n_classes as in the file"):
        load_published(tmp_path / "w.safetensors", "squeezenet1_1", "torchvision_1_1")
