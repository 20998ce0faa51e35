"""Spectra of low-rank circuits ``leftᵀ · right``, from e×e matrices alone.

With ``G_A = A Aᵀ = L_A L_Aᵀ`` and likewise for B, the singular values of ``Aᵀ B`` are those of
``L_Aᵀ L_B``, or the square roots of the eigenvalues of ``L_Aᵀ G_B L_A``; its non-zero eigenvalues
are the eigenvalues of ``B Aᵀ``. All in float64: trained heads have σ₁/σ_e of several thousand, and
a Gram matrix squares that. Each head takes the fastest of three ways that is exact for it:
symmetric eigenvalues, SVD of Cholesky factors where its spectrum is steep, and SVD of QR cores
where a Gram matrix has lost its small end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.linalg import svd

from qk_taxonomy.circuits.conventions import Factor
from qk_taxonomy.circuits.gram import Grams, dense_head, in_threads, layer_grams, n_threads
from qk_taxonomy.errors import ShapeError, SpectrumError

# A Cholesky factor loses eps·κ² of its smallest singular value. Below this ratio of its diagonal
# that is no longer far from the 1e-5 the spectra are promised to, and QR takes over.
_SMALLEST_PIVOT = 1e-4

#: How the numbers of a spectra file were made, for its provenance.
FORMULA = (
    "float64: sqrt(eigvalsh(L_A^T G_B L_A)); svdvals(L_A^T L_B) for steep heads; "
    "svdvals(R_A R_B^T) of QR cores for recomputed heads; eigvals(B A^T)"
)

# Multiplications (about e³ a head) above which small factorisations are worth threads.
_WORTH_THREADS = 1 << 21

# Symmetric eigenvalues are exact to eps·‖G_A‖·‖G_B‖, which leaves λ above 1e-9 of that within 1e-6;
# heads with smaller ones need singular values proper.
_FLATTEST_STEEP = 1e-9

# Σσ² and tr(G_A G_B) agree to rounding when the SVD has converged; LAPACK's divide-and-conquer
# driver is known to fail silently now and then.
_TRACE_TOLERANCE = 1e-8


@dataclass(frozen=True, eq=False)
class CircuitSpectra:
    """Spectra of every head of a layer, float64.

    ``singular_values`` (n_heads, d_head), descending. ``eigenvalues`` (n_heads, d_head), complex,
    by descending modulus, or None. ``n_recomputed``: heads that took the slower, stable way.
    """

    singular_values: torch.Tensor
    eigenvalues: torch.Tensor | None
    n_recomputed: int


def _check_factors(left: Factor, right: Factor) -> None:
    found = f"found {tuple(left.weights.shape)} and {tuple(right.weights.shape)}"
    flat = left.weights.ndim != 3 or right.weights.ndim != 3
    if flat or (left.d_head, left.d_model) != (right.d_head, right.d_model):
        raise ShapeError(
            f"Wanted w_q (n_heads, d_head, d_model) and w_k (n_kv_heads, d_head, d_model), {found}."
        )
    shapes = (*left.weights.shape, *right.weights.shape)
    if 0 in shapes or left.n_heads % right.n_heads:
        raise ShapeError(
            "The number of query heads must be a positive multiple of the number of key-value "
            f"heads, {found}."
        )


def _check_finite(grams: Grams) -> None:
    for role, gram in (("left", grams.left), ("right", grams.right)):
        if not torch.isfinite(gram.diagonal(dim1=-2, dim2=-1)).all():
            raise SpectrumError("The weights are not finite (NaN or infinity).", role)


def stable_singular_values(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Singular values of ``leftᵀ right`` from QR cores, ``svdvals(R_A R_Bᵀ)``, descending.

    left, right: (d_head, d_model), float64. Returns (d_head,): rank-deficient heads end in zeros.
    QR and LAPACK's gesvd driver: slower than the Gram matrices, exact for any condition number.
    """
    r_a, r_b = (torch.linalg.qr(x.mT, mode="r").R for x in (left, right))
    core = (r_a @ r_b.mT).cpu().numpy()
    values = torch.from_numpy(svd(core, compute_uv=False, lapack_driver="gesvd")).to(left.device)
    return torch.nn.functional.pad(values, (0, left.shape[0] - values.shape[0]))


def circuit_spectra(
    left: Factor, right: Factor, *, scale: float = 1.0, eigenvalues: bool = True
) -> CircuitSpectra:
    """Spectra of ``leftᵀ · right · scale`` for every head of a layer.

    left: (n_heads, d_head, d_model); right: (n_kv_heads, d_head, d_model); query
    head ``h`` goes with key-value head ``h // (n_heads / n_kv_heads)``.

    Every σ ≥ 1e-6·σ₁ is within 1e-5 relative of a float64 dense SVD; every eigenvalue within 1e-4
    of the head's largest modulus. Raises ShapeError, and SpectrumError where weights are not
    finite.
    """
    _check_factors(left, right)
    grams = layer_grams(left, right, cross=eigenvalues)
    _check_finite(grams)
    values, n_recomputed = _singular_values(left, right, grams)
    mu = None
    if grams.cross is not None:
        mu = _batched(torch.linalg.eigvals, grams.cross)
        order = mu.abs().argsort(dim=-1, descending=True, stable=True)
        mu = mu.gather(-1, order) * scale
    return CircuitSpectra(values * abs(scale), mu, n_recomputed)


