"""Leaves of the decoders by themselves: rotary positions, the cache, who sees whom, tied heads."""

import copy
import math

import pytest
import torch
from torch import nn

from layerwise.errors import OptionError
from layerwise.layers.attention import attention, attention_weights
from layerwise.layers.cache import LayerCache
from layerwise.layers.head import TiedHead
from layerwise.layers.mask import attention_mask, positions_of
from layerwise.layers.rope import RopeFields, make_rope, rotate


# ---- rotary positions ----------------------------------------------------------------------------
def test_products_depend_on_the_distance_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16).double()
    rope = make_rope(16, RopeFields(10_000.0))
    turned = [[rotate(x, rope(torch.tensor([p]))) for p in (0, 5, 90)] for x in (q, k)]
    products = [
        (a * b).sum() for a, b in zip(turned[0][:2], [turned[1][1], turned[1][1]], strict=True)
    ]
    assert products[0] != products[1]
    far = rotate(q, rope(torch.tensor([95]))), rotate(k, rope(torch.tensor([100])))
    torch.testing.assert_close((far[0] * far[1]).sum(), products[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned[0][2].norm(), q.norm(), rtol=1e-6, atol=0)


def test_llama3_keeps_fast_pairs_and_slows_the_others():
    plain = torch.tensor(make_rope(64, RopeFields(5e5)).frequencies)
    scaled = torch.tensor(make_rope(64, RopeFields(5e5, "llama3", 8.0, 8192)).frequencies)
    turns = 8192 * plain / (2 * math.pi)
    assert torch.equal(scaled[turns > 4], plain[turns > 4])
    torch.testing.assert_close(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_scalings_that_cannot_be_are_named():
    with pytest.raises(OptionError, match="unknown rope_scaling 'llama'"):
        make_rope(8, RopeFields(1e4, "llama"))
    with pytest.raises(OptionError, match="rope_original_len"):
        make_rope(8, RopeFields(1e4, "yarn", 2.0))


# ---- the cache -----------------------------------------------------------------------------------
@pytest.mark.parametrize("places", [4, 5, 20])
@pytest.mark.parametrize(
    "chunks", [(1,) * 14, (14,), (3, 1, 1, 6, 1, 2), (6, 8), (2, 5, 1, 6)], ids=str
)
def test_the_cache_returns_the_last_tokens_and_says_which(places: int, chunks: tuple[int, ...]):
    stream = torch.arange(14.0).view(1, 1, 14, 1)
    cache = LayerCache(torch.zeros(1, 1, places, 1), torch.zeros(1, 1, places, 1), 20)
    start = 0
    for n in chunks:
        new = stream[:, :, start : start + n]
        order = cache.order(n)
        keys, values = cache.update(new, -new)
        start += n
        assert keys.flatten().tolist() == order.tolist()
        assert torch.equal(values, -keys)
        for query in range(start - n, start):  # each finds the whole of its window
            window = set(range(max(0, query - places + 1), query + 1))
            assert window <= set(order.tolist())
    assert cache.n_seen == 14


# ---- who sees whom -------------------------------------------------------------------------------
def test_the_cheapest_form_is_taken():
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    assert attention_mask(tokens, {}) == (None, True)
    assert attention_mask(tokens, {}, window=6) == (None, True)
    assert attention_mask(tokens[:, :1], {}) == (None, False)
    mask, causal = attention_mask(tokens, {}, window=2)
    assert not causal
    assert mask.int().tolist()[3] == [0, 0, 1, 1, 0, 0]


def test_documents_do_not_see_each_other_and_count_from_zero():
    documents = torch.tensor([[7, 7, 2, 2, 2, 7]])
    tokens = torch.zeros_like(documents)
    assert positions_of(tokens, {"documents": documents}).tolist() == [[0, 1, 0, 1, 2, 0]]
    mask, _ = attention_mask(tokens, {"documents": documents})
    assert mask[0, 0].int().tolist()[4] == [0, 0, 1, 1, 1, 0]


# ---- heads and scores ----------------------------------------------------------------------------
def test_a_tied_head_has_no_weight_of_its_own():
    embed = nn.Embedding(7, 3)
    model = nn.ModuleDict({"embed": embed, "head": TiedHead(embed, softcap=2.0)})
    assert [n for n, _ in model.named_parameters()] == ["embed.weight"]
    x = 10 * torch.randn(5, 3)
    torch.testing.assert_close(model["head"](x), 2 * torch.tanh(x @ embed.weight.T / 2))
    twin = copy.deepcopy(model).to(torch.float64)
    assert twin["head"].weight is twin["embed"].weight
    assert twin["head"].weight is not embed.weight


@pytest.mark.parametrize("causal", [False, True])
def test_capped_scores(causal: bool):
    torch.manual_seed(0)
    q, k, v = 5 * torch.randn(3, 2, 4, 6, 8)
    found = attention(q, k, v, causal=causal, scale=0.3, softcap=1.5)
    scores = 1.5 * torch.tanh(0.3 * q @ k.transpose(-1, -2) / 1.5)
    if causal:
        scores = scores.masked_fill(~torch.ones(6, 6).tril().bool(), -math.inf)
    torch.testing.assert_close(found, scores.softmax(-1) @ v)
    capped = attention_weights(q, k, softcap=0.01)
    torch.testing.assert_close(capped, torch.full_like(capped, 1 / 6), rtol=0.02, atol=0)
