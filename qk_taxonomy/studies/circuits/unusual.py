"""Heads whose spectrum is unlike the control's and unlike their peers': the "thinking heads".

The unit of replication is the control's key-value group, which is the head where each has a key of
its own. A random twin's heads are independent draws up to two things: heads of a group share half
of their circuit, which is why a group weighs one in the null however many heads it has; and all
share the twin's embedding, whose Gram matrix is an average over the vocabulary and differs little
between twins. A control of trained heads, as a one-layer model has, makes p-values say "unlike the
heads of that model", and takes those as exchangeable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.densities import wasserstein_distance
from qk_taxonomy.statistics.findings import LEVEL, benjamini_hochberg, join_notes

Array = NDArray[np.float64]
Places = NDArray[np.int64]

# Singular values are accurate down to this of the largest, so what is below counts as no smaller.
_FLOOR = 1e-6

# What makes the median absolute deviation of normal values their standard deviation.
_NORMAL_MAD = 1.4826


@dataclass(frozen=True, eq=False)
class Cohort:
    """Heads of one stack and one d_head, each other's peers, with the control's of that stack.

    ``singular_values`` (heads, e); ``control`` (control's heads, e), of one random twin or several,
    or None; ``control_groups`` (control's heads,): a number for each key-value group of the control
    (of a layer of a twin: no two groups share one), or None where each head has a key of its own.
    """

    singular_values: Array
    control: Array | None = None
    control_groups: Places | None = None


@dataclass(frozen=True, eq=False)
class UnusualHeads:
    """How unlike others every head is; (heads,) each, cohort by cohort in the order given.

    ``distance``: to the control, of :func:`spectral_profiles`; nan without one and for a zero head.
    ``p_values``: one-sided, the rank of that distance among the control's own; ``q_values``:
    Benjamini and Hochberg's over all heads. ``peer_z``: how far from the mean of the other heads of
    its cohort, as a robust z of the log distance (median, 1.4826 · MAD): an effect size, without a
    p-value, since trained heads have no null; nan where distances do not vary. ``rank``: 1 is the
    most unusual: by the sum of the ranks of ``distance`` and ``peer_z`` among the heads with
    q ≤ 0.05, then among the rest. ``note``: what
    limits the test; empty where nothing does.
    """

    distance: Array
    p_values: Array
    q_values: Array
    peer_z: Array
    rank: Places
    note: str


def spectral_profiles(sigma: Array) -> Array:
    """log of σ over the head's root mean square, descending: (heads, e); nan for a zero head.

    Free of the head's scale. σ below 1e-6 of the largest count as that, being within its error.
    """
    ordered = np.sort(np.asarray(sigma, dtype=np.float64), axis=-1)[:, ::-1]
    largest = ordered[:, :1]
    relative = np.divide(ordered, largest, out=np.full_like(ordered, np.nan), where=largest > 0)
    floored = np.maximum(relative, _FLOOR)
    return np.log(floored) - np.log(np.square(floored).mean(-1, keepdims=True)) / 2


def _distances(profiles: Array, centre: Array) -> Array:
    """Wasserstein-1 distance of each profile (heads, e) to a centre (e,) or one each (heads, e)."""
    return np.asarray(wasserstein_distance(profiles, np.broadcast_to(centre, profiles.shape)))


def _means_of_others(profiles: Array, groups: Places) -> Array:
    """Mean profile of all heads outside each head's group: (heads, e); nan where there is none."""
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), profiles.shape[1]))
    np.add.at(sums, number, profiles)
    others = len(profiles) - sizes
    means = np.full_like(sums, np.nan)
    np.divide(sums.sum(0) - sums, others[:, None], out=means, where=others[:, None] > 0)
    return means[number]


def group_p_values(observed: Array, null: Array, groups: Places) -> Array:
    """(1 + Σ_g share of group g's null values that are at least as large) / (1 + number of groups).

    A conformal p-value where the null's values are exchangeable by group only; with groups of one,
    (1 + #{≥}) / (1 + n). nan for nan. observed: (heads,); null, ``groups``: (n,). Lee, Barber &
    Willett (2023), hierarchical conformal prediction. That all are compared with the same null
    makes them positively dependent, which Benjamini and Hochberg's correction allows: Bates et al.
    (2023).
    """
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(null)
    weights = 1.0 / sizes[number][order]
    from_here = np.r_[np.cumsum(weights[::-1])[::-1], 0.0]
    extreme = from_here[np.searchsorted(null[order], observed, side="left")]
    # The shares of a group may add up to a little more than 1.
    p = np.minimum((1.0 + extreme) / (1.0 + len(sizes)), 1.0)
    return np.where(np.isnan(observed), np.nan, p)


