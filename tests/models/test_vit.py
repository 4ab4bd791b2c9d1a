"""ViT beside timm and transformers; images of other sizes; the errors of its config."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from layerwise.errors import DataError, OptionError
from layerwise.layers import self_attention
from layerwise.layers.attention import attention, plain_attention
from layerwise.models import vit
from tests import oracles, parity

SMALL = vit.Config(7, image_size=32, patch_size=8, dim=48, n_layers=3, n_heads=3, mlp_dim=96)
TIMM = replace(vit.VARIANTS["vit_tiny_patch16_224"], n_classes=10, image_size=64, n_layers=2)
HUGGINGFACE = replace(SMALL, norm_eps=1e-12)


@pytest.mark.oracle
def test_parity_with_timm():
    theirs = oracles.import_timm().create_model(
        "vit_tiny_patch16_224", num_classes=10, img_size=64, depth=2
    )
    x = parity.images(2, 3, 64, 64)
    parity.check_against_reference("vit/timm", parity.into(theirs), "vit", TIMM, "timm", x)


@pytest.mark.oracle
def test_parity_with_transformers(tmp_path: Path):
    transformers = oracles.import_transformers()
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        num_labels=7,
    )
    load = parity.through_files(transformers.ViTForImageClassification, config, tmp_path)
    x = parity.images(2, 3, 32, 32)
    parity.check_against_reference("vit/huggingface", load, "vit", HUGGINGFACE, "huggingface", x)


@pytest.mark.parametrize(("source", "config"), [("timm", TIMM), ("huggingface", HUGGINGFACE)])
def test_parity_with_stored_outputs(source: str, config: vit.Config):
    x = parity.images(2, 3, config.image_size, config.image_size)
    parity.check_against_stored(f"vit/{source}", "vit", config, source, x)


@pytest.mark.oracle
@pytest.mark.parametrize("grid", [(6, 6), (3, 5), (2, 2)])
def test_positions_are_resized_as_in_timm(grid: tuple[int, int]):
    oracles.import_timm()
    from timm.layers import resample_abs_pos_embed

    positions = torch.from_numpy(parity.seeded((1, 17, 8), "positions"))
    expected = resample_abs_pos_embed(positions, list(grid), num_prefix_tokens=1)
    assert parity.relative_error(vit.resize_positions(positions, *grid), expected) <= 1e-6


def test_images_of_another_size_are_taken():
    network = vit.Model(SMALL).eval()
    assert network(torch.randn(2, 3, 48, 16)).shape == (2, 7)
    positions = network.embed.pos_embed
    assert vit.resize_positions(positions, 4, 4) is positions


def test_patches_that_do_not_fit_are_an_error_with_the_cure():
    with pytest.raises(DataError, match=r"36 x 32 .* 8 x 8: choose .* multiple of 8"):
        vit.Model(SMALL)(torch.randn(1, 3, 36, 32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 50}, "dim 50 is not a multiple of n_heads 3"),
        ({"image_size": 33}, "image_size 33 is not a multiple of patch_size 8"),
    ],
)
def test_impossible_sizes_are_errors(fields: dict[str, int], message: str):
    with pytest.raises(OptionError, match=message):
        replace(SMALL, **fields)


def test_fused_and_plain_attention_make_the_same_network(monkeypatch: pytest.MonkeyPatch):
    network, x = vit.Model(SMALL).eval(), parity.images(2, 3, 32, 32)
    with torch.no_grad():
        fused = network(x)

        def plain(q, k, v, mask, causal, dropout):
            return plain_attention(q, k, v, mask=mask, causal=causal)

        monkeypatch.setattr(self_attention, "attention", plain)
        assert parity.relative_error(network(x), fused) <= 1e-5
    assert attention is not plain_attention


def test_patch_order_matters_only_through_positions():
    network = vit.Model(SMALL).eval()
    x = parity.images(1, 3, 32, 32)
    turned = x.roll(8, dims=3)  # the patches of each row, moved on by one
    with torch.no_grad():
        assert not torch.allclose(network(x), network(turned), atol=1e-6)
        network.embed.pos_embed.zero_()
        torch.testing.assert_close(network(x), network(turned), rtol=1e-5, atol=1e-5)
