"""Machines by name, and the memory this one has."""

import pathlib

import pytest

from layerwise.errors import OptionError
from layerwise.planning import machine
from layerwise.planning.cost import energy, money
from layerwise.planning.estimate import Estimate
from layerwise.planning.hardware import ACCELERATORS, available_memory, hardware


def test_names_are_forgiving_about_case_and_prefix():
    assert hardware("H100").name == "h100"
    assert hardware("RTX 4090").name == hardware("rtx4090").name == "4090"


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(OptionError, match=r"unknown hardware 'h1000'; did you mean 'h100'"):
        hardware("h1000")


@pytest.mark.parametrize("name", ACCELERATORS)
def test_the_table_is_in_its_units(name: str):
    found = hardware(name)
    assert 10e9 < found.memory < 300e9
    assert 1e12 < found.rates["fp32"] <= found.rates["bf16"] < 1e16
    assert 1e11 < found.bandwidth < 2e13
    for estimate in (found.watts, found.dollars_per_hour, found.efficiency):
        assert 0 < estimate.low <= estimate.value <= estimate.high


def test_available_memory_is_more_than_this_process_and_less_than_a_petabyte():
    assert machine.resident() < available_memory() < 10**15


def test_a_cgroup_limit_counts(tmp_path: pathlib.Path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("300000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 50000\nactive_file 0\n")
    monkeypatch.setattr(machine, "_cgroup_folders", lambda root: [str(tmp_path)])
    assert machine._cgroup_room() == [750000]
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._cgroup_room() == []


def test_energy_and_money_carry_the_interval_of_the_time():
    seconds = Estimate(3600, 1800, 7200)
    h100 = hardware("h100")
    assert money(seconds, h100).value == pytest.approx(h100.dollars_per_hour.value)
    assert money(seconds, h100).high == pytest.approx(2 * h100.dollars_per_hour.high)
    assert energy(seconds, h100).low == pytest.approx(1800 * h100.watts.low)
