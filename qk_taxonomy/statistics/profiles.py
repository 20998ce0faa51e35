"""Head statistics of models of any depth on one grid of depths, and Cliff's δ of two such sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.findings import Finding, join_notes
from qk_taxonomy.statistics.relabelling import left_out

Array = NDArray[np.float64]

CLIFFS_DELTA = "Cliff's delta of depth profiles; bootstrap of models"

# Percentile intervals over fewer models cover far less than 95 %.
_FEWEST_MODELS = 6

# Nearer to ±1, resamples of fewer than some twenty models hold too few of the rare opposite pairs.
_NEAR_ONE = 0.9


def depth_profile(values: ArrayLike, depths: ArrayLike, n_bins: int = 10) -> Array:
    """One model's statistic by depth: (n_bins,) on equal bins of depth, whatever its layers.

    values: (heads,), of any layers; depths: (heads,), each head's depth in [0, 1], equal for the
    heads of a layer. The median over heads of each layer is joined to the next by a line, and
    that line's mean over each bin taken, so that shallow models leave no bin empty and no layer of
    a deep one is passed over. nan are left out, and layers whose median is infinite; all nan where
    no layer is left. Raises ShapeError.
    """
    x, depth = np.asarray(values, dtype=np.float64), np.asarray(depths, dtype=np.float64)
    if x.ndim != 1 or x.shape != depth.shape or n_bins < 1:
        raise ShapeError(
            f"Wanted a value and a depth for each head and at least one bin, found {x.shape}, "
            f"{depth.shape} and {n_bins}."
        )
    if not ((depth >= 0) & (depth <= 1)).all():
        raise ShapeError("Wanted depths between 0 (first layer) and 1 (last layer).")
    known = ~np.isnan(x)
    layers = np.unique(depth[known])
    medians = np.array([np.median(x[known & (depth == layer)]) for layer in layers])
    layers, medians = layers[np.isfinite(medians)], medians[np.isfinite(medians)]
    if not len(layers):
        return np.full(n_bins, np.nan)
    edges = np.linspace(0, 1, n_bins + 1)
    # A line between layers is straight between these points, so trapezia are exact.
    points = np.union1d(edges, layers)
    heights = np.interp(points, layers, medians)
    areas = np.r_[0.0, np.cumsum(np.diff(points) * (heights[1:] + heights[:-1]) / 2)]
    return np.diff(areas[np.searchsorted(points, edges)]) * n_bins


def cliffs_delta(
    first: ArrayLike, second: ArrayLike, n_resamples: int = 999, seed: int = 0
) -> Finding:
    """Cliff's δ of two groups' depth profiles (models, bins), each all finite or all nan.

    δ in [−1, 1]: the share of pairs of values in which the first group's is larger, less the share
    in which it is smaller. Bootstrap interval (percentiles) that resamples whole models; of a
    group of one model, circular blocks of depth, which says nothing of other models. Cliff (1993).
    Raises ShapeError.
    """
    a, b = (np.atleast_2d(np.asarray(side, dtype=np.float64)) for side in (first, second))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.size or not b.size:
        raise ShapeError(
            f"Wanted two arrays of models by depth bins, found {a.shape} and {b.shape}."
        )
    usable = [np.asarray(np.isfinite(side).all(axis=1)) for side in (a, b)]
    note = left_out(np.concatenate(usable))
    a, b = a[usable[0]], b[usable[1]]
    if not (len(a) and len(b)):
        return Finding(n=len(a) + len(b), method=CLIFFS_DELTA, note=note)
    rng = np.random.default_rng(seed)
    larger = np.sign(a.reshape(-1, 1) - b.reshape(1, -1))
    weights = [_resampled_weights(len(side), a.shape[1], n_resamples, rng) for side in (a, b)]
    deltas = ((weights[0] @ larger) * weights[1]).sum(axis=1)
    low, high = np.clip(np.quantile(deltas, [0.025, 0.975]), -1, 1)
    fewest = min(len(a), len(b))
    if fewest == 1:
        limit = "a group of one model: interval over its depth only, not over models"
    elif abs(float(larger.mean())) > _NEAR_ONE:
        limit = "interval too narrow: δ is near ±1"
    elif fewest < _FEWEST_MODELS:
        limit = f"interval too narrow: {fewest} models in a group (wanted {_FEWEST_MODELS})"
    else:
        limit = ""
    return Finding(
        effect=float(larger.mean()),
        low=float(low),
        high=float(high),
        n=len(a) + len(b),
        method=CLIFFS_DELTA,
        note=join_notes(note, limit),
    )


def _resampled_weights(
    n_models: int, n_bins: int, n_resamples: int, rng: np.random.Generator
) -> Array:
    """Weight of every value in each resample (resamples, models · bins); rows sum to 1."""
    if n_models > 1:
        times = rng.multinomial(n_models, np.full(n_models, 1 / n_models), size=n_resamples)
        return np.repeat(times / (n_models * n_bins), n_bins, axis=1)
    # The usual block length of a bootstrap of correlated values: the cube root of their number.
    length = int(np.ceil(n_bins ** (1 / 3)))
    starts = rng.integers(n_bins, size=(n_resamples, -(-n_bins // length), 1))
    drawn = ((starts + np.arange(length)) % n_bins).reshape(n_resamples, -1)[:, :n_bins]
    return (drawn[..., None] == np.arange(n_bins)).mean(axis=1)
