"""Statistics of one head's spectrum, each named by its definition.

All take λ, the correlation eigenvalues (λ = σ²), along the last axis, in any order, and reduce
that axis. λ are non-negative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.errors import ShapeError

Array = NDArray[np.float64]

#: Statistics in the units of the weights, which are compared by their logarithm (nats).
LOG_STATISTICS = ("MIN", "MAX", "MEAN", "STD")

# A tail needs a few values before an exponent means anything.
_SMALLEST_TAIL = 8


class Stats(IntEnum):
    """The predecessor's six statistics, by their position in :func:`get_stats`."""

    MIN = 0
    MAX = 1
    MEAN = 2
    STD = 3
    SKEW = 4
    KURTOSIS = 5


def get_stats(values: Any, eps: float = 1e-9) -> list[NDArray[Any]]:
    """[MIN, MAX, MEAN, STD, SKEW, KURTOSIS] along the last axis, each of shape (..., 1).

    STD has ddof 1; SKEW is mean z³ and KURTOSIS mean z⁴ − 3 with z of that STD, which is taken as
    at least ``eps``. ``values``: array or tensor (..., n), n ≥ 2. Raises ShapeError.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    x = np.asarray(values)
    if x.ndim == 0 or x.shape[-1] < 2:
        raise ShapeError(f"Wanted at least two values along the last axis, found {x.shape}.")
    mean, std = x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
    z = (x - mean) / np.maximum(std, eps)
    return [
        x.min(-1, keepdims=True),
        x.max(-1, keepdims=True),
        mean,
        std,
        (z**3).mean(-1, keepdims=True),
        (z**4).mean(-1, keepdims=True) - 3.0,
    ]


def _share(x: Array) -> Array:
    """``x`` over its sum along the last axis; zeros where the sum is zero."""
    total = x.sum(-1, keepdims=True)
    return np.divide(x, total, out=np.zeros_like(x), where=total > 0)


def _exp_entropy(share: Array) -> Array:
    log = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.where(share.any(-1), np.exp(-(share * log).sum(-1)), 0.0)


def stable_rank(lam: Array) -> Array:
    """Σλ / λ₁ = ‖W‖_F² / ‖W‖₂², in [1, n]; 0 for a zero spectrum. Rudelson & Vershynin (2007)."""
    largest = lam.max(-1)
    return np.divide(lam.sum(-1), largest, out=np.zeros_like(largest), where=largest > 0)


def participation_ratio(lam: Array) -> Array:
    """(Σλ)² / Σλ², in [1, n]; 0 for a zero spectrum. Bell & Dean (1970)."""
    squares = np.square(_share(lam)).sum(-1)
    return np.divide(1.0, squares, out=np.zeros_like(squares), where=squares > 0)


def effective_rank_sigma(lam: Array) -> Array:
    """exp of the entropy (nats) of σ/Σσ, in [1, n]; 0 if all are 0. Roy & Vetterli (2007)."""
    return _exp_entropy(_share(np.sqrt(lam)))


def effective_rank_lambda(lam: Array) -> Array:
    """exp of the entropy (nats) of λ/Σλ, in [1, n]; 0 for a zero spectrum: the rank of W Wᵀ."""
    return _exp_entropy(_share(lam))


def r90(lam: Array) -> Array:
    """Number of largest λ that hold 90 % of Σλ, in [1, n]; 0 for a zero spectrum."""
    cumulated = np.cumsum(_share(np.sort(lam, axis=-1)[..., ::-1]), axis=-1)
    # Rounding of the sum must not push an exact 90 % over to the next value.
    needed = (cumulated < 0.9 - 1e-12).sum(-1) + 1.0
    return np.where(cumulated[..., -1] > 0, needed, 0.0)


def near_zero_ratio(lam: Array) -> Array:
    """Share of λ below 1e-3·λ₁, in [0, 1): relative by definition."""
    return np.asarray((lam < 1e-3 * lam.max(-1, keepdims=True)).mean(-1), dtype=np.float64)


def power_law_alpha(lam: Array) -> Array:
    """Exponent α > 1 of a power law p(λ) ∝ λ^−α fitted to the spectrum's upper tail.

    Maximum likelihood α = 1 + n / Σ log(λᵢ/λ_min), λ_min being the value at which the tail's
    Kolmogorov–Smirnov distance to its fit is least; tails have at least 8 values (all, where the
    spectrum has fewer). inf where the tail is constant. Clauset, Shalizi & Newman (2009).
    """
    logs = np.log(np.maximum(np.sort(lam, axis=-1)[..., ::-1], np.finfo(np.float64).tiny))
    n = logs.shape[-1]
    best_distance = np.full(logs.shape[:-1], np.inf)
    alpha = np.full(logs.shape[:-1], np.inf)
    for size in range(min(_SMALLEST_TAIL, n), n + 1):
        excess = logs[..., :size] - logs[..., size - 1 : size]
        total = excess.sum(-1)
        exponent = np.divide(size, total, out=np.full_like(total, np.inf), where=total > 0)
        survival = np.exp(-np.where(total > 0, exponent, 0.0)[..., None] * excess)
        above = np.arange(size) / size
        distance = np.maximum(np.abs(survival - above), np.abs(survival - above - 1 / size)).max(-1)
        better = (distance < best_distance) & (total > 0)
        best_distance = np.where(better, distance, best_distance)
        alpha = np.where(better, 1.0 + exponent, alpha)
    return alpha


def _six(stat: Stats, lam: Array) -> Array:
    if stat in (Stats.SKEW, Stats.KURTOSIS):
        # These do not depend on scale; without it, get_stats' floor of STD has none to act on.
        largest = lam.max(-1, keepdims=True)
        lam = np.divide(lam, largest, out=np.zeros_like(lam), where=largest > 0)
    return get_stats(lam)[stat][..., 0]


#: Every statistic of a spectra file, in the file's order.
STATISTICS: dict[str, Callable[[Array], Array]] = {
    **{stat.name: functools.partial(_six, stat) for stat in Stats},
    "stable_rank": stable_rank,
    "participation_ratio": participation_ratio,
    "effective_rank_sigma": effective_rank_sigma,
    "effective_rank_lambda": effective_rank_lambda,
    "r90": r90,
    "near_zero_ratio": near_zero_ratio,
    "power_law_alpha": power_law_alpha,
}


def describe(lam: ArrayLike) -> Array:
    """All of :data:`STATISTICS` of spectra λ (..., n), n ≥ 2: shape (..., n_statistics), float64.

    Raises ShapeError.
    """
    x = np.asarray(lam, dtype=np.float64)
    return np.stack([statistic(x) for statistic in STATISTICS.values()], axis=-1)


def with_logs(values: ArrayLike, names: Sequence[str]) -> Array:
    """Values (..., statistics) as they are compared: :data:`LOG_STATISTICS` by their logarithm.

    ``names``: of the statistics. A dead head's logarithms are −inf.
    """
    found = np.array(values, dtype=np.float64)
    logs = [column for column, name in enumerate(names) if name in LOG_STATISTICS]
    with np.errstate(divide="ignore", invalid="ignore"):
        found[..., logs] = np.log(found[..., logs])
    return found
