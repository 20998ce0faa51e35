"""How far classes depend on choices that nothing in the heads decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qk_taxonomy.errors import TaxonomyError
from qk_taxonomy.records import DISTANCES, Distance
from qk_taxonomy.taxonomy.classes import Taxonomy
from qk_taxonomy.taxonomy.partition import sort_into_classes
from qk_taxonomy.taxonomy.spaces import Space, seed_after, space_of

#: Other seeds, and numbers of bins, that classes are compared with.
N_SEEDS = 4
BINS = (16, 24, 32, 48)

Varied = Literal["seed", "bins", "distance"]


@dataclass(frozen=True)
class Agreement:
    """Adjusted Rand index between the classes and those of a run in which one choice is other.

    ``ari`` is 1 for the same classes and near 0 for classes that agree no more than by chance; nan
    where no such run can be made: too few different histograms, or too many heads for k-medoids.
    """

    varied: Varied
    value: str
    ari: float


def class_agreement(taxonomy: Taxonomy) -> tuple[Agreement, ...]:
    """The agreement of a taxonomy's classes with runs of other seeds, bins and distance."""
    return tuple(
        Agreement(varied, value, _index(taxonomy, space, seed))
        for varied, value, space, seed in _runs(taxonomy)
    )


def _runs(taxonomy: Taxonomy) -> Iterator[tuple[Varied, str, Space, int]]:
    saved, pool = taxonomy.saved, taxonomy.pool
    for i in range(N_SEEDS):
        seed = seed_after(saved.seed, i)
        yield "seed", str(seed), taxonomy.space, seed

    def space(n_bins: int, distance: Distance) -> Space:
        return space_of(pool.histograms(pool.edges(n_bins)), distance)

    chosen_bins = len(saved.edges) - 1
    for n_bins in BINS:
        if n_bins != chosen_bins:
            yield "bins", str(n_bins), space(n_bins, saved.distance), saved.seed
    for distance in DISTANCES:
        if distance != saved.distance:
            yield "distance", distance, space(chosen_bins, distance), saved.seed


def _index(taxonomy: Taxonomy, space: Space, seed: int) -> float:
    from sklearn.metrics import adjusted_rand_score

    try:
        other = sort_into_classes(space, taxonomy.saved.n_clusters, seed=seed)
    except TaxonomyError:
        return float("nan")
    return float(adjusted_rand_score(taxonomy.labels, other.labels))
