"""Statistics of full circuits against dense V×V matrices; unusual heads; matched pairs."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from random_circuits import random_twin
from scipy.stats import kstest, wasserstein_distance
from untrained import Shape

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.matching import matched_effects, shuffled_effects, shuffles
from qk_taxonomy.statistics.vocabulary import (
    copying_score,
    near_zero_eigenvalues,
    positive_share,
    symmetry,
)
from qk_taxonomy.studies.circuits.unusual import (
    Cohort,
    group_p_values,
    spectral_profiles,
    unusual_heads,
)

SEPARATE = Shape(layers=6, heads=8, kv_heads=8, d_head=16, d_model=40)
GROUPED = Shape(layers=20, heads=6, kv_heads=2, d_head=12, d_model=40)


def test_statistics_of_dense_circuits() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 4, 5, 30))
    dense = a.mT @ b
    mu, sigma = np.linalg.eigvals(b @ a.mT), np.linalg.svd(dense, compute_uv=False)[..., :5]
    largest = np.argsort(-np.abs(np.linalg.eigvals(dense)), axis=-1)[..., :5]
    of_dense = np.take_along_axis(np.linalg.eigvals(dense), largest, axis=-1)
    trace = np.trace(dense, axis1=-2, axis2=-1)
    np.testing.assert_allclose(copying_score(mu), trace / np.abs(of_dense).sum(-1), rtol=1e-9)
    np.testing.assert_array_equal(positive_share(mu), (of_dense.real > 0).mean(-1))
    even, odd = ((dense + s * dense.mT) / 2 for s in (1, -1))
    norms = [np.square(part).sum((-2, -1)) for part in (even, odd, dense)]
    np.testing.assert_allclose(symmetry(mu, sigma), (norms[0] - norms[1]) / norms[2], atol=1e-12)
    assert (np.abs(copying_score(mu)) < 1).all()


def test_statistics_at_the_ends_of_their_range() -> None:
    a = np.random.default_rng(1).standard_normal((4, 30))
    for b, sign in ((a, 1.0), (-a, -1.0)):
        mu, sigma = np.linalg.eigvals(b @ a.T), np.linalg.svd(a.T @ b, compute_uv=False)[:4]
        assert copying_score(mu) == pytest.approx(sign)
        assert positive_share(mu) == (sign + 1) / 2
        assert symmetry(mu, sigma) == pytest.approx(1.0)
    turned = np.array([1j, -1j])
    assert copying_score(turned) == 0.0
    assert symmetry(turned, np.ones(2)) == -1.0
    # A modulus of 0.03 is a square of 9e-4; the sign has no part in it.
    assert near_zero_eigenvalues(np.array([-1.0, 0.04, 0.03j, -0.03j])) == 0.5
    zero = np.zeros((2, 3), dtype=complex)
    for statistic in (copying_score, positive_share, near_zero_eigenvalues):
        np.testing.assert_array_equal(statistic(zero), [0.0, 0.0])
    np.testing.assert_array_equal(symmetry(zero, np.zeros((2, 3))), [0.0, 0.0])


def test_profiles_are_free_of_scale_and_end_at_the_floor() -> None:
    sigma = np.array([[3.0, 4.0], [1e-200, 0.0], [0.0, 0.0]])
    profiles = spectral_profiles(sigma)
    np.testing.assert_allclose(profiles[0], np.log([4, 3]) - np.log(12.5) / 2)
    np.testing.assert_allclose(profiles[1], np.log([1, 1e-6]) - np.log(0.5) / 2)
    assert np.isnan(profiles[2]).all()
    np.testing.assert_allclose(spectral_profiles(sigma[:1] * 1e-300), profiles[:1])


def test_distances_and_p_values_by_their_definition() -> None:
    rng = np.random.default_rng(2)
    (model, _), (control, groups) = (random_twin(rng, GROUPED, 100) for _ in range(2))
    model[0] = model[0] ** 3
    found = unusual_heads([Cohort(model, control, groups)])
    own, null = spectral_profiles(model), spectral_profiles(control)
    distance = [wasserstein_distance(x, null.mean(0)) for x in own]
    np.testing.assert_allclose(found.distance, distance)
    left_out = [
        wasserstein_distance(x, null[groups != g].mean(0))
        for x, g in zip(null, groups, strict=True)
    ]
    shares = np.array([[d >= x for d in left_out] for x in distance])
    of_groups = np.stack([shares[:, groups == g].mean(1) for g in np.unique(groups)], axis=1)
    np.testing.assert_allclose(found.p_values, (1 + of_groups.sum(1)) / 41)
    peers = [wasserstein_distance(x, np.delete(own, i, axis=0).mean(0)) for i, x in enumerate(own)]
    logs = np.log(peers)
    mad = np.median(np.abs(logs - np.median(logs)))
    np.testing.assert_allclose(found.peer_z, (logs - np.median(logs)) / (1.4826 * mad))
    assert found.p_values[0] == found.p_values.min() == 1 / 41
    assert "40 independent heads of the control: fewer than 59 heads cannot be found" in found.note


def test_p_values_of_groups_of_one_are_ranks() -> None:
    null, observed = np.arange(9.0), np.array([8.0, 8.1, -1.0, 4.0, np.nan])
    p = group_p_values(observed, null, np.arange(9))
    np.testing.assert_allclose(p, [0.2, 0.1, 1.0, 0.6, np.nan])
    p = group_p_values(observed, null, np.repeat(np.arange(3), 3))
    np.testing.assert_allclose(p, [(1 + 1 / 3) / 4, 1 / 4, 1.0, (1 + 1 + 2 / 3) / 4, np.nan])


@pytest.mark.parametrize("shape", [SEPARATE, GROUPED], ids=["a key each", "3 heads a key"])
def test_two_random_twins_have_no_unusual_heads(shape: Shape) -> None:
    rng = np.random.default_rng(3)
    rejected, found = [], []
    for _ in range(50):
        (model, _), (control, groups) = (random_twin(rng, shape, 150) for _ in range(2))
        test = unusual_heads([Cohort(model, control, groups)])
        rejected.append((test.p_values <= 0.1).mean())
        found.append((test.q_values <= 0.05).any())
    # Ranks are whole, so that the level is at most the one asked for; 50 models know it to 0.01.
    assert 0.05 < np.mean(rejected) < 0.12
    assert np.mean(found) <= 0.05


def test_planted_heads_are_found_and_ranked_by_how_they_differ_from_peers() -> None:
    rng = np.random.default_rng(4)
    decay = np.zeros(SEPARATE.n)
    decay[10:40] = 0.15
    decay[[20, 30]] = 0.4, 0.3
    (model, _), (control, groups) = (
        random_twin(rng, SEPARATE, 150, planted) for planted in (decay, None)
    )
    test = unusual_heads([Cohort(model, control, groups)])
    found = test.q_values <= 0.05
    assert found[decay > 0].all()
    assert found[decay == 0].sum() <= 4
    assert (test.rank[20], test.rank[30]) == (1, 2)
    assert sorted(test.rank) == list(range(1, SEPARATE.n + 1))
    assert test.rank[found].max() == found.sum()
    both = test.distance[found].argsort().argsort() + test.peer_z[found].argsort().argsort()
    assert (np.diff(both[np.argsort(test.rank[found])]) <= 0).all()


def test_stacks_of_other_widths_and_without_a_control() -> None:
    rng = np.random.default_rng(5)
    wide, control = (random_twin(rng, SEPARATE, 100)[0] for _ in range(2))
    narrow = wide[:4, :3].copy()
    narrow[0] = 0.0
    test = unusual_heads([Cohort(wide, control), Cohort(narrow)])
    assert np.isnan(test.q_values[48:]).all()
    assert np.isnan(test.peer_z[48])
    assert np.isfinite(test.peer_z[49:]).all()
    assert test.rank[48] == 52
    assert test.note.startswith("a stack has no control")
    alone = unusual_heads([Cohort(wide)])
    assert np.isnan(alone.p_values).all()
    assert alone.note == "no control to test against"
    np.testing.assert_array_equal(np.argsort(alone.rank), np.argsort(-alone.peer_z))
    single = unusual_heads([Cohort(wide[:1], control[:1])])
    assert np.isnan([single.p_values, single.peer_z]).all()
    assert single.rank.tolist() == [1]
    few = unusual_heads([Cohort(wide, control[:10])])
    assert few.note.endswith("10 independent heads of the control: no head can be found")


@pytest.mark.parametrize(
    "cohorts",
    [
        [],
        [Cohort(np.ones(3))],
        [Cohort(np.ones((2, 3)), np.ones((2, 4)))],
        [Cohort(np.ones((2, 3)), np.ones((2, 3)), np.arange(3))],
        [Cohort(np.ones((2, 3)), None, np.arange(2))],
    ],
)
def test_cohorts_that_do_not_fit_are_refused(cohorts: list[Cohort]) -> None:
    with pytest.raises(ShapeError, match="Wanted"):
        unusual_heads(cohorts)


def test_matched_effects_by_their_definition() -> None:
    matrices = np.random.default_rng(6).standard_normal((3, 5, 5))
    every = np.array(list(permutations(range(5))))
    found = matched_effects(matrices, every)
    others = ~np.eye(5, dtype=bool)
    for matrix, effect, p in zip(matrices, found.effect, found.p_values, strict=True):
        assert effect == pytest.approx(np.trace(matrix) / 5 - matrix[others].mean())
        null = []
        for dealt in every:
            moved = matrix[:, dealt]
            null.append(np.trace(moved) / 5 - moved[others].mean())
        extreme = np.abs(null) >= abs(effect) - 1e-12
        assert p == pytest.approx((1 + extreme.sum()) / 121)
    # Each object against the additive fit to the cells off the diagonal, by least squares.
    rows, columns = np.nonzero(others)
    design = np.hstack([np.eye(5)[rows], np.eye(5)[columns]])
    for matrix, by_object in zip(matrices, found.by_object, strict=True):
        fit = np.linalg.lstsq(design, matrix[others], rcond=None)[0]
        np.testing.assert_allclose(by_object, np.diagonal(matrix) - fit[:5] - fit[5:])
    np.testing.assert_allclose(found.by_object.mean(-1), found.effect)
    ((_, null),) = shuffled_effects(matrices, every)
    np.testing.assert_allclose(null[:, 0], found.effect)


def test_what_sides_score_with_any_other_is_no_effect() -> None:
    rng = np.random.default_rng(7)
    matrices = rng.standard_normal((2, 1, 12, 12))
    moved = matrices[0] + 100 * rng.standard_normal((1, 12, 1)) + rng.standard_normal((1, 1, 12))
    dealt = shuffles(12, 499)
    first, second = matched_effects(matrices[0], dealt), matched_effects(moved, dealt)
    np.testing.assert_allclose(first.effect, second.effect, atol=1e-12)
    np.testing.assert_allclose(first.low, second.low, atol=1e-12)
    assert first.p_values == second.p_values


def test_matched_p_values_are_uniform_and_intervals_cover() -> None:
    matrices = np.random.default_rng(8).standard_normal((1500, 10, 10))
    null = matched_effects(matrices, shuffles(10, 1999))
    assert kstest(null.p_values, "uniform").pvalue > 1e-3
    # Objects that differ in effect: the interval is for the mean of others like them.
    own = np.random.default_rng(9).normal(1.0, 1.0, (1500, 10))
    planted = matched_effects(matrices + own[:, None] * np.eye(10), shuffles(10, 99))
    assert ((planted.low <= 1) & (planted.high >= 1)).mean() == pytest.approx(0.95, abs=0.02)


def test_matched_effects_at_the_edges() -> None:
    matrices = np.random.default_rng(10).standard_normal((2, 4, 4))
    assert np.isnan(matched_effects(matrices, shuffles(4, 99)).p_values).all()
    bigger = np.random.default_rng(11).standard_normal((3, 6, 6))
    bigger[1, 2, 3] = np.nan
    found = matched_effects(bigger, shuffles(6, 99))
    values = np.stack([found.effect, found.low, found.high, found.p_values])
    np.testing.assert_array_equal(np.isnan(values).all(0), [False, True, False])
    constant = matched_effects(np.ones((1, 6, 6)), shuffles(6, 99))
    assert constant.p_values == 1.0
    assert constant.effect == pytest.approx(0.0)
    with pytest.raises(ShapeError, match="square"):
        matched_effects(np.ones((2, 3, 4)), shuffles(4, 9))
    with pytest.raises(ShapeError, match="shuffles of 6"):
        matched_effects(bigger, shuffles(5, 9))
