"""The head that frozen representations call for, in closed form.

For a frozen dictionary W and independent inputs x and y, the pair loss E(s − hᵀΩg)², h = Wx,
g = Wy, is a least-squares problem in Ω: with the second moments Σ = W E[xxᵀ] Wᵀ (not centred: h has
a mean) and K = E[s h gᵀ], it is least at Ω* = Σ⁺ K Σ⁺. Targets s = Σ_t weight_t f(x_i) f(y_j), with
f(x) = x or 1[x > 0], have K = W C T Cᵀ Wᵀ, where C = E[x f(x)ᵀ] and T has the weights. So Ω* of
one pair has rank 1, with u₁ ∝ Σ⁺ E[h f(x_i)] and v₁ ∝ Σ⁺ E[g f(y_j)]. arXiv 2602.13524.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.errors import ShapeError, StudyError
from qk_taxonomy.statistics.decomposition import SingularVectors
from qk_taxonomy.studies.superposition.measures import as_dictionary, as_pairs, pair_matrix

Array = NDArray[np.float64]

#: Targets whose pair loss is quadratic in Ω.
QuadraticForm = Literal["indicator", "product"]

#: Singular values that differ by less than this share are tied: their vectors are free to mix, and
#: those of a trained head, whose σ is right within a percent or so, do.
TIE = 0.05

# Eigenvalues of Σ below this share of the largest are rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class InputMoments:
    """Second moments of inputs x and of what targets take from them, f(x); all (..., n, n).

    ``inputs``: E[x xᵀ]. ``cross``: E[x f(x)ᵀ]. ``taken``: E[f(x) f(x)ᵀ].
    """

    inputs: Array
    cross: Array
    taken: Array


def input_moments(
    n_features: int,
    probability: ArrayLike,
    form: QuadraticForm,
    groups: Sequence[Sequence[int]] = (),
) -> InputMoments:
    """Exact moments of sparse uniform inputs: x_i = 0, or with ``probability`` (...) U[0, 1].

    Features are independent, but those of one group occur together: all or none of them, each with
    a value of its own. With E x = 1/2 and E x² = 1/3 of a value, and q_ij the probability that i
    and j both occur: E[x_i x_j] = q_ij/4, E[x_i²] = p/3, E[x_i 1[x_j > 0]] = q_ij/2,
    E[1[x_i > 0] 1[x_j > 0]] = q_ij. Raises StudyError.
    """
    if form not in ("indicator", "product"):
        raise StudyError(
            f"There is a closed form for indicator and product targets, not for {form!r} ones: "
            "train with one of those to compare with theory."
        )
    p = np.asarray(probability, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise StudyError(f"Wanted probabilities of a feature in [0, 1], found {p}.")
    together = np.eye(n_features, dtype=bool)
    for group in groups:
        together[np.ix_(list(group), list(group))] = True
    p = p[..., None, None]
    both = np.where(together, p, p**2)
    products = both / 4 + np.eye(n_features) * p / 12
    if form == "product":
        return InputMoments(products, products, products)
    return InputMoments(products, both / 2, both)


@dataclass(frozen=True, eq=False)
class PairProblem:
    """The pair loss of frozen dictionaries as a quadratic function of Ω.

    ``sigma`` (..., m, m): Σ. ``k`` (..., m, m): K. ``constant`` (...): E s², the loss of Ω = 0.
    """

    sigma: Array
    k: Array
    constant: Array

    def loss(self, omega: ArrayLike) -> Array:
        """E(s − hᵀΩg)² of heads (..., m, m), exactly: (...)."""
        x = np.asarray(omega, dtype=np.float64)
        return self.constant + np.einsum(
            "...ij,...ij->...", x, self.sigma @ x @ self.sigma - 2 * self.k
        )


def pair_problem(
    w: ArrayLike,
    probability: ArrayLike,
    pairs: ArrayLike,
    weights: ArrayLike,
    form: QuadraticForm,
    groups: Sequence[Sequence[int]] = (),
) -> PairProblem:
    """The pair loss of dictionaries w (..., m, n) at probabilities (...), for any targets.

    pairs (targets, 2) and weights (targets,), or each instance's own in (..., targets, 2) and
    (..., targets). Pairs that are named twice add up, weights of 0 do nothing. Raises ShapeError,
    and StudyError for targets without a closed form.
    """
    x = as_dictionary(w)
    targets, sizes = as_pairs(pairs, x), np.asarray(weights, dtype=np.float64)
    if sizes.shape not in (targets.shape[:-1], targets.shape[-2:-1]):
        raise ShapeError(
            f"Wanted a weight for each pair of {targets.shape[:-1]}, found {sizes.shape}."
        )
    wanted = pair_matrix(targets, sizes, x.shape[-1])
    moments = input_moments(x.shape[-1], probability, form, groups)
    reads = x @ moments.cross
    constant = np.einsum("...ij,...ij->...", moments.taken @ wanted @ moments.taken, wanted)
    return PairProblem(x @ moments.inputs @ x.mT, reads @ wanted @ reads.mT, constant)


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best head of at most a given rank: ``omega`` (..., m, m), its SVD, and its loss (...).

    ``gains`` (..., m), descending: by how much each dimension of a head, up to any rank, lessens
    the loss. Where that of dimension r is tied with the next, heads of rank r are free to choose.
    """

    omega: Array
    vectors: SingularVectors
    loss: Array
    gains: Array


