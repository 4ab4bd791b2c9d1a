"""Time: measured steps, their interval, and the roofline."""

import pytest

from layerwise.planning import timing
from layerwise.planning.hardware import hardware
from layerwise.planning.rehearsal import rehearse
from layerwise.planning.step import Setting


def test_the_first_step_does_not_set_the_pace():
    total = timing.from_measured([5.0, 1.0, 1.0, 1.0, 1.0], 100)
    assert total.value == pytest.approx(100)
    assert total.low < 100 < total.high


def test_spread_and_drift_widen_the_interval():
    steady = timing.from_measured([1.0, 1.0, 1.01, 1.0, 0.99], 10)
    spread = timing.from_measured([1.0, 0.7, 1.4, 0.8, 1.3], 10)
    drift = timing.from_measured([1.0, 1.0, 1.1, 1.4, 1.5], 10)
    width = lambda e: (e.high - e.low) / e.value  # noqa: E731
    assert width(steady) < width(drift)
    assert width(steady) < width(spread)


def test_one_measured_step_is_an_estimate_too():
    assert timing.from_measured([2.0], 10).value == pytest.approx(20)


def test_measured_steps_train_a_network_of_their_own(dense, example, task):
    seconds = timing.measure_steps(dense(), example(20), task, Setting(8), steps=3)
    assert len(seconds) == 3
    assert all(s > 0 for s in seconds)


def test_this_processor_is_measured_once(monkeypatch):
    timing.measured_rates.cache_clear()
    best, measured = timing._best, []
    monkeypatch.setattr(timing, "_best", lambda run: measured.append(run) or best(run))
    rates = timing.measured_rates()
    n = len(measured)
    assert timing.measured_rates() is rates
    assert len(measured) == n == len(rates.flops) + 2  # memory and overhead
    assert rates.flops["matmul", "fp32"] > 1e9
    assert 1e8 < rates.bandwidth < 1e13


@pytest.mark.parametrize(("each", "runs"), [(0.2, 1), (0.04, 3), (0.0001, 30)])
def test_a_measurement_stops_at_its_budget(monkeypatch, each, runs):
    timed = []
    monkeypatch.setattr(timing, "_seconds", lambda run: timed.append(run) or each)
    assert timing._best(lambda: None, budget=0.1) == each
    assert len(timed) == runs


def test_roofline_follows_the_work_and_the_hardware(stack, example, task):
    small = rehearse(stack, example(3, 64, 64), task, Setting(256, dtype="bf16"))
    large = rehearse(stack, example(3, 64, 64), task, Setting(4096, dtype="bf16"))
    a100, h100 = hardware("a100"), hardware("h100")
    seconds = lambda trace, machine: timing.from_roofline(trace, machine, 10).value  # noqa: E731
    assert seconds(large, a100) > 8 * seconds(small, a100)
    assert seconds(large, h100) < seconds(large, a100)
    estimate = timing.from_roofline(large, a100, 10)
    assert estimate.low < estimate.value < estimate.high
