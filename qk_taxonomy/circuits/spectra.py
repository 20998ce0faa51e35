"""Spectra of low-rank circuits ``leftᵀ · right``, from e×e matrices alone.

With ``G_A = A Aᵀ = L_A L_Aᵀ`` and likewise for B, the singular values of ``Aᵀ B`` are those of
``L_Aᵀ L_B``, or the square roots of the eigenvalues of ``L_Aᵀ G_B L_A``; its non-zero eigenvalues
are the eigenvalues of ``B Aᵀ``. All in float64: trained heads have σ₁/σ_e of several thousand, and
a Gram matrix squares that. Each head takes the fastest of three ways that is exact for it:
symmetric eigenvalues, SVD of Cholesky factors where its spectrum is steep, and SVD of QR cores
where a Gram matrix has lost its small end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.linalg import svd

from qk_taxonomy.circuits import linalg
from qk_taxonomy.circuits.factors import Factor, FactorPair
from qk_taxonomy.circuits.gram import Products, Sides, Task, dense, layer_tasks
from qk_taxonomy.circuits.latent import narrow_latents
from qk_taxonomy.circuits.threads import in_threads
from qk_taxonomy.errors import ShapeError, SpectrumError

# A Cholesky factor loses eps·κ² of its smallest singular value. Below this ratio of its diagonal
# that is no longer far from the 1e-5 the spectra are promised to, and QR takes over.
_SMALLEST_PIVOT = 1e-4

#: How the numbers of a spectra file were made, for its provenance.
FORMULA = (
    "float64: sqrt(eigvalsh(L_A^T G_B L_A)); svdvals(L_A^T L_B) for steep heads; "
    "svdvals(R_A R_B^T) of QR cores for recomputed heads; eigvals(B A^T)"
)

# Symmetric eigenvalues are exact to eps·‖G_A‖·‖G_B‖, which leaves λ above 1e-9 of that within 1e-6;
# heads with smaller ones need singular values proper.
_FLATTEST_STEEP = 1e-9

# Σσ² and tr(G_A G_B) agree to rounding when the SVD has converged; LAPACK's divide-and-conquer
# driver is known to fail silently now and then.
_TRACE_TOLERANCE = 1e-8


@dataclass(frozen=True, eq=False)
class CircuitSpectra:
    """Spectra of every head of a layer, float64, on the CPU wherever the weights are.

    ``singular_values`` (n_heads, d_head), descending. ``eigenvalues`` (n_heads, d_head), complex,
    by descending modulus, or None. ``n_recomputed``: heads that took the slower, stable way.
    """

    singular_values: torch.Tensor
    eigenvalues: torch.Tensor | None
    n_recomputed: int

    def scaled(self, scale: float) -> CircuitSpectra:
        """The spectra of the circuits times a number."""
        mu = None if self.eigenvalues is None else self.eigenvalues * scale
        return replace(self, singular_values=self.singular_values * abs(scale), eigenvalues=mu)


def stable_singular_values(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Singular values of ``leftᵀ right`` from QR cores, ``svdvals(R_A R_Bᵀ)``, descending.

    left, right: (d_head, d_model), float64. Returns (d_head,): rank-deficient heads end in zeros.
    QR and LAPACK's gesvd driver: slower than the Gram matrices, exact for any condition number.
    """
    r_a, r_b = (linalg.qr_core(x.mT) for x in (left, right))
    core = linalg.times(r_a, r_b.mT).numpy()
    values = torch.from_numpy(svd(core, compute_uv=False, lapack_driver="gesvd"))
    return torch.nn.functional.pad(values, (0, left.shape[0] - values.shape[0]))


def circuit_spectra(
    left: Factor, right: Factor, *, scale: float = 1.0, eigenvalues: bool = True
) -> CircuitSpectra:
    """Spectra of one pair of factors; see :func:`layer_spectra`."""
    return layer_spectra([FactorPair(left, right, scale)], eigenvalues=eigenvalues)[0]


