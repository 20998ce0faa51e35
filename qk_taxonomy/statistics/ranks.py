"""The rank hypothesis: is a head's spectrum as high-rank as an untrained head's of its shape?

The rank of a circuit is at most d_head by construction, so "high-rank" means high for its size: the
null hypothesis is not full rank, but a spectrum as even as that of untrained weights. A statistic
counts against it in the direction of fewer directions that matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.moments import (
    effective_rank_lambda,
    effective_rank_sigma,
    near_zero_ratio,
    participation_ratio,
    r90,
)

Array = NDArray[np.float64]
Alternative = Literal["less", "greater"]

#: Statistics of the rank hypothesis, and on which side of the null low rank lies.
RANK_STATISTICS: dict[str, tuple[Callable[[Array], Array], Alternative]] = {
    "effective_rank_sigma": (effective_rank_sigma, "less"),
    "effective_rank_lambda": (effective_rank_lambda, "less"),
    "participation_ratio": (participation_ratio, "less"),
    "r90": (r90, "less"),
    "near_zero_ratio": (near_zero_ratio, "greater"),
}

# An untrained head has a λ outside the edge with this probability, at each end.
_EDGE_LEVEL = 0.005


@dataclass(frozen=True, eq=False)
class RankTest:
    """The rank hypothesis for every head; columns are those of :data:`RANK_STATISTICS`.

    ``observed``, ``p_values`` (one-sided), ``q_values``: (heads, statistics). ``null_median``,
    ``null_low``, ``null_high`` (statistics,): median and central 95 % of untrained heads.
    ``above``, ``below`` (heads,): number of λ beyond the untrained edges at either end.
    """

    observed: Array
    p_values: Array
    q_values: Array
    null_median: Array
    null_low: Array
    null_high: Array
    above: NDArray[np.int64]
    below: NDArray[np.int64]


def monte_carlo_p_values(observed: Array, null: Array, alternative: Alternative) -> Array:
    """``(1 + #{null at least as extreme}) / (1 + N)`` for each of ``observed``, in (0, 1].

    null: (N,) independent draws under the null hypothesis. "less": small values are extreme. Ties
    count as extreme, so that discrete statistics err on the safe side. Davison & Hinkley (1997).
    """
    sign = 1.0 if alternative == "less" else -1.0
    ordered = np.sort(sign * null)
    as_extreme = np.searchsorted(ordered, sign * observed, side="right")
    return np.asarray((1.0 + as_extreme) / (1.0 + len(null)))


def count_outside(lam: Array, null: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of λ of each head above and below the edges of untrained heads: (heads,) twice.

    λ are compared in units of their head's median, which a few large ones do not move. Each edge
    is passed by any λ of an untrained head with probability 0.005. lam: (heads, d_head), null: (N,
    d_head).
    """
    scaled, untrained = (_over_median(x) for x in (lam, null))
    high = np.quantile(untrained.max(-1), 1 - _EDGE_LEVEL)
    low = np.quantile(untrained.min(-1), _EDGE_LEVEL)
    return (scaled > high).sum(-1), (scaled < low).sum(-1)


def _over_median(lam: Array) -> Array:
    """λ over the head's median; where that is zero, zeros stay and all others are infinite."""
    median = np.median(lam, axis=-1, keepdims=True)
    at_zero = np.where(lam > 0, np.inf, 0.0)
    return np.divide(lam, median, out=at_zero, where=median > 0)


def rank_test(lam: Array, null: Array) -> RankTest:
    """Test every head of one shape against untrained heads of that shape.

    lam: λ (heads, d_head); null: λ of independent untrained heads (N, d_head). q-values are
    Benjamini and Hochberg's over the heads, for each statistic. Heads that share a key-value head
    are positively dependent, which that correction allows. Raises ShapeError.
    """
    from scipy.stats import false_discovery_control

    if lam.ndim != 2 or null.ndim != 2 or lam.shape[-1] != null.shape[-1] or 0 in lam.shape:
        raise ShapeError(f"Wanted λ of heads of one d_head, found {lam.shape} and {null.shape}.")
    observed, p_values, quantiles = [], [], []
    for statistic, alternative in RANK_STATISTICS.values():
        values, untrained = statistic(lam), statistic(null)
        observed.append(values)
        p_values.append(monte_carlo_p_values(values, untrained, alternative))
        quantiles.append(np.quantile(untrained, (0.5, 0.025, 0.975)))
    p = np.stack(p_values, axis=-1)
    middle, low, high = np.stack(quantiles, axis=-1)
    above, below = count_outside(lam, null)
    return RankTest(
        observed=np.stack(observed, axis=-1),
        p_values=p,
        q_values=false_discovery_control(p, axis=0),
        null_median=middle,
        null_low=low,
        null_high=high,
        above=above,
        below=below,
    )
