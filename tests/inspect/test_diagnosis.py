"""Each fault is named when it is injected, and nothing is said of a sound run.

`bench/diagnosis.py` measures recall and false alarms over architectures; here: small and certain.
"""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from layerwise.data.examples import Batch
from layerwise.errors import LayerwiseError
from layerwise.inspection.diagnosis import EXPLAINS, RULES, diagnose, split_cure
from layerwise.inspection.watch import Watch
from layerwise.models import mlp

SOUND = {"dim": 48, "n_layers": 4}


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy(x).float()
    return (x - x.mean()) / x.std(), torch.from_numpy(y)


def train(digits, config: dict[str, Any], lr=2e-3, steps=60, break_=None, seed=0, **given: Any):
    """A short training of an mlp; returns its diagnoses. `break_` changes the fresh network."""
    x, y = digits
    torch.manual_seed(seed)
    network = mlp.Model(mlp.Config(**{**SOUND, **config}))
    if break_:
        break_(network)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr)
    watch, curve = Watch(network.layers(), optimizer, every=20, budget=1.0), []
    for s in range(steps):
        rows = torch.randint(1200, (64,), generator=torch.Generator().manual_seed(s))
        watch.before(s)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x[rows]), y[rows])
        loss.backward()
        watch.after_backward(loss.item())
        optimizer.step()
        watch.after_step()
        curve.append({"step": s + 1, "loss": loss.item()})
    probe = Batch({"table": x[:400], "targets": y[:400]}, torch.arange(400).numpy())
    held = Batch({"table": x[1200:], "targets": y[1200:]}, torch.arange(597).numpy())
    options = {"probe": probe, "held_out": held, "lr": lr} | given
    return diagnose(watch.history, network, curve, **options)


def freeze(network: mlp.Mlp) -> None:
    network.blocks[0].requires_grad_(False)
    network.blocks[1].requires_grad_(False)


def detach(network: mlp.Mlp) -> None:
    network.blocks[1].register_forward_hook(lambda module, args, out: out.detach())


def kill(network: mlp.Mlp) -> None:
    network.blocks[2].fc.bias.data -= 50.0


def scale(network: mlp.Mlp) -> None:
    for block in network.blocks:
        block.fc.weight.data *= 1.8


FAULTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("vanishing_gradients", {"activation": "sigmoid", "init": "default", "n_layers": 14}, {}),
    ("exploding_gradients", {"n_layers": 24}, {"break_": scale}),
    ("dead_units", {}, {"break_": kill}),
    ("saturated_units", {"activation": "tanh", "init": "large"}, {}),
    ("init_too_small", {"init": "small", "n_layers": 6}, {"steps": 30}),
    ("init_too_large", {"init": "large"}, {}),
    ("no_residuals", {"n_layers": 60}, {}),
    ("lr_too_high", {}, {"lr": 3.0}),
    ("lr_too_low", {}, {"lr": 1e-6}),
    ("frozen_layer", {}, {"break_": freeze}),
    ("detached_layer", {}, {"break_": detach}),
]


@pytest.mark.parametrize(("fault", "config", "how"), FAULTS, ids=[f[0] for f in FAULTS])
def test_an_injected_fault_comes_first(digits, fault, config, how):
    found = train(digits, config, **how)
    assert found[0].fault == fault
    assert any(c.isdigit() for c in found[0].evidence)  # a number in a sentence
    assert found[0].cure


@pytest.mark.parametrize(("config", "how"), [
    ({}, {}), ({"activation": "gelu", "norm": "batch"}, {}), ({"activation": "tanh"}, {}),
    ({"n_layers": 20, "residual": True, "norm": "layer"}, {}), ({}, {"lr": 1e-2, "seed": 1}),
])  # fmt: skip
def test_nothing_is_said_of_a_sound_run(digits, config, how):
    assert train(digits, config, **how) == []


def test_shuffled_labels(digits):
    x, y = digits
    mixed = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    (found,) = train((x, mixed), {})
    assert found.fault == "shuffled_labels"
    assert found.cure_options == {}  # only a person can act


def test_memorised_labels_are_seen_through(digits):
    x, y = digits
    mixed = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    found = train((x[:], mixed), {"dim": 256}, lr=5e-3, steps=400)
    assert [d.fault for d in found] == ["shuffled_labels"]
    assert "memorised its rows" in found[0].evidence or "cannot beat guessing" in found[0].evidence


