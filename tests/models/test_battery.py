"""What every family promises, checked for all of them on tiny networks: the family contract."""

import copy
import dataclasses
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.errors import OptionError
from layerwise.models import FAMILIES, build, config_from_dict, family, heads, reads, resolve
from layerwise.models.bert import STYLES
from layerwise.models.network import Network, head_kind
from layerwise.weights.files import load_into, read_tensors, save_tensors
from layerwise.weights.names import publish, rename
from tests.models.cases import CASES, DECODERS, ENCODERS, SEEING, C, Case, T, V
from tests.parity import relative_error, stored

PER_TOKEN = ("masked", "causal", "tag", "span")
TEXTS = [case for case in CASES if case.reads_tokens]
LENGTHS = torch.tensor([T, T // 2, 1])
MASK = torch.arange(T) < LENGTHS[:, None]  # (3, T)


def named(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in cases]


@pytest.fixture(params=named(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def all_variants() -> list[tuple[str, str]]:
    return [(name, v) for name in FAMILIES for v in family(name).VARIANTS]


def shortened(config: Any) -> Any:
    """Two layers of a text's network: all of them are alike, and there may be a hundred."""
    return replace(config, n_layers=2) if "vocab_size" in vars(config) else config


def on_meta(name: str, config: Any) -> Network:
    with torch.device("meta"):
        return build(name, config)


every_variant = pytest.mark.parametrize(("name", "variant"), all_variants())


def shape_of(network: Network, n: int = 3, length: int = T) -> tuple[int, ...]:
    """Of what comes out, by the head and the config that says how many it gives."""
    config, kind = network.config, head_kind(network)
    if kind == "embed":
        return (n, config.dim)
    width = {"span": 2, "masked": vars(config).get("vocab_size")}.get(kind, config.n_classes)
    width = width or config.vocab_size  # a decoder that scores its tokens
    return (n, length, width) if kind in PER_TOKEN else (n, width)


# ---- what goes in and comes out ------------------------------------------------------------------
def test_every_family_is_here():
    assert {case.family for case in CASES} == set(FAMILIES), "a family without a tiny network"


def test_every_head_is_here():
    there = {(case.family, head_kind(case.network())) for case in CASES}
    assert there == {(name, kind) for name in FAMILIES for kind in heads(name)}


def test_shape_and_dtype(case: Case):
    network, x = case.network().eval(), case.inputs()
    scores = network(**x)
    assert scores.shape == shape_of(network)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert network.features(**x).shape[0] == 3


def test_reads_what_it_says(case: Case):
    """Every tensor of READS by its name; the main one is enough; any other name is an error."""
    network, x = case.network().eval(), case.inputs()
    assert reads(case.family) == network.READS
    assert set(x) <= set(network.READS)
    second = torch.arange(T).expand(3, T) > 4
    of_texts = {"mask": MASK, "documents": second.long(), "token_types": second.long()}
    for name in network.READS:
        if name in of_texts and not (name == "token_types" and not has_token_types(case)):
            assert network(**x, **{name: of_texts[name]}).shape == shape_of(network)
    with pytest.raises((TypeError, AssertionError), match="nonsense"):
        network(**x, nonsense=MASK)


def has_token_types(case: Case) -> bool:
    return vars(case.config()).get("n_token_types", 0) > 1


def test_one_vector_for_each_row(case: Case):
    network, x = case.network().eval(), case.inputs()
    with torch.no_grad():
        features = network.features(**x)
        vectors = network.pooled(features)
        masked = network.pooled(features, MASK) if case.reads_tokens else vectors
    assert vectors.ndim == 2
    assert vectors.shape == masked.shape == (3, vectors.shape[1])
    length_one = bool(torch.allclose(vectors.norm(dim=1), torch.ones(3)))
    assert length_one == network.unit_vectors


def test_bf16_autocast(case: Case):
    network, x = case.network().eval(), case.inputs()
    with torch.no_grad():
        exact = network(**x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(**x)
    assert (found.float() - exact).abs().max() <= 0.05 * exact.abs().max() + 1e-3


def test_head_on_features_is_the_network(case: Case):
    network, x = case.network().eval(), case.inputs()
    with torch.no_grad():
        features = network.features(**x)
        found = network.score(features) if case in ENCODERS else network.head(features)
        assert torch.equal(found, network(**x))


def test_a_row_does_not_depend_on_its_batch(case: Case):
    network, x = case.network().eval(), case.inputs()
    with torch.no_grad():
        together = network(**x)
        rows = [{name: t[i : i + 1] for name, t in x.items()} for i in range(3)]
        alone = torch.cat([network(**row) for row in rows])
    assert (together - alone).abs().max() <= 1e-5 * together.abs().max()


@pytest.mark.parametrize("case", named(TEXTS))
def test_padding_changes_nothing(case: Case):
    """Neither what stands in it, nor that it is there."""
    network, tokens = case.network().eval(), case.inputs()["tokens"]
    with torch.no_grad():
        found = network(tokens, mask=MASK)
        other = network(tokens.where(MASK, 7), mask=MASK)
        alone = [network(tokens[i : i + 1, :n])[0] for i, n in enumerate(LENGTHS)]
    if head_kind(network) in PER_TOKEN:
        found, other, alone = found[MASK], other[MASK], [row for rows in alone for row in rows]
    assert relative_error(other, found) <= 1e-6
    assert relative_error(found, torch.stack(list(alone))) <= 1e-5


@pytest.mark.parametrize("case", named([c for c in SEEING if "image" in c.inputs()]))
def test_memory_format_does_not_matter(case: Case):
    network, (x,) = case.network().eval(), case.inputs().values()
    with torch.no_grad():
        plain = network(image=x)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found = network(image=x.to(memory_format=torch.channels_last))
    assert (plain - found).abs().max() <= 1e-5 * plain.abs().max()


def test_same_seed_same_network(case: Case):
    a, b = case.network().state_dict(), case.network().state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---- the cache of decoders -----------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("chunks", [(T,), (10,), (3,), (10, 2, 9), (2, 1, 1, 12)], ids=str)
@pytest.mark.parametrize("case", named(DECODERS))
def test_prefill_and_decode_equal_one_pass(case: Case, chunks: tuple[int, ...]):
    """Chunks longer and shorter than the windows, then token by token, past every window."""
    network, tokens = spread(case.network().eval()), case.inputs(2)["tokens"]
    chunks = (*chunks, *[1] * (T - sum(chunks)))
    cache = network.make_cache(2, T)  # type: ignore[operator]  # of decoders
    parts = [network(part, cache=cache) for part in tokens.split(chunks, dim=1)]
    assert relative_error(torch.cat(parts, dim=1), network(tokens)) <= 1e-5
    assert cache.n_seen == T


def spread(network: Network) -> Network:
    """Scores far enough apart to see every difference."""
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(4) if p.ndim == 2 else p.add_(0.1 * torch.randn_like(p))
    return network


# ---- gradients -----------------------------------------------------------------------------------
def test_gradients_reach_every_parameter(case: Case):
    # in eval mode, where a bias before a normalisation has a gradient too
    network = case.network().eval()
    scores = network(**case.inputs(8))
    (scores * torch.randn_like(scores)).sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert parameter.grad.isfinite().all(), name
            # the softmax does not change when all keys move alike: rounding is all that is left
            assert parameter.grad.any() or name.endswith("k_proj.bias"), f"{name} has gradient 0"


def test_training_steps_lower_the_loss(case: Case):
    network, x = case.without_dropout(), case.inputs(8)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-2)
    losses = []
    for _ in range(12):
        scores = network(**x)
        scores = scores.flatten(0, -2)  # (rows or tokens, classes)
        targets = torch.arange(len(scores)) % min(C, scores.shape[1])
        loss = nn.functional.cross_entropy(scores, targets)
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
    network(**case.inputs(2))
    assert called == list(network.layers())


@pytest.mark.parametrize(
    ("case", "kind"),
    [pytest.param(c, kind, id=f"{c.name}-{kind}") for c in CASES for kind in heads(c.family)],
)
def test_reset_head(case: Case, kind: str):
    """What is below stays, and the config says what the network is: it builds the same one."""
    network, x = case.network().eval().double(), case.inputs()
    x = {name: t.double() if t.is_floating_point() else t for name, t in x.items()}
    above = ("head", "transform")
    before = {n: t.clone() for n, t in network.state_dict().items() if n.split(".")[0] not in above}
    features = network.features(**x)
    network.reset_head(2, kind)
    assert head_kind(network) == kind
    assert network.config.n_classes == (C if kind == "masked" else 2)
    assert network(**x).shape == shape_of(network)
    assert network(**x).dtype == torch.float64
    assert not network.training
    assert all(torch.equal(network.state_dict()[n], t) for n, t in before.items())
    assert torch.equal(network.features(**x), features)
    assert network.layers()["head"] is network.head
    again = build(case.family, network.config).eval().double()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(**x), network(**x))


def test_a_copy_is_independent(case: Case):
    network, x = case.network().eval(), case.inputs()
    twin = copy.deepcopy(network)
    with torch.no_grad():
        expected = network(**x)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(network(**x), expected)


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
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_classes = 3


def test_saved_and_loaded_is_the_same(case: Case, tmp_path: Path):
    network, x = case.network(), case.inputs(4)
    network(**x)  # so that running statistics have moved
    network.eval()
    save_tensors(tmp_path / "model.safetensors", network.state_dict())
    loaded = on_meta(case.family, network.config).eval()
    load_into(loaded, read_tensors(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(loaded(**x), network(**x))


@every_variant
def test_builds_and_runs_on_meta(name: str, variant: str):
    config = shortened(family(name).VARIANTS[variant])
    network = on_meta(name, config).eval()
    assert all(t.is_meta for t in network.state_dict().values())
    side = vars(config).get("image_size", 32 if config.n_classes == 10 else 224)
    shapes = {"image": (2, 3, side, side), "tokens": (2, 8), "table": (2, vars(config).get("n_in"))}
    shapes |= {"audio": (2, 1, vars(config).get("n_mels"), 49)}
    main, dtype = network.READS[0], torch.int64 if network.READS[0] == "tokens" else torch.float32
    x = torch.empty(*shapes[main], device="meta", dtype=dtype)
    assert network(**{main: x}).shape == shape_of(network, 2, 8)


def check_names(key: str, state: dict[str, Tensor]) -> None:
    lines = "\n".join(f"{n} {tuple(t.shape)}" for n, t in state.items())
    found = {"tensors": len(state), "sha256": hashlib.sha256(lines.encode()).hexdigest()[:16]}
    assert stored("names.json", key, found) == found, f"names or shapes of {key} changed"


@every_variant
def test_tensor_names_of_sizes_stay(name: str, variant: str):
    """Saved models must stay loadable: a changed name is a decision, never an accident."""
    check_names(variant, on_meta(name, shortened(family(name).VARIANTS[variant])).state_dict())


@pytest.mark.parametrize("case", named(TEXTS))
def test_tensor_names_of_texts_stay(case: Case):
    check_names(f"{case.family}/{case.name}", on_meta(case.family, case.config()).state_dict())


def test_resolve_knows_every_variant():
    names = [variant for _, variant in all_variants()]
    assert len(names) == len(set(names)), "two families share the name of a size"
    assert all(resolve(variant)[0] == name for name, variant in all_variants())


# ---- published names -----------------------------------------------------------------------------
ONLY_FOR = {  # formats that are of some variants of their family alone
    ("mobilenet", "keras"): ("mobilenet_v1", "mobilenetv1"),
    ("mobilenet", "torchvision"): ("mobilenetv2",),
    ("mobilenetv3", "torchvision"): ("mobilenetv3_large",),
    ("mobilenetv3", "torchvision_small"): ("mobilenetv3_small",),
    ("squeezenet", "torchvision"): ("squeezenet1_0",),
    ("squeezenet", "torchvision_1_1"): ("squeezenet1_1",),
    ("moe", "huggingface_mixtral"): ("mixtral",),
    ("moe", "huggingface"): ("qwen3",),
    ("gemma", "huggingface_multimodal"): ("gemma3",),
}


def published() -> list[tuple[str, str, str]]:
    """(family, format, variant) wherever the format is for the variant."""
    found = []
    for name, variant in all_variants():
        style = vars(family(name).VARIANTS[variant]).get("style", "")
        for source in family(name).PUBLISHED:
            of_style = source.split("-")[0] in (style, "") or source.split("-")[0] not in STYLES
            if of_style and variant.startswith(ONLY_FOR.get((name, source), ("",))):
                found.append((name, source, variant))
    return found


def published_network(name: str, source: str, config: Any) -> Network:
    """A network of this size with the head that the format is for."""
    network, kind = on_meta(name, config), source.split("-")[-1]
    if kind in heads(name):
        with torch.device("meta"):
            network.reset_head(3, kind)
    return network


@pytest.mark.parametrize(("name", "source", "variant"), published())
def test_published_names_cover_every_tensor(name: str, source: str, variant: str):
    """Every tensor of ours has one published name, and the way back fills every one of ours."""
    rules = family(name).PUBLISHED[source]
    config = shortened(family(name).VARIANTS[variant])
    state = published_network(name, source, config).state_dict()
    theirs = publish(state, rules)
    ours = rename(theirs, rules, state)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in state.items()}
    assert theirs.keys() == publish(ours, rules).keys()


TINY = {"vocab_size": V, "max_seq_len": 32, "dim": 24, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6}
TINY |= {"mlp_dim": 40, "n_experts": 4, "n_active": 2}  # of texts


def first_of_each() -> list[tuple[str, str, str]]:
    """One size of each format; of texts all, which are made tiny."""
    sizes = {(n, s, v if reads(n)[0] == "tokens" else ""): v for n, s, v in reversed(published())}
    return [(name, source, variant) for (name, source, _), variant in sizes.items()]


@pytest.mark.parametrize(("name", "source", "variant"), first_of_each())
def test_published_values_survive_bit_for_bit(name: str, source: str, variant: str):
    rules, config = family(name).PUBLISHED[source], shortened(family(name).VARIANTS[variant])
    if "vocab_size" in vars(config):
        config = replace(config, **{k: v for k, v in TINY.items() if k in vars(config)})
    wanted = published_network(name, source, config).state_dict()
    state = {n: torch.randn(t.shape, device="cpu").to(t.dtype) for n, t in wanted.items()}
    ours = rename(publish(state, rules), rules, wanted)
    uncounted = "num_batches_tracked" if "num_batches" in rules.get("(drop)", "") else "(none)"
    for key, tensor in state.items():
        assert key.endswith(uncounted) or torch.equal(ours[key], tensor), key


PARAMETERS = {  # as the papers, the cards, timm, torchvision and transformers state them
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
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama31_405b": 405_853_388_800,
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "mistral_7b": 7_241_732_096,
    "mistral_7b_v3": 7_248_023_552,
    "qwen25_0_5b": 494_032_768,
    "qwen25_1_5b": 1_543_714_304,
    "qwen25_3b": 3_085_938_688,
    "qwen25_7b": 7_615_616_512,
    "qwen25_14b": 14_770_033_664,
    "qwen25_32b": 32_763_876_352,
    "qwen25_72b": 72_706_203_648,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "mixtral_8x7b": 46_702_792_704,
    "mixtral_8x22b": 140_620_634_112,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "bert-tiny": 4_416_698,
    "bert-base-uncased": 109_514_298,
    "bert-large-uncased": 335_174_458,
    "roberta-base": 124_697_433,
    "roberta-large": 355_412_057,
    "distilbert-base-uncased": 66_985_530,
    "distilroberta-base": 82_170_201,
    "minilm-l6": 22_565_376,
}


@pytest.mark.parametrize("variant", PARAMETERS)
def test_size_is_the_published_one(variant: str):
    """Blocks of texts' networks are alike, so one of them is enough to count."""
    name, config = resolve(variant)
    texts = "vocab_size" in vars(config)
    network = on_meta(name, replace(config, n_layers=1) if texts else config)
    total = sum(p.numel() for p in network.parameters())
    if texts:
        block = sum(p.numel() for n, p in network.named_parameters() if n.startswith("blocks."))
        total += (config.n_layers - 1) * block
    assert total == PARAMETERS[variant]
