"""Full circuits over the vocabulary: W_E W_QK W_Eᵀ and W_U W_OV W_Eᵀ, by e×e matrices.

Entry (t, s) of QK_full is the score of query token t and key token s, and of OV_full what
attending to token s adds to the logit of token t (Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits", whose column convention writes the former W_Eᵀ W_QK W_E and the latter
W_U W_OV W_E). Both are ``Aᵀ B`` of rank at most d_head, with factors that read tokens in the
coordinates of a :class:`~qk_taxonomy.circuits.vocabulary.Vocabulary`.

Left out is what depends on more than the tokens themselves: positions, biases, the division by a
norm's length, and the layers between a head and its ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from qk_taxonomy.circuits import linalg
from qk_taxonomy.circuits.factors import Factor, FactorPair
from qk_taxonomy.circuits.gram import dense
from qk_taxonomy.circuits.spectra import layer_spectra
from qk_taxonomy.circuits.threads import in_threads
from qk_taxonomy.circuits.vocabulary import Vocabulary
from qk_taxonomy.errors import ShapeError
from qk_taxonomy.records import Circuit

Vectors = Literal["eigenvector", "singular vector"]

Array = NDArray[np.float64]

# Numbers of the dense factors of heads that are worked on together: 128 MB.
_TOGETHER = 1 << 24


@dataclass(frozen=True, eq=False)
class FullSpectra:
    """Spectra of the full circuits of every head of a layer, float64.

    ``singular_values`` (n_heads, d_head), descending. ``eigenvalues`` (n_heads, d_head), complex,
    by descending modulus; all others of the V are 0. ``symmetric`` (n_heads, 2·d_head): eigenvalues
    of ½(F + Fᵀ), descending. ``antisymmetric`` (n_heads, d_head), descending: θ where ½(F − Fᵀ) has
    the eigenvalues ±iθ. ``n_recomputed``: heads whose singular values took the slower, stable way.
    """

    singular_values: torch.Tensor
    eigenvalues: torch.Tensor
    symmetric: torch.Tensor
    antisymmetric: torch.Tensor
    n_recomputed: int


@dataclass(frozen=True, eq=False)
class FullHead:
    """One head's full circuit ``F = Aᵀ B`` over tokens, and its way from the residual stream.

    ``left``, ``right`` (d_head, d_model): what is multiplied by W_leftᵀ and W_rightᵀ; ``a``, ``b``
    (d_head, rank): A and B in the coordinates of the vocabulary, which keep lengths and angles.
    The circuit's scale is in ``right`` and ``b``.
    """

    left: Array
    right: Array
    a: Array
    b: Array


@dataclass(frozen=True, eq=False)
class Leading:
    """Leading eigen- or singular vectors of a full circuit, as directions of the residual stream.

    ``values`` (n,), complex, by descending modulus, one of each conjugate pair. ``left``, ``right``
    (n, d_model): ``W_left · left[i]`` and ``W_right · right[i]``, of length 1 over the tokens, are
    the left and right singular vector, or the right and left eigenvector: the tokens on the rows,
    and on the columns, of F. Of complex ones the real part, turned to be as long as can be.
    """

    values: NDArray[np.complex128]
    left: Array
    right: Array


def sides(vocabulary: Vocabulary, circuit: Circuit) -> tuple[torch.Tensor, torch.Tensor]:
    """The coordinates of the tokens on the rows and on the columns of a full circuit."""
    return (vocabulary.unembed if circuit == "ov" else vocabulary.embed), vocabulary.embed


def full_spectra(pair: FactorPair, vocabulary: Vocabulary, circuit: Circuit) -> FullSpectra:
    """Spectra of the full circuits of a layer's heads.

    pair: the heads as of :func:`~qk_taxonomy.circuits.conventions.circuit_factors`, under the
    convention that ``vocabulary`` is read under. Values are within 1e-8 of the largest, unless the
    tokens have, besides what they all share, a direction some 10⁴ times as long as those that the
    head reads: a Gram matrix loses what lies below the square root of rounding. Raises ShapeError
    where a head reads another stream than the tokens', and SpectrumError where weights are not
    finite.
    """
    pair.check()
    if pair.left.d_model != vocabulary.d_model:
        raise ShapeError(
            f"Wanted heads that read and write a stream of {vocabulary.d_model}, which the "
            f"embeddings have, found one of {pair.left.d_model}."
        )
    left, right = sides(vocabulary, circuit)
    found: list[FullSpectra] = []
    numbers = pair.group * pair.left.d_head * max(pair.left.d_model, left.shape[1])
    step = max(1, _TOGETHER // numbers)
    for start in range(0, pair.right.n_heads, step):
        kv_heads = slice(start, min(start + step, pair.right.n_heads))
        heads = slice(kv_heads.start * pair.group, kv_heads.stop * pair.group)
        a = _over_tokens(pair.left.part(heads), left)
        b = _over_tokens(pair.right.part(kv_heads), right) * pair.scale
        found.append(_spectra(a, b))
    return FullSpectra(
        torch.cat([part.singular_values for part in found]),
        torch.cat([part.eigenvalues for part in found]),
        torch.cat([part.symmetric for part in found]),
        torch.cat([part.antisymmetric for part in found]),
        sum(part.n_recomputed for part in found),
    )


def full_head(pair: FactorPair, vocabulary: Vocabulary, circuit: Circuit, head: int) -> FullHead:
    """One head's full circuit, for what takes more than its spectra."""
    left, right = sides(vocabulary, circuit)
    one = pair.select([head])
    rows, columns = dense(one.left)[0], dense(one.right)[0] * pair.scale
    return FullHead(rows.numpy(), columns.numpy(), (rows @ left).numpy(), (columns @ right).numpy())


