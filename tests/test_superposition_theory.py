"""The closed form of the frozen head against samples, gradient descent and exact limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import ortho_group

from qk_taxonomy.errors import ShapeError, StudyError
from qk_taxonomy.statistics.decomposition import SingularVectors, singular_vectors
from qk_taxonomy.studies.superposition.alignment import align
from qk_taxonomy.studies.superposition.measures import target_subspaces
from qk_taxonomy.studies.superposition.sharing import pair_sharing
from qk_taxonomy.studies.superposition.theory import (
    QuadraticForm,
    compare_with_optimum,
    input_moments,
    optimum,
    pair_problem,
)

Array = NDArray[np.float64]


def random_dictionaries(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-2])


FORMS: tuple[QuadraticForm, ...] = ("product", "indicator")


def draw(
    rng: np.random.Generator, n_samples: int, n: int, p: float, groups: tuple[tuple[int, ...], ...]
) -> Array:
    there = rng.random((n_samples, n)) < p
    for group in groups:
        there[:, group] = there[:, group[:1]]
    return there * rng.random((n_samples, n))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [(), ((0, 3), (1, 4, 5))])
def test_the_optimum_is_that_of_samples(
    form: QuadraticForm, groups: tuple[tuple[int, ...], ...]
) -> None:
    rng = np.random.default_rng(14)
    w, p = rng.standard_normal((3, 6)), 0.4
    pairs, weights = [(0, 1), (2, 3), (0, 4)], [1.0, 2.0, -1.0]
    x, y = (draw(rng, 200_000, 6, p, groups) for _ in range(2))
    a, b = (z if form == "product" else (z > 0).astype(float) for z in (x, y))
    s = sum(t * a[:, i] * b[:, j] for (i, j), t in zip(pairs, weights, strict=True))
    moments = input_moments(6, p, form, groups)
    for found, expected in (
        (moments.inputs, x.T @ x / len(x)),
        (moments.cross, x.T @ a / len(x)),
        (moments.taken, a.T @ a / len(x)),
    ):
        np.testing.assert_allclose(found, expected, atol=0.006)
    h, g = x @ w.T, y @ w.T
    design = (h[:, :, None] * g[:, None, :]).reshape(len(h), -1)
    fitted, residual, *_ = np.linalg.lstsq(design, s, rcond=None)
    problem = pair_problem(w, p, pairs, weights, form, groups)
    best = optimum(problem)
    # Within what least squares can tell (White's standard errors).
    inverse = np.linalg.inv(design.T @ design)
    noise = design * (s - design @ fitted)[:, None] @ inverse
    errors = np.sqrt(np.square(noise).sum(0))
    assert (np.abs(fitted - best.omega.ravel()) < 4 * errors).all()
    assert (errors < 0.02 * np.abs(best.omega).max()).any()
    assert best.loss == pytest.approx(residual[0] / len(s), rel=0.02)
    assert problem.constant == pytest.approx(np.mean(np.square(s)), rel=0.02)
    for omega in (best.omega, rng.standard_normal((3, 3))):
        sampled = np.square(s - np.einsum("ni,ij,nj->n", h, omega, g)).mean()
        assert problem.loss(omega) == pytest.approx(sampled, rel=0.02)
    assert problem.loss(best.omega) == pytest.approx(best.loss)


@pytest.mark.parametrize("form", FORMS)
def test_the_optimum_of_one_pair_has_rank_one(form: QuadraticForm) -> None:
    w = random_dictionaries(5, 9, seed=15)
    problem = pair_problem(w, 0.2, [(2, 7)], [1.5], form)
    best = optimum(problem)
    assert best.vectors.sigma[1] < 1e-9 * best.vectors.sigma[0]
    for vectors, i in ((best.vectors.u, 2), (best.vectors.v, 7)):
        # E h f(x_i), sampled by hand: E x_k f(x_i) of independent features.
        own, other = (0.2 / 3, 0.2**2 / 4) if form == "product" else (0.2 / 2, 0.2**2 / 2)
        taken = np.full(9, other)
        taken[i] = own
        predicted = np.linalg.solve(problem.sigma, w @ taken)
        cosine = predicted @ vectors[:, 0] / np.linalg.norm(predicted)
        assert abs(cosine) == pytest.approx(1)


def test_orthonormal_sparse_features_have_their_limits() -> None:
    w = ortho_group.rvs(6, random_state=16)[:, :5]
    p = np.array([1e-6, 1e-3, 0.1, 1.0])
    many, pairs = np.broadcast_to(w, (4, *w.shape)), [(2, 4)]
    best = optimum(pair_problem(many, p, pairs, [1.0], "indicator"))
    assert best.vectors.sigma[0, 0] == pytest.approx(9 / 4, abs=1e-4)
    found = align(many, best.vectors, pairs)
    assert found.lesser[0, 0] == pytest.approx(1, abs=1e-5)
    # Always there, the indicator is a constant: any head that finds x's mean will do.
    assert found.lesser[3, 0] == pytest.approx(1 / np.sqrt(5))
    assert (np.diff(found.lesser[:, 0]) < 0).all()
    # The product of orthonormal features is exact whatever the sparsity.
    exact = optimum(pair_problem(many, p, [(2, 4), (1, 0)], [1.0, 2.0], "product"))
    np.testing.assert_allclose(exact.vectors.sigma[:, :2], [[2, 1]] * 4, rtol=1e-6)
    np.testing.assert_allclose(align(many, exact.vectors, [(2, 4), (1, 0)]).lesser, 1, rtol=1e-6)
    assert (np.abs(exact.loss) < 1e-12).all()


@pytest.mark.parametrize("form", FORMS)
def test_gradient_descent_comes_to_the_optimum_of_its_rank(form: QuadraticForm) -> None:
    rng = np.random.default_rng(17)
    w, p, rank = rng.standard_normal((4, 6)) / 2, 0.5, 2
    pairs, weights = [(0, 1), (2, 3), (4, 5)], [1.0, 1.5, 2.0]
    problem = pair_problem(w, p, pairs, weights, form)
    best = optimum(problem, rank)
    assert np.linalg.matrix_rank(best.omega, tol=1e-9) == rank
    assert best.loss == pytest.approx(problem.loss(best.omega))
    assert best.loss > optimum(problem).loss + 1e-4
    x, y = (torch.from_numpy(draw(rng, 50_000, 6, p, ())) for _ in range(2))
    a, b = (z if form == "product" else (z > 0).double() for z in (x, y))
    s = sum(t * a[:, i] * b[:, j] for (i, j), t in zip(pairs, weights, strict=True))
    h, g = x @ torch.from_numpy(w.T), y @ torch.from_numpy(w.T)
    factors = torch.from_numpy(rng.standard_normal((2, rank, 4)) / 2).requires_grad_()
    optimiser = torch.optim.Adam([factors], 0.03)
    for step in range(400):
        rows = slice(step % 10 * 5000, step % 10 * 5000 + 5000)
        logits = ((h[rows] @ factors[0].T) * (g[rows] @ factors[1].T)).sum(1)
        optimiser.zero_grad()
        torch.square(s[rows] - logits).mean().backward()
        optimiser.step()
    trained = singular_vectors(*factors.detach().numpy())
    found = compare_with_optimum(problem, trained, best, rank)
    assert 0 <= found.excess_loss < 0.003
    assert found.sigma_ratio == pytest.approx(1, abs=0.1)
    assert found.left.min() > 0.95
    assert found.right.min() > 0.95


def test_no_head_of_the_rank_is_better() -> None:
    rng = np.random.default_rng(18)
    w = rng.standard_normal((5, 8))
    problem = pair_problem(w, 0.3, [(0, 1), (2, 3), (4, 5)], [1.0, 2.0, 3.0], "product")
    losses = []
    for rank in range(1, 6):
        best = optimum(problem, rank)
        losses.append(float(best.loss))
        left, right = (best.vectors.u * best.vectors.sigma).T, best.vectors.v.T
        for size in (1e-3, 0.1):
            a, b = (x + size * rng.standard_normal((500, *x.shape)) for x in (left, right))
            assert (problem.loss(a.mT @ b) >= best.loss).all()
        truncated = optimum(problem).vectors
        cut = (truncated.u[:, :rank] * truncated.sigma[:rank]) @ truncated.v[:, :rank].T
        assert problem.loss(cut) >= best.loss - 1e-12
    assert (np.diff(losses) <= 1e-12).all()


def test_each_dimension_of_a_head_gains_its_own() -> None:
    w = random_dictionaries(5, 8, seed=22)
    problem = pair_problem(w, 0.3, [(0, 1), (2, 3), (4, 5)], [1.0, 2.0, 3.0], "product")
    losses = np.stack([problem.constant, *(optimum(problem, r).loss for r in range(1, 6))], -1)
    for rank in (1, 5):
        np.testing.assert_allclose(optimum(problem, rank).gains, -np.diff(losses), atol=1e-12)


def test_vectors_of_tied_singular_values_are_free_to_mix() -> None:
    """Orthonormal features, so that σ are the weights: 3, and 2 twice, and 1."""
    w = ortho_group.rvs(6, random_state=23)
    pairs = [(0, 5), (1, 4), (2, 3), (3, 0)]
    problem = pair_problem(w, 0.2, pairs, [3.0, 2.0, 1.99, 1.0], "product")
    best = optimum(problem)
    cos, sin = np.cos(0.7), np.sin(0.7)
    for places, found in (((1, 2), 1.0), ((0, 1), cos), ((2, 3), cos)):
        turn = np.eye(6)
        turn[np.ix_(places, places)] = [[cos, -sin], [sin, cos]]
        mixed = SingularVectors(best.vectors.u @ turn, best.vectors.sigma, best.vectors.v @ turn)
        agreement = compare_with_optimum(problem, mixed, best, 4)
        for side in (agreement.left, agreement.right):
            expected = np.ones(4)
            expected[list(places)] = found
            np.testing.assert_allclose(side, expected, atol=1e-9)


def test_the_optimum_itself_agrees_with_itself() -> None:
    w = random_dictionaries(3, 4, 6, seed=19)
    problem = pair_problem(w, [0.1, 0.5, 1.0], [(0, 1), (2, 3)], [1.0, 2.0], "product")
    best = optimum(problem)
    found = compare_with_optimum(problem, best.vectors, best, 2)
    np.testing.assert_allclose(found.excess_loss, 0, atol=1e-9)
    for values in (found.sigma_ratio, found.left, found.right):
        np.testing.assert_allclose(values, 1)
    with pytest.raises(ShapeError, match="both heads have"):
        compare_with_optimum(problem, best.vectors, best, 5)


def test_directions_that_no_input_takes_stay_empty() -> None:
    w = np.zeros((4, 5))
    w[:2] = random_dictionaries(2, 5, seed=20)
    best = optimum(pair_problem(w, 0.3, [(0, 1)], [1.0], "product"))
    np.testing.assert_allclose(best.omega[2:], 0, atol=1e-12)
    np.testing.assert_allclose(best.omega[:, 2:], 0, atol=1e-12)
    assert np.abs(best.omega).max() > 0.01
    nothing = pair_problem(np.zeros((4, 5)), 0.3, [(0, 1)], [1.0], "product")
    best = optimum(nothing)
    np.testing.assert_array_equal(best.omega, 0)
    assert best.loss == nothing.constant
    found = compare_with_optimum(nothing, best.vectors, best)
    assert np.isnan(found.sigma_ratio)


def test_a_direction_that_is_all_but_empty_is_left_out() -> None:
    w = np.vstack([np.eye(4), np.full((1, 4), 1e-3)])
    problem = pair_problem(w, 0.3, [(0, 1)], [1.0], "indicator")
    usual, utmost = optimum(problem), optimum(problem, least_variance=0)
    assert usual.vectors.sigma[0] < 9 / 4
    assert align(w, usual.vectors, [(0, 1)]).lesser > 0.95
    # Exact, and of no use to anyone: enormous, or all but the same.
    assert utmost.loss <= usual.loss
    assert usual.loss == pytest.approx(problem.loss(usual.omega))
    assert utmost.loss == pytest.approx(problem.loss(utmost.omega))
    few = np.vstack([np.eye(4)[:3], np.full((1, 4), 1e-3)])
    problem = pair_problem(few, 0.3, [(0, 1)], [1.0], "indicator")
    assert optimum(problem, least_variance=0).vectors.sigma[0] > 100
    assert optimum(problem).vectors.sigma[0] < 9 / 4


def test_instances_may_have_targets_of_their_own() -> None:
    rng = np.random.default_rng(21)
    w = rng.standard_normal((2, 3, 5, 8))
    left, right = rng.standard_normal((2, 2, 3, 4, 5))
    vectors = singular_vectors(left, right)
    pairs = np.array([[(0, 1), (2, 3)], [(4, 5), (5, 4)], [(6, 6), (6, 7)]])
    weights = np.array([[1.0, 2.0], [3.0, 0.0], [1.0, -1.0]])
    p = np.array([0.1, 0.5, 0.9])
    aligned, shared = align(w, vectors, pairs), pair_sharing(w, vectors, pairs)
    spans = target_subspaces(w, vectors, pairs)
    best = optimum(pair_problem(w, p, pairs, weights, "product"), 2)
    for place in np.ndindex(2, 3):
        own = SingularVectors(*(part[place] for part in vectors))
        targets = pairs[place[1]]
        alone = align(w[place], own, targets)
        for name in ("singular", "sigma", "left", "right", "p_values", "chance"):
            np.testing.assert_allclose(getattr(aligned, name)[place], getattr(alone, name))
        expected = pair_sharing(w[place], own, targets)
        np.testing.assert_allclose(shared.overlap[place], expected.overlap)
        for found, side in zip(spans, target_subspaces(w[place], own, targets), strict=True):
            n = min(len(side.angles), found.angles.shape[-1])
            np.testing.assert_allclose(found.angles[place][:n], side.angles[:n])
            np.testing.assert_allclose(found.capture[place], side.capture)
        problem = pair_problem(w[place], p[place[1]], targets, weights[place[1]], "product")
        np.testing.assert_allclose(best.omega[place], optimum(problem, 2).omega)
    with pytest.raises(ShapeError, match="for all instances or for each"):
        align(w, vectors, pairs[:2])


def test_problems_without_a_closed_form_are_refused() -> None:
    w = np.eye(4)
    with pytest.raises(StudyError, match="not for 'softmax'"):
        pair_problem(w, 0.5, [(0, 1)], [1.0], "softmax")  # type: ignore[arg-type]
    with pytest.raises(StudyError, match="probabilities"):
        pair_problem(w, 1.5, [(0, 1)], [1.0], "product")
    with pytest.raises(ShapeError, match="a weight for each pair"):
        pair_problem(w, 0.5, [(0, 1)], [1.0, 2.0], "product")
    with pytest.raises(ShapeError, match="a rank from 1 to d_hidden = 4"):
        optimum(pair_problem(w, 0.5, [(0, 1)], [1.0], "product"), 5)
