"""What untrained heads look like on the study's bins, and which heads are still like them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.hypotheses.heads import Untrained
from qk_taxonomy.statistics.changes import far_heads
from qk_taxonomy.statistics.densities import (
    histogram_densities,
    jensen_shannon_divergence,
    mean_normalised,
)
from qk_taxonomy.statistics.ranks import count_outside, monte_carlo_p_values
from qk_taxonomy.studies.evolution.records import UntrainedNull

Array = NDArray[np.float64]

# A pair in so many lies beyond what is called usual.
_USUAL = 0.95


def untrained_null(untrained: Untrained, edges: Array) -> UntrainedNull:
    """Histograms of untrained heads, and how far two of them are apart; edges: (bins + 1,)."""
    nan = float("nan")
    if untrained.lam is None:
        return UntrainedNull(0, nan, nan, np.full(len(edges) - 1, nan), untrained.reason)
    histograms = histogram_densities(mean_normalised(untrained.lam), edges)
    apart = jensen_shannon_divergence(histograms, far_heads(histograms))
    return UntrainedNull(
        len(histograms),
        float(np.nanmean(apart)),
        float(np.nanquantile(apart, _USUAL)),
        histograms.mean(0),
    )


def untrained_p_values(lam: Array, untrained: Untrained) -> Array:
    """p-values (..., H) of the Kolmogorov–Smirnov distances of spectra λ (..., H, d_head).

    Distance: that of the head's λ over their mean from those of all untrained heads together; p:
    its place among the untrained heads' own distances. nan where there are none.
    """
    if untrained.lam is None:
        return np.full(lam.shape[:-1], np.nan)
    null = mean_normalised(untrained.lam)
    pool = np.sort(null, axis=None)
    own = _ks_distances(null, pool)
    observed = _ks_distances(mean_normalised(lam), pool)
    return monte_carlo_p_values(observed, own, "greater")


def _ks_distances(normalised: Array, pool: Array) -> Array:
    """sup |F_head − F_pool| of spectra (..., n) against a sorted pool of values: (...)."""
    x = np.sort(normalised, axis=-1)
    n = x.shape[-1]
    below = np.arange(n) / n
    # At a value shared with the pool, F_pool jumps too: its both sides are taken.
    before = np.searchsorted(pool, x, side="left") / len(pool)
    after = np.searchsorted(pool, x, side="right") / len(pool)
    return np.asarray(np.maximum(np.abs(before - below), np.abs(after - below - 1 / n)).max(-1))


def outliers(lam: Array, untrained: Untrained) -> Array:
    """Numbers (..., H) of λ (..., H, d_head) above the untrained edge, nan where there is none.

    In units of the head's median, so that large outliers do not hide small ones; an untrained head
    has any with probability 0.005.
    """
    if untrained.lam is None:
        return np.full(lam.shape[:-1], np.nan)
    above, _ = count_outside(lam.reshape(-1, lam.shape[-1]), untrained.lam)
    return above.reshape(lam.shape[:-1]).astype(np.float64)
