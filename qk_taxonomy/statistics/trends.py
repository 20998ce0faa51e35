"""Trends of a statistic over the layers of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Below this the BDS statistic's standard error rests on a handful of pairs of layers.
_SHORTEST_BDS_SERIES = 12


@dataclass(frozen=True)
class DepthTrend:
    """Tests on one value a layer, in order of depth; the layer is the unit of replication.

    ``bds``, ``bds_p_value``: Brock–Dechert–Scheinkman test of independence (dimension 2) on the
    per-layer medians. ``spearman``, ``spearman_p_value``: rank correlation of the per-layer means
    with depth. nan where a test does not apply; ``note`` then says why.
    """

    n_layers: int
    bds: float
    bds_p_value: float
    spearman: float
    spearman_p_value: float
    note: str = ""


def depth_trend(layers: Sequence[Array]) -> DepthTrend:
    """Depth trend of a statistic: ``layers`` holds its values over heads, one array a layer.

    Broock, Scheinkman, Dechert & LeBaron (1996), as statsmodels computes it with its defaults.
    """
    from scipy.stats import spearmanr
    from statsmodels.tsa.stattools import bds

    nan = float("nan")
    medians = np.array([np.median(values) for values in layers], dtype=np.float64)
    means = np.array([np.mean(values) for values in layers], dtype=np.float64)
    n = len(layers)
    if not (np.isfinite(medians).all() and np.isfinite(means).all()):
        return DepthTrend(n, nan, nan, nan, nan, "some layers have no finite value")
    if np.ptp(medians) == 0 or np.ptp(means) == 0 or n < 3:
        note = f"{n} layers are too few" if n < 3 else "the statistic is constant over layers"
        return DepthTrend(n, nan, nan, nan, nan, note)
    rho, rho_p = spearmanr(np.arange(n), means)
    if n < _SHORTEST_BDS_SERIES:
        note = f"{n} layers are too few for BDS (wanted {_SHORTEST_BDS_SERIES})"
        return DepthTrend(n, nan, nan, float(rho), float(rho_p), note)
    statistic, p_value = bds(medians)
    return DepthTrend(n, float(statistic), float(p_value), float(rho), float(rho_p))


def mean_spline(means: Array, x: Array, roughness: float = 0.25) -> Array:
    """Degree-1 smoothing spline through per-layer means, at positions ``x`` in [0, n − 1].

    ``roughness`` is the share of the means' variance that the spline may leave, so that statistics
    of any size are smoothed alike.
    """
    from scipy.interpolate import make_splrep

    positions = np.arange(len(means), dtype=np.float64)
    left = roughness * float(np.square(means - means.mean()).sum())
    return np.asarray(make_splrep(positions, means, k=1, s=left)(x))
