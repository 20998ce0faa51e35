"""Densities of normalised spectra: histograms, gamma fits and the distance between them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

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
    x = np.asarray(normalised, dtype=np.float64)
    counts = np.stack([np.histogram(head, edges)[0] for head in x]).astype(np.float64)
    inside = counts.sum(-1, keepdims=True) * np.diff(edges)
    return np.divide(counts, inside, out=np.zeros_like(counts), where=inside > 0)


def jensen_shannon_divergence(p: ArrayLike, q: ArrayLike, eps: float = 0.0) -> float:
    """Jensen–Shannon divergence of two histograms in nats, within [0, ln 2]. Lin (1991).

    p, q: (bins,), non-negative, each normalised to sum 1 after ``eps`` has been added to every
    bin. nan where one sums to zero. Raises ShapeError.
    """
    a, b = np.asarray(p, dtype=np.float64) + eps, np.asarray(q, dtype=np.float64) + eps
    if a.shape != b.shape or a.ndim != 1:
        raise ShapeError(f"Wanted two histograms of equal length, found {a.shape}, {b.shape}.")
    if not (a.sum() > 0 and b.sum() > 0):
        return float("nan")
    a, b = a / a.sum(), b / b.sum()
    middle = (a + b) / 2
    return float(max(0.0, sum(_kl(side, middle) for side in (a, b)) / 2))


def _kl(p: Array, q: Array) -> float:
    """Σ p log(p/q) over the bins where p > 0; q > 0 there."""
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())


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
