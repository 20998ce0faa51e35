"""Measures on toy models of superposition: naive definitions, exact geometries, nulls."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import block_diag, subspace_angles
from scipy.sparse.csgraph import connected_components
from scipy.stats import beta, binom, kstest, ortho_group

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.decomposition import SingularVectors, singular_vectors
from qk_taxonomy.studies.superposition.alignment import align, chance_alignment
from qk_taxonomy.studies.superposition.measures import (
    dimensions_per_feature,
    feature_dimensionality,
    feature_logits,
    feature_norms,
    gram,
    interference,
    orthogonality,
    principal_angles,
    represented,
    target_subspaces,
    tegum_factors,
)
from qk_taxonomy.studies.superposition.onsets import (
    compare_onsets,
    median_onset,
    onset,
    progress,
    settled,
)
from qk_taxonomy.studies.superposition.sharing import (
    factor_spread,
    feature_capture,
    pair_sharing,
    participation,
)

Array = NDArray[np.float64]


def simplex(corners: int) -> Array:
    """Corners of a regular simplex of unit vectors: (corners − 1, corners)."""
    centred = np.eye(corners) - 1 / corners
    basis = np.linalg.svd(centred)[2][: corners - 1]
    found = basis @ centred
    return found / np.linalg.norm(found, axis=0)


#: A triangle, an antipodal pair, a line of its own and a feature that is not represented, in R^4.
TEGUM = np.hstack([block_diag(simplex(3), simplex(2), [[1.0]]), np.zeros((4, 1))])


def random_dictionaries(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-2])


# Geometry of features


def test_geometry_is_that_of_naive_definitions() -> None:
    w = random_dictionaries(2, 3, 4, 7)
    w[0, 1, :, 2] = 0
    for place in np.ndindex(2, 3):
        columns = w[place].T
        for i, column in enumerate(columns):
            norm = np.sqrt((column**2).sum())
            assert feature_norms(w)[place][i] == pytest.approx(norm)
            if norm == 0:
                assert feature_dimensionality(w)[place][i] == interference(w)[place][i] == 0
                continue
            overlaps = [(column / norm @ other) ** 2 for other in columns]
            assert feature_dimensionality(w)[place][i] == pytest.approx(norm**2 / sum(overlaps))
            others = sum(overlaps) - norm**2
            assert interference(w)[place][i] == pytest.approx(others)
        kept = [c / np.linalg.norm(c) for c in columns if np.linalg.norm(c) > 0.5]
        squares = [(a @ b) ** 2 for a, b in combinations(kept, 2)]
        assert orthogonality(w)[place] == pytest.approx(1 - 4 * np.mean(squares))
        assert dimensions_per_feature(w)[place] == pytest.approx(4 / (w[place] ** 2).sum())
    np.testing.assert_allclose(gram(w), np.einsum("...mi,...mj->...ij", w, w))


@pytest.mark.parametrize("corners", [2, 3, 4, 5, 7])
def test_corners_of_a_simplex_share_its_dimensions(corners: int) -> None:
    w = simplex(corners)
    np.testing.assert_allclose(feature_dimensionality(w), (corners - 1) / corners)
    np.testing.assert_array_equal(tegum_factors(w), 0)
    # k > m columns reach the bound of Welch in a simplex, which is a tight frame.
    m, k = w.shape
    assert orthogonality(w) == pytest.approx(1 - (k - m) / (k - 1))


def test_tegum_products_have_the_dimensionalities_of_their_factors() -> None:
    expected = [2 / 3, 2 / 3, 2 / 3, 1 / 2, 1 / 2, 1, 0]
    np.testing.assert_allclose(feature_dimensionality(TEGUM), expected, atol=1e-12)
    np.testing.assert_array_equal(tegum_factors(TEGUM), [0, 0, 0, 1, 1, 2, -1])
    order = [6, 3, 0, 5, 1, 4, 2]
    np.testing.assert_array_equal(tegum_factors(TEGUM[:, order]), [-1, 0, 1, 2, 1, 0, 1])
    np.testing.assert_allclose(interference(TEGUM), [0.5, 0.5, 0.5, 1, 1, 0, 0], atol=1e-12)
    # Features of norm below the bound link nothing.
    through = np.array([[1, 0, 0.3], [0, 1, 0.3]])
    np.testing.assert_array_equal(tegum_factors(through), [0, 1, -1])
    np.testing.assert_array_equal(tegum_factors(through, norm_bound=0.1), [0, 0, 0])


def test_tegum_factors_are_connected_components() -> None:
    w = random_dictionaries(40, 30, 25, seed=1)
    found = tegum_factors(w, norm_bound=0.95, cosine_bound=0.35)
    n_factors = set()
    for one, labels in zip(w, found, strict=True):
        kept = np.flatnonzero(np.linalg.norm(one, axis=0) > 0.95)
        unit = one[:, kept] / np.linalg.norm(one[:, kept], axis=0)
        n, expected = connected_components(np.abs(unit.T @ unit) > 0.35, directed=False)
        n_factors.add(n)
        assert (np.delete(labels, kept) == -1).all()
        for i, j in combinations(range(len(kept)), 2):
            assert (labels[kept[i]] == labels[kept[j]]) == (expected[i] == expected[j])
        assert sorted(set(labels[kept])) == list(range(n))
    assert len(n_factors) > 3


def test_rotations_of_the_hidden_space_change_nothing() -> None:
    w = random_dictionaries(6, 10, seed=2)
    turned = ortho_group.rvs(6, random_state=3) @ w
    for measure in (feature_norms, feature_dimensionality, interference, orthogonality, gram):
        np.testing.assert_allclose(measure(turned), measure(w), atol=1e-12)
    np.testing.assert_array_equal(tegum_factors(turned), tegum_factors(w))
    np.testing.assert_allclose(feature_dimensionality(5 * w), feature_dimensionality(w))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_dimensionalities_add_up_to_at_most_the_rank(rank: int) -> None:
    rng = np.random.default_rng(rank)
    w = rng.standard_normal((50, 6, rank)) @ rng.standard_normal((50, rank, 9))
    d = feature_dimensionality(w)
    assert ((d >= 0) & (d <= 1 + 1e-12)).all()
    assert (d.sum(-1) <= rank + 1e-9).all()


def test_orthogonality_at_its_ends() -> None:
    assert orthogonality(np.eye(5)) == pytest.approx(1)
    assert orthogonality(np.ones((3, 4))) == pytest.approx(1 - 3)
    rng = np.random.default_rng(3)
    assert orthogonality(rng.standard_normal((2000, 15, 30))).mean() == pytest.approx(0, abs=0.01)
    # One feature has none to be orthogonal to; a mask chooses others than those represented.
    assert np.isnan(orthogonality(np.eye(3)[:, :1]))
    w = np.hstack([np.eye(3), 0.1 * np.ones((3, 1))])
    assert orthogonality(w) == pytest.approx(1)
    assert orthogonality(w, [True, False, False, True]) == pytest.approx(0)
    np.testing.assert_array_equal(represented(w), [True, True, True, False])
    snapshots = np.stack([w, 2 * w])[:, None]
    assert orthogonality(snapshots, [[True, False, False, True]]).shape == (2, 1)


def test_geometry_of_nothing_and_of_one_dimension() -> None:
    zero, line = np.zeros((3, 4)), np.array([[1.0, -1.0, 0.0]])
    np.testing.assert_array_equal(feature_dimensionality(zero), 0)
    np.testing.assert_array_equal(tegum_factors(zero), -1)
    assert np.isnan(orthogonality(zero))
    assert dimensions_per_feature(zero) == np.inf
    np.testing.assert_allclose(feature_dimensionality(line), [0.5, 0.5, 0])
    np.testing.assert_array_equal(tegum_factors(line), [0, 0, -1])
    assert orthogonality(line) == pytest.approx(0)
    with pytest.raises(ShapeError, match="d_hidden, n_features"):
        feature_norms(np.ones(3))


# Subspaces


def test_principal_angles_are_those_of_scipy() -> None:
    rng = np.random.default_rng(4)
    for p, q in ((1, 1), (2, 3), (3, 2), (4, 5), (6, 2), (6, 6)):
        x, y = rng.standard_normal((5, 6, p)), rng.standard_normal((5, 6, q))
        found = principal_angles(x, y)
        expected = [subspace_angles(a, b)[::-1] for a, b in zip(x, y, strict=True)]
        np.testing.assert_allclose(found.angles, expected, atol=1e-7)
        np.testing.assert_allclose(found.capture, np.square(np.cos(expected)).mean(-1))


@pytest.mark.parametrize("angle", [0, 1e-12, 1e-7, 0.3, np.pi / 2 - 1e-9, np.pi / 2])
def test_angles_are_accurate_at_both_ends(angle: float) -> None:
    x, y = np.eye(4)[:, :2], np.eye(4)[:, :2].copy()
    y[:, 1] = [0, np.cos(angle), np.sin(angle), 0]
    turn = ortho_group.rvs(4, random_state=5)
    found = principal_angles(turn @ x, turn @ y @ [[1, 2], [0, 3]])
    np.testing.assert_allclose(found.angles, [0, angle], atol=1e-15, rtol=1e-3)


def test_spans_have_the_dimension_they_have() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((7, 2)), rng.standard_normal((7, 3))
    plain = principal_angles(x, y)
    for wide in (x @ rng.standard_normal((2, 5)), np.hstack([x, x])):
        found = principal_angles(wide, np.hstack([y, y[:, :1]]))
        np.testing.assert_allclose(found.angles[:2], plain.angles, atol=1e-9)
        assert np.isnan(found.angles[2:]).all()
        assert found.capture == pytest.approx(plain.capture)
        other = principal_angles(np.hstack([y, y]), wide)
        np.testing.assert_allclose(other.angles[:2], plain.angles, atol=1e-9)
    nothing = principal_angles(np.zeros((7, 1)), y)
    assert np.isnan(nothing.capture)
    assert np.isnan(nothing.angles).all()
    with pytest.raises(ShapeError, match="one space"):
        principal_angles(x, y[:6])


def test_targets_that_share_a_feature_need_one_singular_vector() -> None:
    w = random_dictionaries(6, 8, seed=7)
    left, right = w[:, [2]].T, (w[:, [4]] + 3 * w[:, [5]]).T
    spans = target_subspaces(w, singular_vectors(left, right), [(2, 4), (2, 5)])
    for side in spans:
        np.testing.assert_allclose(side.angles, [0], atol=1e-7)
        assert side.capture == pytest.approx(1)
    # What chance captures of one direction in k of m dimensions.
    rng = np.random.default_rng(8)
    vectors = singular_vectors(*rng.standard_normal((2, 3000, 4, 6)))
    many = np.broadcast_to(w, (3000, *w.shape))
    found, _ = target_subspaces(many, vectors, [(0, 1), (2, 3)])
    assert found.capture.mean() == pytest.approx(2 / 6, abs=0.01)


# Alignment


def planted(w: Array, pairs: list[tuple[int, int]], sizes: list[float]) -> SingularVectors:
    unit = w / np.linalg.norm(w, axis=-2, keepdims=True)
    left = np.stack([size * unit[..., i] for (i, _), size in zip(pairs, sizes, strict=True)], -2)
    right = np.stack([unit[..., j] for _, j in pairs], axis=-2)
    return singular_vectors(left, right)


def test_planted_pairs_are_matched_with_their_own() -> None:
    w = 0.8 * ortho_group.rvs(6, random_state=9)
    pairs = [(0, 1), (2, 3), (4, 5)]
    for sizes in permutations([1.0, 2.0, -3.0]):
        found = align(w, planted(w, pairs, list(sizes)), pairs)
        np.testing.assert_array_equal(found.singular, [3 - abs(size) for size in sizes])
        np.testing.assert_allclose(found.sigma, np.abs(sizes))
        np.testing.assert_allclose([found.left, found.right, found.lesser], 1)
        np.testing.assert_array_equal(found.p_values, 1e-4)
    # Aligned on one side is not aligned.
    crossed = align(w, planted(w, [(0, 3)], [1.0]), [(0, 1)])
    assert crossed.left == pytest.approx(1)
    assert crossed.right == pytest.approx(0, abs=1e-12)
    assert crossed.lesser == crossed.right


def test_the_matching_is_the_best_of_all() -> None:
    rng = np.random.default_rng(10)
    w = rng.standard_normal((20, 5, 8))
    vectors = singular_vectors(*rng.standard_normal((2, 20, 4, 5)))
    pairs = [(0, 1), (2, 3), (4, 2)]
    found = align(w, vectors, pairs)
    for n in range(20):
        unit = w[n] / np.linalg.norm(w[n], axis=0)
        lesser = np.array([
            np.minimum(np.abs(unit[:, i] @ vectors.u[n]), np.abs(unit[:, j] @ vectors.v[n]))
            for i, j in pairs
        ])  # fmt: skip
        best = max(permutations(range(4), 3), key=lambda ks, x=lesser: x[range(3), ks].sum())
        np.testing.assert_array_equal(found.singular[n], best)
        np.testing.assert_allclose(found.lesser[n], lesser[range(3), best])


def test_targets_beyond_the_rank_stay_without() -> None:
    w = np.eye(5)
    vectors = planted(w, [(0, 1), (2, 3)], [2.0, 1.0])
    # As an untrained factor of a dead direction has it: a third singular value of zero.
    padded = singular_vectors(
        *np.pad(np.stack([(vectors.u * vectors.sigma).T, vectors.v.T]), ((0, 0), (0, 1), (0, 0)))
    )
    for head in (vectors, padded):
        found = align(w, head, [(4, 4), (2, 3), (0, 1)])
        np.testing.assert_array_equal(found.singular, [-1, 1, 0])
        np.testing.assert_array_equal(found.lesser, [np.nan, 1, 1])
        for values in (found.sigma, found.left, found.right, found.p_values, found.chance):
            np.testing.assert_array_equal(np.isnan(values), [True, False, False])
    zero = align(w, singular_vectors(np.zeros((2, 5)), np.ones((2, 5))), [(0, 1)])
    assert (zero.singular == -1).all()
    assert np.isnan(zero.p_values).all()


def test_a_feature_that_is_not_there_is_aligned_with_nothing() -> None:
    w = np.eye(4)
    w[:, 1] = 0
    found = align(w, planted(np.eye(4), [(0, 1)], [1.0]), [(0, 1)])
    assert (found.left, found.right, found.lesser, found.p_values) == (1, 0, 0, 1)


def test_p_values_are_uniform_for_random_heads() -> None:
    rng = np.random.default_rng(11)
    w = rng.standard_normal((400, 7, 12))
    vectors = singular_vectors(*rng.standard_normal((2, 400, 4, 7)))
    assert kstest(align(w, vectors, [(3, 3)]).p_values[:, 0], "uniform").pvalue > 0.01
    # Several targets may have to leave their best: on the safe side, never the other.
    several = align(w, vectors, [(0, 1), (2, 3), (4, 5), (6, 7)])
    for level in (0.01, 0.05, 0.2):
        assert (several.p_values <= level).mean() < level + 2 * np.sqrt(level / 1600)
    assert (several.lesser > several.chance).mean() < 0.07


def test_chance_has_its_law() -> None:
    # One vector: both squared cosines are beta(1/2, (m − 1)/2), independent.
    m = 15
    null = chance_alignment(m, 1)
    assert kstest(null, lambda t: 1 - beta.sf(t**2, 0.5, (m - 1) / 2) ** 2).pvalue > 0.01
    # In one dimension everything is aligned, and says nothing.
    line = align([[1.0, -2.0]], singular_vectors([[3.0]], [[1.0]]), [(0, 1)])
    assert (line.lesser, line.p_values, line.chance) == (1, 1, 1)
    full = chance_alignment(3, 3, 200)
    assert (np.diff(full) >= 0).all()
    assert full[-1] < 1
    with pytest.raises(ValueError, match="read-only"):
        full[0] = 1


@pytest.mark.parametrize("pairs", [[(0, 8)], [(-1, 2)], [(0, 1, 2)], [], [(0.5, 1)]])
def test_pairs_of_other_features_are_refused(pairs: list[tuple[float, ...]]) -> None:
    w = np.eye(8)
    with pytest.raises(ShapeError, match=r"pairs \(i, j\) of features 0 to 7"):
        align(w, planted(w, [(0, 1)], [1.0]), pairs)


# Sharing


def test_pairs_with_singular_vectors_of_their_own_share_none() -> None:
    w = ortho_group.rvs(6, random_state=12)
    pairs = [(0, 1), (2, 3)]
    found = pair_sharing(w, planted(w, pairs, [2.0, 1.0]), pairs)
    np.testing.assert_allclose(found.vectors_per_pair, 1)
    np.testing.assert_allclose(found.pairs_per_vector, 1)
    np.testing.assert_allclose(found.overlap, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(found.terms.sum(-1), [2, 1])
    # One slice for two pairs: (W_0 + W_2)(W_1 + W_3)ᵀ.
    mixed = singular_vectors((w[:, [0]] + w[:, [2]]).T, (w[:, [1]] + w[:, [3]]).T)
    shared = pair_sharing(w, mixed, pairs)
    np.testing.assert_allclose(shared.overlap, 1)
    np.testing.assert_allclose(shared.pairs_per_vector, 2)
    np.testing.assert_allclose(feature_capture(w, mixed.u), [0.5, 0, 0.5, 0, 0, 0], atol=1e-12)
    # Equal singular values: the same head in another basis, of which each pair needs both.
    r = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    turned = SingularVectors(w[:, [0, 2]] @ r, np.ones(2), w[:, [1, 3]] @ r)
    np.testing.assert_allclose(pair_sharing(w, turned, pairs).vectors_per_pair, 2)


def test_terms_of_pairs_add_up_to_their_logits() -> None:
    rng = np.random.default_rng(13)
    w = rng.standard_normal((3, 5, 9))
    left, right = rng.standard_normal((2, 3, 4, 5))
    vectors = singular_vectors(left, right)
    logits = feature_logits(w, vectors)
    np.testing.assert_allclose(logits, w.mT @ left.mT @ right @ w, atol=1e-12)
    pairs = np.array([(0, 1), (4, 4)])
    norms = np.linalg.norm(w, axis=1)
    found = pair_sharing(w, vectors, pairs).terms.sum(-1) * norms[:, pairs].prod(-1)
    np.testing.assert_allclose(found, logits[:, pairs[:, 0], pairs[:, 1]], atol=1e-12)
    assert participation([1, -1, 0, 0]) == pytest.approx(2)
    np.testing.assert_allclose(feature_capture(w, np.eye(5)), 1)


def test_vectors_within_factors_and_across_them() -> None:
    labels = tegum_factors(TEGUM)
    within = np.eye(4)[:, [0, 2]]
    across = np.array([[1, 0, 1, 0], [0, 1, 1, 1]]).T / np.sqrt([2, 3])
    found = factor_spread(TEGUM, labels, np.hstack([within, across]))
    expected = [[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]
    np.testing.assert_allclose(found.mass, expected, atol=1e-12)
    np.testing.assert_allclose(found.factors_per_vector, [1, 1, 2, 3])
    assert 1 < found.by_chance < 3
    # A factor that is a little thicker than its dimensions is still in them.
    thick = TEGUM.copy()
    thick[0, 3] = 0.03
    np.testing.assert_allclose(
        factor_spread(thick, labels, within).factors_per_vector, 1, atol=0.01
    )
    few = np.where(labels == 2, -1, labels)
    np.testing.assert_array_equal(factor_spread(TEGUM, few, np.eye(4)[:, 3:]).mass, 0)
    none = factor_spread(TEGUM, np.full(7, -1), within)
    assert np.isnan(none.factors_per_vector).all()
    both = factor_spread([TEGUM, TEGUM], [labels, few], np.stack([across, across]))
    np.testing.assert_allclose(both.mass[1, :, 2], 0)
    with pytest.raises(ShapeError, match="a factor of each feature"):
        factor_spread(TEGUM, labels[:3], within)


# Onsets


def test_onsets_are_for_good() -> None:
    steps = [0, 1, 10, 100]
    values = np.array([
        [0.99, 0.97, 0.99, 0.96],
        [0.1, 0.97, 0.9, 0.99],
        [0.1, 0.2, 0.95, 0.95],
        [0.99, 0.99, 0.99, 0.9],
        [0.1, np.nan, np.nan, 0.99],
        [np.nan] * 4,
    ]).T  # fmt: skip
    np.testing.assert_array_equal(onset(values, steps, 0.95), [0, 100, 10, np.inf, 100, np.inf])
    np.testing.assert_array_equal(
        onset(values.reshape(4, 2, 3), steps, 0.95)[1], [np.inf, 100, np.inf]
    )
    for wrong in ([0, 1, 10], [0, 1, 1, 100]):
        with pytest.raises(ShapeError, match="ascending"):
            onset(values, wrong, 0.95)


def test_progress_is_the_share_of_the_way() -> None:
    values = np.array([[0.2, 1.0, 3.0], [0.5, 0.5, 4.0], [0.9, -0.5, 3.5], [0.8, 0.0, 3.0]])
    found = progress(values)
    np.testing.assert_allclose(found[:, 0], [0, 0.5, 7 / 6, 1])
    np.testing.assert_allclose(found[:, 1], [0, 0.5, 1.5, 1])
    assert np.isnan(found[:, 2]).all()
    np.testing.assert_array_equal(onset(found, [0, 1, 2, 3], 0.9), [2, 2, np.inf])


def test_measures_settle_at_a_share_of_their_own_way() -> None:
    values = np.array([[0.2, 1.0, 3.0, np.nan], [0.7, 0.5, 4.0, np.nan], [0.8, 0.0, 3.0, np.nan]])
    for least, expected in ((-np.inf, [1, 10, np.inf, np.nan]), (0.5, [1, np.inf, np.inf, np.nan])):
        found = settled(values, [0, 1, 10], 0.8, least)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n", [6, 7, 20, 33])
def test_the_interval_of_the_median_covers_it(n: int) -> None:
    found = median_onset(np.arange(n, dtype=float))
    assert found.effect == (n - 1) / 2
    below = int(found.low)
    assert found.high == n - 1 - below
    # The widest count that leaves 2.5 % or less on a side.
    assert binom.cdf(below, n, 0.5) <= 0.025 < binom.cdf(below + 1, n, 0.5)


def test_onsets_that_never_come_count_as_late() -> None:
    found = median_onset([10, 20, 20, 30, 30, np.inf, np.inf])
    assert (found.effect, found.low, found.high) == (30, 10, np.inf)
    assert found.note == "2 of 7 seeds never"
    few = median_onset([10, np.inf])
    assert (few.effect, few.n) == (np.inf, 2)
    assert few.note == "1 of 2 seeds never; 2 seeds give no 95 % interval; needs 6"
    assert np.isnan(median_onset([]).effect)


def test_which_comes_first_is_a_test_of_signs() -> None:
    first = [10, 10, 20, 20, 10, 30, 10, np.inf, 50, 10]
    second = [30, 20, 40, 30, np.inf, 60, np.inf, np.inf, 40, 10]
    found = compare_onsets(first, second)
    # 7 before, 1 after, 1 together, 1 without either: P(at most 1 of 8) on two sides.
    assert (found.statistic, found.n) == (7, 9)
    assert found.p_value == pytest.approx(2 * 9 / 256)
    assert found.effect == -20
    assert (found.low, found.high) == (-np.inf, 0)
    assert found.note == "seeds with neither: 1; seeds with both at one snapshot: 1"
    same = compare_onsets([1, 2], [1, 2])
    assert np.isnan(same.p_value)
    assert same.effect == 0
    with pytest.raises(ShapeError, match="the same seeds"):
        compare_onsets([1, 2], [1])
