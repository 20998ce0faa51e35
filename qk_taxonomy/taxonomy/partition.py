"""Classes of heads: each head goes to its nearest centre, and numbers are canonical."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import TaxonomyError
from qk_taxonomy.taxonomy.spaces import Array, Space

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Partition:
    """``labels`` (n,) of heads, the numbers of their nearest ``centres`` (k, bins)."""

    labels: Integers
    centres: Array

    @property
    def n_clusters(self) -> int:
        return len(self.centres)


def sort_into_classes(
    space: Space, n_clusters: int, *, seed: int = 0, starts: int | None = None
) -> Partition:
    """Classes of the heads of a space, numbered canonically; best of ``starts`` (the space's own).

    Classes are in descending order of the mean of their mean histogram: class 0 has the spectra
    whose λ are most alike, the last those in which a few λ dwarf the others. A class keeps its
    number whatever the seed and the order of heads. Raises TaxonomyError where there are fewer
    distinct heads than classes.
    """
    if not 1 <= n_clusters <= space.n_distinct:
        raise TaxonomyError(
            f"{len(space)} heads with {space.n_distinct} different histograms cannot be sorted "
            f"into {n_clusters} classes. Choose between 1 and {space.n_distinct} with --clusters."
        )
    everyone = np.arange(len(space))
    centres = space.fit(n_clusters, seed=seed, starts=starts or space.starts, rows=everyone)
    order = _canonical_order(space.histograms, nearest(space, centres), n_clusters)
    return Partition(nearest(space, centres[order]), centres[order])


def nearest(space: Space, centres: Array) -> Integers:
    """The number (n,) of each head's nearest centre, the first of equally near ones."""
    return np.asarray(space.to(centres).argmin(-1))


def _canonical_order(histograms: Array, labels: Integers, n_clusters: int) -> Integers:
    """The classes in order of the mean of their members' mean histogram, the largest first."""
    means = np.stack([histograms[labels == k].mean(0) for k in range(n_clusters)])
    share = means / np.maximum(means.sum(-1, keepdims=True), np.finfo(float).tiny)
    mean = (share * np.arange(histograms.shape[1])).sum(-1)
    return np.lexsort((*means.T, -mean))


def class_radii(space: Space, partition: Partition) -> Array:
    """The distance (k,) from each class's centre within which 99 % of its own heads lie.

    The smallest such distance that a head has: the farthest head's in classes of up to 100.
    """
    own = space.to(partition.centres)[np.arange(len(space)), partition.labels]
    return np.array(
        [
            np.quantile(own[partition.labels == k], 0.99, method="higher")
            for k in range(partition.n_clusters)
        ]
    )
