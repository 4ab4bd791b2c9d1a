"""What every family promises, checked for all of them on tiny networks: the family contract."""

import copy
import dataclasses
import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.errors import OptionError
from layerwise.models import FAMILIES, build, config_from_dict, family, replace_fields, resolve
from layerwise.weights.files import load_into, read_tensors, save_tensors
from layerwise.weights.names import publish, rename
from tests.parity import stored

C = 5  # classes of the tiny networks


@dataclass(frozen=True)
class Case:
    """A tiny network of a family and the shape of one of its inputs."""

    name: str
    family: str
    fields: dict[str, Any]
    shape: tuple[int, ...]

    def network(self, **fields: Any) -> nn.Module:
        torch.manual_seed(0)
        fields = {"n_classes": C, **self.fields, **fields}
        return build(self.family, replace_fields(family(self.family).Config(), fields))

    def inputs(self, n: int = 3) -> Tensor:
        return torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(1))


MLP = {"n_in": 48, "dim": 16, "n_layers": 4}
RESIDUAL = {**MLP, "residual": True, "activation": "gelu", "norm": "layer", "dropout": 0.1}
ALEXNET = {"channels": (8, 8, 8, 8, 8)}
ONE_TOWER = {**ALEXNET, "groups": 1, "response_norm": False, "stem_padding": 2}
RESNET = {"depths": (2, 1, 1), "widths": (8, 16, 24)}
RESNET_PAD = {**RESNET, "small_stem": True, "pad_shortcut": True}
VIT = {"image_size": 32, "patch_size": 8, "dim": 24, "n_layers": 3, "n_heads": 3, "mlp_dim": 48}
SEPARABLE = {"expansion": 0, "width": 0.25, "same_padding": True, "last_channels": 0}
SEPARABLE |= {"channels": (64, 128), "repeats": (1, 2), "strides": (1, 2)}
INVERTED = {"width": 0.25, "channels": (16, 32), "repeats": (1, 2), "strides": (1, 2)}
V3 = {"stem_channels": 8, "kernel": (3, 5, 3), "inner": (8, 24, 32), "channels": (8, 16, 16)}
V3 |= {"excite": (1, 0, 1), "hard_swish": (0, 1, 1), "stride": (2, 2, 1)}
V3 |= {"last_channels": 24, "n_features": 32}
SQUEEZE = {"stem_channels": 16, "stem_kernel": 3, "squeeze": (4, 6), "pool_after": (1, 2)}

CASES = [
    Case("mlp", "mlp", MLP, (48,)),
    Case("mlp_batch", "mlp", {**MLP, "norm": "batch", "activation": "tanh"}, (3, 4, 4)),
    Case("mlp_residual", "mlp", RESIDUAL, (48,)),
    Case("alexnet", "alexnet", ALEXNET, (3, 67, 67)),
    Case("alexnet_owt", "alexnet", ONE_TOWER, (3, 63, 63)),
    Case("resnet", "resnet", RESNET, (3, 64, 48)),
    Case("resnet_bottleneck", "resnet", {**RESNET, "bottleneck": True}, (3, 64, 64)),
    Case("resnet_pad", "resnet", RESNET_PAD, (3, 32, 32)),
    Case("vit", "vit", VIT, (3, 32, 32)),
    Case("mobilenet_v1", "mobilenet", SEPARABLE, (3, 33, 33)),
    Case("mobilenet_v2", "mobilenet", INVERTED, (3, 32, 32)),
    Case("mobilenet_v3", "mobilenetv3", V3, (3, 32, 32)),
    Case("squeezenet", "squeezenet", SQUEEZE, (3, 48, 48)),
    Case("airbench", "airbench", {"channels": (8, 12, 12)}, (3, 32, 32)),
    Case("airbench_residual", "airbench", {"channels": (8, 12, 12), "n_convs": 3}, (3, 32, 32)),
]


ELSEWHERE = {"gpt", "llama", "moe", "gemma", "bert"}  # test_decoders.py and test_bert.py


def written(name: str) -> bool:
    return importlib.util.find_spec(FAMILIES[name]) is not None


def need(name: str) -> None:
    if not written(name):
        pytest.skip(f"{FAMILIES[name]} is not written yet")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    need(request.param.family)
    return request.param


def all_variants() -> list[tuple[str, str]]:
    names = [name for name in FAMILIES if written(name) and name not in ELSEWHERE]
    return [(name, v) for name in names for v in family(name).VARIANTS]


def on_meta(name: str, variant: str) -> nn.Module:
    with torch.device("meta"):
        return build(name, family(name).VARIANTS[variant])


every_variant = pytest.mark.parametrize(("name", "variant"), all_variants())


