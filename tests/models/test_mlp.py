"""The laboratory of depth: its choices do what they are named for, and the classic comes out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from layerwise.errors import DataError, OptionError
from layerwise.models import mlp

DEEP = mlp.Config(n_in=64, dim=128, n_layers=30)


def network(config: mlp.Config, seed: int = 0) -> mlp.Mlp:
    torch.manual_seed(seed)
    return mlp.Model(config)


def sizes(config: mlp.Config) -> list[float]:
    """Root mean square of what leaves each layer, for normal inputs."""
    net, found = network(config).eval(), []
    for layer in net.layers().values():
        layer.register_forward_hook(lambda _, __, out: found.append(out.pow(2).mean().sqrt()))
    with torch.no_grad():
        net(torch.randn(256, config.n_in))
    return [float(s) for s in found]


def gradient_ratio(config: mlp.Config) -> float:
    """Gradient at the first linear layer over that at the last hidden one, at the start."""
    net = network(config)
    x, y = torch.randn(256, config.n_in), torch.randint(10, (256,))
    nn.functional.cross_entropy(net(x), y).backward()
    linears = [m for m in net.modules() if isinstance(m, nn.Linear)][:-1]
    first, last = (linears[i].weight.grad for i in (1, -1))
    return float(first.norm() / last.norm())  # type: ignore[union-attr]


# ---- choices -----------------------------------------------------------------------------------
@pytest.mark.parametrize("activation", mlp.ACTIVATIONS)
@pytest.mark.parametrize("norm", mlp.NORMS)
@pytest.mark.parametrize("residual", [False, True])
def test_every_choice_runs(activation: str, norm: str, residual: bool):
    config = mlp.Config(6, 8, 3, 4, activation=activation, norm=norm, residual=residual)
    assert network(config)(torch.randn(5, 6)).shape == (5, 4)


@pytest.mark.parametrize(
    ("fields", "nearest"),
    [
        ({"activation": "rellu"}, "relu"),
        ({"init": "kaimin"}, "kaiming"),
        ({"norm": "btch"}, "batch"),
    ],
)
def test_an_unknown_choice_names_the_nearest(fields: dict[str, str], nearest: str):
    with pytest.raises(OptionError, match=f"did you mean '{nearest}'"):
        mlp.Config(**fields)  # type: ignore[arg-type]


def test_no_hidden_layer_is_an_error():
    with pytest.raises(OptionError, match="at least 1"):
        mlp.Config(n_layers=0)


def test_rows_of_another_width_are_an_error_with_the_cure():
    with pytest.raises(DataError, match=r"rows of 64 values, these have 12 .* n_in=12"):
        network(mlp.Config(n_in=64))(torch.randn(2, 3, 2, 2))


def test_images_are_flattened():
    net, x = network(mlp.Config(n_in=48)).eval(), torch.randn(2, 3, 4, 4)
    assert torch.equal(net(x), net(x.flatten(1)))


@pytest.mark.parametrize("n_layers", [1, 4])
@pytest.mark.parametrize("residual", [False, True])
def test_layers_are_the_hidden_ones_and_the_head(n_layers: int, residual: bool):
    net = network(mlp.Config(n_layers=n_layers, residual=residual))
    assert list(net.layers()) == [f"blocks.{i}" for i in range(n_layers)] + ["head"]
    assert sum(isinstance(m, nn.Linear) for m in net.modules()) == n_layers + 1


# ---- initialisation ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("init", "std"),
    [
        ("default", 1 / (3 * 128) ** 0.5),
        ("kaiming", (2 / 128) ** 0.5),
        ("xavier", (1 / 128) ** 0.5),
        ("small", 0.1 * (2 / 128) ** 0.5),
        ("large", 5 * (2 / 128) ** 0.5),
        ("normal1", 1.0),
    ],
)
def test_initial_weights_have_the_stated_deviation(init: str, std: float):
    net = network(mlp.Config(dim=128, n_layers=4, init=init))
    assert float(net.blocks[2].fc.weight.detach().std()) == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "leaky_relu"])
def test_the_gain_keeps_the_size_of_one_layer(activation: str):
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    function, gain = mlp.ACTIVATIONS[activation]
    kept = gain * function(z).pow(2).mean().sqrt()
    assert float(kept) == pytest.approx(1.0, rel=0.01)


def test_kaiming_keeps_signals_and_others_lose_or_blow_them_up():
    kept, lost = sizes(replace(DEEP, init="kaiming")), sizes(replace(DEEP, init="small"))
    assert 0.1 < kept[-2] < 10
    assert lost[-2] < 1e-20
    assert sizes(replace(DEEP, init="default"))[-2] < 0.3 * kept[-2]
    assert sizes(replace(DEEP, init="large"))[-2] > 1e15


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_residuals_keep_signals_and_gradients_at_any_depth(norm: str):
    config = replace(DEEP, init="kaiming", residual=True, norm=norm)
    for n_layers in (10, 100):
        assert 0.5 < sizes(replace(config, n_layers=n_layers))[-2] < 5
        assert 0.2 < gradient_ratio(replace(config, n_layers=n_layers)) < 5


def test_zero_init_starts_residual_layers_as_the_identity():
    net = network(replace(DEEP, residual=True, zero_init=True))
    x = torch.randn(3, 128)
    assert torch.equal(net.blocks[5](x), x)


def test_a_fresh_head_starts_as_the_first_one_did():
    net = network(mlp.Config(dim=256, n_classes=1000, init="small"))
    before = net.head.weight.detach().std()
    net.reset_head(1000)
    assert float(net.head.weight.detach().std()) == pytest.approx(float(before), rel=0.02)


# ---- the classic ---------------------------------------------------------------------------------
def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.data).float() / 8 - 1, torch.from_numpy(data.target)


def accuracy_after(variant: str, steps: int = 150) -> float:
    """Share of the digits that a variant has learned by heart after some steps."""
    x, y = digits()
    net = network(mlp.VARIANTS[variant])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    rows = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(x), (128,), generator=rows)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        return float((net.eval()(x).argmax(1) == y).float().mean())


def test_gradients_vanish_in_deep_sigmoids_alone():
    assert gradient_ratio(mlp.VARIANTS["mlp_deep_sigmoid"]) < 1e-12
    assert gradient_ratio(mlp.VARIANTS["mlp_deep_kaiming"]) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "low", "high"),
    [  # measured: 0.098, 0.101, 0.848, 0.988
        ("mlp_deep_sigmoid", 0.0, 0.15),
        ("mlp_deep_relu", 0.0, 0.15),
        ("mlp_deep_kaiming", 0.6, 0.95),
        ("mlp_deep_residual", 0.95, 1.0),
    ],
)
def test_thirty_layers_learn_by_and_by(variant: str, low: float, high: float):
    assert low <= accuracy_after(variant) <= high
