"""Alignment of singular vectors with the features of target pairs, and what chance would give."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.statistics.decomposition import SingularVectors
from qk_taxonomy.studies.superposition.measures import (
    as_dictionary,
    as_pairs,
    columns,
    directions,
)

Array = NDArray[np.float64]

# Singular values below this share of the largest are rounding of float32 weights; their vectors
# are arbitrary.
_RANK = 1e-6

#: |cos| on both sides from which a pair counts as aligned.
ALIGNED = 0.95


@dataclass(frozen=True, eq=False)
class Alignment:
    """Each target pair's own singular vectors, all (..., targets).

    ``singular``: k, which no two targets share; −1 where none is left (more targets than singular
    values that are not zero), and then the rest is nan. ``sigma``: σ_k. ``left``, ``right``:
    |cos(W_i, u_k)| and |cos(W_j, v_k)|. ``p_values``: the chance that, under random rotations of U
    and of V, some singular vectors have as large a :attr:`lesser`. ``chance``: what it reaches in
    one of twenty such rotations.
    """

    singular: NDArray[np.intp]
    sigma: Array
    left: Array
    right: Array
    p_values: Array
    chance: Array

    @property
    def lesser(self) -> Array:
        """The smaller of both cosines."""
        return np.minimum(self.left, self.right)


def align(
    w: ArrayLike,
    vectors: SingularVectors,
    pairs: ArrayLike,
    *,
    n_draws: int = 9999,
    seed: int = 0,
) -> Alignment:
    """Match target pairs (i, j) with singular vectors by |cos|, left and right of the same k.

    w (..., m, n), vectors of the same leading axes, pairs (targets, 2), or each instance's own in
    (..., targets, 2). The matching is that of the largest sum of the lesser cosines (the assignment
    problem, Kuhn 1955), so that targets beyond the rank stay without. The p-value of a pair
    compares with the best of all singular vectors under rotation: exact for one target, and on the
    safe side for several, of which each may have to leave its best one to another. Not corrected
    for the number of targets. Raises ShapeError.
    """
    x = as_dictionary(w)
    targets = as_pairs(pairs, x)
    unit = directions(x)
    left = columns(unit, targets[..., 0]).mT @ vectors.u
    right = columns(unit, targets[..., 1]).mT @ vectors.v
    there = vectors.sigma > _RANK * vectors.sigma[..., :1]
    lesser = np.minimum(np.abs(left), np.abs(right)) * there[..., None, :]
    singular = _assignment(lesser)
    column = np.maximum(singular, 0)[..., None]

    def chosen(values: Array) -> Array:
        found = np.take_along_axis(np.broadcast_to(values, lesser.shape), column, axis=-1)[..., 0]
        return np.where(singular >= 0, found, np.nan)

    # A singular vector of σ = 0 is nobody's.
    singular = np.where(chosen(there[..., None, :].astype(np.float64)) == 1, singular, -1)
    p_values, chance = _against_chance(chosen(lesser), there.sum(-1), x.shape[-2], n_draws, seed)
    return Alignment(
        singular,
        chosen(vectors.sigma[..., None, :]),
        np.abs(chosen(left)),
        np.abs(chosen(right)),
        p_values,
        chance,
    )


def _assignment(score: Array) -> NDArray[np.intp]:
    """The column of each row of (..., rows, columns) of largest total score; −1 for none."""
    from scipy.optimize import linear_sum_assignment

    flat = score.reshape(-1, *score.shape[-2:])
    found = np.full(flat.shape[:2], -1)
    for one, chosen in zip(flat, found, strict=True):
        rows, columns = linear_sum_assignment(one, maximize=True)
        chosen[rows] = columns
    return found.reshape(score.shape[:-1])


def _against_chance(
    observed: Array, rank: NDArray[np.intp], m: int, n_draws: int, seed: int
) -> tuple[Array, Array]:
    """p-values and the 95 % quantile of chance, for observed (..., targets) and ranks (...)."""
    p_values, chance = np.full_like(observed, np.nan), np.full_like(observed, np.nan)
    for k in np.unique(rank[rank > 0]):
        of_rank = rank == k
        null = chance_alignment(m, int(k), n_draws, seed)
        # Rounding must not make a cosine of 1 less than a cosine of 1 (in one dimension, all are).
        as_large = n_draws - np.searchsorted(null, observed[of_rank] - 1e-9)
        p_values[of_rank] = (1 + as_large) / (1 + n_draws)
        chance[of_rank] = np.quantile(null, 0.95)
    missing = np.isnan(observed)
    p_values[missing] = chance[missing] = np.nan
    return p_values, chance


@functools.lru_cache(maxsize=64)
def chance_alignment(m: int, k: int, n_draws: int = 9999, seed: int = 0) -> Array:
    """Draws of the best lesser cosine, ascending, if U and V are randomly rotated in R^m.

    Under a uniformly random rotation the cosines of one direction with k orthonormal vectors are k
    coordinates of a uniformly random unit vector of R^m, whatever the vectors; left and right
    rotate independently. So the law of max_k min(|cos_left|, |cos_right|) depends on m and k only.
    Read-only.
    """
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n_draws, 2, m))
    cosines = np.abs(z[..., :k]) / np.linalg.norm(z, axis=-1, keepdims=True)
    found = np.sort(cosines.min(axis=1).max(axis=-1))
    found.setflags(write=False)
    return found
