"""Statistics of a full circuit over the vocabulary, from its spectrum: copying, symmetry, the tail.

All reduce the last axis. ``mu``: μ, the e complex eigenvalues of F = Aᵀ B that may be other than
zero, in any order; ``sigma``: σ, its e singular values. The V − e others are zero by construction
and have no part in a share. How even a spectrum is, ``moments`` says: ``effective_rank_sigma`` and
``near_zero_ratio`` of λ = σ².
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.statistics.moments import near_zero_ratio

Array = NDArray[np.float64]
Eigenvalues = NDArray[Any]


def _ratio(part: Array, whole: Array) -> Array:
    """``part`` over ``whole``; 0 where the whole is."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole != 0)


def copying_score(mu: Eigenvalues) -> Array:
    """Σμ / Σ|μ|, in [−1, 1]; 0 for a zero spectrum. Elhage et al. (2021), "copying heads".

    1 where all eigenvalues are positive: of OV, tokens raise their own logits, themselves or in
    sums of tokens. The eigenvalues of a real matrix come in conjugate pairs, so the sum is real.
    """
    return _ratio(np.asarray(mu.real.sum(-1), np.float64), np.abs(mu).sum(-1))


def positive_share(mu: Eigenvalues) -> Array:
    """Share of the e eigenvalues with Re μ > 0, in [0, 1]; 0 for a zero spectrum.

    Counts each alike, where :func:`copying_score` weighs them by modulus.
    """
    return np.asarray((mu.real > 0).mean(-1), dtype=np.float64)


def near_zero_eigenvalues(mu: Eigenvalues) -> Array:
    """Share of |μ|² below 1e-3 of the head's largest, in [0, 1); 0 for a zero spectrum.

    The bound of ``near_zero_ratio``, for eigenvalues. A circuit that is far from normal has more of
    them at zero than singular values.
    """
    return near_zero_ratio(np.square(np.abs(mu)))


def symmetry(mu: Eigenvalues, sigma: Array) -> Array:
    """(‖S‖² − ‖N‖²) / ‖F‖² in Frobenius norms, S = ½(F + Fᵀ), N = ½(F − Fᵀ): in [−1, 1].

    1 for a symmetric circuit, −1 for an antisymmetric one, about 0 for a random one, and 0 for a
    zero spectrum. Equal to tr F² / ‖F‖² = Re Σμ² / Σσ², as ‖S‖² and ‖N‖² are ½(‖F‖² ± tr F²);
    within rounding of the range.
    """
    return _ratio(np.asarray(np.square(mu).real.sum(-1), np.float64), np.square(sigma).sum(-1))
