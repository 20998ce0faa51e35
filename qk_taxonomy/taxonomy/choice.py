"""How many classes: whether they come back in other samples of heads, and how far apart they lie.

*Stability* of k classes: heads are drawn with replacement, as many as there are but at most 1,000;
centres are fitted to this sample; all heads go to the nearest of them; the adjusted Rand index
(Hubert & Arabie 1985) compares that with the classes of all heads. Its mean over 40 samples is the
stability: 1 where every sample gives the same classes, near 0 where they agree no more than by
chance. Samples are Hennig's (2007) bootstrap; comparing whole partitions for each k, and taking a
large k that is still stable, follows Ben-Hur, Elisseeff & Guyon (2002).

Stability says that a partition is found again, not that classes are apart: it also grows with the
number of heads, and one long cloud can be cut in two in a stable way. So the *silhouette*
(Rousseeuw 1987) stands beside it: near 0 where classes touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qk_taxonomy.errors import TaxonomyError
from qk_taxonomy.records import N_BINS, Circuit, Convention, Distance, ModelSpectra
from qk_taxonomy.taxonomy.partition import nearest, sort_into_classes
from qk_taxonomy.taxonomy.pool import pool_models
from qk_taxonomy.taxonomy.spaces import Integers, Space, seed_after, space_of

#: Stability from which on a number of classes is taken for stable.
STABLE = 0.8

#: A larger number may be less stable than the best by this much. Three classes that are there, with
#: one of them cut in two at random, still reach 0.85: stable alone would be one class too many.
LARGER_MAY_LOSE = 0.05

#: Where no number is stable, a smaller one may be less stable than the best by this much: heads of
#: one kind give low values that say nothing by their order.
SMALLER_MAY_LOSE = 0.1

#: The numbers of classes that are looked at.
FEWEST, MOST = 2, 10

# With 40 samples the standard error of the stability is mostly below 0.03.
_SAMPLES = 40

# Enough heads to find a class of a few per cent in; with more of them, k-medoids take minutes.
_LARGEST_SAMPLE = 1000


@dataclass(frozen=True)
class ClusterQuality:
    """Quality of k classes: ``stability`` with its ``standard_error`` over samples, and the mean
    ``silhouette``, nan where it is not defined (one class, or one head a class).
    """

    n_clusters: int
    stability: float
    standard_error: float
    silhouette: float


@dataclass(frozen=True)
class ClusterChoice:
    """The quality of every number of classes looked at, and the one of them that is ``chosen``."""

    table: tuple[ClusterQuality, ...]
    chosen: ClusterQuality


def cluster_quality(space: Space, labels: Integers, *, seed: int = 0) -> ClusterQuality:
    """Stability and silhouette of classes (n,), numbered from 0, of the heads of a space."""
    from sklearn.metrics import adjusted_rand_score

    n_clusters = int(labels.max()) + 1
    rng = np.random.default_rng(seed)
    indices = []
    for sample in range(_SAMPLES):
        rows = np.sort(rng.integers(len(space), size=min(len(space), _LARGEST_SAMPLE)))
        # A sample with fewer different heads than classes has no more centres than heads.
        k = min(n_clusters, len(np.unique(space.histograms[rows], axis=0)))
        seed_of_fit = seed_after(seed, sample)
        centres = space.fit(k, seed=seed_of_fit, starts=space.sample_starts, rows=rows)
        indices.append(adjusted_rand_score(labels, nearest(space, centres)))
    return ClusterQuality(
        n_clusters=n_clusters,
        stability=float(np.mean(indices)),
        standard_error=float(np.std(indices, ddof=1) / np.sqrt(_SAMPLES)),
        silhouette=space.silhouette(labels, seed=seed),
    )


def evaluate_clusters(space: Space, *, seed: int = 0) -> ClusterChoice:
    """The quality of 2 to 10 classes, and the choice among them.

    At most half as many classes as there are different heads. Raises TaxonomyError where that
    leaves less than two.
    """
    most = min(MOST, space.n_distinct // 2)
    if most < FEWEST:
        raise TaxonomyError(
            f"{len(space)} heads with {space.n_distinct} different histograms are too few to "
            f"choose a number of classes from, which takes {2 * FEWEST}. Give a number with "
            "--clusters."
        )
    table = tuple(
        cluster_quality(space, sort_into_classes(space, k, seed=seed).labels, seed=seed)
        for k in range(FEWEST, most + 1)
    )
    return ClusterChoice(table, _choose(table))


def _choose(table: Sequence[ClusterQuality]) -> ClusterQuality:
    """The largest number that is stable and nearly as stable as the best, else the smallest that
    is about as unstable as the best.
    """
    best = max(quality.stability for quality in table)
    if best < STABLE:
        return next(q for q in table if q.stability >= best - SMALLER_MAY_LOSE)
    least = max(STABLE, best - LARGER_MAY_LOSE)
    return [quality for quality in table if quality.stability >= least][-1]


def choose_n_clusters(
    models: Sequence[ModelSpectra],
    *,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    n_bins: int = N_BINS,
    seed: int = 0,
    distance: Distance = "euclidean",
    include_imported: bool = False,
) -> ClusterChoice:
    """The number of classes of the heads of one or more models: 2 to 10 are evaluated.

    Chosen is the largest number whose stability (this module says what that is) is at least 0.8
    and within 0.05 of the best; where none reaches 0.8, the smallest within 0.1 of the best: then
    no number is well founded. The same models are pooled as by
    :func:`joint_taxonomy`. Raises TaxonomyError.
    """
    pool = pool_models(models, circuit, convention, include_imported=include_imported)
    space = space_of(pool.histograms(pool.edges(n_bins)), distance)
    return evaluate_clusters(space, seed=seed)
