"""Permutation tests that move whole models between groups: the model is the unit of replication.

Heads and layers of one model are not independent of each other, so none of them is ever relabelled
without the rest of its model.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.statistics.findings import LEVEL

Array = NDArray[np.float64]


def n_relabellings(sizes: Sequence[int]) -> int:
    """Number of ways to share models out to groups of these sizes: the multinomial coefficient."""
    return math.factorial(sum(sizes)) // math.prod(math.factorial(size) for size in sizes)


def least_p_value(sizes: Sequence[int]) -> float:
    """Smallest p-value that relabelling models in groups of these sizes can give.

    Groups of one size may change places without changing a two-sided statistic, so the observed
    labels are always found several times.
    """
    swaps = math.prod(math.factorial(times) for times in Counter(sizes).values())
    return swaps / n_relabellings(sizes)


def models_needed(n_groups: int) -> int:
    """Fewest models a group, of equally many, with which a p-value of 0.05 can be reached."""
    size = 1
    while least_p_value([size] * n_groups) > LEVEL:
        size += 1
    return size


def obstacle(sizes: Sequence[int]) -> str:
    """Why groups of these sizes have no permutation test; empty where they have one."""
    if len(sizes) < 2:
        return f"{len(sizes)} group with finite values; wanted at least 2"
    least = least_p_value(sizes)
    if least <= LEVEL:
        return ""
    return (
        f"{' + '.join(map(str, sizes))} models cannot give p ≤ {LEVEL} (at best {least:.2g}); "
        f"needs {models_needed(len(sizes))} a group"
    )


@functools.lru_cache(maxsize=32)
def relabellings(sizes: tuple[int, ...], n_permutations: int, seed: int = 0) -> NDArray[np.intp]:
    """Group numbers (relabellings, models), read-only; row 0 is 0 … 0 1 … 1 …, as observed.

    Every relabelling once where they are at most ``n_permutations`` + 1, else that many random
    ones, the observed among them, so that a share of rows is a p-value that is never 0.
    """
    if n_relabellings(sizes) <= n_permutations + 1:
        rows = [np.full(sum(sizes), -1)]
        for group, size in enumerate(sizes):
            rows = [
                np.where(np.isin(np.arange(len(row)), chosen), group, row)
                for row in rows
                for chosen in combinations(np.flatnonzero(row < 0).tolist(), size)
            ]
        found = np.array(rows)
    else:
        observed = np.repeat(np.arange(len(sizes)), sizes)
        shuffled = np.tile(observed, (n_permutations, 1))
        found = np.vstack([observed, np.random.default_rng(seed).permuted(shuffled, axis=1)])
    found.setflags(write=False)
    return found


def memberships(labels: NDArray[np.intp], n_groups: int) -> Array:
    """Ones and zeros (relabellings, models, groups)."""
    return (labels[..., None] == np.arange(n_groups)).astype(np.float64)


def p_value(statistics: Array) -> float:
    """Share of relabellings with at least the statistic of row 0, the observed one."""
    # Sums in another order must not make an equal relabelling a smaller one.
    slack = 1e-9 * max(1e-300, abs(float(statistics[0])))
    return float((statistics >= statistics[0] - slack).mean())


def in_groups(
    groups: Sequence[str], usable: NDArray[np.bool_]
) -> tuple[list[str], NDArray[np.intp], tuple[int, ...]]:
    """Names of the groups in order, the usable models group by group, and the groups' sizes."""
    kept = [group for group, use in zip(groups, usable, strict=True) if use]
    names = sorted(set(kept))
    numbers = np.array([names.index(group) for group in kept], dtype=np.intp)
    order = np.flatnonzero(usable)[np.argsort(numbers, kind="stable")]
    sizes = tuple(int(size) for size in np.bincount(numbers, minlength=len(names)))
    return names, order, sizes


def left_out(usable: NDArray[np.bool_]) -> str:
    """How many models have no finite values; empty where all have."""
    missing = int((~usable).sum())
    return f"{missing} of {len(usable)} models left out: no finite values" if missing else ""