def _against_control(profiles: Array, cohort: Cohort) -> tuple[Array, Array, int]:
    """Distance to the control and p-value of each head, and the number of the control's groups."""
    unknown = np.full(len(profiles), np.nan)
    if cohort.control is None:
        return unknown, unknown, 0
    control = spectral_profiles(cohort.control)
    groups = cohort.control_groups
    if groups is None:
        groups = np.arange(len(control))
    known = np.isfinite(control).all(-1)
    control, groups = control[known], groups[known]
    n_groups = len(np.unique(groups))
    if n_groups < 2:
        return unknown, unknown, n_groups
    distance = _distances(profiles, control.mean(0))
    # A head's own group must not pull the mean towards it, as it cannot for the model's heads.
    null = _distances(control, _means_of_others(control, groups))
    return distance, group_p_values(distance, null, groups), n_groups


def _peer_z(profiles: Array) -> Array:
    z = np.full(len(profiles), np.nan)
    known = np.flatnonzero(np.isfinite(profiles).all(-1))
    if len(known) < 2:
        return z
    own = profiles[known]
    distances = _distances(own, _means_of_others(own, np.arange(len(own))))
    logs = np.log(np.maximum(distances, np.finfo(np.float64).tiny))
    deviations = logs - np.median(logs)
    spread = _NORMAL_MAD * np.median(np.abs(deviations))
    if spread > 0:
        z[known] = deviations / spread
    return z


def _ranks(q_values: Array, distance: Array, peer_z: Array) -> Places:
    from scipy.stats import rankdata

    found = np.nan_to_num(q_values, nan=1.0) <= LEVEL
    places = [rankdata(np.nan_to_num(x, nan=-np.inf)) for x in (distance, peer_z)]
    order = np.lexsort((-(places[0] + places[1]), ~found))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return rank


def _check(cohort: Cohort) -> None:
    sigma, control, groups = cohort.singular_values, cohort.control, cohort.control_groups
    shapes = [x.shape for x in (sigma, control, groups) if x is not None]
    fits = sigma.ndim == 2 and 0 not in sigma.shape
    if control is not None:
        fits = fits and control.ndim == 2 and control.shape[1:] == sigma.shape[1:]
        fits = fits and (groups is None or groups.shape == control.shape[:1])
    if not fits or (control is None and groups is not None):
        raise ShapeError(
            "Wanted singular values (heads, e), a control's (heads, e) of the same e or none, and "
            f"a group for each of the control's heads or none; found {shapes}."
        )


def _limit(n_groups: Sequence[int], n_heads: int) -> str:
    """What the control's size keeps from being found after correction; "" where nothing."""
    if max(n_groups) < 2:
        return "no control to test against" if max(n_groups) == 0 else "a control of one group"
    fewest = math.ceil(n_heads / (LEVEL * (1 + max(n_groups))))
    missing = "a stack has no control" if min(n_groups) < 2 else ""
    if fewest <= 1:
        return missing
    if fewest > n_heads:
        reach = "no head can be found"
    else:
        reach = f"fewer than {fewest} heads cannot be found"
    return join_notes(missing, f"{max(n_groups)} independent heads of the control: {reach}")


def unusual_heads(cohorts: Sequence[Cohort]) -> UnusualHeads:
    """Rank all heads of one model, of one circuit in one convention, by how unusual they are.

    Correction and rank go over all cohorts together. Raises ShapeError.
    """
    if not cohorts:
        raise ShapeError("Wanted the heads of at least one stack, found none.")
    distances, p_values, peer_z, n_groups = [], [], [], []
    for cohort in cohorts:
        _check(cohort)
        profiles = spectral_profiles(cohort.singular_values)
        distance, p, groups = _against_control(profiles, cohort)
        distances.append(distance)
        p_values.append(p)
        peer_z.append(_peer_z(profiles))
        n_groups.append(groups)
    p, z = np.concatenate(p_values), np.concatenate(peer_z)
    q = benjamini_hochberg(p)
    return UnusualHeads(
        distance=np.concatenate(distances),
        p_values=p,
        q_values=q,
        peer_z=z,
        rank=_ranks(q, np.concatenate(distances), z),
        note=_limit(n_groups, int(np.isfinite(p).sum())),
    )
