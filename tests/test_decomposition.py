"""The sparse attention decomposition against dense definitions, its controls under their nulls."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import kstest, ortho_group, ttest_1samp

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.decomposition import (
    Control,
    SingularVectors,
    attention_terms,
    n_recon,
    random_rotation,
    rotated_terms,
    singular_vectors,
    sparse_decomposition,
    sparseness,
)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (1, 5), (5, 1), (1, 1), (2, 4, 3, 8)])
def test_terms_are_those_of_the_dense_decomposition(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, *shape))
    h, g = rng.standard_normal((2, *shape[:-2], 6, shape[-1]))
    vectors = singular_vectors(left, right)
    omega = left.mT @ right
    k = min(shape[-2:])
    u, sigma, vh = np.linalg.svd(omega)
    np.testing.assert_allclose(vectors.sigma, sigma[..., :k], rtol=1e-10)
    expected = (h @ u[..., :k]) * sigma[..., None, :k] * (g @ vh.mT[..., :k])
    terms = attention_terms(vectors, h, g)
    np.testing.assert_allclose(terms, expected, atol=1e-9)
    logits = np.einsum("...ni,...ij,...nj->...n", h, omega, g)
    np.testing.assert_allclose(terms.sum(-1), logits, atol=1e-10)
    for basis in (vectors.u, vectors.v):
        np.testing.assert_allclose(
            basis.mT @ basis, np.broadcast_to(np.eye(k), (*shape[:-2], k, k)), atol=1e-12
        )


def test_a_head_that_is_zero_has_terms_that_are_zero() -> None:
    vectors = singular_vectors(np.zeros((3, 5)), np.ones((3, 5)))
    terms = attention_terms(vectors, np.ones((2, 5)), np.ones((2, 5)))
    np.testing.assert_array_equal(terms, 0)
    assert np.isnan(sparseness(terms)).all()
    np.testing.assert_array_equal(n_recon(terms), 0)


def test_sparseness_at_known_values() -> None:
    rng = np.random.default_rng(1)
    assert sparseness([0, 0, -3, 0]) == pytest.approx(1 / 4)
    assert sparseness([2, -2, 2]) == pytest.approx(1)
    assert sparseness([5.0]) == 1
    assert sparseness(rng.standard_normal(200_000)) == pytest.approx(2 / np.pi, abs=0.005)
    terms = rng.standard_normal((50, 7))
    found = sparseness(terms)
    assert (found >= 1 / 7).all()
    assert (found <= 1).all()
    np.testing.assert_allclose(found, [np.mean(abs(v)) ** 2 / np.mean(v**2) for v in terms])
    # Neither size nor order matters, at the ends of the range of numbers either.
    for scale in (-1e-200, 1e200):
        np.testing.assert_allclose(sparseness(terms[:, ::-1] * scale), found, rtol=1e-12)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9, 1.0])
def test_no_fewer_terms_reach_the_share(share: float) -> None:
    terms = np.random.default_rng(2).standard_normal((60, 6))
    for row, found in zip(terms, n_recon(terms, share), strict=True):
        total = row.sum()
        reaching = (
            size
            for size in range(1, 7)
            if any(
                sum(chosen) * np.sign(total) >= share * abs(total) - 1e-12
                for chosen in combinations(row, size)
            )
        )
        assert found == next(reaching)


def test_number_of_terms_at_known_values() -> None:
    np.testing.assert_array_equal(n_recon([[4, 3, 2, 1], [1, 2, 3, 4]], 0.7), 2)
    assert n_recon([4, 3, 2, 1], 1.0) == 4
    assert n_recon([0.1] * 10, 0.9) == 9
    # Terms against the logit are no help: one term has it all, and more.
    assert n_recon([-3, 5, 0.5], 1.0) == 1
    assert n_recon([3, -5, -0.5], 1.0) == 1
    assert n_recon([1, -1], 0.9) == 0
    for share in (0, 1.1, np.nan):
        with pytest.raises(ShapeError, match="share of the logit"):
            n_recon([1.0], share)


def test_rotations_keep_what_they_promise() -> None:
    rng = np.random.default_rng(3)
    left, right = rng.standard_normal((2, 4, 9))
    h, g = rng.standard_normal((2, 5, 9))
    vectors = singular_vectors(left, right)
    logits = attention_terms(vectors, h, g).sum(-1)
    rotated = rotated_terms(vectors, h, g, np.random.default_rng(7), "basis")
    np.testing.assert_allclose(rotated.sum(-1), logits, atol=1e-12)
    r = random_rotation(np.random.default_rng(7), 4)
    root = np.diag(np.sqrt(vectors.sigma))
    one = np.array([
        [(a @ vectors.u @ root @ r[:, k]) * (r[:, k] @ root @ vectors.v.T @ b) for k in range(4)]
        for a, b in zip(h, g, strict=True)
    ])  # fmt: skip
    np.testing.assert_allclose(rotated, one, atol=1e-12)
    # Another head, of the same spectrum on the same subspaces.
    drawn = np.random.default_rng(7)
    r, s = random_rotation(drawn, 4), random_rotation(drawn, 4)
    other = vectors.u @ r @ np.diag(vectors.sigma) @ s.T @ vectors.v.T
    rotated = rotated_terms(vectors, h, g, np.random.default_rng(7), "vectors")
    np.testing.assert_allclose(rotated.sum(-1), np.einsum("ni,ij,nj->n", h, other, g), atol=1e-12)


def test_rotations_are_uniform() -> None:
    rng = np.random.default_rng(4)
    drawn = np.array([random_rotation(rng, 3) for _ in range(3000)])
    np.testing.assert_allclose(
        drawn @ drawn.mT, np.broadcast_to(np.eye(3), drawn.shape), atol=1e-12
    )
    # Any coordinate of a unit vector of R³ is uniform (Archimedes).
    assert kstest(drawn[:, 0, 0], "uniform", (-1, 2)).pvalue > 0.01
    assert kstest(drawn[:, 2, 1], "uniform", (-1, 2)).pvalue > 0.01
    traces = np.trace(ortho_group.rvs(3, 3000, random_state=1), axis1=1, axis2=2)
    assert kstest(np.trace(drawn, axis1=1, axis2=2), traces).pvalue > 0.01


@pytest.mark.parametrize(("control", "sigma"), [("vectors", 0.5), ("basis", 1.0)])
def test_p_values_are_uniform_where_h_and_g_are_noise(control: Control, sigma: float) -> None:
    rng = np.random.default_rng(5)
    vectors = SingularVectors(np.eye(8)[:, :6], sigma ** np.arange(6), np.eye(8)[:, :6])
    p = [
        sparse_decomposition(
            vectors, *rng.standard_normal((2, 10, 8)), control=control, n_draws=39, seed=seed
        ).sparser.p_value
        for seed in range(250)
    ]
    # Every multiple of 1/40 alike: continuous once shifted within its step.
    assert kstest(np.array(p) - rng.uniform(0, 1 / 40, 250), "uniform").pvalue > 0.01


def test_unequal_singular_values_alone_are_found_by_one_control_only() -> None:
    rng = np.random.default_rng(6)
    vectors = SingularVectors(np.eye(8), 0.3 ** np.arange(8), np.eye(8))
    h, g = rng.standard_normal((2, 200, 8))
    assert sparse_decomposition(vectors, h, g, control="basis").sparser.p_value == 1 / 200
    assert sparse_decomposition(vectors, h, g, control="vectors").sparser.p_value > 0.05


@pytest.mark.parametrize("control", ["basis", "vectors"])
def test_aligned_features_are_found(control: Control) -> None:
    rng = np.random.default_rng(7)
    e, d = 8, 20
    u, v = (np.linalg.qr(rng.standard_normal((d, e)))[0] for _ in range(2))
    vectors = singular_vectors(u.T * rng.uniform(0.8, 1.2, (e, 1)), v.T)
    chosen = rng.integers(e, size=60)
    noise = 0.02 * rng.standard_normal((2, 60, d))
    h, g = vectors.u[:, chosen].T + noise[0], vectors.v[:, chosen].T + noise[1]
    found = sparse_decomposition(vectors, h, g, control=control)
    assert found.sparser.p_value == found.fewer.p_value == 1 / 200
    assert found.sparser.high < -0.1
    assert found.fewer.high < -0.5
    np.testing.assert_array_equal(found.n_recon, 1)
    omega = (vectors.u * vectors.sigma) @ vectors.v.T
    np.testing.assert_allclose(found.logits, np.einsum("ni,ij,nj->n", h, omega, g), atol=1e-12)
    assert found.rotated_sparseness.shape == found.rotated_n_recon.shape == (199, 60)


def test_the_interval_is_over_units() -> None:
    rng = np.random.default_rng(8)
    vectors = singular_vectors(*rng.standard_normal((2, 5, 9)))
    h, g = rng.standard_normal((2, 12, 9))
    single = sparse_decomposition(vectors, h, g, n_draws=20)
    differences = single.sparseness - single.rotated_sparseness.mean(0)
    interval = ttest_1samp(differences, 0).confidence_interval()
    assert (single.sparser.low, single.sparser.high) == pytest.approx(tuple(interval))
    assert single.sparser.effect == pytest.approx(differences.mean())
    assert single.sparser.statistic == pytest.approx(differences.mean() / differences.std(ddof=1))
    units = np.repeat(np.arange(12), 5)
    repeated = sparse_decomposition(vectors, h[units], g[units], n_draws=20, units=units)
    assert repeated.sparser.n == 12
    for name in ("effect", "low", "high", "statistic", "p_value"):
        assert getattr(repeated.sparser, name) == pytest.approx(getattr(single.sparser, name))


def test_pairs_without_a_logit_are_left_out() -> None:
    rng = np.random.default_rng(9)
    vectors = singular_vectors(*rng.standard_normal((2, 5, 9)))
    h, g = rng.standard_normal((2, 3, 9))
    h[1] = 0
    found = sparse_decomposition(vectors, h, g, n_draws=10)
    assert found.sparser.n == 2
    assert np.isfinite(found.sparser.effect)
    nothing = sparse_decomposition(vectors, 0 * h, g, n_draws=10)
    assert nothing.sparser.note == "no pair has a logit"
    assert np.isnan(nothing.fewer.p_value)
    one = sparse_decomposition(vectors, h[:1], g[:1], n_draws=10)
    assert one.sparser.note == "one unit has no interval"
    assert np.isnan(one.sparser.low)
    # One term has one basis: nothing differs.
    line = sparse_decomposition(singular_vectors(h[:1], g[:1]), h, g, n_draws=10)
    assert (line.sparser.effect, line.sparser.p_value) == (0, 1)


def test_what_cannot_be_decomposed_is_refused() -> None:
    rng = np.random.default_rng(10)
    left, right = rng.standard_normal((2, 3, 8))
    with pytest.raises(ShapeError, match="two factors"):
        singular_vectors(left, right[:, :7])
    vectors = singular_vectors(left, right)
    with pytest.raises(ShapeError, match=r"residual vectors \(..., pairs, 8\)"):
        attention_terms(vectors, np.ones((4, 7)), np.ones((4, 7)))
    with pytest.raises(ShapeError, match="at least one pair"):
        sparse_decomposition(vectors, np.ones((0, 8)), np.ones((0, 8)))
    with pytest.raises(ShapeError, match="a unit for each of 4 pairs"):
        sparse_decomposition(vectors, np.ones((4, 8)), np.ones((4, 8)), units=[1, 2])
