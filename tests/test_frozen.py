"""Neighbours by cosine, against votes counted one row at a time."""

import numpy as np
import pytest

from layerwise.tasks import probes


@pytest.mark.parametrize("n_known", [3, 40])
def test_neighbours_are_found_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch, n_known: int):
    rng = np.random.default_rng(0)
    known, asked = rng.normal(size=(n_known, 6)), rng.normal(size=(17, 6))
    targets = rng.integers(0, 4, n_known)
    wanted = np.full((17, 4), 1e-3)
    for votes, row in zip(wanted, asked, strict=True):
        cosines = known @ row / np.linalg.norm(known, axis=1)
        for i in np.argsort(-cosines)[: probes.NEIGHBOURS]:
            votes[targets[i]] += 1
    for at_once in (1, 5, 17, 100):
        monkeypatch.setattr(probes, "ASKED", at_once)
        found = probes.neighbours(known, targets, asked, 4)
        np.testing.assert_allclose(np.exp(found), wanted, rtol=1e-9)
