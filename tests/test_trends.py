"""Trends over layers: against SciPy, pairs counted by hand, and series of no trend."""

from __future__ import annotations

import numpy as np
import pytest
from pymannkendall import original_test
from scipy import stats
from scipy.interpolate import make_splrep
from scipy.signal import lfilter
from statsmodels.tsa.stattools import bds

from qk_taxonomy.figures.boxes import box_figure
from qk_taxonomy.figures.style import house_style
from qk_taxonomy.statistics.trends import DepthTrend, depth_trend, mean_spline, monotone_trend


def series_trend(series: np.ndarray) -> DepthTrend:
    """The trend of layers that each have one head."""
    return depth_trend([np.array([value]) for value in series])


def autoregression(coefficient: float, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Stationary first-order series (series, layers) of no trend."""
    noise = np.random.default_rng(seed).normal(size=(shape[0], shape[1] + 100))
    return np.asarray(lfilter([1.0], [1.0, -coefficient], noise, axis=1)[:, 100:])


def false_positives(coefficient: float, n: int, n_series: int = 500) -> float:
    """Share of series of no trend that Mann–Kendall calls a trend at 0.05."""
    series = autoregression(coefficient, (n_series, n), seed=n)
    return float(np.mean([monotone_trend(x).p_value <= 0.05 for x in series]))


class TestMannKendall:
    def test_without_autocorrelation_it_is_kendalls_rank_correlation(self) -> None:
        # An alternating residual has negative correlation, which is taken as none.
        series = np.arange(40) * 0.3 + np.where(np.arange(40) % 2, 4.0, -4.0)
        trend = series_trend(series)
        tau, p_value = stats.kendalltau(np.arange(40), series, method="asymptotic")
        assert trend.mann_kendall_tau == pytest.approx(tau)
        # SciPy's p-value has no correction for continuity; the library of the trend tests has.
        assert trend.mann_kendall_p_value == pytest.approx(original_test(series).p)
        assert trend.mann_kendall_p_value == pytest.approx(p_value, rel=0.1)

    def test_autocorrelation_widens_the_variance_as_hamed_and_rao_say(self) -> None:
        series = autoregression(0.7, (1, 60), seed=1)[0] + 0.03 * np.arange(60)
        n = 60
        slope = np.median([(series[j] - series[i]) / (j - i) for j in range(n) for i in range(j)])
        residuals = series - slope * np.arange(n)
        residuals -= residuals.mean()
        estimate = sum(residuals[1:] * residuals[:-1]) / sum(residuals**2)
        coefficient = (n * estimate + 2) / (n - 4)
        assert 0.3 < coefficient < 0.95
        inflation = 1.0
        for k in range(1, n):
            rank_correlation = 6 / np.pi * np.arcsin(coefficient**k / 2)
            weight = (n - k) * (n - k - 1) * (n - k - 2) / (n * (n - 1) * (n - 2))
            inflation += 2 * weight * rank_correlation
        plain = original_test(series)
        expected = 2 * stats.norm.sf(abs(plain.z) / np.sqrt(inflation))
        assert series_trend(series).mann_kendall_p_value == pytest.approx(expected)
        assert expected > plain.p

    @pytest.mark.parametrize("n", [12, 28, 80])
    def test_series_of_no_trend_are_seldom_given_one(self, n: int) -> None:
        # Three standard errors of a share of 500 above the levels of the docstring.
        for coefficient, level in ((0.0, 0.05), (0.3, 0.07), (0.5, 0.08)):
            share = false_positives(coefficient, n)
            print(f"n={n} coefficient={coefficient}: {share:.3f}")
            assert share <= level + 3 * np.sqrt(level * (1 - level) / 500)

    def test_a_trend_in_correlated_layers_is_found(self) -> None:
        series = autoregression(0.5, (100, 30), seed=2) + np.linspace(0, 4, 30)
        assert np.mean([monotone_trend(x).p_value < 0.05 for x in series]) > 0.7


class TestTheilSen:
    def test_slope_is_the_median_of_all_pairs(self) -> None:
        series = np.random.default_rng(3).normal(np.arange(17.0), 4.0)
        pairs = [(series[j] - series[i]) / (j - i) for j in range(17) for i in range(j)]
        trend = series_trend(series)
        assert trend.theil_sen_slope == pytest.approx(np.median(pairs))
        assert trend.slope_low < trend.theil_sen_slope < trend.slope_high

    def test_interval_of_independent_layers_is_scipys(self) -> None:
        series = np.arange(40) * 0.3 + np.where(np.arange(40) % 2, 4.0, -4.0)
        _, _, low, high = stats.theilslopes(series, alpha=0.95)
        trend = series_trend(series)
        assert (trend.slope_low, trend.slope_high) == pytest.approx((low, high))

    def test_interval_covers_the_slope(self) -> None:
        series = autoregression(0.5, (300, 40), seed=4) + 0.1 * np.arange(40)
        trends = [monotone_trend(x) for x in series]
        covered = np.mean([trend.low <= 0.1 <= trend.high for trend in trends])
        assert covered >= 0.89

    def test_one_wild_layer_leaves_it_alone(self) -> None:
        series = np.arange(20.0)
        series[7] = 1e6
        assert series_trend(series).theil_sen_slope == 1.0


class TestBDS:
    def test_permutation_p_value_holds_its_level_where_the_asymptotic_one_does_not(self) -> None:
        rng = np.random.default_rng(5)
        trends = [series_trend(rng.normal(size=16)) for _ in range(150)]
        order = np.mean([trend.bds_permutation_p_value <= 0.05 for trend in trends])
        asymptotic = np.mean([trend.bds_p_value <= 0.05 for trend in trends])
        print(f"BDS, 16 independent layers: permutation {order:.3f}, asymptotic {asymptotic:.3f}")
        assert order <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)
        assert asymptotic > 0.35

    def test_permutation_p_value_is_that_of_the_statistic_in_random_orders(self) -> None:
        rng = np.random.default_rng(6)
        series = rng.normal(size=14)
        statistics = np.array([bds(rng.permutation(series))[0] for _ in range(2000)])
        found = bds(series)[0]
        tails = np.mean(statistics <= found + 1e-9), np.mean(statistics >= found - 1e-9)
        expected = min(1.0, 2 * min(tails))
        assert expected < 1
        assert series_trend(series).bds_permutation_p_value == pytest.approx(expected, abs=0.06)

    @pytest.mark.parametrize(
        ("series", "note"),
        [
            (np.repeat([0.0, 1.0], 10), "two heaps"),
            (np.r_[np.random.default_rng(7).normal(size=19), 1e6], "two heaps"),
            (np.r_[np.zeros(19), 1.0], "two heaps"),
            # statsmodels gives 4,308 for some orders of these 24 values.
            (np.repeat([0.0, 1.0, 2.0, 3.0], [11, 3, 4, 6]), "equally many"),
        ],
    )
    def test_values_it_is_not_defined_for(self, series: np.ndarray, note: str) -> None:
        trend = series_trend(series)
        assert note in trend.note
        assert np.isnan([trend.bds, trend.bds_p_value, trend.bds_permutation_p_value]).all()
        assert np.isfinite([trend.mann_kendall_p_value, trend.spearman]).all()


class TestDepthTrend:
    def test_a_falling_statistic(self) -> None:
        rng = np.random.default_rng(6)
        trend = depth_trend([rng.normal(-i, 0.1, 12) for i in range(30)])
        assert trend.spearman == -1.0
        assert trend.mann_kendall_tau == -1.0
        assert trend.mann_kendall_p_value < 1e-6
        assert trend.theil_sen_slope == pytest.approx(-1, abs=0.02)
        assert trend.bds_permutation_p_value == 0.002
        assert trend.note == ""

    def test_it_is_the_trend_of_medians_and_does_not_depend_on_scale(self) -> None:
        rng = np.random.default_rng(8)
        layers = list(rng.exponential(size=(20, 9)))
        trend, one = depth_trend(layers), series_trend(np.median(layers, axis=1))
        scaled = depth_trend([1e-8 * values for values in layers])
        for name in ("mann_kendall_tau", "mann_kendall_p_value", "bds", "bds_permutation_p_value"):
            assert getattr(trend, name) == pytest.approx(getattr(one, name))
            assert getattr(trend, name) == pytest.approx(getattr(scaled, name))
        assert scaled.slope_high == pytest.approx(1e-8 * trend.slope_high)

    def test_infinite_heads_leave_the_tests_of_medians(self) -> None:
        trend = depth_trend([np.array([i, i + 1.0, np.inf]) for i in range(20)])
        assert trend.theil_sen_slope == 1.0
        assert np.isnan(trend.spearman)

    def test_independent_layers_are_seldom_rejected(self) -> None:
        rng = np.random.default_rng(7)
        rejected = sum(
            depth_trend(list(rng.normal(size=(60, 8)))).spearman_p_value < 0.05 for _ in range(100)
        )
        assert rejected <= 12

    @pytest.mark.parametrize(
        ("layers", "note"),
        [
            ([np.ones(3)] * 20, "constant"),
            ([np.arange(3.0)] * 2, "2 layers are too few"),
            ([np.array([i, i + 1.0]) for i in range(6)], "6 layers are too few for BDS"),
            ([np.array([i, i + 1.0]) for i in range(5)], "5 layers are too few for Mann–Kendall"),
            ([np.array([np.inf, np.nan])] * 20, "no finite median"),
        ],
    )
    def test_series_without_a_test_say_why(self, layers: list[np.ndarray], note: str) -> None:
        trend = depth_trend(layers)
        assert note in trend.note
        assert np.isnan(trend.bds)
        assert np.isnan(trend.mann_kendall_p_value) == ("BDS" not in trend.note.split(";")[0])


class TestSpline:
    def test_it_smooths_statistics_of_any_size_alike(self) -> None:
        means = np.random.default_rng(8).normal(np.arange(30.0), 3.0)
        x = np.arange(30.0)
        spline = mean_spline(means, x)
        left = np.square(means - spline).sum() / np.square(means - means.mean()).sum()
        assert 0.05 < left <= 0.26
        np.testing.assert_allclose(mean_spline(1e-6 * means, x), 1e-6 * spline, rtol=1e-6)

    def test_the_predecessors_is_absolute(self) -> None:
        means = np.random.default_rng(9).normal(np.arange(30.0), 3.0)
        x = np.linspace(0, 29, 100)
        theirs = make_splrep(np.arange(30), means, k=1, s=20)(x)
        np.testing.assert_allclose(mean_spline(means, x, "predecessor"), theirs)
        small = mean_spline(1e-6 * means, np.arange(30.0), "predecessor")
        np.testing.assert_allclose(np.diff(small, 2), 0, atol=1e-12)


@pytest.mark.parametrize("n", [6, 11, 28, 126])
def test_the_title_stays_inside_the_figure(n: int) -> None:
    rng = np.random.default_rng(10)
    values = [rng.normal(-1e-7 * i, 2e-6, 12) for i in range(n)]
    with house_style():
        figure = box_figure(range(n), values, None, depth_trend(values), title="model", ylabel="λ")
        figure.draw_without_rendering()
        title = figure.axes[0].title.get_window_extent()
    text = figure.axes[0].get_title()
    for part in ("Mann–Kendall τ = ", "Theil–Sen ", " per layer [", "Spearman ρ", "BDS"):
        assert part in text
    assert title.x0 >= 0
    assert title.x1 <= figure.bbox.width
