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

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

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
    the eigenvalues ±iθ. ``centred_singular_values`` (n_heads, d_head), descending, and
    ``centred_symmetry`` (n_heads,), Re Σμ² / Σσ², of F less its mean over columns: of QK, what is
    left when every key's score counts against the mean of all, which is all that a softmax over
    keys sees.
    """

    singular_values: torch.Tensor
    eigenvalues: torch.Tensor
    symmetric: torch.Tensor
    antisymmetric: torch.Tensor
    centred_singular_values: torch.Tensor
    centred_symmetry: torch.Tensor


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
    (n, d_model): ``x = W_left · left[i]`` over the rows of F and ``y = W_right · right[i]`` over
    its columns, of length 1, are the left and right singular vector, or the right and the left
    eigenvector. Of complex ones, of which only the plane is defined, the real part, turned to be as
    long as can be. Signs are such that xᵀ F y ≥ 0, whatever that of the eigenvalue: tokens high on
    one side score high with tokens that are high on the other.
    """

    values: NDArray[np.complex128]
    left: Array
    right: Array


def sides(vocabulary: Vocabulary, circuit: Circuit) -> tuple[torch.Tensor, torch.Tensor]:
    """The coordinates of the tokens on the rows and on the columns of a full circuit."""
    if circuit == "ov":
        return vocabulary.unembed, vocabulary.embed
    # Of an embedding that is not tied, the coordinates that only W_U takes are zero.
    taken = int(vocabulary.embed.any(0).nonzero().max()) + 1 if vocabulary.embed.any() else 1
    embed = vocabulary.embed[:, :taken].contiguous()
    return embed, embed


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
        a = _times(dense(pair.left.part(heads)), left)
        b = _times(dense(pair.right.part(kv_heads)), right) * pair.scale
        found.append(_spectra(a, b))
    parts = (field.name for field in fields(FullSpectra))
    return FullSpectra(**{part: torch.cat([getattr(x, part) for x in found]) for part in parts})


def full_heads(
    pair: FactorPair, vocabulary: Vocabulary, circuit: Circuit, heads: Sequence[int]
) -> list[FullHead]:
    """The full circuits of some heads of a layer, for what takes more than their spectra."""
    rows, columns = sides(vocabulary, circuit)
    chosen = list(dict.fromkeys(head // pair.group for head in heads))
    left = dense(pair.left.select(heads))
    right = dense(pair.right.select(chosen)) * pair.scale
    a, b = _times(left, rows), _times(right, columns)
    of = [chosen.index(head // pair.group) for head in heads]
    return [
        FullHead(left[i].numpy(), right[j].numpy(), a[i].numpy(), b[j].numpy())
        for i, j in enumerate(of)
    ]


def leading_vectors(head: FullHead, kind: Vectors, n: int) -> Leading:
    """The ``n`` leading eigen- or singular vectors of a head's full circuit, or as many as it has.

    Those whose values are zero to rounding have no direction of their own, and are left out.
    """
    e = len(head.a)
    rounding = e * np.finfo(np.float64).eps * np.linalg.norm(head.a, 2) * np.linalg.norm(head.b, 2)
    if kind == "singular vector":
        r_a, r_b = (_core(side) for side in (head.a, head.b))
        u, values, vh = np.linalg.svd(r_a @ r_b.T)
        weights = [np.linalg.pinv(r_a) @ u, np.linalg.pinv(r_b) @ vh.T]
        order = np.arange(len(values))
        values = values.astype(np.complex128)
    else:
        values, right = np.linalg.eig(head.b @ head.a.T)
        weights = [right, np.linalg.pinv(right).T]
        order = np.argsort(-np.abs(values), kind="stable")
        order = order[values.imag[order] >= 0.0]
    order = order[np.abs(values[order]) > rounding][:n]
    rows, columns = (
        _real_parts(x[:, order].T, over) for x, over in zip(weights, (head.a, head.b), strict=True)
    )
    # Neither side has a sign of its own: high goes with high, and the rows' longest is positive.
    longest = np.take_along_axis(rows, np.abs(rows).argmax(-1)[:, None], -1)
    rows = rows * np.where(longest < 0, -1.0, 1.0)
    scores = ((rows @ head.a @ head.a.T) * (columns @ head.b @ head.b.T)).sum(-1, keepdims=True)
    columns = columns * np.where(scores < 0, -1.0, 1.0)
    return Leading(values[order], rows @ head.left, columns @ head.right)


def _core(factor: Array) -> Array:
    """R of the QR factorisation of a factor's transpose."""
    core: Array = linalg.qr_core(torch.from_numpy(factor).mT).numpy()
    return core


def _real_parts(weights: NDArray[Any], over: Array) -> Array:
    """Real combinations (n, d_head) of complex ones, of vectors of length 1 over the tokens."""
    over_tokens = weights @ over
    # The phase at which the real part is longest: half that of Σ x².
    turn = np.exp(-0.5j * np.angle(np.square(over_tokens).sum(-1)))[:, None]
    length = np.linalg.norm((turn * over_tokens).real, axis=-1, keepdims=True)
    real = (turn * weights).real
    return np.divide(real, length, out=np.zeros_like(real), where=length > 0)


def _times(heads: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Dense heads (heads, d_head, d_model) in the coordinates of a vocabulary."""
    return torch.stack(in_threads(lambda head: linalg.times(head, coordinates), heads))


def _spectra(a: torch.Tensor, b: torch.Tensor) -> FullSpectra:
    (spectra,) = layer_spectra([FactorPair(Factor(a), Factor(b))])
    group = len(a) // len(b)
    parts = in_threads(lambda h: _parts(a[h].numpy(), b[h // group].numpy()), range(len(a)))
    assert spectra.eigenvalues is not None
    return FullSpectra(
        spectra.singular_values,
        spectra.eigenvalues,
        *(torch.from_numpy(np.stack(part)) for part in zip(*parts, strict=True)),
    )


def _parts(a: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """Of ``F = aᵀ b``: eigenvalues of the symmetric part (2e), moduli of those of the antisymmetric
    one (e), and of F less its mean over columns the singular values (e) and the symmetry.

    With ``[a; b]ᵀ = Q R``, ``F = Q M Qᵀ`` where ``M = R[:, :e] R[:, e:]ᵀ``.
    """
    e = len(a)
    r = _core(np.concatenate([a, b]))
    core = r[:, :e] @ r[:, e:].T
    symmetric = np.linalg.eigvalsh(core + core.T) / 2
    # Singular values of a skew matrix come in pairs, but for a zero where their number is odd.
    skew = np.linalg.svd(core - core.T, compute_uv=False)[::2] / 2
    symmetric = np.sort(np.pad(symmetric, (0, 2 * e - len(symmetric))))[::-1]
    # The first coordinate is that of all tokens alike.
    others = b[:, 1:]
    sigma = np.linalg.svd(_core(a) @ _core(others).T, compute_uv=False)
    cross = others @ a[:, 1:].T
    size = np.square(sigma).sum()
    symmetry = np.asarray((cross * cross.T).sum() / size if size > 0 else 0.0)
    return symmetric, _padded(skew, e), _padded(sigma, e), symmetry


def _padded(values: NDArray[Any], n: int) -> Array:
    return np.pad(values, (0, n - len(values)))