def optimum(problem: PairProblem, rank: int | None = None, least_variance: float = 1e-4) -> Optimum:
    """The head of least pair loss, of rank at most ``rank`` (a head's r), by default any.

    Up to a constant the loss is ‖Σ^½ (Ω − Ω*) Σ^½‖_F², so the best head of rank r is
    Σ^−½ [Σ^½ Ω* Σ^½]_r Σ^−½, [·]_r the truncated singular value decomposition (Eckart & Young
    1936): not the truncation of Ω* itself. Directions of h with less than ``least_variance`` of the
    largest eigenvalue of Σ are left out: a dictionary may have a hidden dimension that it all but
    leaves empty, through which the very best head gains next to nothing by enormous weights, and
    no training gets there. At 0 only those that h never takes are left out. ``vectors`` has
    ``rank`` of them, beyond the optimum's own rank arbitrary ones of σ = 0. Raises ShapeError.
    """
    m = problem.sigma.shape[-1]
    r = m if rank is None else rank
    if not 1 <= r <= m:
        raise ShapeError(f"Wanted a rank from 1 to d_hidden = {m}, found {rank}.")
    values, basis = np.linalg.eigh(problem.sigma)
    there = values > max(least_variance, _ROUNDING) * values[..., -1:]
    inverse_roots = np.where(there, 1 / np.sqrt(np.where(there, values, 1)), 0)
    inverse_root = (basis * inverse_roots[..., None, :]) @ basis.mT
    # Σ^½ Ω* Σ^½ = Σ^−½ K Σ^−½.
    u, s, vh = np.linalg.svd(inverse_root @ problem.k @ inverse_root)
    best = (u[..., :r] * s[..., None, :r]) @ vh[..., :r, :]
    omega = inverse_root @ best @ inverse_root
    left, sigma, right = np.linalg.svd(omega)
    vectors = SingularVectors(left[..., :r], sigma[..., :r], right.mT[..., :r])
    gains = np.square(s)
    return Optimum(omega, vectors, problem.constant - gains[..., :r].sum(-1), gains)


@dataclass(frozen=True, eq=False)
class Agreement:
    """How a trained head compares with the optimum of its dictionary; all (...), but ``vectors``.

    ``excess_loss``: (loss of Ω − loss of Ω*) / E s², 0 at the optimum. ``sigma_ratio``: σ₁ over
    that of the optimum. ``left``, ``right`` (..., k): |cos(u_k, u_k*)| and |cos(v_k, v_k*)| of the
    first k; where σ_k* is tied with others, to within ``TIE``, the cosine of u_k with the span of
    theirs. nan where the optimum is zero. A trained head keeps what it began with in directions
    that h hardly takes: all but ``excess_loss`` see that.
    """

    excess_loss: Array
    sigma_ratio: Array
    left: Array
    right: Array


def compare_with_optimum(
    problem: PairProblem, vectors: SingularVectors, best: Optimum, k: int = 1
) -> Agreement:
    """Compare trained heads, given by their singular vectors, with an optimum of their problem.

    k: how many singular vectors to compare, at most those that both have. Raises ShapeError.
    """
    if not 1 <= k <= min(vectors.sigma.shape[-1], best.vectors.sigma.shape[-1]):
        raise ShapeError(f"Wanted a number of singular vectors that both heads have, found {k}.")
    omega = (vectors.u * vectors.sigma[..., None, :]) @ vectors.v.mT

    def ratio(over: Array, under: Array) -> Array:
        missing = np.full(np.broadcast_shapes(over.shape, under.shape), np.nan)
        return np.divide(over, under, out=missing, where=under > 0)

    sigma = best.vectors.sigma
    ends = np.sort(np.stack(np.broadcast_arrays(sigma[..., :k, None], sigma[..., None, :])), axis=0)
    tied = ends[0] >= (1 - TIE) * ends[1]

    def cosines(a: Array, b: Array) -> Array:
        return np.sqrt((np.square(a[..., :k].mT @ b) * tied).sum(-1))

    return Agreement(
        ratio(problem.loss(omega) - best.loss, problem.constant),
        ratio(vectors.sigma[..., 0], best.vectors.sigma[..., 0]),
        cosines(vectors.u, best.vectors.u),
        cosines(vectors.v, best.vectors.v),
    )