# ---- what goes in and comes out ------------------------------------------------------------------
def test_every_family_is_here():
    assert {case.family for case in CASES} | ELSEWHERE == set(FAMILIES), (
        "a family without a tiny network"
    )


def test_shape_and_dtype(case: Case):
    network, x = case.network().eval(), case.inputs()
    scores = network(x)
    assert scores.shape == (len(x), C)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert network.features(x).shape[0] == len(x)


def test_bf16_autocast(case: Case):
    network, x = case.network().eval(), case.inputs()
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(x)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().max() <= 0.05 * exact.abs().max() + 1e-3


def test_head_on_features_is_the_network(case: Case):
    network, x = case.network().eval(), case.inputs()
    with torch.no_grad():
        assert torch.equal(network.head(network.features(x)), network(x))


def test_a_row_does_not_depend_on_its_batch(case: Case):
    network, x = case.network().eval(), case.inputs()
    with torch.no_grad():
        together = network(x)
        alone = torch.cat([network(row[None]) for row in x])
    assert (together - alone).abs().max() <= 1e-5 * together.abs().max()


def test_memory_format_does_not_matter(case: Case):
    if len(case.shape) != 3:
        pytest.skip("rows of a table have one memory format")
    network, x = case.network().eval(), case.inputs()
    with torch.no_grad():
        plain = network(x)
        found = network.to(memory_format=torch.channels_last)(
            x.to(memory_format=torch.channels_last)
        )
    assert (plain - found).abs().max() <= 1e-5 * plain.abs().max()


def test_same_seed_same_network(case: Case):
    a, b = case.network().state_dict(), case.network().state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---- gradients -----------------------------------------------------------------------------------
def test_gradients_reach_every_parameter(case: Case):
    # in eval mode, where a bias before a normalisation has a gradient too
    network = case.network().eval()
    scores = network(case.inputs(8))
    (scores * torch.randn_like(scores)).sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert parameter.grad.isfinite().all(), name
            # the softmax does not change when all keys move alike: rounding is all that is left
            assert parameter.grad.any() or name.endswith("k_proj.bias"), f"{name} has gradient 0"


def test_one_training_step_lowers_the_loss(case: Case):
    has_dropout = "dropout" in {f.name for f in dataclasses.fields(family(case.family).Config)}
    network = case.network(**({"dropout": 0.0} if has_dropout else {}))
    x, y = case.inputs(8), torch.arange(8) % C
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-2)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# ---- layers and head -----------------------------------------------------------------------------
def test_layers_cover_every_parameter_once(case: Case):
    network = case.network()
    layers = network.layers()
    found = [id(p) for layer in layers.values() for p in layer.parameters()]
    assert len(found) == len(set(found)), "a parameter is in two layers"
    assert set(found) == {id(p) for p in network.parameters()}, "a parameter is in no layer"
    for name, layer in layers.items():
        assert network.get_submodule(name) is layer, f"'{name}' is not the module's own path"
    assert list(layers)[-1] == "head"


def test_layers_come_in_the_order_of_the_data(case: Case):
    network = case.network().eval()
    called: list[str] = []
    for name, layer in network.layers().items():
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
    network(case.inputs(2))
    assert called == list(network.layers())


def test_reset_head(case: Case):
    network, x = case.network().eval(), case.inputs()
    before = {n: t.clone() for n, t in network.state_dict().items() if not n.startswith("head.")}
    features = network.features(x)
    network.reset_head(2)
    assert network(x).shape == (len(x), 2)
    assert all(torch.equal(network.state_dict()[n], t) for n, t in before.items())
    assert torch.equal(network.features(x), features)
    assert network.layers()["head"] is network.head


def test_a_copy_is_independent(case: Case):
    network, x = case.network().eval(), case.inputs()
    twin = copy.deepcopy(network)
    with torch.no_grad():
        expected = network(x)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(network(x), expected)


# ---- config, saving, names -----------------------------------------------------------------------
def test_config_round_trip(case: Case):
    config = case.network().config
    text = json.dumps(dataclasses.asdict(config))
    assert config_from_dict(case.family, json.loads(text)) == config


def test_unknown_config_key_names_the_nearest(case: Case):
    with pytest.raises(OptionError, match="n_clases") as error:
        config_from_dict(case.family, {"n_clases": 3})
    assert "did you mean 'n_classes'" in str(error.value)


def test_configs_are_frozen_and_complete(case: Case):
    config = family(case.family).Config()  # every field has a default
    assert config.n_classes > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_classes = 3


