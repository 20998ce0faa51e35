"""Spectra of untrained heads: what a head's λ look like before it has learned anything.

An untrained head has independent Gaussian entries in both factors. Other initialisers of finite
variance have the same limit, but fluctuate about it by their fourth moment: tests against these
spectra are exact for Gaussian entries, cautious for uniform and truncated ones, and reject too
often for heavy-tailed ones, which no architecture is known to begin with. With ``G = W Wᵀ`` a
Wishart matrix, whose Cholesky factor has a law of its own (Bartlett 1933), a head is drawn from e×e
numbers, whatever d_model.
``c = d_head / d_model`` is all that the law depends on in the limit, where λ over its mean follows
the free multiplicative convolution of two Marchenko–Pastur laws.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from qk_taxonomy.errors import ShapeError

Array = NDArray[np.float64]

# Heads factorised together: enough to keep NumPy busy, few enough to stay in memory at d_head 256.
_BATCH = 64


def _lower_factors(rng: np.random.Generator, shape: tuple[int, ...], d_model: int) -> Array:
    """Factors L with L Lᵀ ~ Wishart of ``d_model`` degrees: (..., d_head, min(d_head, d_model))."""
    d_head = shape[-1]
    if d_head > d_model:
        return rng.standard_normal((*shape, d_model))
    factors = np.tril(rng.standard_normal((*shape, d_head)), -1)
    diagonal = np.arange(d_head)
    factors[..., diagonal, diagonal] = np.sqrt(rng.chisquare(d_model - diagonal, shape))
    return factors


def _draw(rng: np.random.Generator, n: int, group: int, d_head: int, d_model: int) -> Array:
    queries = _lower_factors(rng, (n, group, d_head), d_model)
    keys = _lower_factors(rng, (n, 1, d_head), d_model)
    core = queries.mT @ keys
    lam = np.linalg.eigvalsh(core @ core.mT)[..., ::-1] / d_model**2
    padding = d_head - lam.shape[-1]
    return np.pad(np.maximum(lam, 0.0), ((0, 0), (0, 0), (0, padding)))


def untrained_spectra(d_head: int, d_model: int, n: int, *, group: int = 1, seed: int = 0) -> Array:
    """Monte-Carlo λ of untrained heads: (n, group, d_head), descending, in units of their mean.

    Each of the ``n`` draws is a group of ``group`` query heads that share one key-value head; only
    draws are independent of each other. λ are of weights with unit variance over d_model², so
    their mean over draws is 1. The same seed gives the same spectra. Raises ShapeError.
    """
    if min(d_head, d_model, n, group) < 1:
        raise ShapeError(f"Wanted positive sizes, found {(d_head, d_model, n, group)}.")
    sizes = [min(_BATCH, n - start) for start in range(0, n, _BATCH)]
    streams = np.random.default_rng([seed, d_head, d_model, group]).spawn(len(sizes))
    # Matrices are small: threads over them, and none inside BLAS, which would fight over cores.
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor() as pool:
        parts = pool.map(lambda rng, size: _draw(rng, size, group, d_head, d_model), streams, sizes)
        return np.concatenate(list(parts))


def _limits(d_head: int, d_model: int) -> float:
    if not 1 <= d_head <= d_model:
        raise ShapeError(f"Wanted d_head from 1 to d_model, found {d_head} and {d_model}.")
    return d_head / d_model


def untrained_edges(d_head: int, d_model: int) -> tuple[float, float]:
    """Ends of the support of an untrained head's λ over its mean, as d_head and d_model grow.

    Where x(ψ) = (1 + ψ)(1 + cψ)² / ψ is stationary, x being the inverse of the law's moment
    generating function ψ; c = d_head / d_model, at most 1. Heads of finite size keep to it within
    about d_head^(−2/3). Raises ShapeError. Voiculescu (1987): the S-transform is 1 / (1 + cz)².
    """
    c = _limits(d_head, d_model)
    root = np.sqrt(c * c + 8.0 * c)
    stationary = ((-c - root) / (4 * c), (root - c) / (4 * c))
    low, high = ((1 + psi) * (1 + c * psi) ** 2 / psi for psi in stationary)
    return float(low), float(high)


def untrained_density(x: ArrayLike, d_head: int, d_model: int) -> Array:
    """Density of an untrained head's λ over its mean at ``x``, as d_head and d_model grow.

    Im ψ / (πx), with ψ the complex root of c²ψ³ + (2c + c²)ψ² + (1 + 2c − x)ψ + 1 = 0. Raises
    ShapeError.
    """
    c = _limits(d_head, d_model)
    points = np.asarray(x, dtype=np.float64)
    low, high = untrained_edges(d_head, d_model)
    density = np.zeros(points.shape)
    inside = (points > max(low, 0.0)) & (points < high)
    roots = [np.roots([c * c, 2 * c + c * c, 1 + 2 * c - p, 1.0]) for p in points[inside]]
    density[inside] = [np.abs(r.imag).max() for r in roots] / (np.pi * points[inside])
    return density
