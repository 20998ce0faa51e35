"""Correlations of many pairs of series at once, for values that follow each other in a text.

Tokens of a text are not independent: neighbours are alike, in norm as in entropy. A correlation of
T of them is as uncertain as one of ``n_effective`` independent pairs, which is what p-values and
intervals here take: Pyper & Peterman (1998), Can. J. Fish. Aquat. Sci. 55, 2127. Series are rows
(..., T); pairs of which a value is nan are left out; a row that varies by no more than float32
rounds has no correlation, and nan. ``given``: (k, T) or (k, ..., T), finite, what is held fixed: a
correlation is then the partial one, of what is left of both rows after regression on it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.errors import ShapeError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Squares of rows that vary by less than 1e-6 of their size, relative: what float32 leaves of a
# constant.
_ROUNDING = 1e-12

# Autocorrelations of longer lags are mostly noise; Pyper & Peterman (1998) found T/5 to do best.
_LAGS = 1 / 5

_NORMAL_95 = 1.959964


def pearson(x: ArrayLike, y: ArrayLike, given: ArrayLike = ()) -> Array:
    """Pearson's correlation of each row of x with its row of y, given ``given``: (...).

    Raises ShapeError where the shapes of x and y differ.
    """
    first, second, there = _pairs(x, y)
    a, b = (_residuals(side, given, there) for side in (first, second))
    size = np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))
    undefined = np.full_like(size, np.nan)
    return np.clip(np.divide((a * b).sum(-1), size, out=undefined, where=size > 0), -1.0, 1.0)


def ranked(x: ArrayLike, y: ArrayLike, given: ArrayLike = ()) -> tuple[Array, Array, Array]:
    """Ranks along each row, from 1, of the pairs that are there; ties share their mean rank.
    :func:`pearson` of them is Spearman's correlation, partial where something is given.

    nan where a pair is left out, and 0 there in ``given``, whose ranks are (k, ..., T).
    """
    from scipy.stats import rankdata

    first, second, there = _pairs(x, y)
    rows = [first, second, *np.asarray(given, dtype=np.float64)]
    # What is left out ranks last, and so moves no other rank.
    ranks = [rankdata(np.where(there, row, np.inf), axis=-1) for row in rows]
    a, b = (np.where(there, rank, np.nan) for rank in ranks[:2])
    return a, b, np.array([np.where(there, rank, 0.0) for rank in ranks[2:]])


def effective_size(x: ArrayLike, y: ArrayLike, given: ArrayLike = ()) -> Array:
    """Number of independent pairs that tell as much as the rows do, within [1, pairs there]: (...).

    n / (1 + 2 Σ_j (n_j / n) r_x(j) r_y(j)) over lags j ≤ T/5, n_j being the number of pairs j
    apart and r(j) the autocorrelations of what is left given ``given``. A trend with what is given
    is the same in every text: it makes a correlation, but not an uncertain one, so that the size is
    the same for a raw and for a partial correlation. Never more than the pairs there are, though
    opposite autocorrelations would allow it. Raises ShapeError. Pyper & Peterman (1998), eq. 1.
    """
    first, second, there = _pairs(x, y)
    n_lags = int(first.shape[-1] * _LAGS)
    n = there.sum(-1).astype(np.float64)
    n_apart = np.rint(_lagged_products(there.astype(np.float64), n_lags))
    product = n_apart / np.maximum(n, 1.0)[..., None]
    for side in (first, second):
        lagged = _lagged_products(_residuals(side, given, there), n_lags)
        scale = lagged[..., :1] * n_apart / np.maximum(n, 1.0)[..., None]
        product *= np.divide(lagged, scale, out=np.zeros_like(lagged), where=scale > 0)
    return np.maximum(n / np.maximum(1.0, 1.0 + 2.0 * product[..., 1:].sum(-1)), 1.0)


def correlation_p_values(r: ArrayLike, n: ArrayLike, n_given: int = 0) -> Array:
    """Two-sided p-values of correlations r of n independent pairs, ``n_given`` values held fixed.

    Student's t with n − 2 − n_given degrees of freedom, which need not be whole; nan below 1.
    """
    from scipy.stats import t

    r, df = np.broadcast_arrays(np.asarray(r, np.float64), np.asarray(n, np.float64) - 2 - n_given)
    df = np.where(df >= 1, df, np.nan)
    with np.errstate(divide="ignore"):
        return np.asarray(2 * t.sf(np.abs(r) * np.sqrt(df / (1 - np.square(r))), df))


def fisher_interval(r: ArrayLike, n: ArrayLike, n_given: ArrayLike = 0) -> tuple[Array, Array]:
    """95 % interval of correlations r of n independent pairs: tanh(atanh r ± 1.96 / √(n − 3 − k)).

    k is ``n_given``; nan where no n is left. Fisher (1921).
    """
    left = np.asarray(n, np.float64) - 3 - np.asarray(n_given, np.float64)
    r, left = np.broadcast_arrays(np.asarray(r, np.float64), left)
    half = _NORMAL_95 / np.sqrt(np.where(left > 0, left, np.nan))
    with np.errstate(divide="ignore"):
        z = np.arctanh(r)
    return np.tanh(z - half), np.tanh(z + half)


def shuffled_pearson(x: ArrayLike, y: ArrayLike, n: int, seed: int = 0) -> Array:
    """Pearson's correlation of x with rows of y in n random orders, one for all rows: (n, ...).

    Only tokens at which some row has a pair change places; a pair that a row lacks among them
    counts as the row's mean. Raises ShapeError.
    """
    first, second, there = _pairs(x, y)
    tokens = np.flatnonzero(there.reshape(-1, there.shape[-1]).any(0))
    a, b = (_unit(_residuals(side, (), there))[..., tokens] for side in (first, second))
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(len(tokens)) for _ in range(n))
    return np.array([(a * b[..., order]).sum(-1) for order in orders]).reshape(n, *a.shape[:-1])


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array, Mask]:
    """Both sides as float64, and where both have a value."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim < 1 or a.shape != b.shape:
        raise ShapeError(f"Wanted two sets of series of one shape, found {a.shape} and {b.shape}.")
    return a, b, ~(np.isnan(a) | np.isnan(b))


