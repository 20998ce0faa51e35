"""Sparse attention decomposition: an attention logit as a sum over the head's singular vectors.

Of a head Ω = leftᵀ right = Σ σ_k u_k v_kᵀ, the logit of residual vectors h and g is
ℓ = hᵀ Ω g = Σ_k (hᵀu_k) σ_k (v_kᵀg). Where singular vectors are aligned with the features that the
head attends to, few terms carry the logit. Franco & Crovella (2024), "Sparse Attention
Decomposition Applied to Circuit Tracing"; Franco, Loughridge & Crovella (2026), arXiv 2602.13524.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.findings import Finding, join_notes, nan

Array = NDArray[np.float64]

#: What a random rotation leaves as it is: the whole head (``basis``), or σ alone (``vectors``).
Control = Literal["basis", "vectors"]

# A partial sum that misses its share of the logit by rounding alone has reached it.
_ROUNDING = 1e-12


class SingularVectors(NamedTuple):
    """The thin singular value decomposition of heads: Ω = u · diag(sigma) · vᵀ, σ descending.

    u (..., d, k) and v (..., d, k) have orthonormal columns, sigma is (..., k), k = min(e, d).
    """

    u: Array
    sigma: Array
    v: Array


def singular_vectors(left: ArrayLike, right: ArrayLike) -> SingularVectors:
    """Singular vectors of Ω = leftᵀ right, through QR cores: no d×d matrix is formed.

    left, right: (..., e, d). A head of lower rank has σ that are zero but for rounding, whose
    vectors are arbitrary within what is left. Raises ShapeError.
    """
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if a.ndim < 2 or a.shape != b.shape or 0 in a.shape[-2:]:
        raise ShapeError(
            f"Wanted two factors (..., e, d) of one shape, found {a.shape}, {b.shape}."
        )
    q_left, r_left = np.linalg.qr(a.mT)
    q_right, r_right = np.linalg.qr(b.mT)
    u, sigma, vh = np.linalg.svd(r_left @ r_right.mT)
    return SingularVectors(q_left @ u, sigma, q_right @ vh.mT)


def attention_terms(vectors: SingularVectors, h: ArrayLike, g: ArrayLike) -> Array:
    """Terms (hᵀu_k) σ_k (v_kᵀg) of each pair's logit, (..., n, k); they sum to hᵀ Ω g.

    h, g: residual vectors (..., n, d), row by row the two sides of a pair. A term does not depend
    on the sign that a pair of singular vectors happens to have. Raises ShapeError.
    """
    x, y = np.asarray(h, dtype=np.float64), np.asarray(g, dtype=np.float64)
    d = vectors.u.shape[-2]
    if x.ndim < 2 or x.shape != y.shape or x.shape[-1] != d:
        raise ShapeError(
            f"Wanted residual vectors (..., pairs, {d}) alike on both sides, "
            f"found {x.shape} and {y.shape}."
        )
    return (x @ vectors.u) * vectors.sigma[..., None, :] * (y @ vectors.v)


def sparseness(terms: ArrayLike) -> Array:
    """S(v) = (mean|v|)² / mean(v²) along the last axis, within [1/k, 1]: small is sparse.

    1/k where one of k terms is not zero, 1 where all have one size; nan where all are zero. Terms
    of a Gaussian law have 2/π. Treves & Rolls (1991), on magnitudes.
    """
    size = np.abs(np.asarray(terms, dtype=np.float64))
    # Of unit size, so that no square over- or underflows.
    largest = size.max(-1, keepdims=True)
    size = np.divide(size, largest, out=np.zeros_like(size), where=largest > 0)
    squares = np.square(size).mean(-1)
    flat = np.full_like(squares, np.nan)
    return np.divide(np.square(size.mean(-1)), squares, out=flat, where=squares > 0)


def n_recon(terms: ArrayLike, share: float = 0.9) -> NDArray[np.intp]:
    """N_recon: the smallest number of terms whose sum reaches ``share`` of the logit, in [0, k].

    Terms are taken signed, as Franco & Crovella (2024) do: largest first for a positive logit, most
    negative first for a negative one. No other choice reaches the share with fewer; a choice by
    magnitude would also spend terms that push the logit the other way. 0 where the logit is 0.
    Raises ShapeError for a share outside (0, 1].
    """
    x = np.asarray(terms, dtype=np.float64)
    if not 0 < share <= 1:
        raise ShapeError(f"Wanted a share of the logit within (0, 1], found {share}.")
    logit = x.sum(-1, keepdims=True)
    ordered = -np.sort(-x * np.sign(logit), axis=-1)
    slack = _ROUNDING * np.abs(x).sum(-1, keepdims=True)
    short = np.cumsum(ordered, axis=-1) < share * np.abs(logit) - slack
    # Past its peak the sum falls back to the logit, so only the first time counts.
    return np.where(logit[..., 0] == 0, 0, np.argmin(short, axis=-1) + 1)


def random_rotation(rng: np.random.Generator, k: int) -> Array:
    """A uniformly random orthogonal matrix (k, k). Mezzadri (2007)."""
    q, r = np.linalg.qr(rng.standard_normal((k, k)))
    return q * np.sign(np.diagonal(r))


def rotated_terms(
    vectors: SingularVectors,
    h: ArrayLike,
    g: ArrayLike,
    rng: np.random.Generator,
    control: Control = "basis",
) -> Array:
    """Terms (..., n, k) of the same pairs under one random rotation, alike for all of them.

    ``basis``: Ω and every logit stay as they are, and only the basis in which they are expanded is
    random, ℓ = Σ_k (hᵀ U √Σ R e_k)(e_kᵀ Rᵀ √Σ Vᵀ g), Σ = diag(σ). √σ goes to each side, so that
    neither h nor g is favoured, and directions that Ω hardly uses do not enter at full size on
    one side only to cancel. ``vectors``: σ stays, and U R, V R′ take the place of U and V, with
    rotations R and R′ of their own: another head of the same spectrum on the same subspaces.
    """
    x, y = np.asarray(h, dtype=np.float64), np.asarray(g, dtype=np.float64)
    k = vectors.sigma.shape[-1]
    r = random_rotation(rng, k)
    if control == "vectors":
        rotated = SingularVectors(vectors.u @ r, vectors.sigma, vectors.v @ random_rotation(rng, k))
        return attention_terms(rotated, x, y)
    root = np.sqrt(vectors.sigma)[..., None, :]
    return ((x @ vectors.u) * root @ r) * ((y @ vectors.v) * root @ r)


@dataclass(frozen=True, eq=False)
class SparseDecomposition:
    """The decomposition of pairs' logits by a head's singular vectors, beside random rotations.

    ``terms`` (pairs, k); ``sparseness`` and ``n_recon`` (pairs,); ``rotated_sparseness`` and
    ``rotated_n_recon`` (draws, pairs). ``sparser`` and ``fewer``: how much lower S and N_recon are
    than under rotations (negative: lower), see :func:`sparse_decomposition`.
    """

    terms: Array
    sparseness: Array
    n_recon: NDArray[np.intp]
    rotated_sparseness: Array
    rotated_n_recon: NDArray[np.intp]
    sparser: Finding
    fewer: Finding

    @property
    def logits(self) -> Array:
        """hᵀ Ω g of each pair."""
        return self.terms.sum(-1)


def sparse_decomposition(
    vectors: SingularVectors,
    h: ArrayLike,
    g: ArrayLike,
    *,
    share: float = 0.9,
    control: Control = "basis",
    n_draws: int = 199,
    units: ArrayLike | None = None,
    seed: int = 0,
) -> SparseDecomposition:
    """Decompose the logits of pairs (h, g: (n, d)) by one head, and test it against rotations.

    Findings: ``effect`` is the mean over pairs of a pair's value less its mean over the rotations,
    with a t interval over ``units`` (n,): labels of what was sampled independently, such as
    prompts; each pair by itself without them. ``statistic``: that mean over its standard deviation
    between units. ``p_value``, one-sided: the share of rotations, the observed basis among them,
    whose mean over pairs is as low. Pairs without a logit are left out.

    What a small p says depends on the control. ``basis``: a random basis expands the same logits
    less sparsely; unequal σ do that by themselves, even for h and g of noise. ``vectors``: h and g
    fit these singular vectors better than others of the same σ; exact for any σ. Raises ShapeError.
    """
    terms = attention_terms(vectors, h, g)
    if terms.ndim != 2 or not len(terms) or n_draws < 1:
        raise ShapeError(
            "Wanted one head, at least one pair of residual vectors and one draw, found terms "
            f"{terms.shape} and {n_draws} draws."
        )
    labels = np.arange(len(terms)) if units is None else np.asarray(units)
    if labels.shape != (len(terms),):
        raise ShapeError(f"Wanted a unit for each of {len(terms)} pairs, found {labels.shape}.")
    rng = np.random.default_rng(seed)
    rotated_s = np.empty((n_draws, len(terms)))
    rotated_n = np.empty((n_draws, len(terms)), dtype=np.intp)
    for draw in range(n_draws):
        rotated = rotated_terms(vectors, h, g, rng, control)
        rotated_s[draw], rotated_n[draw] = sparseness(rotated), n_recon(rotated, share)
    observed_s, observed_n = sparseness(terms), n_recon(terms, share)
    usable = terms.any(-1)
    number = np.unique(labels[usable], return_inverse=True)[1]
    name = f"random rotations ({control}); mean difference, t interval"
    return SparseDecomposition(
        terms,
        observed_s,
        observed_n,
        rotated_s,
        rotated_n,
        _lower(observed_s[usable], rotated_s[:, usable], number, f"S against {name}"),
        _lower(observed_n[usable], rotated_n[:, usable], number, f"N_recon against {name}"),
    )


def _lower(
    observed: NDArray[Any], rotated: NDArray[Any], unit: NDArray[np.intp], method: str
) -> Finding:
    """How much lower values (pairs,) are than under rotations (draws, pairs)."""
    from scipy.stats import t

    if not len(observed):
        return Finding(method=method, note="no pair has a logit")
    differences = observed - rotated.mean(0)
    means = np.bincount(unit, differences) / np.bincount(unit)
    n, effect = len(means), float(differences.mean())
    # Sums in another order must not make an equal rotation a higher one.
    slack = 1e-9 * max(1e-300, abs(float(observed.mean())))
    p = (1 + (rotated.mean(1) <= observed.mean() + slack).sum()) / (1 + len(rotated))
    if n < 2:
        return Finding(effect, nan, nan, float(p), n, method, "one unit has no interval")
    # Units of many pairs count by their pairs, as in the effect (ratio estimator, Cochran 1977).
    sums = np.bincount(unit, differences - effect)
    error = float(np.sqrt(np.square(sums).sum() * n / (n - 1))) / len(observed)
    half = float(t.ppf(0.975, n - 1)) * error
    spread = float(means.std(ddof=1))
    return Finding(
        effect,
        effect - half,
        effect + half,
        float(p),
        n,
        method,
        join_notes("" if spread > 0 else "all units differ alike"),
        effect / spread if spread > 0 else nan,
    )
