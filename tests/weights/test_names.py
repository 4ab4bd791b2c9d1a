"""The rename engine: grammar, both directions bit for bit, and errors that list both sides."""

import pytest
import torch

from layerwise.errors import WeightsError
from layerwise.weights.names import Source, dropped, locate, publish, rename

RULES = {
    "stem.conv": "conv1",
    "stem.norm": "bn1",
    "blocks.{}.q_proj": "layer.{}.attn.qkv[0/3]",
    "blocks.{}.k_proj": "layer.{}.attn.qkv[1/3]",
    "blocks.{}.v_proj": "layer.{}.attn.qkv[2/3]",
    "blocks.{}.fc1": "layer.{}.fc | transpose",
    "blocks.{}.norm": "norm_{+1}",
    "stages.{}.{}.conv": "s.{}.b.{+1}.c",
    "stages.0.0.conv": "first",
    "head": "classifier | squeeze",
    "(prefix)": "module.",
    "(drop)": "*.index teacher.*",
}


def published() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = {
        "conv1.weight": (4, 3, 3, 3),
        "bn1.running_mean": (4,),
        "bn1.num_batches_tracked": (),
        "layer.0.attn.qkv.weight": (12, 4),
        "layer.0.attn.qkv.bias": (12,),
        "layer.0.fc.weight": (4, 8),
        "layer.0.fc.bias": (8,),
        "norm_1.weight": (4,),
        "classifier.weight": (5, 4, 1, 1),
        "classifier.bias": (5,),
        "layer.0.index": (2,),
    }
    tensors = {"module." + n: torch.randn(s, generator=g) for n, s in shapes.items()}
    tensors["module.bn1.num_batches_tracked"] = torch.tensor(17)
    return tensors


WANTED = {
    "stem.conv.weight": (4, 3, 3, 3),
    "stem.norm.running_mean": (4,),
    "stem.norm.num_batches_tracked": (),
    **{f"blocks.0.{p}_proj.weight": (4, 4) for p in "qkv"},
    **{f"blocks.0.{p}_proj.bias": (4,) for p in "qkv"},
    "blocks.0.fc1.weight": (8, 4),
    "blocks.0.fc1.bias": (8,),
    "blocks.0.norm.weight": (4,),
    "head.weight": (5, 4),
    "head.bias": (5,),
}


@pytest.mark.parametrize(
    ("ours", "source"),
    [
        ("stem.conv.weight", Source("conv1.weight")),
        ("blocks.11.k_proj.bias", Source("layer.11.attn.qkv.bias", 1, 3)),
        ("blocks.11.fc1.weight", Source("layer.11.fc.weight", transforms=("transpose",))),
        ("blocks.3.norm.weight", Source("norm_4.weight")),
        ("stages.2.5.conv.weight", Source("s.2.b.6.c.weight")),
        ("stages.0.0.conv.weight", Source("first.weight")),  # fewer placeholders win
        ("stages.10.0.conv.weight", Source("s.10.b.1.c.weight")),
    ],
)
def test_locate(ours: str, source: Source):
    assert locate(ours, RULES) == source


def test_prefixes_end_at_dots_and_the_longest_wins():
    rules = {"fc": "a", "fc.deep": "b", "": "rest"}
    assert locate("fc.weight", rules) == Source("a.weight")
    assert locate("fc.deep.weight", rules) == Source("b.weight")
    assert locate("fc1.weight", rules) == Source("rest.fc1.weight")
    assert locate("fc1.weight", {"fc": "a"}) is None


def test_there_and_back_bit_for_bit():
    source = published()
    ours = rename(source, RULES, WANTED)
    assert set(ours) == set(WANTED)
    assert torch.equal(ours["blocks.0.k_proj.bias"], source["module.layer.0.attn.qkv.bias"][4:8])
    assert torch.equal(ours["blocks.0.fc1.weight"], source["module.layer.0.fc.weight"].T)
    left_out = {"module.layer.0.index": source["module.layer.0.index"]}
    back = publish(ours, RULES, dropped_values=left_out)
    assert set(back) == set(source)
    assert all(torch.equal(back[n], t) and back[n].dtype == t.dtype for n, t in source.items())