def test_saved_and_loaded_is_the_same(case: Case, tmp_path: Path):
    network, x = case.network(), case.inputs(4)
    network(x)  # so that running statistics have moved
    network.eval()
    save_tensors(tmp_path / "model.safetensors", network.state_dict())
    with torch.device("meta"):
        loaded = case.network().eval()
    load_into(loaded, read_tensors(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


@every_variant
def test_builds_and_runs_on_meta(name: str, variant: str):
    network = on_meta(name, variant).eval()
    assert all(t.is_meta for t in network.state_dict().values())
    config = network.config
    side = getattr(config, "image_size", 32 if config.n_classes == 10 else 224)
    shape = (config.n_in,) if name == "mlp" else (3, side, side)
    assert network(torch.empty(2, *shape, device="meta")).shape == (2, config.n_classes)


@every_variant
def test_tensor_names_stay(name: str, variant: str):
    """Saved models must stay loadable: a changed name is a decision, never an accident."""
    state = on_meta(name, variant).state_dict()
    lines = "\n".join(f"{n} {tuple(t.shape)}" for n, t in state.items())
    found = {"tensors": len(state), "sha256": hashlib.sha256(lines.encode()).hexdigest()[:16]}
    assert stored("names.json", variant, found) == found, f"names or shapes of {variant} changed"


def test_resolve_knows_every_variant():
    names = [variant for _, variant in all_variants()]
    assert len(names) == len(set(names)), "two families share the name of a size"
    assert all(resolve(variant)[0] == name for name, variant in all_variants())


# ---- published names -----------------------------------------------------------------------------
ONLY_FOR = {  # formats that fit some variants of their family alone
    ("mobilenet", "keras"): ("mobilenet_v1", "mobilenetv1"),
    ("mobilenet", "timm_v1"): ("mobilenet_v1", "mobilenetv1"),
    ("mobilenet", "timm"): ("mobilenetv2",),
    ("mobilenet", "torchvision"): ("mobilenetv2",),
    ("mobilenetv3", "timm"): ("mobilenetv3_large",),
    ("mobilenetv3", "torchvision"): ("mobilenetv3_large",),
    ("mobilenetv3", "timm_small"): ("mobilenetv3_small",),
    ("mobilenetv3", "torchvision_small"): ("mobilenetv3_small",),
}


def published() -> list[tuple[str, str, str]]:
    """(family, format, variant) wherever the format is for the variant."""
    return [
        (name, source, variant)
        for name, variant in all_variants()
        for source in family(name).PUBLISHED
        if variant.startswith(ONLY_FOR.get((name, source), ("",)))
    ]


@pytest.mark.parametrize(("name", "source", "variant"), published())
def test_published_names_cover_every_tensor(name: str, source: str, variant: str):
    """Every tensor of ours has one published name, and the way back fills every one of ours."""
    rules = family(name).PUBLISHED[source]
    state = on_meta(name, variant).state_dict()
    theirs = publish(state, rules)
    ours = rename(theirs, rules, state)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in state.items()}
    assert theirs.keys() == publish(ours, rules).keys()


@pytest.mark.parametrize(
    ("name", "source", "variant"),
    list({(n, s): (n, s, v) for n, s, v in reversed(published())}.values()),
)
def test_published_values_survive_bit_for_bit(name: str, source: str, variant: str):
    rules = family(name).PUBLISHED[source]
    if name == "alexnet":
        variant, network = "tiny", CASES[4].network()
    else:
        network = build(name, family(name).VARIANTS[variant])
    state = {n: torch.randn(t.shape).to(t.dtype) for n, t in network.state_dict().items()}
    ours = rename(publish(state, rules), rules, network.state_dict())
    counters = "(drop)" in rules
    for tensor_name, tensor in state.items():
        if not (counters and tensor_name.endswith("num_batches_tracked")):
            assert torch.equal(ours[tensor_name], tensor), tensor_name


PARAMETERS = {  # as the papers, torchvision and timm state them
    "alexnet": 60_965_224,
    "alexnet_owt": 61_100_840,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet20": 269_722,  # 0.27 million in table 6 of the paper
    "resnet32": 464_154,  # 0.46
    "resnet44": 658_586,  # 0.66
    "resnet56": 853_018,  # 0.85
    "resnet110": 1_727_962,  # 1.7
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_large_patch16_224": 304_326_632,
    "vit_small_patch32_224": 22_878_952,
    "vit_base_patch32_224": 88_224_232,
    "vit_base_patch16_384": 86_859_496,
    "mobilenetv1_100": 4_231_976,
    "mobilenetv2_100": 3_504_872,
    "mobilenetv3_large_100": 5_483_032,
    "mobilenetv3_small_100": 2_542_856,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "airbench94": 1_972_792,  # 1.97 million in the paper
}


@pytest.mark.parametrize("variant", PARAMETERS)
def test_size_is_the_published_one(variant: str):
    name = next(n for n, v in all_variants() if v == variant)
    assert sum(p.numel() for p in on_meta(name, variant).parameters()) == PARAMETERS[variant]
