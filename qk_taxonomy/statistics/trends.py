"""Trends of a statistic over the layers of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.statistics.findings import nan

Array = NDArray[np.float64]
Smoothing = Literal["relative", "predecessor"]

# Below this no order of layers has a Mann–Kendall p-value under 0.05 once correlation is allowed.
_SHORTEST_TREND = 6
# Below this the BDS statistic's standard error rests on a handful of pairs of layers.
_SHORTEST_BDS_SERIES = 12
# Layers are near each other within this many standard deviations: the default of statsmodels.
_BDS_DISTANCE = 1.5
# Variance over layers of the share of near layers: about 0.03 for a bell of values, 0.017 for a
# ramp. The BDS statistic divides by it; below this, which independent values of four sizes often
# reach, statistics in the hundreds and thousands come out.
_LEAST_BDS_VARIANCE = 0.005
_BDS_PERMUTATIONS = 999
# Beyond it the variance of S grows without bound, and n layers cannot tell it from a trend.
_LARGEST_CORRELATION = 0.95


@dataclass(frozen=True)
class DepthTrend:
    """Tests on one value a layer, in order of depth; the layer is the unit of replication.

    Of the per-layer medians: ``mann_kendall_tau`` in [−1, 1] with ``mann_kendall_p_value``;
    ``theil_sen_slope``, the median slope per layer, with its 95 % interval [``slope_low``,
    ``slope_high``]; ``bds``, the Brock–Dechert–Scheinkman statistic of independence (dimension 2),
    with its asymptotic ``bds_p_value`` and ``bds_permutation_p_value``, that of layers in random
    order. Of the per-layer means: ``spearman`` and ``spearman_p_value``, their rank correlation
    with depth. nan where a test does not apply; ``note`` then says why.
    """

    n_layers: int
    mann_kendall_tau: float = nan
    mann_kendall_p_value: float = nan
    theil_sen_slope: float = nan
    slope_low: float = nan
    slope_high: float = nan
    bds: float = nan
    bds_p_value: float = nan
    bds_permutation_p_value: float = nan
    spearman: float = nan
    spearman_p_value: float = nan
    note: str = ""


def first_layer(n_layers: int) -> int:
    """The place of the first layer that trends and box plots are about.

    Early layers dwarf the others in deep models: two are left out, five from 80 layers on (the
    sizes of Llama 70B and above), none in models so shallow (fewer than 12) that little would
    remain.
    """
    if n_layers < 12:
        return 0
    return 5 if n_layers >= 80 else 2


def depth_trend(layers: Sequence[Array]) -> DepthTrend:
    """Depth trend of a statistic: ``layers`` holds its values over heads, one array a layer.

    Mann–Kendall's and Theil and Sen's are those of :func:`monotone_trend`. Spearman's p-value takes
    correlation of neighbouring layers for a trend, as plain Mann–Kendall's does.

    BDS (Broock, Scheinkman, Dechert & LeBaron 1996) is computed with statsmodels' defaults. Its
    asymptotic p-value is far too small for short series: on independent normal layers it is below
    0.05 in 65 % (12 layers), 41 % (20), 33 % (30), 24 % (40) and 15 % (60 to 80) of cases. It is
    kept for comparison with published values; the permutation p-value (at least 0.002) holds its
    level for any number of layers.
    """
    medians = np.array([np.median(values) for values in layers], dtype=np.float64)
    means = np.array([np.mean(values) for values in layers], dtype=np.float64)
    n = len(layers)
    if n < 3:
        return DepthTrend(n, note=f"{n} layers are too few")
    rho, rho_p = _spearman(means)
    obstacle = _obstacle(medians)
    if obstacle:
        return DepthTrend(n, spearman=rho, spearman_p_value=rho_p, note=obstacle)
    monotone = monotone_trend(medians)
    bds, bds_p, bds_order_p, bds_note = _bds(medians)
    few = f"{n} layers are too few for Mann–Kendall (wanted {_SHORTEST_TREND})"
    return DepthTrend(
        n,
        mann_kendall_tau=monotone.tau,
        mann_kendall_p_value=monotone.p_value,
        theil_sen_slope=monotone.slope,
        slope_low=monotone.low,
        slope_high=monotone.high,
        bds=bds,
        bds_p_value=bds_p,
        bds_permutation_p_value=bds_order_p,
        spearman=rho,
        spearman_p_value=rho_p,
        note="; ".join(filter(None, [few if n < _SHORTEST_TREND else "", bds_note])),
    )


def _obstacle(series: Array) -> str:
    """Why a series has no trend to test; empty where it has one."""
    if not np.isfinite(series).all():
        return "some layers have no finite median"
    return "the statistic is constant over layers" if np.ptp(series) == 0 else ""


def _spearman(means: Array) -> tuple[float, float]:
    from scipy.stats import spearmanr

    if _obstacle(means):
        return nan, nan
    rho, p_value = spearmanr(np.arange(len(means)), means)
    return float(rho), float(p_value)


@dataclass(frozen=True)
class MonotoneTrend:
    """Mann–Kendall's τ and p-value; Theil and Sen's slope per layer, 95 % within [low, high]."""

    tau: float
    p_value: float = nan
    slope: float = nan
    low: float = nan
    high: float = nan


def monotone_trend(series: Array) -> MonotoneTrend:
    """Mann–Kendall test and Theil–Sen slope of (n,) finite values, not all equal, n ≥ 2.

    p-value and interval allow for correlation of neighbouring layers; they are nan below 6 layers.
    Plain Mann–Kendall takes such correlation for a trend, and so do the corrections of Hamed & Rao
    and of Yue & Wang as they are usually computed: their autocorrelations are estimated lag by lag,
    too noisily for tens of layers. (Pre-whitening holds its level, but hides strong trends.) Here S
    has Hamed & Rao's (1998) variance for a first-order autoregression, whose one coefficient comes
    from the residuals of the Theil–Sen line, less its small-sample bias. False positives at 0.05
    for 12 to 126 layers of no trend, in per cent, this test / plain Mann–Kendall: coefficient 0:
    3–5 / 4–6; 0.3: 4–7 / 10–15; 0.5: 5–9 / 18–25; 0.8: 7–14 / 37–50 (the more, the fewer layers).
    Correlation over longer ranges than a first-order one is not allowed for.
    """
    from pymannkendall import original_test
    from scipy.stats import norm, theilslopes

    n = len(series)
    plain = original_test(series)
    if n < _SHORTEST_TREND:
        return MonotoneTrend(float(plain.Tau), slope=float(plain.slope))
    inflation = _variance_inflation(n, _autocorrelation(series - plain.slope * np.arange(n)))
    z = max(abs(plain.s) - 1.0, 0.0) / np.sqrt(plain.var_s * inflation)
    # The interval is that of S; a wider level widens it by as much as S varies more. Below 1, as
    # SciPy has no interval of level 1.
    level = min(1 - 2 * norm.sf(norm.ppf(0.975) * np.sqrt(inflation)), 1 - 1e-15)
    slope, _, low, high = theilslopes(series, alpha=level)
    p_value = float(2 * norm.sf(z))
    return MonotoneTrend(float(plain.Tau), p_value, float(slope), float(low), float(high))


def _autocorrelation(residuals: Array) -> float:
    """Lag-1 coefficient of residuals of a line, in [0, 0.95], less its bias of −(2 + 4φ)/n.

    Marriott & Pope (1954). Negative correlation counts as none: the test is then cautious.
    """
    n, x = len(residuals), residuals - residuals.mean()
    squares = float(x @ x)
    estimate = float(x[1:] @ x[:-1]) / squares if squares > 0 else 0.0
    return float(np.clip((n * estimate + 2) / (n - 4), 0.0, _LARGEST_CORRELATION))


def _variance_inflation(n: int, coefficient: float) -> float:
    """Var S of a first-order autoregression over that of independent values, at least 1.

    Hamed & Rao (1998), with (6/π) asin(ρ/2) for the correlation of ranks of Gaussian values.
    """
    lag = np.arange(1, n)
    ranks = 6 / np.pi * np.arcsin(coefficient**lag / 2)
    weights = (n - lag) * (n - lag - 1) * (n - lag - 2)
    return float(1 + 2 * (weights @ ranks) / (n * (n - 1) * (n - 2)))


def _bds(series: Array) -> tuple[float, float, float, str]:
    """BDS statistic, its asymptotic and its permutation p-value, and why there are none."""
    from statsmodels.tsa.stattools import bds

    n = len(series)
    if n < _SHORTEST_BDS_SERIES:
        return nan, nan, nan, f"{n} layers are too few for BDS (wanted {_SHORTEST_BDS_SERIES})"
    near = np.abs(series[:, None] - series) < _BDS_DISTANCE * series.std(ddof=1)
    if len(np.unique(near, axis=0)) < 3:
        return nan, nan, nan, "no BDS: the layers' medians fall into two heaps"
    if _bds_variance(near) < _LEAST_BDS_VARIANCE:
        return nan, nan, nan, "no BDS: every layer's median is near equally many others"
    statistic, p_value = bds(series, distance=_BDS_DISTANCE)
    return float(statistic), float(p_value), _bds_permutation_p_value(near), ""


def _bds_variance(near: NDArray[np.bool_]) -> float:
    """K − C²: share of triples with a middle near both others, less the squared share of pairs."""
    others = near.sum(1) - 1.0
    n = len(near)
    triples = float(others @ (others - 1)) / (n * (n - 1) * (n - 2))
    return triples - float(others.sum() / (n * (n - 1))) ** 2


def _bds_permutation_p_value(near: NDArray[np.bool_]) -> float:
    """Twice the share of random orders of the layers with as high, or as low, a BDS effect.

    The variance does not depend on the order, so the statistic's effect stands for it.
    """
    rng = np.random.default_rng(0)
    n = len(near)
    orders = rng.permuted(np.tile(np.arange(n), (_BDS_PERMUTATIONS, 1)), axis=1)
    orders = np.vstack([np.arange(n), orders])
    one = near[orders[:, :, None], orders[:, None, :]]
    two = one[:, 1:, 1:] & one[:, :-1, :-1]
    upper = np.triu_indices(n - 1, 1)
    effects = two[:, *upper].mean(1) - one[:, 1:, 1:][:, *upper].mean(1) ** 2
    tails = (effects >= effects[0] - 1e-12).mean(), (effects <= effects[0] + 1e-12).mean()
    return float(min(1.0, 2 * min(tails)))


def mean_spline(means: Array, x: Array, smoothing: Smoothing = "relative") -> Array:
    """Degree-1 smoothing spline through per-layer means, at positions ``x`` in [0, n − 1].

    ``relative`` leaves a quarter of the means' variance, so that statistics of any size are
    smoothed alike. ``predecessor`` leaves a sum of squares of 20 whatever the statistic's size: a
    straight line for small values, next to no smoothing for large ones.
    """
    from scipy.interpolate import make_splrep

    positions = np.arange(len(means), dtype=np.float64)
    variation = float(np.square(means - means.mean()).sum())
    left = 0.25 * variation if smoothing == "relative" else 20.0
    return np.asarray(make_splrep(positions, means, k=1, s=left)(x))
