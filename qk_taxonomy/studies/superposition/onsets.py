"""When during training a measure reaches a threshold for good, and which measure does so first.

Seeds are the unit of replication. A measure that never gets there has its onset at infinity, which
medians, order statistics and signs can take: nothing is left out for being late.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.findings import Finding, join_notes, nan

Array = NDArray[np.float64]

_TAIL = 0.025


def onset(values: ArrayLike, steps: ArrayLike, threshold: float) -> Array:
    """The step from which a measure is at ``threshold`` or above to the end; inf for never.

    values: (snapshots, ...); steps: (snapshots,), ascending. It is the step of a snapshot: the
    threshold was passed since the one before. nan counts as below. Raises ShapeError.
    """
    x, when = np.asarray(values, dtype=np.float64), np.asarray(steps, dtype=np.float64)
    if x.ndim < 1 or not len(x) or when.shape != x.shape[:1] or (np.diff(when) <= 0).any():
        raise ShapeError(
            "Wanted values (snapshots, ...) and as many steps, ascending, "
            f"found {x.shape} and {when.shape}."
        )
    below = ~(x >= threshold)
    # The first snapshot after the last one below; past the end where that is the last of all.
    first = len(x) - np.argmax(below[::-1], axis=0)
    first = np.where(below.any(axis=0), first, 0)
    return np.append(when, np.inf)[first]


def settled(values: ArrayLike, steps: ArrayLike, share: float, least: float = -np.inf) -> Array:
    """The step from which a measure has come so much of its way, for good; inf for never.

    values: (snapshots, ...); steps: (snapshots,), ascending. Measures on scales of their own (a
    cosine, a dimensionality) have no level in common: the same share of the way of each, from its
    first to its last value, says which comes first (:func:`progress`). One that ends below
    ``least``, or as it began, never comes; nan where the end is no number. Raises ShapeError.
    """
    x = np.asarray(values, dtype=np.float64)
    found = np.where(x[-1] < least, np.inf, onset(progress(x), steps, share))
    return np.where(np.isnan(x[-1]), np.nan, found)


def progress(values: ArrayLike) -> Array:
    """How far a measure has come from its first to its last value: 0 to 1, (snapshots, ...).

    nan where it ends as it began.
    """
    x = np.asarray(values, dtype=np.float64)
    way = np.broadcast_to(x[-1] - x[0], x.shape)
    return np.divide(x - x[0], way, out=np.full_like(x, np.nan), where=way != 0)


def median_onset(onsets: ArrayLike) -> Finding:
    """Median onset over seeds (seeds,), with the exact 95 % interval of order statistics.

    Ends of the interval can be infinite. nan below six seeds, of which no two values have 95 %
    between them. Hollander & Wolfe (1999), 3.6.
    """
    x = np.asarray(onsets, dtype=np.float64)
    low, high, note = _median_interval(x)
    never = int(np.isinf(x).sum())
    return Finding(
        effect=_median(x),
        low=low,
        high=high,
        n=len(x),
        method="median over seeds, interval of order statistics",
        note=join_notes(f"{never} of {len(x)} seeds never" if never else "", note),
    )


def compare_onsets(first: ArrayLike, second: ArrayLike) -> Finding:
    """Whether one measure has its onset before another in the same seeds: the sign test.

    first, second: (seeds,). ``effect``: median of first − second in steps, negative where the first
    one comes before; ±inf where only one of them ever comes. ``statistic``: the number of seeds in
    which the first comes before. Seeds in which both come at one snapshot, or neither ever, do not
    tell and are left out of the test, but the former stay in the median as 0. Two-sided, exact.
    Dixon & Mood (1946). Raises ShapeError.
    """
    from scipy.stats import binomtest

    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ShapeError(f"Wanted both onsets of the same seeds, found {x.shape} and {y.shape}.")
    before, after = int((x < y).sum()), int((x > y).sum())
    neither = np.isinf(x) & np.isinf(y)
    known = ~neither
    differences = x[known] - y[known]
    low, high, note = _median_interval(differences)
    told = before + after
    together = int(known.sum()) - told
    return Finding(
        effect=_median(differences),
        low=low,
        high=high,
        p_value=float(binomtest(before, told).pvalue) if told else nan,
        n=int(known.sum()),
        method="sign test over seeds; median difference, interval of order statistics",
        note=join_notes(
            f"seeds with neither: {int(neither.sum())}" if neither.any() else "",
            f"seeds with both at one snapshot: {together}" if together else "",
            note,
        ),
        statistic=float(before),
    )


def _median(x: Array) -> float:
    """The median, of values of which some may be infinite; nan between −inf and inf."""
    ordered = np.sort(x)
    if not len(x):
        return nan
    return (float(ordered[(len(x) - 1) // 2]) + float(ordered[len(x) // 2])) / 2


def _median_interval(x: Array) -> tuple[float, float, str]:
    """The order statistics with at least 95 % of the median's law between them, and a note."""
    from scipy.stats import binom

    n = len(x)
    # The largest count c with P(at most c of n values below the median) ≤ .025: one less than the
    # quantile, whose own probability is above it, as no multiple of 2⁻ⁿ is .025.
    c = int(binom.ppf(_TAIL, n, 0.5)) - 1 if n else -1
    if c < 0:
        return nan, nan, f"{n} seeds give no 95 % interval; needs 6"
    ordered = np.sort(x)
    return float(ordered[c]), float(ordered[n - 1 - c]), ""
