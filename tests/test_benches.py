"""Benches leave out what the processor cannot do, and measure their limit in the dtype used."""

import pathlib
import sys

import pytest
import torch

BENCH = pathlib.Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture
def sidebyside(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.delitem(sys.modules, "sidebyside", raising=False)
    import sidebyside

    return sidebyside


def test_contenders_in_bf16_are_left_out_where_it_is_emulated(sidebyside, monkeypatch, tmp_path):
    monkeypatch.setattr(sidebyside, "multiplies_in_bf16", lambda: False)
    script = tmp_path / "child.py"
    script.write_text("import sys; print('{\"speed\": ' + str(len(sys.argv[2])) + '}')")
    found = sidebyside.rounds(str(script), ("ours bf16", "ours fp32", "torch"), [], n=2)
    assert found == {"ours fp32": [{"speed": 9}] * 2, "torch": [{"speed": 5}] * 2}
    assert sidebyside.first_of_ours(found) == "ours fp32"
    monkeypatch.setattr(sidebyside, "multiplies_in_bf16", lambda: True)
    assert "ours bf16" in sidebyside.rounds(str(script), ("ours bf16",), [], n=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_limit_is_measured_in_the_dtype_that_is_used(sidebyside, monkeypatch, dtype):
    seen = []
    monkeypatch.setattr(sidebyside, "rate", lambda work, flops, seconds: seen.append(work().dtype))
    sidebyside.product_rate(dtype, n=8)
    assert seen == [dtype]
