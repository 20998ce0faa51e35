"""The part of a full circuit that comes from its eigenvalues of positive real part.

F = Aᵀ B (A, B: e×V) has the non-zero eigenvalues of X = B Aᵀ (e×e), and X w = μ w gives F's right
eigenvector Aᵀ w. With Π the spectral projector of X onto the eigenvectors of a set of eigenvalues,
along those of all others, Aᵀ Π B is F's part from that set: parts of sets that share none, and
between them have all, add up to F. Their eigenvectors are not orthogonal, so parts can be larger
than F and cancel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import ShapeError

Array = NDArray[np.float64]

# Errors of a projector grow with the square of its norm; beyond this fewer than five digits hold.
_MOST_OBLIQUE = 1e5

# A conjugate pair this near to the imaginary axis, of a matrix whose largest entry is 1, has its
# sign by rounding alone.
_ON_AXIS = 1e-12


def positive_projector(x: Array) -> Array:
    """The spectral projector of ``x`` (e, e) onto eigenvalues with Re μ > 0, along all others.

    From an ordered real Schur form, whose two blocks a Sylvester equation makes independent: no
    single eigenvector is computed, so that those near to each other, or none, do no harm (Golub &
    Van Loan 2013, 7.6.3). nan throughout where the sign does not split ``x``: eigenvalues of both
    halves too near to each other (a projector of norm above 1e5), or on the imaginary axis (an
    antisymmetric circuit). Raises ShapeError.
    """
    from scipy.linalg import LinAlgError, schur
    from scipy.linalg.lapack import dtrsyl

    if x.ndim != 2 or x.shape[0] != x.shape[1] or not x.size:
        raise ShapeError(f"Wanted a square matrix, found {x.shape}.")
    unknown = np.full(x.shape, np.nan)
    # Of unit size, so that no product over- or underflows; the projector does not depend on it.
    size = np.abs(x).max()
    if not np.isfinite(size):
        return unknown
    if size == 0:
        return np.zeros_like(x)
    try:
        t, q, k = schur(x / size, output="real", sort=lambda real, imaginary: real > 0)
    except LinAlgError:
        return unknown  # eigenvalues changed sides as they were sorted: their sign is rounding
    if (np.abs(np.diagonal(t)[np.flatnonzero(np.diagonal(t, -1))]) <= _ON_AXIS).any():
        return unknown
    if k in (0, len(x)):
        return np.eye(len(x)) if k else np.zeros_like(x)
    coupling, scale, _ = dtrsyl(t[:k, :k], t[k:, k:], t[:k, k:], isgn=-1)
    coupling = coupling / scale
    if not np.linalg.norm(coupling) <= _MOST_OBLIQUE:
        return unknown
    return np.asarray(q[:, :k] @ (q[:, :k].T + coupling @ q[:, k:].T))
