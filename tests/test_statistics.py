"""Statistics against their definitions, SciPy, and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import jensenshannon

from qk_taxonomy import Stats, get_stats, jensen_shannon_divergence
from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.densities import (
    fit_gamma,
    gamma_density,
    histogram_densities,
    mean_normalised,
    pool_edges,
)
from qk_taxonomy.statistics.moments import (
    STATISTICS,
    describe,
    effective_rank_lambda,
    effective_rank_sigma,
    near_zero_ratio,
    participation_ratio,
    power_law_alpha,
    r90,
    stable_rank,
)

FLAT = np.full(8, 3.0)
ONE = np.array([5.0, 0, 0, 0, 0, 0, 0, 0])
TWO = np.array([4.0, 4.0, 0, 0, 0, 0, 0, 0])


def test_six_moments_by_their_definition() -> None:
    x = np.random.default_rng(0).gamma(0.7, 2.0, (3, 64))
    found = get_stats(x)
    std = x.std(-1, ddof=1)
    z = (x - x.mean(-1, keepdims=True)) / std[:, None]
    expected = [x.min(-1), x.max(-1), x.mean(-1), std, (z**3).mean(-1), (z**4).mean(-1) - 3]
    for stat in Stats:
        assert found[stat].shape == (3, 1)
        np.testing.assert_allclose(found[stat][:, 0], expected[stat])
    for tensor_stat, array_stat in zip(get_stats(torch.from_numpy(x)), found, strict=True):
        np.testing.assert_allclose(tensor_stat, array_stat)


@pytest.mark.parametrize(
    ("statistic", "flat", "one", "two"),
    [
        (stable_rank, 8, 1, 2),
        (participation_ratio, 8, 1, 2),
        (effective_rank_sigma, 8, 1, 2),
        (effective_rank_lambda, 8, 1, 2),
        (r90, 8, 1, 2),
        (near_zero_ratio, 0, 7 / 8, 6 / 8),
    ],
)
def test_ranks_of_known_spectra(statistic, flat: float, one: float, two: float) -> None:  # type: ignore[no-untyped-def]
    np.testing.assert_allclose(statistic(np.stack([FLAT, ONE, TWO])), [flat, one, two])
    np.testing.assert_allclose(statistic(1e-9 * FLAT), flat)


def test_ranks_of_a_zero_spectrum_are_zero() -> None:
    ranks = (stable_rank, participation_ratio, effective_rank_sigma, effective_rank_lambda, r90)
    for statistic in ranks:
        assert statistic(np.zeros((1, 8))).tolist() == [0.0]


def test_shape_statistics_do_not_depend_on_scale() -> None:
    lam = np.random.default_rng(9).gamma(0.5, 1.0, (3, 64))
    scaled = dict(zip(STATISTICS, describe(1e-10 * lam).T, strict=True))
    for name, column in zip(STATISTICS, describe(lam).T, strict=True):
        factor = 1e-10 if name in ("MIN", "MAX", "MEAN", "STD") else 1.0
        np.testing.assert_allclose(scaled[name], factor * column, rtol=1e-9, err_msg=name)


def test_r90_counts_an_exact_ninety_percent() -> None:
    assert r90(np.array([0.3, 0.3, 0.3, 0.1])) == 3


def test_power_law_alpha_finds_a_planted_exponent() -> None:
    rng = np.random.default_rng(1)
    for alpha in (1.8, 2.5, 4.0):
        lam = (1 - rng.random((200, 256))) ** (-1 / (alpha - 1))
        assert np.median(power_law_alpha(lam)) == pytest.approx(alpha, rel=0.05)
    assert power_law_alpha(FLAT) == np.inf


def test_describe_has_every_statistic_in_order() -> None:
    lam = np.random.default_rng(2).gamma(1.0, 1.0, (4, 32))
    table = describe(lam)
    assert table.shape == (4, len(STATISTICS))
    assert list(STATISTICS)[:6] == [stat.name for stat in Stats]
    for column, statistic in enumerate(STATISTICS.values()):
        np.testing.assert_allclose(table[:, column], statistic(lam))
    np.testing.assert_allclose(describe(lam[:, ::-1]), table)
    with pytest.raises(ShapeError):
        describe(np.ones((3, 1)))


class TestJensenShannon:
    def test_agrees_with_scipy_and_is_a_bounded_symmetric_divergence(self) -> None:
        rng = np.random.default_rng(3)
        for _ in range(20):
            p, q = rng.random(24), rng.random(24)
            p[rng.random(24) < 0.3] = 0
            d = jensen_shannon_divergence(p, q)
            assert d == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-12)
            assert d == pytest.approx(jensen_shannon_divergence(q, 7 * p))
            assert 0 <= d <= np.log(2)

    def test_its_square_root_obeys_the_triangle_inequality(self) -> None:
        rng = np.random.default_rng(4)
        for _ in range(50):
            p, q, r = rng.dirichlet(np.full(8, 0.3), 3)
            pq, qr, pr = (
                np.sqrt(jensen_shannon_divergence(a, b)) for a, b in ((p, q), (q, r), (p, r))
            )
            assert pr <= pq + qr + 1e-12

    def test_ends_of_the_range(self) -> None:
        assert jensen_shannon_divergence([1, 2, 3], [1, 2, 3]) == 0.0
        assert jensen_shannon_divergence([1, 0], [0, 1]) == pytest.approx(np.log(2))
        assert np.isnan(jensen_shannon_divergence([0, 0], [0, 1]))
        assert jensen_shannon_divergence([1, 0], [0, 1], eps=1.0) < 0.1

    def test_shapes_are_checked(self) -> None:
        with pytest.raises(ShapeError):
            jensen_shannon_divergence([1, 2], [1, 2, 3])


def test_histograms_are_densities_of_the_mean_normalised_spectrum() -> None:
    lam = np.random.default_rng(5).gamma(2.0, 3.0, (10, 64))
    x = mean_normalised(lam)
    np.testing.assert_allclose(x.mean(-1), 1)
    edges = pool_edges(x, 24)
    assert edges[-1] == pytest.approx(np.quantile(x, 0.96))
    histograms = histogram_densities(x, edges)
    np.testing.assert_allclose(histograms @ np.diff(edges), 1)
    for head, histogram in zip(x, histograms, strict=True):
        np.testing.assert_allclose(histogram, np.histogram(head, edges, density=True)[0])


def test_a_dead_head_has_all_its_density_at_zero() -> None:
    x = mean_normalised(np.array([[0.0, 0.0], [1.0, 3.0]]))
    np.testing.assert_array_equal(x[0], 0)
    assert histogram_densities(x, np.array([0.0, 0.5, 2.0]))[0].tolist() == [2.0, 0.0]


def test_gamma_fit_finds_the_density_it_was_made_from() -> None:
    edges = np.linspace(0, 4, 25)
    centres = (edges[:-1] + edges[1:]) / 2
    fit = fit_gamma(gamma_density(centres, 1.7, 0.6), edges)
    assert (fit.alpha, fit.theta) == pytest.approx((1.7, 0.6), rel=1e-6)
    assert fit.divergence == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(
        gamma_density(centres, 1.7, 0.6), stats.gamma(1.7, scale=0.6).pdf(centres)
    )
