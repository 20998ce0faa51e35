"""Densities of λ of models in order of size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.hypotheses.heads import HeadSet, untrained_like
from qk_taxonomy.records import N_BINS
from qk_taxonomy.statistics.densities import histogram_densities, mean_normalised, pool_edges

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ModelDensities:
    """Densities of λ over the head's mean of each model's heads, and of untrained ones.

    ``edges`` (bins + 1,); ``histograms``: (heads, bins) a model, in order of size; ``untrained``:
    (bins,) each, the mean of untrained heads of the model's shape, or None.
    """

    edges: Array
    histograms: tuple[Array, ...]
    untrained: tuple[Array | None, ...]


def densities_of(models: Sequence[HeadSet]) -> ModelDensities:
    """On the bins of all models' heads together. Raises HypothesisError for layers that differ in
    d_head."""
    normalised = [mean_normalised(heads.lam) for heads in models]
    edges = pool_edges(np.concatenate([x.ravel() for x in normalised]), N_BINS)
    nulls = [untrained_like(heads).lam for heads in models]
    return ModelDensities(
        edges,
        tuple(histogram_densities(x, edges) for x in normalised),
        tuple(
            None if lam is None else histogram_densities(mean_normalised(lam), edges).mean(0)
            for lam in nulls
        ),
    )
