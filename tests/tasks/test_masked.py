"""Masked words: what is drawn, what it follows from, and what its loss is."""

import pathlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from layerwise.data.examples import Batch
from layerwise.errors import DataError, OptionError
from layerwise.kinds.text.corpus import NO_LOSS, tokenise
from layerwise.kinds.text.masked import LEARNED, SCORED, MaskedWindows
from layerwise.models.bert import Config, Model
from layerwise.tasks.masked import Masked
from layerwise.tokens.training import train_bpe, train_wordpiece
from tests.rows import numbered

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "one", "dog", "ran", "over", "hill", "and"]
TINY = {"dim": 32, "n_layers": 2, "n_heads": 2, "mlp_dim": 64, "dropout": 0.0, "attn_dropout": 0.0}


def documents(n: int, words: int = 10) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, words + 7 * (i % 9))) for i in range(n)]


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> MaskedWindows:
    texts = documents(40)
    tokenizer = train_wordpiece(texts, 100)
    folder = tmp_path_factory.mktemp("tokens")
    return MaskedWindows(tokenise(texts, tokenizer, folder), 32, tokenizer)


@pytest.fixture(scope="module")
def network(windows: MaskedWindows) -> Model:
    torch.manual_seed(0)
    return Model(Config(vocab_size=windows.tokenizer.vocab_size, max_seq_len=32, **TINY))


def batch_of(windows: MaskedWindows, rows: np.ndarray, **draw) -> Batch:
    return Batch(windows.tensors(rows, **draw), rows)


def restored(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.where(tensors["targets"] != NO_LOSS, tensors["targets"], tensors["tokens"])


def test_windows_hold_every_token_once_and_have_both_ends(windows):
    tensors = windows.tensors(np.arange(len(windows)))
    tokenizer, whole = windows.tokenizer, restored(tensors)
    assert (whole[:, 0] == tokenizer.cls_id).all()
    ends = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}
    words = [int(t) for t in whole.flatten() if int(t) not in ends]
    assert words == [int(t) for t in windows.corpus.tokens if int(t) not in ends]
    last = (whole != tokenizer.pad_id).sum(1) - 1
    assert (whole[torch.arange(len(whole)), last] == tokenizer.sep_id).all()


def test_what_is_drawn(windows):
    rows = np.arange(len(windows))
    for share, draw in ((LEARNED, (0, 1)), (SCORED, ())):
        tensors = windows.tensors(rows, draw=draw)
        asked, whole = tensors["targets"] != NO_LOSS, restored(tensors)
        words = torch.from_numpy(np.isin(whole.numpy(), windows.words))
        assert not (asked & ~words).any()  # no special token
        assert abs(asked.sum() / words.sum() - share) < 0.03
        seen, truth = tensors["tokens"][asked], tensors["targets"][asked]
        hidden = (seen == windows.mask_id).float().mean()
        assert abs(hidden - 0.8) < 0.05
        other = ((seen != truth) & (seen != windows.mask_id)).float().mean()
        assert abs(other - 0.1) < 0.04
        assert np.isin(seen[seen != windows.mask_id].numpy(), windows.words).all()


def test_draws_follow_from_seed_step_and_row_alone(windows):
    rows = np.array([5, 2, 9])
    at = lambda *draw, rows=rows: windows.tensors(rows, draw=draw)["tokens"]  # noqa: E731
    assert torch.equal(at(0, 3), at(0, 3))
    assert not torch.equal(at(0, 3), at(0, 4))
    assert not torch.equal(at(0, 3), at(1, 3))
    assert torch.equal(at(0, 3)[1:2], at(0, 3, rows=rows[1:2]))  # whatever else is in the batch
    assert torch.equal(windows.tensors(rows)["tokens"], windows.tensors(rows)["tokens"])
    assert torch.equal(
        windows.take(rows).tensors(np.array([1]))["tokens"], windows.tensors(rows)["tokens"][1:2]
    )


def test_the_loss_is_that_of_all_scores(windows, network):
    batch = batch_of(windows, np.arange(12), draw=(0, 0))
    task = Masked()
    with torch.no_grad():
        scores = network(**batch.select(network.READS))  # (B, T, V)
    want = F.cross_entropy(scores.flatten(0, 1), batch["targets"].flatten(), reduction="sum")
    got, _ = task.loss(network, batch)
    torch.testing.assert_close(got.detach(), want)
    assert task.count(batch) == int((batch["targets"] != NO_LOSS).sum())
    with torch.no_grad():
        found = task.predict(network, batch)
    assert sum(p.loss for p in found) == pytest.approx(float(want), rel=1e-5)
    right = (scores.argmax(-1) == batch["targets"]).sum(1)
    assert [p.right for p in found] == right.tolist()
    named = task.metrics(found, numbered(12))
    assert named["bits_per_masked_token"] == pytest.approx(named["loss"] / np.log(2))
    assert named["masked_accuracy"] == pytest.approx(float(right.sum()) / task.count(batch))


def test_packed_documents_are_as_if_alone(windows, network):
    tensors = windows.tensors(np.arange(len(windows)))
    several = next(i for i, d in enumerate(tensors["documents"]) if len(d.unique()) > 2)
    inputs, places = tensors["tokens"][several], tensors["documents"][several]
    together = network(inputs[None], documents=places[None])[0]
    for document in places.unique():
        own = places == document
        torch.testing.assert_close(together[own], network(inputs[own][None])[0])


@pytest.mark.oracle
def test_positions_count_anew_as_in_transformers(windows, network):
    from tests.oracles import import_transformers

    transformers = import_transformers()
    config = transformers.BertConfig(
        vocab_size=network.config.vocab_size, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=32,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    from layerwise.models.bert import PUBLISHED
    from layerwise.weights.names import publish

    names = publish(network.state_dict(), PUBLISHED["bert-masked"])
    own = {n.removeprefix("bert."): t for n, t in names.items() if n.startswith("bert.")}
    theirs.load_state_dict(own, strict=False)
    batch = batch_of(windows, np.arange(12))
    documents = batch["documents"]
    allowed = documents[:, None, :, None] == documents[:, None, None, :]
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    places = torch.arange(32).expand_as(documents)
    positions = places - torch.where(starts, places, 0).cummax(1).values
    with torch.no_grad():
        hidden = torch.where(allowed, 0.0, -1e30)
        want = theirs(batch["tokens"], attention_mask=hidden, position_ids=positions)[0]
        got = network.features(batch["tokens"], documents=documents)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_bad_input(windows, tmp_path: pathlib.Path):
    texts = documents(3)
    plain = train_bpe(texts, 300)
    with pytest.raises(OptionError, match=r"\[MASK\]; this one has <\|endoftext\|>"):
        MaskedWindows(tokenise(texts, plain, tmp_path), 32, plain)
    with pytest.raises(DataError, match="need 3"):
        MaskedWindows(windows.corpus, 2, windows.tokenizer)
    silent = batch_of(windows, np.arange(2))
    silent["targets"].fill_(NO_LOSS)
    with pytest.raises(DataError, match="no token of this batch carries loss"):
        Masked().count(silent)