def leading_vectors(head: FullHead, kind: Vectors, n: int) -> Leading:
    """The ``n`` leading eigen- or singular vectors of a head's full circuit, or as many as it has.

    Those whose values are zero to rounding have no direction of their own, and are left out.
    """
    e = len(head.a)
    rounding = e * np.finfo(np.float64).eps * np.linalg.norm(head.a, 2) * np.linalg.norm(head.b, 2)
    if kind == "singular vector":
        r_a, r_b = (_core(side) for side in (head.a, head.b))
        rows, values, columns = np.linalg.svd(r_a @ r_b.T)
        weights = [np.linalg.pinv(r_a) @ rows, np.linalg.pinv(r_b) @ columns.T]
        order = np.arange(e)
        values = values.astype(np.complex128)
    else:
        values, right = np.linalg.eig(head.b @ head.a.T)
        weights = [right, np.linalg.pinv(right).T]
        order = np.argsort(-np.abs(values), kind="stable")
        order = order[values.imag[order] >= 0.0]
    order = order[np.abs(values[order]) > rounding][:n]
    left, right = (
        _directions(x[:, order], way, over)
        for x, way, over in zip(weights, (head.left, head.right), (head.a, head.b), strict=True)
    )
    # A pair of vectors has no sign of its own: the row side's longest weight is positive.
    longest = np.take_along_axis(left, np.abs(left).argmax(-1)[:, None], -1)
    sign = np.where(longest < 0, -1.0, 1.0)
    return Leading(values[order], left * sign, right * sign)


def _core(factor: Array) -> Array:
    """R of the QR factorisation of a factor's transpose."""
    core: Array = linalg.qr_core(torch.from_numpy(factor).mT).numpy()
    return core


def _directions(weights: Array, way: Array, over: Array) -> Array:
    """Directions (n, d_model) of combinations ``weights`` (d_head, n), of length 1 over tokens."""
    over_tokens = weights.T @ over
    # The phase at which the real part is longest: half that of Σ x².
    turn = np.exp(-0.5j * np.angle(np.square(over_tokens).sum(-1)))[:, None]
    length = np.linalg.norm((turn * over_tokens).real, axis=-1, keepdims=True)
    real = (turn * (weights.T @ way)).real
    return np.divide(real, length, out=np.zeros_like(real), where=length > 0)


def _over_tokens(factor: Factor, coordinates: torch.Tensor) -> torch.Tensor:
    """A factor in the coordinates of a vocabulary: (heads, d_head, rank)."""
    rows = dense(factor)
    return torch.stack(in_threads(lambda head: linalg.times(head, coordinates), rows))


def _spectra(a: torch.Tensor, b: torch.Tensor) -> FullSpectra:
    (spectra,) = layer_spectra([FactorPair(Factor(a), Factor(b))])
    group = len(a) // len(b)
    parts = in_threads(lambda h: _parts(a[h].numpy(), b[h // group].numpy()), range(len(a)))
    symmetric, antisymmetric = (torch.from_numpy(np.stack(x)) for x in zip(*parts, strict=True))
    assert spectra.eigenvalues is not None
    return FullSpectra(
        spectra.singular_values,
        spectra.eigenvalues,
        symmetric,
        antisymmetric,
        spectra.n_recomputed,
    )


def _parts(a: Array, b: Array) -> tuple[Array, Array]:
    """Eigenvalues of the symmetric part of ``aᵀ b`` (2e), and moduli of the antisymmetric's (e).

    With ``[a; b]ᵀ = Q R``, ``aᵀ b = Q M Qᵀ`` where ``M = R[:, :e] R[:, e:]ᵀ``.
    """
    e = len(a)
    r = _core(np.concatenate([a, b]))
    core = r[:, :e] @ r[:, e:].T
    symmetric = np.linalg.eigvalsh(core + core.T) / 2
    # Singular values of a skew matrix come in pairs, but for a zero where their number is odd.
    skew = np.linalg.svd(core - core.T, compute_uv=False)[::2] / 2
    missing = 2 * e - len(symmetric)
    symmetric = np.sort(np.pad(symmetric, (0, missing)))[::-1]
    return symmetric, np.pad(skew, (0, e - len(skew)))
