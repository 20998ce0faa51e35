"""Differences between families of models, tested by moving whole models between families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.findings import Finding, join_notes, nan
from qk_taxonomy.statistics.profiles import cliffs_delta
from qk_taxonomy.statistics.relabelling import (
    in_groups,
    left_out,
    memberships,
    obstacle,
    p_value,
    relabellings,
)

Array = NDArray[np.float64]
Pair = tuple[str, str]

PERMANOVA = "PERMANOVA on Hellinger distances; R²"
KRUSKAL_WALLIS = "Kruskal–Wallis on depth profiles; epsilon²"
DUNN = "Dunn on depth profiles; Cliff's delta, bootstrap of models"


def _models_by_values(values: ArrayLike, groups: Sequence[str]) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or len(x) != len(groups):
        raise ShapeError(
            f"Wanted one row and one group a model, found {x.shape} and {len(groups)} groups."
        )
    return x


def composition_test(
    compositions: ArrayLike,
    groups: Sequence[str],
    n_permutations: int = 9999,
    seed: int = 0,
) -> Finding:
    """PERMANOVA: do families differ in their composition by class? Anderson (2001).

    compositions: (models, classes), non-negative, shares or counts: each row is normalised to sum
    1; groups: each model's family. ``statistic``: pseudo-F on Hellinger distances; ``effect``: R²
    in [0, 1], the share of the distances' sum of squares between families, whose expectation
    without a difference is (families − 1) / (models − 1). All relabellings of models where they
    are at most ``n_permutations`` + 1, else random ones. It answers to differences of spread as
    well as of centre where families differ in size (Anderson & Walsh 2013). Raises ShapeError.
    """
    x = _models_by_values(compositions, groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = x / x.sum(axis=1, keepdims=True)
    usable = (np.isfinite(shares) & (x >= 0)).all(axis=1)
    names, order, sizes = in_groups(groups, usable)
    n = len(order)
    result = Finding(n=n, method=PERMANOVA, note=left_out(usable))
    if len(names) < 2 or n == len(names):
        few = "one model a group leaves nothing to compare with" if len(names) > 1 else ""
        return replace(result, note=join_notes(result.note, few, obstacle(sizes)))
    roots = np.sqrt(shares[order])
    squares = np.square(roots[:, None] - roots).sum(axis=2) / 2
    total = squares.sum() / (2 * n)
    if total <= 0:
        return replace(result, note=join_notes(result.note, "all models have the same composition"))
    refusal = obstacle(sizes)
    labels = relabellings(sizes, 0 if refusal else n_permutations, seed)
    member = memberships(labels, len(names))
    within = (np.einsum("pmg,mk,pkg->pg", member, squares, member, optimize=True) / 2) @ (
        1 / np.array(sizes)
    )
    share = 1 - within / total
    f = np.inf
    if within[0] > 0:
        f = (total - within[0]) / (len(names) - 1) / (within[0] / (n - len(names)))
    return replace(
        result,
        effect=float(share[0]),
        statistic=float(f),
        p_value=nan if refusal else p_value(share),
        note=join_notes(result.note, refusal),
    )


@dataclass(frozen=True)
class GroupComparison:
    """Kruskal–Wallis test over all families, and Dunn's of each pair of them.

    ``overall``: H, ε² and p. ``pairs``: by the two families' names; statistic is Dunn's z (positive
    where the first family's values are larger), effect Cliff's δ with its interval. p-values
    are not corrected.
    """

    overall: Finding
    pairs: dict[Pair, Finding]


def kruskal_dunn(
    profiles: ArrayLike,
    groups: Sequence[str],
    n_permutations: int = 999,
    seed: int = 0,
) -> GroupComparison:
    """Do families differ in a statistic? Kruskal–Wallis over depth profiles, with Dunn's post-hoc.

    profiles: (models, bins), of :func:`~qk_taxonomy.statistics.profiles.depth_profile`; groups:
    each model's family. ``overall``: H (corrected for ties) over all values, and ε² = H / (values −
    1) in [0, 1]. Values of one model are not independent, so H's and z's own distributions are not
    used: p is the share of relabellings of whole models with as large an H. A pair's models are
    relabelled among its two families only, so that its p-value is right whatever the others are
    like; correcting over pairs is left to the caller. Where models are too few for any p ≤ 0.05, p
    is nan and the note says how many are needed; H, z, ε² and δ are given all the same, as
    descriptions. Families that differ in spread and in size are rejected too often: 2 models
    against 10 that vary a third as much, in a quarter of cases. Kruskal & Wallis (1952), Dunn
    (1964), Tomczak & Tomczak (2014). Raises ShapeError.
    """
    x = _models_by_values(profiles, groups)
    usable = np.asarray(np.isfinite(x).all(axis=1))
    names, order, sizes = in_groups(groups, usable)
    if len(names) < 2:
        note = join_notes(left_out(usable), obstacle(sizes))
        return GroupComparison(Finding(n=len(order), method=KRUSKAL_WALLIS, note=note), {})
    ranks = _Ranks.of(x[order])
    if ranks.variance <= 0:
        note = join_notes(left_out(usable), "all values are equal")
        return GroupComparison(Finding(n=len(order), method=KRUSKAL_WALLIS, note=note), {})
    refusal = obstacle(sizes)
    labels = relabellings(sizes, 0 if refusal else n_permutations, seed)
    h = ranks.h(labels, sizes)
    overall = Finding(
        effect=float(h[0]) / (ranks.n_values - 1),
        statistic=float(h[0]),
        p_value=nan if refusal else p_value(h),
        n=len(order),
        method=KRUSKAL_WALLIS,
        note=join_notes(left_out(usable), refusal),
    )
    rows = dict(zip(names, np.split(np.arange(len(order)), np.cumsum(sizes)[:-1]), strict=True))
    pairs: dict[Pair, Finding] = {}
    for one, two in combinations(names, 2):
        both = x[order[rows[one]]], x[order[rows[two]]]
        delta = cliffs_delta(*both, n_resamples=999, seed=seed)
        pairs[one, two] = _dunn(ranks, rows[one], rows[two], n_permutations, seed, delta)
    return GroupComparison(overall, pairs)


@dataclass(frozen=True)
class _Ranks:
    """Ranks of all values: mean rank of each model, and the variance of a rank, less ties."""

    means: Array
    n_bins: int
    variance: float

    @classmethod
    def of(cls, profiles: Array) -> _Ranks:
        from scipy.stats import rankdata

        ranks = rankdata(profiles).reshape(profiles.shape)
        return cls(ranks.mean(axis=1), profiles.shape[1], float(ranks.var(ddof=1)))

    @property
    def n_values(self) -> int:
        return len(self.means) * self.n_bins

    def h(self, labels: NDArray[np.intp], sizes: tuple[int, ...]) -> Array:
        """Kruskal–Wallis H of each relabelling: between-group sum of squares over the variance."""
        means = (self.means @ memberships(labels, len(sizes))) / np.array(sizes)
        squares = np.square(means - (self.n_values + 1) / 2) @ np.array(sizes, dtype=np.float64)
        return self.n_bins * squares / self.variance

    def z(self, first: Array, second: Array, sizes: tuple[int, int]) -> Array:
        """Dunn's z of two groups' mean ranks, groups of so many models."""
        error = self.variance / self.n_bins * (1 / sizes[0] + 1 / sizes[1])
        return (first - second) / np.sqrt(error)


def _dunn(
    ranks: _Ranks,
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    n_permutations: int,
    seed: int,
    delta: Finding,
) -> Finding:
    """Dunn's test of two families; ``delta`` is their effect size."""
    sizes = len(first), len(second)
    refusal = obstacle(sizes)
    labels = relabellings(sizes, 0 if refusal else n_permutations, seed)
    member = memberships(labels, 2)
    means = (ranks.means[np.r_[first, second]] @ member) / np.array(sizes)
    z = ranks.z(means[:, 0], means[:, 1], sizes)
    return replace(
        delta,
        statistic=float(z[0]),
        p_value=nan if refusal else p_value(np.abs(z)),
        method=DUNN,
        note=join_notes(refusal, delta.note),
    )
