"""The taxonomy: heads sorted into classes by the histogram of their spectrum, and mapped.

Classes come from k-means, or k-medoids, on those histograms; the UMAP map is for looking at, and
no number is read off it. Every head counts once, so a model of many heads has more say in a joint
taxonomy than one of few: classes are kinds of heads, not of models.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.records import (
    N_BINS,
    N_CLUSTERS,
    Circuit,
    Convention,
    Distance,
    LayerSpectra,
    ModelSpectra,
)
from qk_taxonomy.statistics.densities import GammaFit, fit_gamma
from qk_taxonomy.taxonomy.partition import class_radii, sort_into_classes
from qk_taxonomy.taxonomy.pool import Array, HeadPool, Integers, pool_layers, pool_models
from qk_taxonomy.taxonomy.saved import SavedTaxonomy, Source, source_of
from qk_taxonomy.taxonomy.spaces import Space, space_of

# The predecessor's map: ten neighbours keep a class of a dozen heads together.
_NEIGHBOURS, _MIN_DIST = 10, 0.1


@dataclass(frozen=True, eq=False)
class HeadClass:
    """One class: mean and standard deviation of its heads' histograms, and the gamma fit.

    ``beyond``: share of Σλ, in the mean over heads, that lies in λ beyond the histograms.
    """

    number: int
    mean: Array
    std: Array
    gamma: GammaFit
    n_heads: int
    beyond: float


@dataclass(frozen=True, eq=False)
class Taxonomy:
    """Heads of one or more models in classes: ``labels`` (n,) in the order of ``pool``.

    ``map`` (n, 2): UMAP coordinates. ``space``: the heads' histograms and their distance.
    ``saved``: what a file keeps, and what sorts heads of other models into these classes.
    """

    pool: HeadPool
    space: Space
    labels: Integers
    map: Array
    classes: tuple[HeadClass, ...]
    saved: SavedTaxonomy

    @property
    def models(self) -> Integers:
        """Each head's model (n,), as its position among those handed in."""
        return self.pool.models

    @property
    def stacks(self) -> NDArray[np.str_]:
        """Each head's stack (n,)."""
        return self.pool.stacks

    @property
    def layers(self) -> Integers:
        """Each head's layer (n,)."""
        return self.pool.layers

    @property
    def heads(self) -> Integers:
        """Each head's number in its layer (n,)."""
        return self.pool.heads

    @property
    def edges(self) -> Array:
        """Edges (bins + 1,) of the histograms, in units of the head's mean λ."""
        return self.saved.edges


def map_heads(space: Space, *, seed: int = 0) -> Array:
    """UMAP coordinates (n, 2) of heads, seeded. McInnes, Healy & Melville (2018)."""
    n = len(space)
    if n <= 3:
        # Too few for a neighbour graph: any map of them is as good as this one.
        return np.stack([np.arange(n, dtype=np.float64), np.zeros(n)], axis=-1)
    points, metric = space.for_umap
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        reducer: Any = UMAP(
            n_neighbors=min(_NEIGHBOURS, n - 1),
            min_dist=_MIN_DIST,
            metric=metric,
            random_state=seed,
            n_jobs=1,  # UMAP is reproducible on one thread only
            # The spectral start needs more heads than dimensions to spare.
            init="spectral" if n > 2 * _NEIGHBOURS else "random",
        )
        return np.asarray(reducer.fit_transform(points), dtype=np.float64)


def describe_classes(
    histograms: Array, beyond: Array, labels: Integers, edges: Array
) -> tuple[HeadClass, ...]:
    """Mean, standard deviation (ddof 0), gamma fit, size and share beyond of classes, in order.

    histograms (n, bins); beyond (n,): share of each head's Σλ beyond the last edge.
    """
    classes = []
    for number in range(int(labels.max()) + 1):
        members = histograms[labels == number]
        mean = members.mean(0)
        classes.append(
            HeadClass(
                number=number,
                mean=mean,
                std=members.std(0),
                gamma=fit_gamma(mean, edges),
                n_heads=len(members),
                beyond=float(beyond[labels == number].mean()),
            )
        )
    return tuple(classes)


def classify_heads(
    layers: Sequence[LayerSpectra],
    *,
    n_clusters: int = N_CLUSTERS,
    n_bins: int = N_BINS,
    seed: int = 0,
    distance: Distance = "euclidean",
) -> Taxonomy:
    """Sort the heads of one model into classes by their eigenvalue histograms, and map them.

    layers: spectra of one circuit in one convention (``load_spectra(path).select("qk", "raw")``).
    The same heads give the same classes in whatever order they come. Raises TaxonomyError.
    """
    return _taxonomy(pool_layers(layers), (), n_clusters, n_bins, seed, distance)


def joint_taxonomy(
    models: Sequence[ModelSpectra],
    *,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    n_clusters: int = N_CLUSTERS,
    n_bins: int = N_BINS,
    seed: int = 0,
    distance: Distance = "euclidean",
    include_imported: bool = False,
) -> Taxonomy:
    """Sort the heads of many models into common classes, on common bins; one model will do.

    Heads may differ in d_head. Controls are left out; imported spectra too, where there are exact
    ones and ``include_imported`` is False. The order of models does not matter. Raises
    TaxonomyError, also where a model has no spectra of this circuit and convention.
    """
    pool = pool_models(models, circuit, convention, include_imported=include_imported)
    pooled = dict.fromkeys(pool.models.tolist())
    sources = tuple(source_of(models[index]) for index in pooled)
    return _taxonomy(pool, sources, n_clusters, n_bins, seed, distance)


def _taxonomy(
    pool: HeadPool,
    sources: tuple[Source, ...],
    n_clusters: int,
    n_bins: int,
    seed: int,
    distance: Distance,
) -> Taxonomy:
    edges = pool.edges(n_bins)
    space = space_of(pool.histograms(edges), distance)
    partition = sort_into_classes(space, n_clusters, seed=seed)
    labels = partition.labels
    return Taxonomy(
        pool=pool,
        space=space,
        labels=labels,
        map=map_heads(space, seed=seed),
        classes=describe_classes(space.histograms, pool.share_beyond(edges), labels, edges),
        saved=SavedTaxonomy(
            centres=partition.centres,
            edges=edges,
            radii=class_radii(space, partition),
            n_heads=np.bincount(labels),
            circuit=pool.circuit,
            convention=pool.convention,
            distance=distance,
            seed=seed,
            narrowest=pool.narrowest,
            models=sources,
        ),
    )
