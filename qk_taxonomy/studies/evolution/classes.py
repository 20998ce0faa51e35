"""One taxonomy of a model's heads at all steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import TaxonomyError
from qk_taxonomy.hypotheses.heads import HeadSet
from qk_taxonomy.taxonomy import HeadClass, sort_into_classes, space_of
from qk_taxonomy.taxonomy.classes import describe_classes
from qk_taxonomy.taxonomy.pool import pool_models

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StepClasses:
    """Classes over all steps: ``labels`` (S, H), ``histograms`` (S, H, bins) on ``edges``."""

    labels: NDArray[np.int64]
    classes: tuple[HeadClass, ...]
    histograms: Array
    edges: Array


def classes_of_steps(
    sets: Sequence[HeadSet], *, n_clusters: int, n_bins: int, seed: int
) -> StepClasses:
    """Sort the heads of all steps into common classes, on common bins.

    As ``taxonomy.joint_taxonomy`` does, without its map, which would take minutes over the heads of
    many steps. Raises TaxonomyError, as where there are fewer distinct histograms than
    ``n_clusters``.
    """
    models = [replace(one.spectra, layers=one.layers) for one in sets]
    pool = pool_models(models, sets[0].circuit, sets[0].convention, include_imported=True)
    edges = pool.edges(n_bins)
    space = space_of(pool.histograms(edges), "euclidean")
    try:
        labels = sort_into_classes(space, n_clusters, seed=seed).labels
    except TaxonomyError as err:
        raise TaxonomyError(f"Heads of {len(sets)} steps together: {err}") from err
    rows = np.stack([np.flatnonzero(pool.models == step) for step in range(len(sets))])
    return StepClasses(
        labels=labels[rows],
        classes=describe_classes(space.histograms, pool.share_beyond(edges), labels, edges),
        histograms=space.histograms[rows],
        edges=edges,
    )