def layer_spectra(pairs: Sequence[FactorPair], *, eigenvalues: bool = True) -> list[CircuitSpectra]:
    """Spectra of ``leftᵀ · right · scale`` for every head of a layer, of every pair.

    Pairs have one shape: left (n_heads, d_head, d_model); right (n_kv_heads, d_head, d_model);
    query head ``h`` goes with key-value head ``h // (n_heads / n_kv_heads)``. Several of them are
    the conventions under which the same stored weights are read: what they share is done once.

    Every σ ≥ 1e-6·σ₁ is within 1e-5 relative of a float64 dense SVD; every eigenvalue within 1e-4
    of the head's largest modulus. The numbers of threads change no bit. Works through heads in
    parts: beside weights and results it takes some 20 MB a thread, and what latent projections
    take in float64. Raises ShapeError, and SpectrumError where weights are not finite.
    """
    for pair in pairs:
        pair.check()
    narrow = list(pairs)
    if any(side.latent is not None for pair in pairs for side in (pair.left, pair.right)):
        narrow = in_threads(narrow_latents, pairs)
    sides = Sides.of_pairs(narrow)
    tasks = layer_tasks(narrow[0])

    def spectra(task: Task) -> list[_HeadSpectra]:
        part = sides.part(task)
        products = Products.zeros(part, task, cross=eigenvalues)
        products.add(part, task)
        return _head_spectra(products.fold_rows(part, task), part, task)

    found = in_threads(spectra, tasks)
    return _whole(found, sides, narrow, lambda heads: [pair.select(heads) for pair in narrow])


def streamed_spectra(
    blocks: Iterable[Sequence[FactorPair]],
    whole: Callable[[Sequence[int]], Sequence[FactorPair]],
    *,
    eigenvalues: bool = True,
) -> list[CircuitSpectra]:
    """Spectra as of :func:`layer_spectra`, of factors that come in blocks of d_model columns.

    blocks: the pairs cut to a block of columns that no other block has, in any order; a centred
    factor knows its mean (:func:`~qk_taxonomy.circuits.gram.with_mean`, ``Factor.cut``). whole:
    the pairs of some query heads over all columns, each with a right factor of its own
    (``FactorPair.select``); asked for once, if at all, where Gram matrices have lost the small end
    of a head. Products of all heads are kept: n_heads·d_head² float64 numbers for each distinct
    left factor and each distinct pair. Raises ShapeError, and SpectrumError where weights are not
    finite.
    """
    sums: list[tuple[Task, Products]] = []
    first: Sides | None = None
    pairs: Sequence[FactorPair] = ()
    for pairs in blocks:
        sides = Sides.of_pairs(pairs)
        if first is None:
            first, tasks = sides, layer_tasks(pairs[0])
            sums = [(task, Products.zeros(sides, task, cross=eigenvalues)) for task in tasks]
        if (sides.of, sides.heads) != (first.of, first.heads):
            raise ShapeError("Blocks of columns have pairs of other heads, or folded otherwise.")

        def add(task_sums: tuple[Task, Products], sides: Sides = sides) -> None:
            task, products = task_sums
            products.add(sides.part(task), task)

        in_threads(add, sums)
    if first is None:
        raise ShapeError("Wanted blocks of columns, found none.")
    last = first

    def spectra(task_sums: tuple[Task, Products]) -> list[_HeadSpectra]:
        task, products = task_sums
        part = last.part(task)
        return _head_spectra(products.fold_rows(part, task), part, task)

    found = in_threads(spectra, sums)
    return _whole(found, first, pairs, whole)


@dataclass(frozen=True, eq=False)
class _HeadSpectra:
    """Spectra of a task's heads for one distinct pair; ``doubtful``: heads to be recomputed."""

    singular_values: torch.Tensor
    eigenvalues: torch.Tensor | None
    doubtful: list[int]


