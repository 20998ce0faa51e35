"""Full circuits and their vectors against V×V matrices, for factors of every kind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from qk_taxonomy.circuits.factors import Factor, FactorPair
from qk_taxonomy.circuits.full import full_heads, full_spectra, leading_vectors
from qk_taxonomy.circuits.vocabulary import Reading, Vocabulary, VocabularyGram
from qk_taxonomy.errors import ShapeError, SpectrumError

N_TOKENS, D_MODEL, D_HEAD = 150, 40, 7


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embeddings(kind: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """W_E, and W_U unless it is the same."""
    embed = random(N_TOKENS, D_MODEL, seed=1)
    if kind == "tied":
        return embed, None
    if kind == "all alike":
        return embed + 1e3 * random(D_MODEL, seed=3), None
    if kind == "few tokens":
        return embed[:25], random(25, D_MODEL, seed=2)
    if kind == "twice the same":
        return embed, embed.clone()
    if kind == "narrow":
        # Of whole numbers, so that rounding gives it no further rank.
        return (4 * embed[:, :7]).round() @ (4 * random(7, D_MODEL, seed=4)).round(), None
    return embed, random(N_TOKENS, D_MODEL, seed=2)


def vocabulary(embed: torch.Tensor, unembed: torch.Tensor | None) -> Vocabulary:
    gram = VocabularyGram(D_MODEL, tied=unembed is None)
    for rows in torch.arange(len(embed)).split(37):
        gram.add(embed[rows].float().double(), None if unembed is None else unembed[rows])
    return gram.vocabulary()


def distance(found: NDArray[np.complexfloating], matrix: torch.Tensor) -> float:
    """How far eigenvalues are from those of a matrix, and its others from 0, over the largest."""
    wanted = np.linalg.eigvals(matrix.numpy())
    found = np.concatenate([found, np.zeros(max(0, len(wanted) - len(found)))])
    wanted = np.concatenate([wanted, np.zeros(len(found) - len(wanted))])
    cost = np.abs(found[:, None] - wanted[None])
    return float(cost[linear_sum_assignment(cost)].max() / np.abs(wanted).max())


KINDS = ("tied", "untied", "all alike", "few tokens", "twice the same", "narrow")


@pytest.mark.parametrize(("kind", "circuit"), [*itertools.product(KINDS, ("qk", "ov"))])
def test_spectra_of_the_matrix_over_tokens(kind: str, circuit: str) -> None:
    embed, unembed = embeddings(kind)
    embed = embed.float().double()
    tokens = vocabulary(embed, unembed)
    gain = random(D_MODEL, seed=8).abs() + 0.5
    readings = (Reading(gain, centred=True, factor=3.0), Reading(gain + 1, gain_first=True))
    for folded in (False, True):
        left = Factor(random(4, D_HEAD, D_MODEL, seed=5), columns=gain if folded else None)
        right = Factor(random(2, D_HEAD, D_MODEL, seed=6), centred=folded)
        a, b = left.weights * (gain if folded else 1.0), right.weights
        rows = embed if circuit == "qk" or unembed is None else unembed
        columns = embed
        read = tokens
        if folded:
            b = b - b.mean(-1, keepdim=True)
            read = tokens.folded(*readings)
            columns = (embed - embed.mean(-1, keepdim=True)) * gain * 3.0
            rows = columns if circuit == "qk" else (rows - rows.mean(0)) * (gain + 1)
        found = full_spectra(FactorPair(left, right, 0.5), read, circuit)  # type: ignore[arg-type]
        for head in range(4):
            full = 0.5 * rows @ a[head].T @ b[head // 2] @ columns.T
            sigma = torch.linalg.svdvals(full)
            largest = sigma[0]
            assert (found.singular_values[head] - sigma[:D_HEAD]).abs().max() < 1e-8 * largest
            assert distance(found.eigenvalues[head].numpy(), full) < 1e-8
            symmetric = torch.linalg.eigvalsh((full + full.T) / 2)
            assert distance(found.symmetric[head].numpy(), (full + full.T) / 2) < 1e-8
            assert abs(found.symmetric[head][0] - symmetric[-1]) < 1e-8 * largest
            theta = found.antisymmetric[head].numpy()
            assert distance(np.concatenate([1j * theta, -1j * theta]), (full - full.T) / 2) < 1e-8
            assert (np.diff(theta) <= 0).all()
            seen = full - full.mean(1, keepdim=True)
            sigma = torch.linalg.svdvals(seen)[:D_HEAD]
            assert (found.centred_singular_values[head] - sigma).abs().max() < 1e-8 * largest
            wanted = torch.trace(seen @ seen) / seen.square().sum()
            assert abs(found.centred_symmetry[head] - wanted) < 1e-8


@pytest.mark.parametrize("circuit", ["qk", "ov"])
def test_leading_vectors(circuit: str) -> None:
    embed, unembed = embeddings("untied")
    embed = embed.float().double()
    assert unembed is not None
    tokens = vocabulary(embed, unembed)
    left, right = random(3, D_HEAD, D_MODEL, seed=5), random(3, D_HEAD, D_MODEL, seed=6)
    rows = embed if circuit == "qk" else unembed
    pair = FactorPair(Factor(left), Factor(right), 2.0)
    full = 2.0 * rows @ left[1].T @ right[1] @ embed.T
    _, head = full_heads(pair, tokens, circuit, [0, 1])  # type: ignore[arg-type]
    singular = leading_vectors(head, "singular vector", 4)
    assert singular.values.shape == (4,)
    for value, u, v in zip(singular.values, singular.left, singular.right, strict=True):
        u_tokens, v_tokens = rows @ torch.from_numpy(u), embed @ torch.from_numpy(v)
        torch.testing.assert_close(full @ v_tokens, value.real * u_tokens)
        torch.testing.assert_close(full.T @ u_tokens, value.real * v_tokens)
        torch.testing.assert_close(u_tokens.norm(), torch.tensor(1.0, dtype=torch.float64))
    eigen = leading_vectors(head, "eigenvector", 99)
    assert (np.diff(np.abs(eigen.values)) <= 1e-9).all()
    assert (eigen.values.imag >= 0).all()
    assert (eigen.values.imag > 0).any()
    assert (eigen.values.imag == 0).any()
    for value, v, z in zip(eigen.values, eigen.left, eigen.right, strict=True):
        v_tokens, z_tokens = rows @ torch.from_numpy(v), embed @ torch.from_numpy(z)
        # A complex vector's real part is turned by F, and comes back in the plane of both parts:
        # F² v = 2 Re μ · F v − |μ|² v, which for a real μ follows from F v = μ v.
        for vector, matrix in ((v_tokens, full), (z_tokens, full.T)):
            once = matrix @ vector
            wanted = 2 * value.real * once - abs(value) ** 2 * vector
            torch.testing.assert_close(matrix @ once, wanted)
            if value.imag == 0:
                torch.testing.assert_close(once, value.real * vector)
        torch.testing.assert_close(v_tokens.norm(), torch.tensor(1.0, dtype=torch.float64))
        assert float(v_tokens @ full @ z_tokens) > 0


def test_a_head_of_nothing_has_no_vectors() -> None:
    embed, _ = embeddings("tied")
    nothing = Factor(torch.zeros(1, D_HEAD, D_MODEL))
    (head,) = full_heads(FactorPair(nothing, nothing), vocabulary(embed, None), "qk", [0])
    for kind in ("eigenvector", "singular vector"):
        leading = leading_vectors(head, kind, 2)  # type: ignore[arg-type]
        assert leading.values.shape == (0,)
        assert leading.left.shape == (0, D_MODEL)


def test_vectors_of_zeros_are_left_out() -> None:
    embed, _ = embeddings("tied")
    left, right = random(1, D_HEAD, D_MODEL, seed=5), random(1, D_HEAD, D_MODEL, seed=6)
    left[0, 3:] = 0.0
    pair = FactorPair(Factor(left), Factor(right))
    (head,) = full_heads(pair, vocabulary(embed, None), "qk", [0])
    assert len(leading_vectors(head, "singular vector", D_HEAD).values) == 3
    eigen = leading_vectors(head, "eigenvector", D_HEAD)
    assert sum(2 if value.imag else 1 for value in eigen.values) == 3


def test_blocks_and_threads_of_the_vocabulary_change_no_more_than_rounding() -> None:
    embed, unembed = embeddings("untied")
    whole = VocabularyGram(D_MODEL, tied=False)
    whole.add(embed.float(), unembed)
    one, other = whole.vocabulary(), vocabulary(embed, unembed)
    torch.testing.assert_close(one.embed @ one.unembed.T, other.embed @ other.unembed.T)
    assert unembed is not None
    torch.testing.assert_close(one.embed @ one.unembed.T, embed.float().double().T @ unembed)
    torch.testing.assert_close(one.unembed_mean, unembed.mean(0))
    assert not one.folded(Reading(), Reading()).unembed_mean.any()


def test_directions_are_for_rows_as_stored() -> None:
    rows, direction = random(9, D_MODEL, seed=1), random(D_MODEL, seed=2)
    gain = random(D_MODEL, seed=3)
    for first in (False, True):
        reading = Reading(gain, centred=True, gain_first=first, factor=2.0)
        torch.testing.assert_close(
            reading.rows(rows) @ direction, rows @ reading.directions(direction)
        )


def test_rows_that_do_not_fit() -> None:
    gram = VocabularyGram(D_MODEL, tied=False)
    with pytest.raises(ShapeError, match="Wanted the rows"):
        gram.vocabulary()
    with pytest.raises(ShapeError, match="and as many of the unembedding"):
        gram.add(torch.zeros(3, D_MODEL))
    with pytest.raises(ShapeError, match="found"):
        gram.add(torch.zeros(3, D_MODEL), torch.zeros(3, 2))
    with pytest.raises(SpectrumError, match="not finite"):
        gram.add(torch.full((3, D_MODEL), torch.nan), torch.zeros(3, D_MODEL))
    tokens = vocabulary(*embeddings("tied"))
    with pytest.raises(ShapeError, match="stream of 40"):
        full_spectra(FactorPair(*[Factor(torch.ones(1, 2, 9))] * 2), tokens, "qk")
