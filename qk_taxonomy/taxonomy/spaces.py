"""Histograms with a distance between them: how far heads lie apart, and the centres of classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import TaxonomyError
from qk_taxonomy.records import Distance

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Heads that k-medoids take: they need the distances of all pairs, 8·n² bytes.
MOST_MEDOID_HEADS = 6000

# The silhouette compares all pairs of heads: beyond this number, those of a sample.
_SILHOUETTE_HEADS = 5000


class Space(ABC):
    """Heads as points: their histograms (n, bins), and a distance."""

    distance: Distance

    #: Starts of one fit of the centres, the best of which is kept.
    starts: int

    #: The same for one of many fits to samples of the heads.
    sample_starts: int

    def __init__(self, histograms: Array) -> None:
        self.histograms = histograms

    def __len__(self) -> int:
        return len(self.histograms)

    @cached_property
    def n_distinct(self) -> int:
        """Number of different histograms."""
        return len(np.unique(self.histograms, axis=0))

    @abstractmethod
    def fit(self, n_clusters: int, *, seed: int, starts: int, rows: Integers) -> Array:
        """Centres (n_clusters, bins) of heads ``rows``, which may repeat; best of ``starts``."""

    @abstractmethod
    def to(self, centres: Array) -> Array:
        """Distances (n, k) of all heads to centres (k, bins)."""

    @abstractmethod
    def silhouette(self, labels: Integers, *, seed: int) -> float:
        """Mean silhouette of classes (n,), nan where it is not defined. Rousseeuw (1987)."""

    @property
    @abstractmethod
    def for_umap(self) -> tuple[Array, str]:
        """What UMAP takes: points or a matrix of distances, and its name for the metric."""


class EuclideanSpace(Space):
    """Euclidean distance of density histograms; centres are means (k-means)."""

    distance: Distance = "euclidean"
    # With one, membership depends on the order in which heads come.
    starts, sample_starts = 25, 5

    def fit(self, n_clusters: int, *, seed: int, starts: int, rows: Integers) -> Array:
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        # On one thread sums have one order, so the same heads give the same bytes; it is also
        # faster, since a pool of heads is small.
        with threadpool_limits(1, user_api="openmp"):
            kmeans = KMeans(n_clusters, random_state=seed, n_init=starts)
            centres = kmeans.fit(self.histograms[rows]).cluster_centers_
        # An empty bin comes back as ±1e-17, since k-means subtracts the mean and adds it again.
        return np.maximum(centres, 0.0)

    def to(self, centres: Array) -> Array:
        from scipy.spatial.distance import cdist

        return np.asarray(cdist(self.histograms, centres))

    def silhouette(self, labels: Integers, *, seed: int) -> float:
        return _silhouette(self.histograms, labels, "euclidean", seed)

    @property
    def for_umap(self) -> tuple[Array, str]:
        return self.histograms, "euclidean"


class JensenShannonSpace(Space):
    """Jensen–Shannon distance of histograms: the square root of the divergence in nats.

    A metric within [0, √ln 2] (Endres & Schindelin 2003). Centres are medoids, heads themselves,
    by FasterPAM (Schubert & Rousseeuw 2021), of at most 6,000. A head with no λ within the
    histogram is at distance 0 from others like it and √ln 2 from all others.
    """

    distance: Distance = "jensen-shannon"
    # FasterPAM finds the same medoids from most starts.
    starts, sample_starts = 5, 2

    @cached_property
    def matrix(self) -> Array:
        """Distances (n, n) of all pairs of heads. Raises TaxonomyError where they are too many."""
        from scipy.spatial.distance import pdist, squareform

        if len(self) > MOST_MEDOID_HEADS:
            raise TaxonomyError(
                f"The Jensen–Shannon distance sorts at most {MOST_MEDOID_HEADS} heads, since it "
                f"keeps the distances of all pairs; found {len(self)}. Choose fewer models, or "
                "--distance euclidean."
            )
        return squareform(_near_is_zero(pdist(_distributions(self.histograms), "jensenshannon")))

    def fit(self, n_clusters: int, *, seed: int, starts: int, rows: Integers) -> Array:
        from kmedoids import fasterpam

        among = self.matrix[np.ix_(rows, rows)]
        # Its threads would make the result depend on their order.
        fits = [
            fasterpam(among, n_clusters, random_state=seed_after(seed, i), n_cpu=1)
            for i in range(starts)
        ]
        best = min(fits, key=lambda fit: fit.loss)
        return self.histograms[rows[np.sort(np.asarray(best.medoids, dtype=np.int64))]]

    def to(self, centres: Array) -> Array:
        from scipy.spatial.distance import cdist

        heads, others = _distributions(self.histograms), _distributions(centres)
        return _near_is_zero(cdist(heads, others, "jensenshannon"))

    def silhouette(self, labels: Integers, *, seed: int) -> float:
        return _silhouette(self.matrix, labels, "precomputed", seed)

    @property
    def for_umap(self) -> tuple[Array, str]:
        return self.matrix, "precomputed"


_SPACES: dict[Distance, type[Space]] = {
    space.distance: space for space in (EuclideanSpace, JensenShannonSpace)
}


def space_of(histograms: Array, distance: Distance) -> Space:
    """Histograms (n, bins) with a distance."""
    return _SPACES[distance](histograms)


def seed_after(seed: int, i: int) -> int:
    """The seed that comes i + 1 after one; numpy's seeds end at 2³² − 1."""
    return (seed + 1 + i) % 2**32


def _distributions(histograms: Array) -> Array:
    """Histograms (n, bins) as distributions (n, bins + 1): an empty one has all in the last bin."""
    total = histograms.sum(-1, keepdims=True)
    share = np.divide(histograms, total, out=np.zeros_like(histograms), where=total > 0)
    return np.concatenate([share, total == 0], axis=-1)


def _near_is_zero(distances: Any) -> Array:
    """Rounding can make the divergence of nearly equal histograms negative, and its root nan."""
    return np.nan_to_num(np.asarray(distances, dtype=np.float64), nan=0.0)


def _silhouette(points: Array, labels: Integers, metric: str, seed: int) -> float:
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(labels)) < len(labels):
        return float("nan")
    if len(labels) <= _SILHOUETTE_HEADS:
        return float(silhouette_score(points, labels, metric=metric))
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(labels), _SILHOUETTE_HEADS, replace=False))
    part = points[np.ix_(rows, rows)] if metric == "precomputed" else points[rows]
    if len(np.unique(labels[rows])) < 2:
        return float("nan")
    return float(silhouette_score(part, labels[rows], metric=metric))
