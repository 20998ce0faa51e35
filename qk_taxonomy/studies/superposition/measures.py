"""Measures on toy models of superposition: how features are stored, and what singular vectors find.

``w``: dictionaries (..., m, n), whose column W_i is the direction of feature i of n in the hidden
space of m dimensions; leading axes are free (snapshots, instances). Elhage et al. (2022), "Toy
Models of Superposition", Transformer Circuits Thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.decomposition import SingularVectors

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: A feature is represented where its norm is above this. Trained norms gather near 0 and near 1,
#: and the model gives back ‖W_i‖² of a feature on its own: a quarter of it at this bound.
NORM_BOUND = 0.5

#: Features interact where |cos| is above this. The columns of a simplex of q + 1 corners have
#: −1/q: the bound keeps simplices of up to seven corners, while columns that training has made
#: orthogonal stay below .05. Very sparse features (p of .04 and less, n = 30, m = 15) have cosines
#: of all sizes: where a factor ends is then a matter of the bound.
COSINE_BOUND = 0.15


def as_dictionary(w: ArrayLike) -> Array:
    """``w`` in float64. Raises ShapeError where it is not (..., m, n)."""
    x = np.asarray(w, dtype=np.float64)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ShapeError(f"Wanted dictionaries (..., d_hidden, n_features), found {x.shape}.")
    return x


def feature_norms(w: ArrayLike) -> Array:
    """‖W_i‖, (..., n)."""
    return np.linalg.norm(as_dictionary(w), axis=-2)


def directions(w: ArrayLike) -> Array:
    """Ŵ, columns of unit length, (..., m, n); zero for a feature of norm 0."""
    x = as_dictionary(w)
    norm = np.linalg.norm(x, axis=-2, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def represented(w: ArrayLike, norm_bound: float = NORM_BOUND) -> Mask:
    """Which features have a norm above the bound, (..., n)."""
    return feature_norms(w) > norm_bound


def gram(w: ArrayLike) -> Array:
    """WᵀW, (..., n, n): what is given back of each feature for each, before bias and ReLU."""
    x = as_dictionary(w)
    return x.mT @ x


def interference(w: ArrayLike) -> Array:
    """Σ_{j≠i} (Ŵ_i · W_j)², (..., n), ≥ 0: how much other features stand in a feature's way.

    0 where a feature has its dimension to itself, and for one of norm 0. Elhage et al. (2022)
    colour norm bars by it: polysemanticity.
    """
    overlaps = np.square(directions(w).mT @ as_dictionary(w))
    return overlaps.sum(-1) - np.diagonal(overlaps, axis1=-2, axis2=-1)


def feature_dimensionality(w: ArrayLike) -> Array:
    """D_i = ‖W_i‖² / Σ_j (Ŵ_i · W_j)², (..., n), in [0, 1]: the share of a dimension a feature has.

    1 for a feature orthogonal to all others, ½ in an antipodal pair, q/(q+1) in a simplex of q + 1
    corners; 0 for a feature of norm 0. ΣD_i is at most the rank of W. Elhage et al. (2022).
    """
    x = as_dictionary(w)
    shares = np.square(directions(x).mT @ x).sum(-1)
    return np.divide(
        np.square(feature_norms(x)), shares, out=np.zeros_like(shares), where=shares > 0
    )


def dimensions_per_feature(w: ArrayLike) -> Array:
    """D* = m / ‖W‖_F², (...): hidden dimensions to a learned feature; inf where W is 0.

    Elhage et al. (2022), whose phase plot has it against 1/(1 − S).
    """
    x = as_dictionary(w)
    squares = np.square(x).sum((-2, -1))
    infinite = np.full_like(squares, np.inf)
    return np.divide(x.shape[-2], squares, out=infinite, where=squares > 0)


def orthogonality(w: ArrayLike, features: ArrayLike | None = None) -> Array:
    """1 − m · mean cos² over pairs of features' columns, (...), in [1 − m, 1].

    1 where the columns are orthogonal, 0 on average for random directions of R^m (E cos² = 1/m),
    below it where features share fewer dimensions than that. k > m columns reach at most
    1 − (k − m)/(k − 1) (Welch 1974). ``features``: a mask (..., n), by default those
    represented; over a training give it the same one throughout (say, those represented at the
    end), so that the number does not jump as features come and go. nan below two features.
    """
    x = directions(w)
    mask = represented(w) if features is None else np.asarray(features, dtype=bool)
    mask = np.broadcast_to(mask, (*x.shape[:-2], x.shape[-1]))
    kept = x * mask[..., None, :]
    k = mask.sum(-1).astype(np.float64)
    # Σcos² over all ordered pairs, and Σ‖Ŵ_i‖⁴ of i = j: a dead feature is orthogonal to all.
    total = np.square(kept @ kept.mT).sum((-2, -1)) - np.square(kept).sum(-2).sum(-1)
    pairs = k * (k - 1)
    mean = np.divide(total, pairs, out=np.full_like(total, np.nan), where=pairs > 0)
    return 1 - x.shape[-2] * mean


def tegum_factors(
    w: ArrayLike, norm_bound: float = NORM_BOUND, cosine_bound: float = COSINE_BOUND
) -> NDArray[np.intp]:
    """The tegum factor each feature is in, (..., n): 0, 1, … by lowest feature; −1 not represented.

    A tegum product puts polytopes into orthogonal subspaces: features of one factor interact,
    features of different ones do not (Elhage et al. 2022). Factors are the connected components of
    the graph of represented features that links i and j where |Ŵ_i · Ŵ_j| > ``cosine_bound``;
    cosines and not (WᵀW)_ij, so that a short column counts like a long one. Columns that have not
    been trained, with |cos| of 1/√m or so, are mostly one factor.
    """
    mask = represented(w, norm_bound)
    unit = directions(w)
    linked = (np.abs(unit.mT @ unit) > cosine_bound) & mask[..., None, :] & mask[..., :, None]
    linked |= np.eye(mask.shape[-1], dtype=bool)
    n = mask.shape[-1]
    # Each feature takes the lowest number among its neighbours until none changes.
    lowest = np.broadcast_to(np.arange(n), mask.shape)
    while True:
        lower = np.where(linked, lowest[..., None, :], n).min(-1)
        if (lower == lowest).all():
            break
        lowest = lower
    first = mask & (lowest == np.arange(n))
    numbers = np.cumsum(first, axis=-1) - 1
    return np.where(mask, np.take_along_axis(numbers, lowest, axis=-1), -1)


def feature_logits(w: ArrayLike, vectors: SingularVectors) -> Array:
    """WᵀΩW, (..., n, n): the logit of feature i alone, at 1, on the left and j on the right.

    For product targets it is to be the matrix of their weights.
    """
    x = as_dictionary(w)
    return ((x.mT @ vectors.u) * vectors.sigma[..., None, :]) @ (x.mT @ vectors.v).mT


@dataclass(frozen=True, eq=False)
class Angles:
    """Principal angles between two subspaces, and how much of the smaller one is in the other.

    ``angles`` (..., min(p, q)) in radians, ascending, nan beyond the smaller dimension; ``capture``
    (...), in [0, 1]: the mean of cos² over them, nan where a subspace is {0}.
    """

    angles: Array
    capture: Array


def principal_angles(x: ArrayLike, y: ArrayLike) -> Angles:
    """Principal angles between the spans of the columns of x (..., m, p) and y (..., m, q).

    Cosines are the singular values of QₓᵀQ_y and sines those of (I − QₓQₓᵀ)Q_y; both are used, as
    an arccosine has no accuracy near 0 and an arcsine none near π/2. Björck & Golub (1973). Columns
    may depend on each other: a span has the dimension it has. Raises ShapeError.
    """
    a, b = as_dictionary(x), as_dictionary(y)
    if a.shape[-2] != b.shape[-2]:
        raise ShapeError(f"Wanted subspaces of one space, found {a.shape} and {b.shape}.")
    (q_a, rank_a), (q_b, rank_b) = orthonormal_basis(a), orthonormal_basis(b)
    product = q_a.mT @ q_b
    cosines = np.linalg.svd(product, compute_uv=False)
    sines = np.linalg.svd(q_b - q_a @ product, compute_uv=False)[..., ::-1]
    # Zeros that stand for columns y lacks come first among the sines.
    n, width = cosines.shape[-1], sines.shape[-1]
    places = np.minimum(np.arange(n) + (width - rank_b)[..., None], width - 1)
    places = np.broadcast_to(places, cosines.shape)
    angles = np.arctan2(np.take_along_axis(sines, places, axis=-1), cosines)
    smaller = np.minimum(rank_a, rank_b)
    real = np.arange(n) < smaller[..., None]
    squares = np.where(real, np.square(cosines), 0.0).sum(-1)
    capture = np.divide(squares, smaller, out=np.full_like(squares, np.nan), where=smaller > 0)
    return Angles(np.where(real, angles, np.nan), capture)


def orthonormal_basis(x: Array, bound: float | None = None) -> tuple[Array, NDArray[np.intp]]:
    """A basis of the span of the columns of x (..., m, p), and its dimension (...).

    The basis is (..., m, min(m, p)), with zeros in place of columns beyond the dimension. A
    dimension counts where its singular value is above ``bound`` times the largest, by default what
    rounding leaves.
    """
    u, sigma, _ = np.linalg.svd(x, full_matrices=False)
    least = max(x.shape[-2:]) * np.finfo(np.float64).eps if bound is None else bound
    kept = sigma > least * sigma[..., :1]
    return u * kept[..., None, :], kept.sum(-1)


def target_subspaces(
    w: ArrayLike, vectors: SingularVectors, pairs: ArrayLike
) -> tuple[Angles, Angles]:
    """Angles of span(W_i of the targets) to the leading left singular subspace; right with W_j.

    pairs: features i and j, (targets, 2) or each instance's own, (..., targets, 2). As many leading
    singular vectors are taken as there are singular components in the targets, the rank of the
    matrix with a 1 at each (i, j); features that no singular vector could be for are not held
    against Ω. A random subspace of k dimensions captures k/m on average. Raises ShapeError.
    """
    x = as_dictionary(w)
    targets = as_pairs(pairs, x)
    wanted = pair_matrix(targets, np.ones(targets.shape[:-1]), x.shape[-1])
    rank = np.linalg.matrix_rank(wanted)
    leading = np.arange(vectors.sigma.shape[-1]) < np.asarray(rank)[..., None]
    return (
        principal_angles(columns(x, targets[..., 0]), vectors.u * leading[..., None, :]),
        principal_angles(columns(x, targets[..., 1]), vectors.v * leading[..., None, :]),
    )


def as_pairs(pairs: ArrayLike, w: Array) -> NDArray[np.intp]:
    """``pairs`` as integers (..., targets, 2), features of ``w`` (..., m, n).

    Leading axes are those of w, or fewer or shorter ones that broadcast to them. Raises ShapeError
    where they are no pairs of features.
    """
    found, n = np.asarray(pairs), w.shape[-1]
    whole = found.ndim >= 2 and found.shape[-1] == 2 and found.size and found.dtype.kind in "iu"
    if not whole or found.min() < 0 or found.max() >= n:
        raise ShapeError(
            f"Wanted targets as pairs (i, j) of features 0 to {n - 1}, "
            f"found {np.array2string(found, threshold=8)}."
        )
    try:
        fitting = np.broadcast_shapes(found.shape[:-2], w.shape[:-2]) == w.shape[:-2]
    except ValueError:
        fitting = False
    if not fitting:
        raise ShapeError(
            f"Wanted targets for all instances or for each one of {w.shape[:-2]}, "
            f"found {found.shape[:-2]}."
        )
    return found.astype(np.intp)


def columns(x: Array, features: NDArray[np.intp]) -> Array:
    """Columns of x (..., m, n) for features (..., k), each instance's own: (..., m, k)."""
    places = np.broadcast_to(features[..., None, :], (*x.shape[:-1], features.shape[-1]))
    return np.take_along_axis(x, places, axis=-1)


def pair_matrix(pairs: NDArray[np.intp], weights: Array, n_features: int) -> Array:
    """(..., n, n) with the weights (..., targets) of pairs (..., targets, 2) added at (i, j)."""
    lead = np.broadcast_shapes(pairs.shape[:-2], weights.shape[:-1])
    one_hot = np.eye(n_features)
    left, right = one_hot[pairs[..., 0]], one_hot[pairs[..., 1]]
    matrix = (left * weights[..., None]).mT @ right
    return np.broadcast_to(matrix, (*lead, n_features, n_features))
