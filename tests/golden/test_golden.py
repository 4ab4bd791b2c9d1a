"""Seeded fits come out as they were recorded: see `fits`."""

import pathlib

import pytest

from tests.golden import records
from tests.golden.fits import RECORDED, chains, recorded, recorded_on


def same_machine() -> bool:
    return recorded_on() == records.machine()


@pytest.mark.parametrize("chain", chains(), ids=lambda chain: chain[0])
def test_fits_come_out_as_recorded(chain: list[str], tmp_path: pathlib.Path):
    """Exactly on the machine that recorded them, within tolerances on another one."""
    exact, wrong = same_machine(), {}
    for name, got in recorded(chain, tmp_path.resolve()):
        want = records.read(RECORDED / f"{name}.json")
        if not exact:
            want, got = records.robust(want), records.robust(got)
        if lines := records.differences(want, got, loose=not exact):
            wrong[name] = lines
    said = [f"{name}: {len(lines)} differences" for name, lines in wrong.items()]
    first = [f"  {name} {line}" for name, lines in wrong.items() for line in lines]
    assert not wrong, "\n".join([*said, *first[: records.SHOWN]])


def test_this_is_the_machine_that_recorded():
    """Skipped elsewhere, so that it shows when results were compared within tolerances alone."""
    if not same_machine():
        lines = records.differences(recorded_on(), records.machine())
        pytest.skip("compared within tolerances: " + "; ".join(lines))