def _head_spectra(products: Products, sides: Sides, task: Task) -> list[_HeadSpectra]:
    """Spectra of a task's heads, one for each distinct pair."""
    for role, grams in (("left", products.left), ("right", products.right)):
        for gram in grams:
            if not torch.isfinite(gram.diagonal(dim1=-2, dim2=-1)).all():
                raise SpectrumError("The weights are not finite (NaN or infinity).", role)
    triangles = [_cholesky(gram) for gram in products.left]
    spectra = []
    for i, j in sides.distinct:
        gram_b = products.right[j].repeat_interleave(task.n_members, dim=0)
        values, sound = _singular_values(products.left[i], triangles[i], gram_b)
        mu = None
        if products.cross:
            mu = linalg.eigvals(products.cross[i, j])
            mu = mu.gather(-1, mu.abs().argsort(dim=-1, descending=True, stable=True))
        doubtful = (~sound).nonzero().flatten() + task.heads.start
        spectra.append(_HeadSpectra(values, mu, doubtful.tolist()))
    return spectra


def _whole(
    found: Sequence[Sequence[_HeadSpectra]],
    sides: Sides,
    pairs: Sequence[FactorPair],
    whole: Callable[[Sequence[int]], Sequence[FactorPair]],
) -> list[CircuitSpectra]:
    """The spectra of every pair from those of the tasks, doubtful heads recomputed."""
    by_pair = dict(zip(sides.distinct, zip(*found, strict=True), strict=True))
    doubtful = sorted({head for parts in found for part in parts for head in part.doubtful})
    again = dict(zip(sides.of, whole(doubtful), strict=True)) if doubtful else {}

    def joined(distinct: tuple[int, int]) -> CircuitSpectra:
        parts = by_pair[distinct]
        values = torch.cat([part.singular_values for part in parts])
        heads = [head for part in parts for head in part.doubtful]
        for head in heads:
            number = doubtful.index(head)
            one = slice(number, number + 1)
            left, right = (dense(side.part(one))[0] for side in again[distinct][:2])
            values[head] = stable_singular_values(left, right)
        mu = [part.eigenvalues for part in parts if part.eigenvalues is not None]
        return CircuitSpectra(values, torch.cat(mu) if mu else None, len(heads))

    # Where there is nothing to recompute, it must not wait for the tasks of other layers.
    whole_pairs = in_threads(joined, by_pair) if doubtful else map(joined, by_pair)
    done = dict(zip(by_pair, whole_pairs, strict=True))
    return [
        done[distinct].scaled(pair.scale) for distinct, pair in zip(sides.of, pairs, strict=True)
    ]


def _singular_values(
    gram_a: torch.Tensor, triangle_a: tuple[torch.Tensor, torch.Tensor], gram_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values (heads, e), and of which heads they can be trusted."""
    lower_a, sound = triangle_a
    sound = sound.clone()
    lam = linalg.eigvalsh(linalg.times(linalg.times(lower_a.mT, gram_b), lower_a)).flip(-1)
    values = lam.clamp_min(0.0).sqrt()
    size = _trace(gram_a) * _trace(gram_b)
    steep = (sound & (lam[:, -1] < _FLATTEST_STEEP * size)).nonzero().flatten()
    if len(steep):
        lower_b, sound_b = _cholesky(gram_b[steep])
        sound[steep] &= sound_b
        values[steep] = linalg.svdvals(linalg.times(lower_a[steep].mT, lower_b))
    energy = linalg.inner(gram_a, gram_b)
    sound &= (values.square().sum(-1) - energy).abs() <= _TRACE_TOLERANCE * energy
    return values, sound


def _trace(gram: torch.Tensor) -> torch.Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).sum(-1)


def _cholesky(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cholesky factors (zeros where there is none), and whether each can be trusted."""
    lower, exists = linalg.cholesky(gram)
    pivots = lower.diagonal(dim1=-2, dim2=-1)
    sound = exists & (pivots.amin(-1) > _SMALLEST_PIVOT * pivots.amax(-1))
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