def _residuals(x: Array, given: ArrayLike, there: Mask) -> Array:
    """What regression on 1 and ``given`` leaves of each row; 0 where not there."""
    rest, scale = _centred(x, there)
    basis: list[Array] = []
    # Gram–Schmidt, since rows may lack different tokens, and few things are given.
    for row in np.asarray(given, dtype=np.float64):
        z, own_scale = _centred(np.broadcast_to(row, x.shape), there)
        for other in basis:
            z = z - _along(z, other)
        basis.append(_beyond_rounding(z, own_scale))
        rest = rest - _along(rest, basis[-1])
    return _beyond_rounding(rest, scale)


def _centred(x: Array, there: Mask) -> tuple[Array, Array]:
    """Rows less their means, 0 where not there; and the sums of their squares before: (..., 1)."""
    known = np.where(there, x, 0.0)
    mean = known.sum(-1, keepdims=True) / np.maximum(there.sum(-1, keepdims=True), 1)
    scale = np.square(known).sum(-1, keepdims=True)
    return _beyond_rounding(np.where(there, x - mean, 0.0), scale), scale


def _beyond_rounding(x: Array, scale: Array) -> Array:
    return np.where(np.square(x).sum(-1, keepdims=True) > _ROUNDING * scale, x, 0.0)


def _along(x: Array, direction: Array) -> Array:
    """The projection of each row on its direction; 0 on a direction of 0."""
    size = np.square(direction).sum(-1, keepdims=True)
    share = (x * direction).sum(-1, keepdims=True)
    return np.divide(share, size, out=np.zeros_like(size), where=size > 0) * direction


def _unit(x: Array) -> Array:
    """Rows of length 1; nan for those of 0."""
    size = np.sqrt(np.square(x).sum(-1, keepdims=True))
    return np.divide(x, size, out=np.full_like(x, np.nan), where=size > 0)


def _lagged_products(x: Array, n_lags: int) -> Array:
    """Σ_i x_i x_{i+j} of each row for j = 0 … n_lags: (..., n_lags + 1)."""
    from scipy.fft import irfft, next_fast_len, rfft

    # Long enough that no product wraps around.
    size = next_fast_len(x.shape[-1] + n_lags, real=True)
    power = np.square(np.abs(rfft(x, size, axis=-1)))
    return np.asarray(irfft(power, size, axis=-1)[..., : n_lags + 1])
