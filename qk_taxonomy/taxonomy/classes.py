"""The taxonomy: heads sorted into classes by the histogram of their spectrum, and mapped.

A head is described by λ over its mean, so neither the size of its weights nor the attention scale
matters, only the shape of its spectrum. Classes come from k-means on those histograms; the UMAP
map is for looking at, and no number is read off it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import TaxonomyError
from qk_taxonomy.records import LayerSpectra
from qk_taxonomy.statistics.densities import (
    GammaFit,
    fit_gamma,
    histogram_densities,
    mean_normalised,
    pool_edges,
)

Array = NDArray[np.float64]

N_CLUSTERS = 6
N_BINS = 24

# Starts of k-means: with one, membership depends on the order in which heads come.
_STARTS = 25

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
    """Heads of one model in classes. ``layers``, ``heads``, ``labels`` (n,); ``map`` (n, 2).

    ``edges`` (bins + 1,) of the histograms, in units of the head's mean λ.
    """

    layers: NDArray[np.int64]
    heads: NDArray[np.int64]
    labels: NDArray[np.int64]
    map: Array
    edges: Array
    classes: tuple[HeadClass, ...]


def sort_into_classes(
    histograms: Array, n_clusters: int, *, seed: int = 0, starts: int = _STARTS
) -> NDArray[np.int64]:
    """k-means classes (n,) of histograms (n, bins), numbered canonically.

    Classes are in descending order of the mean of their mean histogram: class 0 has the spectra
    whose λ are most alike, the last those in which a few λ dwarf the others. A class keeps its
    number whatever the seed and the order of heads. Raises TaxonomyError where there are fewer
    distinct heads than classes.
    """
    from sklearn.cluster import KMeans

    distinct = len(np.unique(histograms, axis=0))
    if not 1 <= n_clusters <= distinct:
        raise TaxonomyError(
            f"{len(histograms)} heads with {distinct} different histograms cannot be sorted into "
            f"{n_clusters} classes. Choose between 1 and {distinct} with --clusters."
        )
    kmeans = KMeans(n_clusters, random_state=seed, n_init=starts)
    labels = kmeans.fit_predict(histograms)
    centres = np.stack([histograms[labels == k].mean(0) for k in range(n_clusters)])
    share = centres / np.maximum(centres.sum(-1, keepdims=True), np.finfo(float).tiny)
    mean = (share * np.arange(histograms.shape[1])).sum(-1)
    rank = np.empty(n_clusters, dtype=np.int64)
    rank[np.lexsort((*centres.T, -mean))] = np.arange(n_clusters)
    return np.asarray(rank[labels])


def map_heads(histograms: Array, *, seed: int = 0) -> Array:
    """UMAP coordinates (n, 2) of histograms (n, bins), seeded. McInnes, Healy & Melville (2018)."""
    n = len(histograms)
    if n <= 3:
        # Too few for a neighbour graph: any map of them is as good as this one.
        return np.stack([np.arange(n, dtype=np.float64), np.zeros(n)], axis=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        reducer: Any = UMAP(
            n_neighbors=min(_NEIGHBOURS, n - 1),
            min_dist=_MIN_DIST,
            random_state=seed,
            n_jobs=1,  # UMAP is reproducible on one thread only
            # The spectral start needs more heads than dimensions to spare.
            init="spectral" if n > 2 * _NEIGHBOURS else "random",
        )
        return np.asarray(reducer.fit_transform(histograms), dtype=np.float64)


def describe_classes(
    normalised: Array, histograms: Array, labels: NDArray[np.int64], edges: Array
) -> tuple[HeadClass, ...]:
    """Mean, standard deviation (ddof 0), gamma fit, size and share beyond of classes, in order.

    normalised: λ over the head's mean (heads, n), of which the histograms (heads, bins) were made.
    """
    classes = []
    beyond = np.where(normalised > edges[-1], normalised, 0.0).sum(-1) / normalised.shape[-1]
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
) -> Taxonomy:
    """Sort the heads of one model into classes by their eigenvalue histograms, and map them.

    layers: spectra of one circuit in one convention (``load_spectra(path).select("qk", "raw")``).
    The same heads give the same classes in whatever order they come. Raises TaxonomyError.
    """
    if not layers:
        raise TaxonomyError(
            "There are no spectra of this circuit and convention; `qk-taxonomy download` with "
            "--circuit and --convention makes them."
        )
    ordered = sorted(layers, key=lambda layer: layer.layer)
    lam = [np.square(layer.singular_values.astype(np.float64)) for layer in ordered]
    if len({x.shape[1] for x in lam}) > 1:
        raise TaxonomyError("The heads of these layers differ in d_head and have no common bins.")
    normalised = mean_normalised(np.concatenate(lam))
    if not normalised.any():
        raise TaxonomyError("All heads have zero weights; there is nothing to classify.")
    edges = pool_edges(normalised, n_bins)
    histograms = histogram_densities(normalised, edges)
    labels = sort_into_classes(histograms, n_clusters, seed=seed)
    return Taxonomy(
        layers=np.concatenate(
            [np.full(len(x), y.layer) for x, y in zip(lam, ordered, strict=True)]
        ),
        heads=np.concatenate([np.arange(len(x)) for x in lam]),
        labels=labels,
        map=map_heads(histograms, seed=seed),
        edges=edges,
        classes=describe_classes(normalised, histograms, labels, edges),
    )