def test_parts_may_lie_along_the_last_axis():
    """As in GPT-2: query, key and value side by side in a matrix that lies transposed."""
    rules = {f"{n}_proj": f"qkv[:, {i}/3] | transpose" for i, n in enumerate("qkv")}
    theirs = {"qkv.weight": torch.randn(4, 12), "qkv.bias": torch.randn(12)}
    wanted = {f"{n}_proj.{leaf}": shape for n in "qkv" for leaf, shape in SIDE_BY_SIDE.items()}
    ours = rename(theirs, rules, wanted)
    assert torch.equal(ours["k_proj.weight"], theirs["qkv.weight"][:, 4:8].T)
    assert torch.equal(ours["v_proj.bias"], theirs["qkv.bias"][8:])
    again = publish(ours, rules)
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


SIDE_BY_SIDE = {"weight": (4, 4), "bias": (4,)}


def test_an_equal_copy_is_left_out_and_another_tensor_is_not():
    rules = {"embed": "wte", "(copy)": "lm_head.weight=wte.weight"}
    theirs = {"wte.weight": torch.randn(3, 2)}
    theirs["lm_head.weight"] = theirs["wte.weight"].clone()
    wanted = {"embed.weight": (3, 2)}
    assert rename(theirs, rules, wanted).keys() == wanted.keys()
    theirs["lm_head.weight"][0] += 1
    with pytest.raises(WeightsError, match=r"lm_head\.weight"):
        rename(theirs, rules, wanted)


def test_parts_own_their_memory():
    ours = rename(published(), RULES, WANTED)
    q, k = ours["blocks.0.q_proj.weight"], ours["blocks.0.k_proj.weight"]
    assert q.untyped_storage().data_ptr() != k.untyped_storage().data_ptr()


def test_wanted_may_be_a_meta_state_dict():
    meta = {n: torch.empty(s, device="meta") for n, s in WANTED.items()}
    assert set(rename(published(), RULES, meta)) == set(WANTED)


def test_counters_may_be_missing():
    source = published()
    del source["module.bn1.num_batches_tracked"]
    ours = rename(source, RULES, WANTED)
    assert ours["stem.norm.num_batches_tracked"] == 0


def test_one_error_lists_unused_unfilled_and_misshapen():
    source = published()
    source["module.extra.weight"] = torch.zeros(2, 7)
    source["stray"] = torch.zeros(3)  # without the prefix
    source["module.conv1.weight"] = torch.zeros(9, 3, 3, 3)
    del source["module.layer.0.fc.bias"]
    with pytest.raises(WeightsError) as e:
        rename(source, RULES, WANTED | {"odd.weight": (1,)}, "net.pth")
    text = str(e.value)
    assert text.startswith("net.pth: ")
    assert "module.extra.weight (2, 7)" in text
    assert "stray (3,)" in text
    assert "blocks.0.fc1.bias (8,): looked for module.layer.0.fc.bias" in text
    assert "odd.weight (1,): this format has no name for it" in text
    assert "stem.conv.weight (4, 3, 3, 3): module.conv1.weight is (9, 3, 3, 3)" in text
    assert "Check that the size" in text


def test_a_long_list_is_cut():
    source = published() | {f"module.x{i}": torch.zeros(1) for i in range(40)}
    with pytest.raises(WeightsError, match="and 28 more"):
        rename(source, RULES, WANTED)


def test_another_head_is_said_to_be_that():
    wanted = WANTED | {"head.weight": (7, 4), "head.bias": (7,)}
    with pytest.raises(WeightsError, match="n_classes as in the file"):
        rename(published(), RULES, wanted)


def test_parts_that_do_not_divide_are_misshapen():
    source = published() | {"module.layer.0.attn.qkv.bias": torch.zeros(13)}
    with pytest.raises(WeightsError, match=r"qkv.bias\[0/3\] is \(13,\)"):
        rename(source, RULES, WANTED)


def test_publish_refuses_what_has_no_name_and_missing_parts():
    ours = rename(published(), RULES, WANTED)
    with pytest.raises(WeightsError, match="no name for 1 tensors"):
        publish(ours | {"lora.a": torch.zeros(1)}, RULES)
    del ours["blocks.0.v_proj.bias"]
    with pytest.raises(WeightsError, match=r"parts \[2\] are missing"):
        publish(ours, RULES)


def test_tied_tensors_must_agree():
    rules = {"embed": "shared", "head": "shared"}
    x = torch.arange(6.0).view(2, 3)
    ours = rename({"shared.weight": x}, rules, {"embed.weight": (2, 3), "head.weight": (2, 3)})
    assert torch.equal(publish(ours, rules)["shared.weight"], x)
    with pytest.raises(WeightsError, match="differ"):
        publish(ours | {"head.weight": x + 1}, rules)


def test_dropped_is_by_glob():
    assert dropped("teacher.fc.weight", RULES)
    assert not dropped("student.fc.weight", RULES)
