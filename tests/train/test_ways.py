"""Ways that agree are found to agree; faults that were built in are found, and named."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerwise.data.examples import Batch
from layerwise.kinds.text.corpus import NO_LOSS
from layerwise.layers.mask import positions_of
from layerwise.models import bert, llama, mlp, resnet
from layerwise.runtime import Runtime
from layerwise.tasks.causal import Causal
from layerwise.tasks.classify import Classify
from layerwise.tasks.masked import Masked
from layerwise.train.ways import compare

FP32, BF16 = (Runtime("cpu", dtype, 1) for dtype in (torch.float32, torch.bfloat16))
SKIP = {"compiled or eager": "slow", "two ranks or one": "slow"}
B, T, V = 8, 24, 50


def text_batch(seed: int = 0, masked: bool = False) -> Batch:
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randint(5, V, (B, T), generator=g)
    targets = torch.randint(5, V, (B, T), generator=g)
    if masked:
        targets[torch.rand(B, T, generator=g) > 0.3] = NO_LOSS
    targets[0, 6:] = NO_LOSS  # rows with unequal numbers of terms
    return Batch({"tokens": inputs, "targets": targets}, np.arange(B))


def decoder(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    shape = {"dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "head_dim": 16, "mlp_dim": 64}
    return llama.Model(llama.Config(vocab_size=V, max_seq_len=T, tied_head=True, **shape))


def encoder() -> nn.Module:
    torch.manual_seed(0)
    shape = {"dim": 32, "n_layers": 2, "n_heads": 2, "mlp_dim": 64}
    return bert.Model(bert.Config(vocab_size=V, max_seq_len=T, **shape))


def table_batch(classes: int = 3, n_in: int = 6) -> Batch:
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(B, n_in, generator=g)
    return Batch(
        {"table": inputs, "targets": torch.randint(classes, (B,), generator=g)}, np.arange(B)
    )


def verdicts(pairs) -> dict[str, str]:
    return {p.name: p.verdict for p in pairs}


@pytest.mark.parametrize("machine", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_texts_agree(kind, machine):
    causal = kind == "causal"
    network, task = (decoder(), Causal()) if causal else (encoder(), Masked())
    pairs = compare(network, task, text_batch(masked=not causal), machine, skip=SKIP)
    found = verdicts(pairs)
    assert [found[n] for n in found if n not in SKIP] == ["same"] * 4, pairs
    for pair in pairs:
        if pair.verdict == "same":
            assert pair.exact < 1e-6
            assert pair.difference <= pair.explained
            assert {"blocks.0", "blocks.1", "loss"} < set(pair.layers)


def test_a_table_agrees_on_two_ranks_as_well():
    torch.manual_seed(0)
    network = mlp.Model(mlp.Config(n_in=6, n_classes=3, norm="layer"))
    before = {n: t.clone() for n, t in network.state_dict().items()}
    task = Classify(["a", "b", "c"], label_smoothing=0.1)
    found = compare(network, task, table_batch(), FP32, skip={"compiled or eager": "slow"})
    assert verdicts(found) == {
        "rows in another order": "same",
        "accumulated or one batch": "same",
        "packed or padded": "skipped",
        "recomputed or kept": "same",
        "compiled or eager": "skipped",
        "two ranks or one": "same",
    }
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_batch_statistics_differ_by_nature_and_nothing_else_does():
    torch.manual_seed(0)
    network = resnet.Model(resnet.VARIANTS["resnet20"])
    g = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(B, 3, 16, 16, generator=g), torch.arange(B) % 10
    batch = Batch({"image": inputs, "targets": targets}, np.arange(B))
    *pairs, last = compare(network, Classify([str(i) for i in range(10)]), batch, FP32, skip=SKIP)
    assert {p.verdict for p in pairs} == {"same", "skipped"}
    assert last.verdict == "by nature"
    assert last.difference > 0.01
    assert "per micro-batch" in last.why


# ---- faults that are built in ------------------------------------------------------------------
class Mean(Classify):
    """The fault of ask 8: a mean over the micro-batch where a sum belongs."""

    def loss(self, network, batch):
        total, parts = super().loss(network, batch)
        return total / len(batch), parts


class MeanOfTokens(Causal):
    """Each micro-batch weighs the same, however many of its tokens carry loss."""

    def loss(self, network, batch):
        total, parts = super().loss(network, batch)
        return total / self.count(batch) * batch["targets"].numel(), parts


def test_a_mean_instead_of_a_sum_is_found():
    torch.manual_seed(0)
    network = mlp.Model(mlp.Config(n_in=6, n_classes=3, norm="layer"))
    found = compare(network, Mean(["a", "b", "c"]), table_batch(), FP32, skip=SKIP)
    assert found[1].verdict == "differs"
    assert found[1].exact > 0.5  # three means instead of one
    assert next(iter(network.layers())) in found[1].why


@pytest.mark.parametrize("machine", [FP32, BF16], ids=["fp32", "bf16"])
def test_means_over_unequal_numbers_of_tokens_are_found(machine):
    found = compare(decoder(), MeanOfTokens(), text_batch(), machine, skip=SKIP)
    assert found[1].verdict == "differs"


class Leaky(bert.Model):
    """Attends across packed documents."""

    def features(self, tokens, mask=None, documents=None, **places):
        positions = None if documents is None else positions_of(tokens, {"documents": documents})
        return super().features(tokens, mask, positions=positions, **places)


class Counting(bert.Model):
    """Attends within documents, but counts positions through."""

    def features(self, tokens, mask=None, documents=None, **places):
        if documents is not None:
            mask = documents[:, None, :, None] == documents[:, None, None, :]
        return super().features(tokens, mask, **places)


@pytest.mark.parametrize("fault", [Leaky, Counting])
def test_attention_across_documents_and_positions_through_them_are_found(fault):
    torch.manual_seed(0)
    network = fault(encoder().config)
    found = compare(network, Masked(), text_batch(masked=True), FP32, skip=SKIP)
    assert verdicts(found) == {
        "rows in another order": "same",
        "accumulated or one batch": "same",
        "packed or padded": "differs",
        "recomputed or kept": "same",
        **dict.fromkeys(SKIP, "skipped"),
    }
    assert "first in embed" in found[2].why


class Unmasked(Classify):
    """Reads the padding."""

    def loss(self, network, batch):
        scores = network(batch["tokens"], None)
        return F.cross_entropy(scores, batch["targets"], reduction="sum"), {}


class Masking(Unmasked):
    def loss(self, network, batch):
        scores = network(**batch.select(network.READS))
        return F.cross_entropy(scores, batch["targets"], reduction="sum"), {}


@pytest.mark.parametrize(("task", "verdict"), [(Masking, "same"), (Unmasked, "differs")])
def test_padding_that_is_read_is_found(task, verdict):
    network = encoder()
    network.reset_head(3)
    lengths = torch.tensor([24, 9, 17, 24, 5, 11, 20, 8])
    inputs, targets = text_batch()["tokens"], torch.arange(B) % 3
    mask = torch.arange(T) < lengths[:, None]
    whole = Batch({"tokens": inputs * mask, "mask": mask, "targets": targets}, np.arange(B))
    alone = [
        Batch({"tokens": inputs[i : i + 1, :n], "targets": targets[i : i + 1]}, np.array([i]))
        for i, n in enumerate(lengths.tolist())
    ]
    found = compare(network, task(["a", "b", "c"]), whole, FP32, alone, SKIP)
    assert verdicts(found)["packed or padded"] == verdict


class Forgetful(nn.Module):
    """Whose result depends on what ran before it: computed again in backward, it is another."""

    def __init__(self):
        super().__init__()
        self.fc, self.after = nn.Linear(6, 6), 0

    def forward(self, x):
        out = (self.fc(x) + 0.1 * self.after).sin()
        self.after += 1
        return out


class Network(nn.Module):
    READS = ("table",)

    def __init__(self, forgets: bool):
        super().__init__()
        self.first, self.head, self.forgets = Forgetful(), nn.Linear(6, 3), forgets

    def forward(self, table):
        self.first.after = 0 if self.forgets else self.first.after + 1
        return self.head(self.first(table))

    def layers(self):
        return {"first": self.first, "head": self.head}


@pytest.mark.parametrize(
    ("forgets", "pair"), [(True, "recomputed or kept"), (False, "rows in another order")]
)
def test_a_layer_that_does_not_give_the_same_again_is_found(forgets, pair):
    torch.manual_seed(0)
    found = compare(Network(forgets), Classify(["a", "b", "c"]), table_batch(), FP32, skip=SKIP)
    assert verdicts(found)[pair] == "differs"


def test_rounding_in_bf16_hides_no_small_fault():
    """A fault of 1e-4 is far below bf16's rounding; float64 shows it."""

    class Slight(Classify):
        def loss(self, network, batch):
            total, parts = super().loss(network, batch)
            return total * (1 + 1e-4 * (len(batch) < B)), parts

    torch.manual_seed(0)
    network = mlp.Model(mlp.Config(n_in=6, n_classes=3, norm="layer"))
    found = compare(network, Slight(["a", "b", "c"]), table_batch(), BF16, skip=SKIP)[1]
    assert found.verdict == "differs"
    assert found.difference < found.explained
    assert "float64" in found.why
