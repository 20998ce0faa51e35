"""Tests between families of models: other libraries, sums by hand, and families that are alike."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import scikit_posthocs
from scipy import stats

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.groups import composition_test, kruskal_dunn
from qk_taxonomy.statistics.profiles import cliffs_delta, depth_profile
from qk_taxonomy.statistics.relabelling import (
    least_p_value,
    models_needed,
    n_relabellings,
    relabellings,
)


def holds_level(p_values: list[float], level: float = 0.05) -> bool:
    """Whether no more are below ``level`` than three standard errors of their number allow."""
    share = float(np.mean(np.array(p_values) <= level))
    print(f"{share:.3f} of {len(p_values)} at {level}")
    return share <= level + 3 * np.sqrt(level * (1 - level) / len(p_values))


def profiles_of(models: int, rng: np.random.Generator, shift: float = 0.0) -> np.ndarray:
    """Profiles of models that differ far more than the depths of one model do."""
    return shift + rng.normal(size=(models, 1)) + 0.1 * rng.normal(size=(models, 10))


class TestRelabellings:
    @pytest.mark.parametrize("sizes", [(2, 3), (1, 1, 2), (2, 2, 2)])
    def test_all_are_there_once_and_the_observed_first(self, sizes: tuple[int, ...]) -> None:
        found = relabellings(sizes, 10_000)
        observed = tuple(np.repeat(np.arange(len(sizes)), sizes))
        assert tuple(found[0]) == observed
        assert sorted(map(tuple, found)) == sorted(set(permutations(observed)))
        assert len(found) == n_relabellings(sizes)

    def test_of_many_a_random_share_with_the_observed(self) -> None:
        found = relabellings((10, 10), 999)
        assert found.shape == (1000, 20)
        assert (found.sum(axis=1) == 10).all()
        assert found[0].tolist() == [0] * 10 + [1] * 10
        np.testing.assert_allclose(found[1:].mean(axis=0), 0.5, atol=0.08)

    @pytest.mark.parametrize("sizes", [(3, 3), (2, 3), (1, 1, 2), (1, 1, 1), (2, 2, 2)])
    def test_least_p_value_is_that_of_the_most_extreme_values(self, sizes: tuple[int, ...]) -> None:
        # Families far apart, no two distances alike: nothing but the families' own swaps ties.
        values = np.concatenate([10.0**i * (1 + 0.1 * np.arange(n)) for i, n in enumerate(sizes)])
        between = [
            sum(
                part.sum() ** 2 / len(part) for part in np.split(np.array(p), np.cumsum(sizes)[:-1])
            )
            for p in permutations(values)
        ]
        expected = np.mean(np.isclose(between, max(between), rtol=1e-12))
        assert least_p_value(sizes) == pytest.approx(expected)

    def test_models_needed(self) -> None:
        assert [models_needed(n) for n in (2, 3, 4, 8)] == [4, 3, 2, 2]


class TestDepthProfile:
    @pytest.mark.parametrize("n_layers", [1, 2, 6, 30, 126])
    def test_it_is_the_mean_of_the_line_through_layer_medians(self, n_layers: int) -> None:
        rng = np.random.default_rng(n_layers)
        layers = (np.arange(n_layers) + 0.5) / n_layers
        values, depths = rng.normal(size=(n_layers, 5)), np.repeat(layers, 5)
        fine = (np.arange(200_000) + 0.5) / 200_000
        line = np.interp(fine, layers, np.median(values, axis=1))
        profile = depth_profile(values.ravel(), depths)
        np.testing.assert_allclose(profile, line.reshape(10, -1).mean(axis=1), atol=1e-6)
        shuffled = rng.permutation(values.size)
        np.testing.assert_allclose(
            depth_profile(values.ravel()[shuffled], depths[shuffled]), profile
        )

    def test_models_of_any_depth_come_to_one_grid(self) -> None:
        six, sixty = (np.linspace(0, 1, n) for n in (6, 60))
        np.testing.assert_allclose(
            depth_profile(six**2, six), depth_profile(sixty**2, sixty), atol=0.01
        )

    def test_values_that_are_not_finite(self) -> None:
        depths = np.repeat([0.0, 0.5, 1.0], 3)
        values = np.array([1, 2, np.nan, 5, np.inf, np.inf, 3, 4, np.inf])
        np.testing.assert_allclose(depth_profile(values, depths), np.linspace(1.5, 4, 21)[1::2])
        assert np.isnan(depth_profile(np.full(3, np.inf), [0, 0.5, 1])).all()
        assert np.isnan(depth_profile(np.full(3, np.nan), [0, 0.5, 1])).all()

    def test_bad_input(self) -> None:
        for values, depths in (([1.0, 2.0], [0.5]), ([1.0], [1.5]), ([1.0], [np.nan])):
            with pytest.raises(ShapeError):
                depth_profile(values, depths)


class TestCliffsDelta:
    def test_it_counts_pairs(self) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 9, (3, 10)), rng.integers(2, 11, (4, 10))
        pairs = [np.sign(x - y) for x in a.ravel() for y in b.ravel()]
        found = cliffs_delta(a, b)
        assert found.effect == pytest.approx(np.mean(pairs))
        assert -1 <= found.low <= found.effect <= found.high <= 1
        back = cliffs_delta(b, a)
        assert back.effect == pytest.approx(-found.effect)

    def test_whole_models_are_drawn_anew(self) -> None:
        a, b = np.repeat([[0.0], [2.0]], 10, axis=1), np.ones((1, 10))
        found = cliffs_delta(a, b)
        # Two models, all below or all above: resamples give δ of −1, 0 and 1 and nothing else.
        assert (found.effect, found.low, found.high) == (0, -1, 1)

    def test_interval_covers_no_difference(self) -> None:
        rng = np.random.default_rng(1)
        found = [cliffs_delta(profiles_of(8, rng), profiles_of(8, rng)) for _ in range(200)]
        assert np.mean([f.low <= 0 <= f.high for f in found]) >= 0.88
        # Near ±1 the interval is too narrow, and says so.
        assert all(bool(f.note) == (abs(f.effect) > 0.9) for f in found)

    @pytest.mark.parametrize(
        ("models", "note"), [(1, "over its depth only"), (2, "2 models in a group (wanted 6)")]
    )
    def test_few_models_are_named(self, models: int, note: str) -> None:
        rng = np.random.default_rng(2)
        found = cliffs_delta(rng.normal(size=(models, 10)), rng.normal(size=(8, 10)))
        assert note in found.note
        assert -1 <= found.low < found.high <= 1

    def test_models_without_values_are_left_out(self) -> None:
        a, b = np.zeros((2, 10)), np.ones((2, 10))
        a[1] = np.nan
        found = cliffs_delta(a, b)
        assert (found.effect, found.n) == (-1, 3)
        assert "1 of 4 models left out" in found.note
        assert np.isnan(cliffs_delta(np.full((2, 10), np.nan), b).effect)
        with pytest.raises(ShapeError):
            cliffs_delta(a, np.ones((2, 9)))


class TestKruskalDunn:
    GROUPS = ("b",) * 3 + ("a",) * 4 + ("c",) * 2

    def test_h_and_z_are_those_of_scipy_and_scikit_posthocs(self) -> None:
        values = np.random.default_rng(3).integers(0, 12, (9, 10)) + np.arange(9)[:, None] // 3
        found = kruskal_dunn(values, self.GROUPS)
        by_group = {g: values[np.array(self.GROUPS) == g].ravel() for g in "abc"}
        h = stats.kruskal(*by_group.values()).statistic
        assert found.overall.statistic == pytest.approx(h)
        assert found.overall.effect == pytest.approx(h / 89)
        dunn = scikit_posthocs.posthoc_dunn(list(by_group.values()), p_adjust=None).to_numpy()
        assert list(found.pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
        for (one, two), finding in found.pairs.items():
            expected = dunn["abc".index(one), "abc".index(two)]
            assert 2 * stats.norm.sf(abs(finding.statistic)) == pytest.approx(expected)
            assert finding.effect == pytest.approx(
                np.mean(np.sign(by_group[one][:, None] - by_group[two]))
            )
            assert np.sign(finding.statistic) == np.sign(finding.effect)

    def test_p_values_are_shares_of_relabellings_of_models(self) -> None:
        rng = np.random.default_rng(4)
        values = np.vstack([profiles_of(4, rng), profiles_of(4, rng, 1.0)])
        found = kruskal_dunn(values, "aaaabbbb", n_permutations=10_000)

        def h(one: np.ndarray, two: np.ndarray) -> float:
            rows = values[one.astype(int)].ravel(), values[two.astype(int)].ravel()
            return float(stats.kruskal(*rows).statistic)

        models = np.arange(4), np.arange(4, 8)
        expected = stats.permutation_test(models, h, n_resamples=10_000, alternative="greater")
        assert found.overall.p_value == pytest.approx(expected.pvalue)
        # Of two families alone, Dunn's z is the root of H.
        assert found.pairs["a", "b"].p_value == pytest.approx(expected.pvalue)

    def test_alike_families_are_seldom_told_apart(self) -> None:
        rng = np.random.default_rng(5)
        overall, least, plain = [], [], []
        for _ in range(150):
            values = profiles_of(15, rng)
            found = kruskal_dunn(values, "aaaaabbbbbccccc", n_permutations=199)
            overall.append(found.overall.p_value)
            least.append(3 * min(pair.p_value for pair in found.pairs.values()))
            plain.append(stats.kruskal(*values.reshape(3, -1)).pvalue)
        assert holds_level(overall)
        assert holds_level(least)
        # Values of one model taken for independent ones would "find" a difference nearly always.
        assert np.mean(np.array(plain) <= 0.05) > 0.5

    def test_an_odd_family_does_not_make_alike_ones_differ(self) -> None:
        rng = np.random.default_rng(6)
        found = []
        for _ in range(100):
            values = np.vstack([profiles_of(10, rng), profiles_of(5, rng, 50.0)])
            pairs = kruskal_dunn(values, "aaaaabbbbbccccc", n_permutations=199).pairs
            found.append(pairs["a", "b"].p_value)
        assert holds_level(found)

    def test_a_difference_is_found(self) -> None:
        rng = np.random.default_rng(7)
        values = np.vstack([profiles_of(5, rng), profiles_of(5, rng, 5.0), profiles_of(5, rng)])
        found = kruskal_dunn(values, "aaaaabbbbbccccc")
        assert found.overall.p_value <= 0.01
        assert found.pairs["a", "b"].p_value == pytest.approx(2 / 252)
        assert found.pairs["a", "b"].effect < -0.9
        assert found.pairs["a", "c"].p_value > 0.05

    def test_too_few_models_are_described_but_not_tested(self) -> None:
        values = np.random.default_rng(8).normal(size=(2, 10))
        found = kruskal_dunn(values, ["a", "b"])
        for finding in (found.overall, found.pairs["a", "b"]):
            assert np.isnan(finding.p_value)
            assert "1 + 1 models cannot give p ≤ 0.05 (at best 1); needs 4 a group" in finding.note
            assert np.isfinite([finding.statistic, finding.effect]).all()

    def test_what_cannot_be_compared_says_so(self) -> None:
        values = np.random.default_rng(9).normal(size=(4, 10))
        assert "1 group" in kruskal_dunn(values, "aaaa").overall.note
        assert "0 group" in kruskal_dunn(np.full((4, 10), np.inf), "aabb").overall.note
        equal = kruskal_dunn(np.ones((8, 10)), "aaaabbbb")
        assert "all values are equal" in equal.overall.note
        assert np.isnan(equal.overall.statistic)
        values[1, 3] = np.nan
        found = kruskal_dunn(values, "aabb").overall
        assert found.n == 3
        assert "1 of 4 models left out" in found.note
        with pytest.raises(ShapeError):
            kruskal_dunn(values, "aab")

    def test_models_of_equal_profiles(self) -> None:
        values = np.repeat(np.arange(2.0), 4)[:, None] + np.zeros((8, 10))
        found = kruskal_dunn(values, "aaaabbbb")
        assert found.overall.effect == pytest.approx(1)
        assert found.overall.p_value == pytest.approx(2 / 70)
        assert found.pairs["a", "b"].effect == -1


class TestComposition:
    def compositions(self, rng: np.random.Generator, *centres: np.ndarray) -> np.ndarray:
        """Four models a family, spread widely about the family's centre."""
        return np.vstack([rng.dirichlet(5 * centre, 4) for centre in centres])

    def test_pseudo_f_is_that_of_centroids_and_p_that_of_scipy(self) -> None:
        rng = np.random.default_rng(10)
        shares = self.compositions(rng, np.ones(6), np.arange(1.0, 7.0))
        found = composition_test(shares, "aaaabbbb")
        roots = np.sqrt(shares / 2)

        def f(one: np.ndarray, two: np.ndarray) -> float:
            sides = roots[one.astype(int)], roots[two.astype(int)]
            within = sum(np.square(side - side.mean(axis=0)).sum() for side in sides)
            between = sum(
                len(side) * np.square(side.mean(axis=0) - roots.mean(axis=0)).sum()
                for side in sides
            )
            return float(between / (within / 6))

        models = np.arange(4), np.arange(4, 8)
        expected = stats.permutation_test(models, f, n_resamples=10_000, alternative="greater")
        assert found.statistic == pytest.approx(expected.statistic)
        assert found.effect == pytest.approx(expected.statistic / (expected.statistic + 6))
        assert found.p_value == pytest.approx(expected.pvalue)
        counts = composition_test(100 * shares, "aaaabbbb")
        assert counts.effect == pytest.approx(found.effect)

    def test_the_order_of_models_does_not_matter(self) -> None:
        rng = np.random.default_rng(11)
        shares = self.compositions(rng, np.ones(4), np.arange(1.0, 5.0), np.ones(4))
        order = rng.permutation(12)
        groups = np.repeat(["a", "b", "c"], 4)
        found = composition_test(shares, groups.tolist(), n_permutations=999)
        again = composition_test(shares[order], groups[order].tolist(), n_permutations=999)
        assert again.effect == pytest.approx(found.effect)
        assert again.p_value == pytest.approx(found.p_value, abs=0.05)

    def test_alike_families_are_seldom_told_apart(self) -> None:
        rng = np.random.default_rng(12)
        assert holds_level(
            [
                composition_test(
                    self.compositions(rng, *np.ones((3, 6))), "aaaabbbbcccc", n_permutations=199
                ).p_value
                for _ in range(300)
            ]
        )

    def test_another_composition_is_found(self) -> None:
        rng = np.random.default_rng(13)
        far = np.array([20.0, 1, 1, 1, 1, 1])
        found = composition_test(self.compositions(rng, np.ones(6), far), "aaaabbbb")
        assert found.p_value == pytest.approx(2 / 70)
        assert found.effect > 0.3

    def test_too_few_models_are_refused_with_the_number_needed(self) -> None:
        shares = np.random.default_rng(14).dirichlet(np.ones(6), 6)
        found = composition_test(shares, "aaabbb")
        assert np.isnan(found.p_value)
        assert "3 + 3 models cannot give p ≤ 0.05 (at best 0.1); needs 4 a group" in found.note
        assert 0 <= found.effect <= 1
        assert "needs 2 a group" in composition_test(shares, "abcdef").note
        assert "1 group" in composition_test(shares, "aaaaaa").note

    def test_values_it_is_not_defined_for(self) -> None:
        same = composition_test(np.full((8, 4), 0.25), "aaaabbbb")
        assert "same composition" in same.note
        assert np.isnan([same.effect, same.p_value]).all()
        shares = np.random.default_rng(15).dirichlet(np.ones(6), 10)
        shares[0], shares[5] = np.nan, 0
        found = composition_test(shares, "aaaaabbbbb")
        assert found.n == 8
        assert "2 of 10 models left out" in found.note
        assert np.isfinite(found.p_value)
        with pytest.raises(ShapeError):
            composition_test(shares, "ab")
        apart = composition_test(np.repeat(np.eye(2), 4, axis=0), "aaaabbbb")
        assert (apart.effect, apart.statistic) == (1, np.inf)
        assert apart.p_value == pytest.approx(2 / 70)
