"""What is said of a text network is what it does: heads, lens, token losses, probes, changes."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from layerwise import models
from layerwise.data.examples import Batch
from layerwise.inspection.changed import changed_layers
from layerwise.inspection.heads import attention_modules, head_statistics, heads_seen, measures
from layerwise.inspection.lens import logit_lens, token_bits
from layerwise.inspection.reading import hard_share, head_table, reading
from layerwise.layers.attention import attention
from tests.oracles import import_transformers

SMALL: dict[str, Any] = {"vocab_size": 40, "dim": 32, "n_layers": 2, "n_heads": 4, "mlp_dim": 48}
FAMILIES = {
    "gpt": {},
    "llama": {"n_kv_heads": 2, "head_dim": 8, "qk_norm": True, "window": 6},
    "moe": {"n_kv_heads": 2, "head_dim": 8},
    "gemma": {"n_kv_heads": 2, "head_dim": 8},
    "bert": {"dropout": 0.0},
}


def network_of(family: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = models.family(family).Config(**SMALL | FAMILIES[family] | more)
    return models.build(family, config).eval()


def tokens(n: int = 3, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 40, (n, length), generator=torch.Generator().manual_seed(seed))


def causal_batch(n: int = 3, length: int = 12) -> Batch:
    whole = tokens(n, length + 1)
    return Batch({"tokens": whole[:, :-1], "targets": whole[:, 1:].clone()}, np.arange(n))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_seen_are_those_that_the_network_used(family: str):
    network = network_of(family)
    plain = network.features(tokens())
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def see(name: str, module: Any, q, k, v, mask, causal, options) -> None:
        weights = measures(q, k, mask, causal, options)[1]
        shared = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        seen.append((weights @ shared, attention(q, k, v, mask, causal, **options)))

    with heads_seen(network, see):
        assert torch.equal(network.features(tokens()), plain)  # watching changes nothing
    assert len(seen) == 2
    for ours, used in seen:
        torch.testing.assert_close(ours, used, rtol=1e-4, atol=1e-5)
    assert not any("forward" in vars(m) for m in network.modules())


@pytest.mark.oracle
def test_the_weights_are_those_of_transformers():
    transformers = import_transformers()
    from layerwise.weights.names import rename

    config = transformers.GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=16,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    network = network_of("gpt", max_seq_len=16)
    wanted = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    rules = models.family("gpt").PUBLISHED["huggingface"]
    network.load_state_dict(rename(dict(theirs.state_dict()), rules, wanted))
    seen: list[torch.Tensor] = []
    with torch.no_grad(), heads_seen(
        network, lambda n, m, q, k, v, mask, causal, how: seen.append(
            measures(q, k, mask, causal, how)[1]
        )
    ):  # fmt: skip
        network(tokens())
        said = theirs(tokens(), output_attentions=True).attentions
    for ours, published in zip(seen, said, strict=True):
        torch.testing.assert_close(ours, published, rtol=1e-4, atol=1e-5)


def test_where_heads_look_is_measured_right():
    T, Dh = 10, 16
    places = torch.eye(T, Dh)[None, None]  # (1, 1, T, Dh)
    before = places.roll(1, 2)  # query t asks for key t - 1
    for key, q in (("itself", places), ("previous", before)):
        found, weights = measures(q * 400, places, None, True, {})
        counted = slice(3, None)  # earlier queries see fewer than four keys
        assert found[key] == pytest.approx(float(weights[0, 0, counted].amax(-1).mean()), abs=1e-4)
        assert found[key] > 0.99
        assert found["entropy"] < 0.01
        assert found["distance"] == pytest.approx(float(key == "previous"), abs=0.01)
    even, _ = measures(q * 0, places, None, True, {})
    assert even["entropy"] == pytest.approx(1.0)
    assert even["first"] == pytest.approx(np.mean([1 / (t + 1) for t in range(3, T)]))
    assert even["distance"] == pytest.approx(np.mean([t / 2 for t in range(3, T)]))


def test_padding_and_packed_documents_are_seen_as_the_network_sees_them():
    network = network_of("llama")
    documents = torch.tensor([[0] * 6 + [1] * 6])
    alone = head_table(network, Batch({"tokens": tokens(1)[:, 6:]}, np.arange(1)))
    packed: list[Any] = []
    with torch.no_grad(), heads_seen(
        network, lambda n, m, q, k, v, mask, causal, how: packed.append(
            measures(q, k, mask, causal, how, torch.arange(12)[None] >= 6)[0]
        )
    ):  # fmt: skip
        network(tokens(1), documents=documents)
    for head, rest in zip(alone["blocks.0"], packed[0]["first"], strict=True):
        assert head["first"] == pytest.approx(rest, abs=1e-3)  # the first of its own document
    bert = network_of("bert", head_kind="class")
    mask = torch.arange(12) < torch.tensor([[12], [7], [4]])
    full = head_table(bert, Batch({"tokens": tokens(), "mask": mask}, np.arange(3)))
    for head in full["blocks.1"]:
        assert 0 < head["entropy"] <= 1
        assert head["distance"] < 6


def test_a_head_without_values_and_output_is_idle_and_sharp_ones_are_counted():
    network = network_of("llama", qk_norm=False, window=0)
    attn = network.blocks[0].attn
    attn.o_proj.weight.data[:, :8] = 0
    x, cos_sin = torch.randn(2, 12, 32), network.rope(torch.arange(12))
    found = head_statistics(network.blocks[0], (x, cos_sin, (None, True), None), {})
    assert found["idle"] == 0.25
    assert found["sharp"] == 0
    attn.q_proj.weight.data *= 3000
    attn.k_proj.weight.data *= 3000
    found = head_statistics(network.blocks[0], (x, cos_sin, (None, True), None), {})
    assert found["sharp"] >= 0.75
    assert found["entropy"] < 0.1
    assert attention_modules(network.blocks[0])


@pytest.mark.parametrize("family", ["gpt", "llama", "moe", "gemma"])
def test_the_lens_ends_in_the_networks_own_loss(family: str):
    network, batch = network_of(family), causal_batch()
    batch["targets"][0, :5] = -100
    logits = network(batch["tokens"])
    wanted = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none")
    bits = token_bits(network, batch)
    assert np.isnan(bits[0, :5]).all()
    keep = ~np.isnan(bits)
    want = wanted.detach().view(3, 12).numpy() / math.log(2)
    np.testing.assert_allclose(bits[keep], want[keep], rtol=1e-4)
    floors = logit_lens(network, [batch])
    assert [f["name"] for f in floors] == ["embeddings", "blocks.0", "blocks.1"]
    assert floors[-1]["bits"] == pytest.approx(want[keep].mean(), rel=1e-4)
    right = (logits.argmax(-1) == batch["targets"])[batch["targets"] >= 0]
    assert floors[-1]["right"] == pytest.approx(float(right.float().mean()))


def test_a_copying_network_is_read_at_its_embeddings_and_said_so():
    """A tied head names the input token; with blocks that add nothing it does so on every floor."""
    network = network_of("gpt")
    for name, p in network.named_parameters():
        if "o_proj" in name or "fc2" in name or "pos_embed" in name:
            p.data.zero_()
        elif "token_embed" in name:
            p.data = 5 * F.normalize(p.data)
    inputs = tokens(4, 16)
    batch = Batch({"tokens": inputs, "targets": inputs.clone()}, np.arange(4))
    found = reading(network, [batch], True, stream=Letters)
    assert found.lens[0]["right"] == 1.0
    said = " ".join(found.sentences())
    assert "With the head on embeddings already 100.0% are right" in said
    assert "blocks.0, blocks.1 hardly change" in said
    assert len(found.tokens) == 16
    assert found.table()[0] == ["layer", "tokens right", "bits"]
    assert found.to_dict()["lens"][0]["name"] == "embeddings"


class Letters:
    def push(self, token: int) -> str:
        return chr(60 + token)


def test_half_of_the_loss():
    assert hard_share([np.array([[8.0, 1, 1, 1], [1, 1, 1, np.nan]])]) == pytest.approx(1 / 7)
    assert hard_share([np.full((2, 5), 2.0)]) == pytest.approx(0.5)


def test_probes_of_a_network_that_answers_for_texts_and_for_tokens():
    network = network_of("bert", head_kind="class", n_classes=2)
    x = tokens(120, 10)
    mask = torch.arange(10) < torch.randint(4, 11, (120, 1))
    y = ((x == 7) & mask).any(1).long()
    y[:30] = 1
    x[:30, 1] = 7
    batches = [
        Batch({"tokens": x[i : i + 40], "mask": mask[i : i + 40], "targets": y[i : i + 40]},
              np.arange(40)) for i in (0, 40, 80)
    ]  # fmt: skip
    found = reading(network, batches, False, ("no", "yes"), probes=True)
    assert found.depth is not None
    assert [f.name for f in found.depth.layers][:2] == ["inputs", "embed"]
    assert found.depth.layers[0].probe > 0.85  # a linear probe finds a word in the counts
    assert found.table()[1][0][0] == "inputs"
    tagger = network_of("bert", head_kind="tag", n_classes=3)
    tags = torch.where(mask, x % 3, -100)
    batch = Batch({"tokens": x, "mask": mask, "targets": tags}, np.arange(120))
    depth = reading(tagger, [batch], False, ("a", "b", "c"), probes=True).depth
    assert depth is not None
    assert depth.n_rows == int(mask.sum())
    assert depth.layers[1].probe > 0.95  # the token itself is in its embedding


def test_what_a_fine_tune_changed_is_named():
    base = network_of("gpt")
    network = copy.deepcopy(base)
    network.blocks[1].mlp.fc2.weight.data += 0.5 * torch.randn(32, 48)
    batches = [causal_batch(30)]
    rows = {r["name"]: r for r in changed_layers(network, base, batches)}
    assert rows["blocks.0"]["change"] == 0
    assert rows["blocks.0"]["cka"] == pytest.approx(1, abs=1e-4)
    before, after = (dict(n.blocks[1].named_parameters()) for n in (base, network))
    size = math.sqrt(sum(float(p.detach().square().sum()) for p in before.values()))
    moved = float((after["mlp.fc2.weight"] - before["mlp.fc2.weight"]).detach().norm())
    assert rows["blocks.1"]["change"] == pytest.approx(moved / size, rel=1e-4)
    assert rows["blocks.1"]["cka"] < 0.9
    said = reading(network, batches, True, base=base).sentences()[-1]
    assert "blocks.1 changed most" in said
    said = reading(copy.deepcopy(base), batches, True, base=base).sentences()[-1]
    assert said == "Against its base, no layer changed by 0.05% of its size."


def test_what_changed_needs_no_targets_of_one_shape():
    """Answers of a window are two places, of a window of two tokens as many as it has."""
    base, network = (network_of("bert", head_kind="span") for _ in range(2))
    tokens = torch.randint(40, (12, 8))
    shapes = ((12, 8, (12, 2)), (3, 2, (3, 2)), (5, 6, ()))
    batches = []
    for n, width, targets in shapes:
        tensors = {"tokens": tokens[:n, :width]}
        if targets:
            tensors["targets"] = torch.zeros(targets, dtype=torch.long)
        batches.append(Batch(tensors, np.arange(n)))
    rows = {r["name"]: r for r in changed_layers(network, base, batches)}
    assert rows["blocks.0"]["change"] == 0
    assert rows["blocks.0"]["cka"] == pytest.approx(1, abs=1e-4)
