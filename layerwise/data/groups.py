"""Rows that are the same, as groups. Legend: n rows, m pairs."""

from collections.abc import Hashable, Iterable

import numpy as np


def first_alike(keys: Iterable[Hashable]) -> np.ndarray:
    """The first row with the same key, for each row: (n,)."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(key, i) for i, key in enumerate(keys)], np.int64)


def groups_of(n: int, pairs: np.ndarray) -> np.ndarray:
    """The group of each row (n,): the smallest row that pairs (m, 2) connect it with."""
    group = np.arange(n)
    while True:
        low = np.minimum(group[pairs[:, 0]], group[pairs[:, 1]])
        before = group.copy()
        np.minimum.at(group, pairs[:, 0], low)
        np.minimum.at(group, pairs[:, 1], low)
        group = group[group]  # a row's group may itself have moved
        if (group == before).all():
            return group
