"""Heads whose path through training is unlike that of the model's other heads.

A path is described by five numbers: how far it went and when, what became of effective rank and of
the largest λ, and how often it changed its class. Trained heads have no null of their own, so the
other heads are the reference: a head is found where it is farther from their cloud than its law
allows. The heads of one model are too few to tell that law's tails, and their own ranks too coarse
to survive correction, so tails are assumed: those of a multivariate Student's t of five degrees of
freedom, which is heavy. Distances need no assumption, and are what heads are ranked by.

Shares of models in which any head is found, of 200 of 24 heads and 100 of 144 that were drawn: none
where features are normal, one a count, or half of their variance is of layers; 4 and 1 % where each
is a Student's t of five degrees of freedom, 4 and 8 % where all together are; but 23 and 27 % where
each is one of three. (Against a normal null some are found in 48 and 82 % of models of the second
kind.) The price is power: a head that is 8 standard deviations off in one feature, among normal
ones, is found in 33 and 0 %, one that is 15 off in 100 and 94 %; `UnusualPaths.needed` is the
distance that a single head is found from. Many heads that are unusual in the same way are a cloud
of their own, and are not found.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.statistics.findings import LEVEL, benjamini_hochberg
from qk_taxonomy.statistics.ranks import monte_carlo_p_values
from qk_taxonomy.studies.evolution.records import PATH_FEATURES, UnusualPaths

Array = NDArray[np.float64]

#: With fewer heads there is no cloud for one to be outside of.
FEWEST_HEADS = 8

# A feature that varies by less than this of its size varies by rounding.
_ROUNDING = 1e-8

# What makes the median absolute deviation of normal values their standard deviation.
_NORMAL_MAD = 1.4826

# Robust standard deviations at which features are cut where the cloud is measured, lest unusual
# heads hide each other: one normal value in 16,000 is beyond.
_CUT = 4.0

#: Degrees of freedom of the Student's t that paths of ordinary heads are taken to follow.
TAIL = 5

# Models drawn for the null: q-values reach 1 / 400.
_DRAWS = 400

# What is said of a head with less and with more of a feature than others.
_PLAIN = {
    "travel": ("a shorter way than others'", "a longer way than others'"),
    "half_time": ("half of its way earlier than others", "half of its way later than others"),
    "class_changes": ("fewer class changes than others", "more class changes than others"),
}

# What changes in a feature that is a log ratio, and how it does.
_CHANGES = {
    "rank_change": ("effective rank", "rose", "fell"),
    "largest_change": ("largest λ", "grew", "shrank"),
}


def path_features(
    times: Array, travelled: Array, effective_rank: Array, largest: Array, labels: NDArray[np.int64]
) -> Array:
    """:data:`PATH_FEATURES` of every head: (H, 5); nan where a head's weights are zero.

    times (S,), travelled (S − 1, H), the others (S, H). ``travel``: log of the whole distance;
    ``half_time``: the time by which half of it was done, between steps in proportion;
    ``rank_change``, ``largest_change``: log ratios of the last step to the first;
    ``class_changes``: square root of their number, which steadies a count's variance.
    """
    changes = (labels[1:] != labels[:-1]).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        features = np.stack(
            [
                np.log(travelled.sum(0)),
                _half_times(times, travelled),
                np.log(effective_rank[-1] / effective_rank[0]),
                np.log(largest[-1] / largest[0]),
                np.sqrt(changes),
            ],
            axis=-1,
        )
    features[~np.isfinite(features).all(-1)] = np.nan
    return features


def _half_times(times: Array, travelled: Array) -> Array:
    """When each head (H,) had done half of its whole distance; nan where it did not move."""
    done = np.concatenate([np.zeros((1, travelled.shape[1])), np.cumsum(travelled, axis=0)])
    half = [np.interp(path[-1] / 2, path, times) if path[-1] > 0 else np.nan for path in done.T]
    return np.asarray(half, dtype=np.float64)


def unusual_paths(features: Array, *, seed: int = 0) -> UnusualPaths:
    """Mahalanobis distance of each path (H, 5) from the middle of all, and how unusual that is.

    The covariance is that of features cut at four robust standard deviations, shrunk (Ledoit & Wolf
    2004), since some of them all but follow from others. p-values: places among the distances of as
    many heads, drawn 400 times from Student's t of :data:`TAIL` degrees of freedom with that
    covariance and measured in the same way. Features that do not vary do not count. q-values are
    over the model's heads.
    """
    n_heads = len(features)
    distance, p_values, q_values = (np.full(n_heads, np.nan) for _ in range(3))
    z = np.full(features.shape, np.nan)
    known = np.flatnonzero(np.isfinite(features).all(-1))
    if len(known) < FEWEST_HEADS:
        note = (
            f"wanted {FEWEST_HEADS} heads to tell which of their paths are unusual, "
            f"found {len(known)}"
        )
        return UnusualPaths(features, z, distance, p_values, q_values, note=note)
    z[known] = _robust_z(features[known])
    varies = np.isfinite(z[known]).all(0)
    if not varies.any():
        note = "no two paths differ"
        return UnusualPaths(features, z, distance, p_values, q_values, note=note)
    paths = z[np.ix_(known, varies)]
    squared, covariance = _squared_distances(paths)
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((_DRAWS, *paths.shape)) @ np.linalg.cholesky(covariance).T
    drawn /= np.sqrt(rng.chisquare(TAIL, (*drawn.shape[:2], 1)) / TAIL)
    null = _squared_distances(drawn)[0].ravel()
    distance[known] = np.sqrt(squared)
    p_values[known] = monte_carlo_p_values(squared, null, "greater")
    needed = float(np.sqrt(np.quantile(null, 1 - LEVEL / len(known))))
    return UnusualPaths(
        features, z, distance, p_values, benjamini_hochberg(p_values), needed=needed
    )


def _robust_z(features: Array) -> Array:
    """Features (..., n, p) less their median over n, in units of 1.4826 · MAD (of the standard
    deviation where most are the same); nan where one does not vary.
    """
    centred = features - np.median(features, axis=-2, keepdims=True)
    spread = _NORMAL_MAD * np.median(np.abs(centred), axis=-2, keepdims=True)
    deviation = features.std(-2, ddof=1, keepdims=True)
    varies = deviation > _ROUNDING * np.abs(features).max(-2, keepdims=True)
    unit = np.where(varies, np.where(spread > _ROUNDING * deviation, spread, deviation), np.nan)
    return np.asarray(centred / unit)


def _squared_distances(paths: Array) -> tuple[Array, Array]:
    """Squared Mahalanobis distances (..., n) of paths (..., n, p), and the covariance (..., p, p)
    of their robust z, cut and shrunk, by which these are.
    """
    z = _robust_z(paths)
    cut = np.clip(z, -_CUT, _CUT)
    middle = cut.mean(-2, keepdims=True)
    covariance = shrunk_covariance(cut - middle)
    away = z - middle
    return np.einsum("...i,...i", away, np.linalg.solve(covariance, away.mT).mT), covariance


def shrunk_covariance(centred: Array) -> Array:
    """The covariance (..., p, p) of centred features (..., n, p), shrunk towards equal variances.

    Ledoit & Wolf (2004), J. Multivar. Anal. 88, 365; many sets at once.
    """
    n, p = centred.shape[-2:]
    covariance = centred.mT @ centred / n
    mean = np.trace(covariance, axis1=-2, axis2=-1) / p
    target = mean[..., None, None] * np.eye(p)
    apart = np.square(covariance - target).sum((-2, -1))
    squares = np.square(centred)
    error = ((squares.mT @ squares / n - np.square(covariance)) / n).sum((-2, -1))
    share = np.minimum(np.divide(error, apart, out=np.zeros_like(apart), where=apart > 0), 1.0)
    return np.asarray(covariance + share[..., None, None] * (target - covariance))


def most_unusual_feature(unusual: UnusualPaths) -> list[str]:
    """In what each head is farthest from the others' median, and which way; "" for none.

    Changes have a sign of their own, so that "more" would not tell whether the head changed more or
    is farther up: a head whose rank fell furthest has the least log ratio.
    """
    said = []
    for own, z in zip(unusual.features, unusual.z, strict=True):
        if np.isnan(z).all():
            said.append("")
            continue
        column = int(np.nanargmax(np.abs(z)))
        middle = float(np.nanmedian(unusual.features[:, column]))
        said.append(_said_of(PATH_FEATURES[column], float(own[column]), middle))
    return said


def _said_of(feature: str, own: float, others: float) -> str:
    """How a head's feature differs from the others' median."""
    if feature in _PLAIN:
        return _PLAIN[feature][own > others]
    what, rose, fell = _CHANGES[feature]
    verb, other = (rose, fell) if (own or others) > 0 else (fell, rose)
    if own * others < 0:
        return f"{what} {verb} where others' {other}"
    return f"{what} {verb} {'further' if abs(own) > abs(others) else 'less'} than others'"
