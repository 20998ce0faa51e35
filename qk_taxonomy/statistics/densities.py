"""Densities of normalised spectra: histograms, gamma fits and distances between them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.errors import ShapeError

Array = NDArray[np.float64]


def mean_normalised(lam: ArrayLike) -> Array:
    """λ over the head's mean, along the last axis; a zero spectrum (a dead head) stays zero."""
    x = np.asarray(lam, dtype=np.float64)
    mean = x.mean(-1, keepdims=True)
    return np.divide(x, mean, out=np.zeros_like(x), where=mean > 0)


def pool_edges(normalised: ArrayLike, n_bins: int, quantile: float = 0.96) -> Array:
    """Edges (n_bins + 1,) of equal bins on [0, q], q the pool's ``quantile`` over all heads."""
    return np.linspace(0.0, float(np.quantile(np.asarray(normalised), quantile)), n_bins + 1)


def histogram_densities(normalised: ArrayLike, edges: Array) -> Array:
    """Density histograms (heads, bins) of normalised spectra (heads, n); each integrates to 1.

    Values beyond the last edge are left out; a head with none inside has zeros throughout.
    """
    x, n_bins = np.asarray(normalised, dtype=np.float64), len(edges) - 1
    bins = np.searchsorted(edges, x, side="right") - 1
    bins[x == edges[-1]] = n_bins - 1  # the last bin has both its edges, as in np.histogram
    within = (bins >= 0) & (bins < n_bins)
    flat = (bins + n_bins * np.arange(len(x))[:, None])[within]
    counts = np.bincount(flat, minlength=len(x) * n_bins).reshape(-1, n_bins).astype(np.float64)
    inside = counts.sum(-1, keepdims=True) * np.diff(edges)
    return np.divide(counts, inside, out=np.zeros_like(counts), where=inside > 0)


def jensen_shannon_divergence(p: ArrayLike, q: ArrayLike, eps: float = 0.0) -> Any:
    """Jensen–Shannon divergence along the last axis, in nats, within [0, ln 2]. Lin (1991).

    p, q: (..., bins), non-negative, each normalised to sum 1 after ``eps`` has been added to every
    bin. Two histograms (bins,) give a float. nan where one sums to zero. Raises ShapeError.
    """
    a, b = np.asarray(p, dtype=np.float64) + eps, np.asarray(q, dtype=np.float64) + eps
    if a.shape != b.shape or a.ndim < 1:
        raise ShapeError(f"Wanted histograms of equal shape, found {a.shape}, {b.shape}.")
    sums = [side.sum(-1, keepdims=True) for side in (a, b)]
    a, b = (
        np.divide(side, total, out=np.full_like(side, np.nan), where=total > 0)
        for side, total in zip((a, b), sums, strict=True)
    )
    middle = (a + b) / 2
    divergence = np.maximum((_kl(a, middle) + _kl(b, middle)) / 2, 0.0)
    return float(divergence) if divergence.ndim == 0 else divergence


def _kl(p: Array, q: Array) -> Array:
    """Σ p log(p/q) along the last axis, over the bins where p > 0; q > 0 there. nan where p is."""
    some = p > 0
    ratio = np.divide(p, q, out=np.ones_like(p), where=some)
    return np.where(np.isnan(p).any(-1), np.nan, (p * np.log(ratio)).sum(-1))


def wasserstein_distance(x: ArrayLike, y: ArrayLike) -> Any:
    """Wasserstein-1 distance of two spectra of equal size along the last axis, in their units.

    x, y: (..., n) in any order; the mean of |x₍ₖ₎ − y₍ₖ₎| over order statistics, which is exact for
    equal sizes. Two spectra (n,) give a float. Raises ShapeError. Vallender (1974).
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape or a.ndim < 1:
        raise ShapeError(f"Wanted spectra of equal shape, found {a.shape}, {b.shape}.")
    distance = np.abs(np.sort(a, axis=-1) - np.sort(b, axis=-1)).mean(-1)
    return float(distance) if distance.ndim == 0 else distance


@dataclass(frozen=True)
class GammaFit:
    """A gamma density of shape ``alpha`` and scale ``theta`` at loc 0, nan where none was found.

    ``divergence``: Jensen–Shannon, in nats, between the histogram and the density at bin centres.
    """

    alpha: float
    theta: float
    divergence: float


def gamma_density(x: ArrayLike, alpha: float, theta: float) -> Array:
    """Gamma density at loc 0."""
    from scipy.stats import gamma

    return np.asarray(gamma.pdf(x, alpha, loc=0.0, scale=theta))


def fit_gamma(histogram: Array, edges: Array) -> GammaFit:
    """Least-squares fit of a gamma density (loc 0) to a density histogram at its bin centres."""
    from scipy.optimize import OptimizeWarning, curve_fit

    centres = (edges[:-1] + edges[1:]) / 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            # The start is the predecessor's: near a trained head's bulk, and tails descend to it.
            (alpha, theta), _ = curve_fit(gamma_density, centres, histogram, p0=(3.0, 0.5))
    except RuntimeError:
        return GammaFit(float("nan"), float("nan"), float("nan"))
    density = gamma_density(centres, alpha, theta)
    return GammaFit(float(alpha), float(theta), jensen_shannon_divergence(histogram, density))
