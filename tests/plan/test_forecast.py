"""The whole plan: what it says, when it refuses, and what it offers instead."""

import json

import pytest
import torch

from layerwise.errors import DoesNotFit, OptionError
from layerwise.planning import make_plan

MB = 10**6


@pytest.fixture
def plan(stack, example, task):
    return make_plan(
        stack, example(3, 64, 64), task, device_batch_size=64, steps=100, hardware="a100",
    )  # fmt: skip


def cpu_plan(network, batch, task, **options):
    options = {"device_batch_size": 64, "steps": 10, "base": 300 * MB, **options}
    return make_plan(network, batch, task, **options)


def test_a_plan_says_everything_with_intervals(plan):
    assert {"weights", "gradients", "optimizer", "activations", "buffers", "peak"} <= set(
        plan.memory
    )
    assert plan.flops_total == pytest.approx(plan.flops_per_sample * 64 * 100)
    for estimate in (plan.memory["peak"], plan.seconds, plan.joules, plan.money):
        assert 0 < estimate.low < estimate.value < estimate.high
    assert plan.timed_by == "roofline"


def test_it_prints_and_saves(plan):
    text = "\n".join(plan.lines())
    for words in ("parameters", "peak memory", "time on a100", "energy", "money"):
        assert words in text
    assert "\n" not in str(plan)
    saved = json.loads(json.dumps(plan.to_dict()))
    assert saved["memory"]["peak"]["value"] == plan.memory["peak"].value
    assert [x["name"] for x in saved["layers"]][:2] == ["block0", "block1"]


def test_the_batch_size_is_the_examples_unless_given(dense, example, task):
    plan = make_plan(dense, example(20, rows=6), task, steps=3, dtype=torch.bfloat16)
    assert plan.setting.device_batch_size == 6
    assert plan.setting.dtype == "bf16"
    assert plan.hardware == "cpu"


def test_a_real_network_is_measured_and_left_alone(dense, example, task):
    network = dense()
    before = [p.clone() for p in network.parameters()]
    state = torch.get_rng_state()
    plan = make_plan(network, example(20, rows=4), task, steps=50, measure=True)
    assert plan.timed_by == "5 measured steps"
    assert 0 < plan.seconds.value < 50
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_fits(plan):
    peak = plan.memory["peak"]
    assert plan.fits(peak.value + 1)
    assert not plan.fits(peak.value - 1)
    assert plan.suggest(peak.value + 1) == []


def test_what_does_not_fit_is_refused_with_what_would(stack, example, task):
    plan = cpu_plan(stack, example(3, 64, 64), task, device_batch_size=256)
    room = 300 * MB + (plan.memory["peak"].value - 300 * MB) / 3
    with pytest.raises(DoesNotFit) as caught:
        plan.require_fit(room)
    sentence = str(caught.value)
    assert "needs about" in sentence
    assert "are available. What would fit: device_batch_size" in sentence
    assert "with grad_accum_steps" in sentence
    assert "checkpointing per layer" in sentence
    assert caught.value.exit_code == 5


def test_every_remedy_is_planned_and_fits(stack, example, task):
    plan = cpu_plan(stack, example(3, 64, 64), task, device_batch_size=256)
    room = 300 * MB + (plan.memory["peak"].value - 300 * MB) / 3
    remedies = plan.suggest(room)
    assert len(remedies) >= 3
    for remedy in remedies:
        assert remedy.plan.fits(room)
        assert remedy.plan.setting.global_batch_size == 256


def test_where_nothing_fits_it_says_so(stack, example, task):
    plan = cpu_plan(stack, example(3, 64, 64), task)
    with pytest.raises(DoesNotFit, match="nothing tried would fit"):
        plan.require_fit(200 * MB)


def test_unknown_names_are_refused(dense, example, task):
    with pytest.raises(OptionError, match="unknown hardware"):
        make_plan(dense, example(20), task, steps=1, hardware="gpu9000")
    with pytest.raises(OptionError, match="unknown optimizer"):
        make_plan(dense, example(20), task, steps=1, optimizer="adan")
