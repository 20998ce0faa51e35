"""How pairs share singular vectors, and how singular vectors share the subspaces of features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.decomposition import SingularVectors, attention_terms, sparseness
from qk_taxonomy.studies.superposition.measures import (
    as_dictionary,
    as_pairs,
    columns,
    directions,
    orthonormal_basis,
)

Array = NDArray[np.float64]

# Features of one factor span the dimensions whose singular value is above this share of the
# largest: a trained antipodal pair of cosine −.998 is one dimension, at 3 % of the first a second.
_SPANNED = 0.1


def participation(values: ArrayLike) -> Array:
    """(Σ|v|)² / Σv² along the last axis, within [1, k]: how many of k values count.

    k · S(v), the sparseness of a decomposition; nan where all are zero.
    """
    x = np.asarray(values, dtype=np.float64)
    return x.shape[-1] * sparseness(x)


def feature_capture(w: ArrayLike, basis: ArrayLike) -> Array:
    """‖QᵀŴ_i‖², (..., n), in [0, 1]: how much of each feature lies in the span of a basis.

    basis Q: (..., m, k), orthonormal columns, such as the u_k of a head: what the head can read of
    a feature. A random subspace has k/m on average; 0 for a feature of norm 0.
    """
    return np.square(np.asarray(basis, dtype=np.float64).mT @ directions(w)).sum(-2)


@dataclass(frozen=True, eq=False)
class PairSharing:
    """How target pairs are laid out over singular vectors.

    ``terms`` (..., targets, k): (Ŵ_iᵀu_k) σ_k (v_kᵀŴ_j), whose sum over k is the pair's logit at
    unit length. ``vectors_per_pair`` (..., targets), in [1, k]: participation of a pair over
    singular vectors, 1 where one carries it. ``pairs_per_vector`` (..., k), in [1, targets]: 1
    where a singular vector is one pair's; it says something of those that carry a pair at all.
    ``overlap`` (..., targets, targets), in [0, 1]: the cosine of two pairs' |terms|, 0 where no
    singular vector serves both. nan for pairs without terms.
    """

    terms: Array
    vectors_per_pair: Array
    pairs_per_vector: Array
    overlap: Array


def pair_sharing(w: ArrayLike, vectors: SingularVectors, pairs: ArrayLike) -> PairSharing:
    """How pairs share singular vectors: w (..., m, n), pairs (targets, 2) or (..., targets, 2).

    Raises ShapeError.
    """
    unit = directions(w)
    targets = as_pairs(pairs, unit)
    left, right = (columns(unit, targets[..., side]).mT for side in (0, 1))
    terms = attention_terms(vectors, left, right)
    size = np.abs(terms)
    length = np.linalg.norm(size, axis=-1, keepdims=True)
    shape = np.divide(size, length, out=np.full_like(size, np.nan), where=length > 0)
    return PairSharing(terms, participation(terms), participation(terms.mT), shape @ shape.mT)


@dataclass(frozen=True, eq=False)
class FactorSpread:
    """How unit vectors, such as a head's u_k, lie over the subspaces of tegum factors.

    ``mass`` (..., k, factors): ‖P_f u_k‖², P_f the projector on the span of a factor's features;
    0 for factors an instance lacks. ``factors_per_vector`` (..., k): participation over factors, 1
    for a vector that keeps to one factor (they are shared out) and up to their number for one that
    spans them; nan without any. ``by_chance`` (...): its mean for random directions.
    """

    mass: Array
    factors_per_vector: Array
    by_chance: Array


def factor_spread(
    w: ArrayLike, factors: ArrayLike, vectors: ArrayLike, *, n_draws: int = 400, seed: int = 0
) -> FactorSpread:
    """Spread of vectors (..., m, k) over the tegum factors (..., n) of w (..., m, n).

    factors: labels as ``tegum_factors`` gives them, −1 for features of none. Masses of a
    vector in the span of orthogonal factors sum to 1. Raises ShapeError.
    """
    x = as_dictionary(w)
    u = np.asarray(vectors, dtype=np.float64)
    labels = np.asarray(factors)
    if labels.shape != (*x.shape[:-2], x.shape[-1]) or u.shape[:-1] != x.shape[:-1]:
        raise ShapeError(
            f"Wanted a factor of each feature and vectors in the space of W {x.shape}, found "
            f"factors {labels.shape} and vectors {u.shape}."
        )
    unit = directions(x)
    subspaces = [
        orthonormal_basis(unit * (labels == label)[..., None, :], _SPANNED)[0]
        for label in range(int(labels.max()) + 1)
    ]
    z = np.random.default_rng(seed).standard_normal((x.shape[-2], n_draws))
    z /= np.linalg.norm(z, axis=0)
    mass = _masses(subspaces, u)
    by_chance = participation(_masses(subspaces, np.broadcast_to(z, (*u.shape[:-1], n_draws))))
    return FactorSpread(mass, participation(mass), by_chance.mean(-1))


def _masses(subspaces: list[Array], u: Array) -> Array:
    """‖P_f u_k‖² of vectors (..., m, k) in subspaces given by bases: (..., k, factors)."""
    if not subspaces:
        return np.zeros((*u.shape[:-2], u.shape[-1], 1))
    return np.stack([np.square(basis.mT @ u).sum(-2) for basis in subspaces], axis=-1)