def _batched(
    function: Callable[[torch.Tensor], torch.Tensor], matrices: torch.Tensor
) -> torch.Tensor:
    """A LAPACK function of (heads, e, e) matrices, which torch takes one after the other."""
    worth = matrices.numel() * matrices.shape[-1] > _WORTH_THREADS
    threads = n_threads(matrices.device) if worth else 1
    return torch.cat(in_threads(function, matrices.chunk(threads), threads))


def _singular_values(left: Factor, right: Factor, grams: Grams) -> tuple[torch.Tensor, int]:
    """Singular values (n_heads, e), and how many heads took the slower, stable way to them."""
    group = grams.left.shape[0] // grams.right.shape[0]
    gram_b = grams.right.repeat_interleave(group, dim=0)
    lower_a, sound = _cholesky(grams.left)
    lam = _batched(torch.linalg.eigvalsh, lower_a.mT @ gram_b @ lower_a).flip(-1)
    values = lam.clamp_min(0.0).sqrt()
    size = _trace(grams.left) * _trace(gram_b)
    steep = (sound & (lam[:, -1] < _FLATTEST_STEEP * size)).nonzero().flatten()
    if len(steep):
        lower_b, sound_b = _cholesky(gram_b[steep])
        sound[steep] &= sound_b
        values[steep] = _batched(torch.linalg.svdvals, lower_a[steep].mT @ lower_b)
    energy = (grams.left * gram_b).sum((-2, -1))
    sound &= (values.square().sum(-1) - energy).abs() <= _TRACE_TOLERANCE * energy
    doubtful = (~sound).nonzero().flatten().tolist()
    for head in doubtful:
        values[head] = stable_singular_values(
            dense_head(left, head), dense_head(right, head // group)
        )
    return values, len(doubtful)


def _trace(gram: torch.Tensor) -> torch.Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).sum(-1)


def _cholesky(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cholesky factors (zeros where there is none), and whether each can be trusted."""
    lower, info = torch.linalg.cholesky_ex(gram)
    pivots = lower.diagonal(dim1=-2, dim2=-1)
    sound = (info == 0) & (pivots.amin(-1) > _SMALLEST_PIVOT * pivots.amax(-1))
    return lower.where(sound[:, None, None], 0.0), sound


def singular_values(w_q: torch.Tensor, w_k: torch.Tensor) -> torch.Tensor:
    """Singular values of W_QK = W_Qᵀ W_K of every head, descending: (n_heads, d_head) float64.

    w_q: (n_heads, d_head, d_model), w_k: (n_kv_heads, d_head, d_model), any floating dtype; query
    heads share key-value heads in equal, consecutive groups. Likewise for an OV circuit with
    W_Oᵀ and W_V. Raises ShapeError; SpectrumError where weights are not finite.
    """
    left, right = Factor(torch.as_tensor(w_q)), Factor(torch.as_tensor(w_k))
    return circuit_spectra(left, right, eigenvalues=False).singular_values


def circuit_eigenvalues(w_q: torch.Tensor, w_k: torch.Tensor) -> torch.Tensor:
    """Non-zero eigenvalues of W_QK = W_Qᵀ W_K of every head: (n_heads, d_head) complex128.

    Shapes and errors as for :func:`singular_values`; by descending modulus. They are those of
    W_K W_Qᵀ (e×e), since AB and BA share their non-zero eigenvalues.
    """
    mu = circuit_spectra(Factor(torch.as_tensor(w_q)), Factor(torch.as_tensor(w_k))).eigenvalues
    assert mu is not None
    return mu


def correlation_eigenvalues(w_q: torch.Tensor, w_k: torch.Tensor) -> torch.Tensor:
    """Eigenvalues λ = σ² of W_QK W_QKᵀ of every head, descending: (n_heads, d_head) float64.

    Their distribution is the head's empirical spectral density (ESD). Shapes and errors as for
    :func:`singular_values`.
    """
    return singular_values(w_q, w_k).square()


def robust_lowrank_singular_values(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """Singular values of the product Aᵀ B, descending: (..., m) in the dtype of A.

    A, B: (..., m, n), equal shapes, m the rank bound. The predecessor's function by its name and
    arguments, and the correct values: its formula mixed V with Vᵀ and depended on the signs of
    singular vectors. Raises ShapeError.
    """
    if A.shape != B.shape or A.ndim < 2:
        raise ShapeError(f"Wanted two (..., m, n), found {tuple(A.shape)} and {tuple(B.shape)}.")
    m, n = A.shape[-2:]
    values = singular_values(A.reshape(-1, m, n), B.reshape(-1, m, n))
    return values.reshape(*A.shape[:-1]).to(A.dtype)