def test_the_layer_is_named(digits):
    assert train(digits, {}, break_=freeze)[0].layer == "blocks.0 and blocks.1"
    assert train(digits, {}, break_=detach)[0].layer == "blocks.0 and blocks.1"
    assert train(digits, {}, break_=kill)[0].layer.startswith("blocks.2")


def test_layers_frozen_on_purpose_are_left_alone(digits):
    assert train(digits, {}, break_=freeze, frozen=("blocks.0", "blocks.1")) == []


def test_one_fault_one_diagnosis(digits):
    for _, config, how in FAULTS[:6]:
        assert len(train(digits, config, **how)) == 1


def test_the_cure_of_a_rate_lands_near_a_sound_one(digits):
    for lr in (3.0, 1e-6):
        cure = train(digits, {}, lr=lr)[0].cure_options
        assert 3e-4 < cure["lr"] < 2e-2
        assert train(digits, {}, lr=cure["lr"]) == []


def test_the_cure_of_saturation_trains(digits):
    cure = train(digits, {"activation": "tanh", "init": "large"})[0]
    _, fields = split_cure(cure.cure_options, mlp.Config())
    assert train(digits, fields) == []


def test_a_breakdown_without_a_finite_loss_is_a_rate_too_high(digits):
    history = look_history(pace=3.0)
    curve = [{"step": 1, "loss": 2.3}, {"step": 2, "loss": "inf"}]
    assert [d.fault for d in diagnose(history, curve=curve, lr=1.0)] == ["lr_too_high"]
    assert [d.fault for d in diagnose(history, curve=curve[:1], stopped="loss", lr=1.0)] == [
        "lr_too_high"
    ]


def test_fp16_underflow_beside_silent_units():
    history = look_history(zero_grad=0.7, dead=0.1, dtype="float16")
    assert [d.fault for d in diagnose(history)] == ["fp16_underflow"]
    assert diagnose(look_history(zero_grad=0.7, dead=0.45, dtype="float16")) == []
    assert diagnose(look_history(zero_grad=0.7, dead=0.1)) == []  # in fp32 it is no underflow


def test_without_losses_nothing_is_said_to_be_slow():
    assert diagnose(look_history()) == []
    assert diagnose([]) == []


def test_a_look_cut_short_by_a_stop_is_no_error():
    history = look_history(pace=3.0)
    for stats in history[-1]["layers"].values():
        stats |= {"grad_norm": None, "update_ratio": None, "zero_grad": None}
    assert diagnose(history[-1:], stopped="the loss is not finite at step 0") == []


def look_history(
    pace: float = 0.01, zero_grad: float = 0.0, dead: float = 0.0, dtype: str = "float32"
) -> list[dict[str, Any]]:
    stats = {
        "grad_norm": 0.1, "weight_norm": 1.0, "zero_grad": zero_grad, "update_ratio": pace,
        "act_mean": 0.0, "act_std": 1.0, "spread": 0.8, "dead": dead, "saturated": 0.0,
        "gain": 1.0, "trainable": True,
    }  # fmt: skip
    return [
        {"step": s, "loss": None, "lr": 1.0, "inputs": {"mean": 0.0, "std": 1.0}, "dtype": dtype,
         "layers": {f"layer{i}": dict(stats) for i in range(5)}}
        for s in range(3)
    ]  # fmt: skip


def test_every_fault_says_what_it_explains():
    assert all(set(v) <= set(EXPLAINS) for v in EXPLAINS.values())
    assert len(RULES) == 15


def test_a_cure_is_split_by_who_knows_it():
    cure = {"lr": 1e-3, "init": "kaiming", "dtype": "fp32", "residual": True}
    settings, fields = split_cure(cure, mlp.Config())
    assert settings == {"lr": 1e-3, "dtype": "fp32"}
    assert fields == {"init": "kaiming", "residual": True}

    @dataclasses.dataclass(frozen=True)
    class Other:
        n_classes: int = 2

    assert split_cure(cure, Other())[1] == {}


def test_every_cure_can_be_applied(digits):
    """Its settings pass the check of the settings, its fields that of the family."""
    from layerwise.settings import settings

    for _, config, how in FAULTS:
        for diagnosis in train(digits, config, **{**how, "steps": 10}):
            options, fields = split_cure(diagnosis.cure_options, mlp.Config())
            try:
                settings(**options)
                mlp.Config(**fields)
            except LayerwiseError as e:
                pytest.fail(f"the cure of {diagnosis.fault} cannot be applied: {e}")
