"""Contrasts of unmatched models: against a t-test of model means, SciPy, and models alike."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.unmatched import UnmatchedContrast, unmatched_contrast

HEADS = 24


def contrast(
    treated: int, controls: int, rng: np.random.Generator, between: float, shift: float = 0.0
) -> UnmatchedContrast:
    """Models that differ by ``between``, layers of four heads that differ by 1, heads by 1."""
    models = np.repeat(np.arange(treated + controls), HEADS)
    layers = np.repeat(rng.normal(size=len(models) // 4), 4)
    values = between * rng.normal(size=treated + controls)[models] + layers
    is_treated = models < treated
    values += rng.normal(size=len(models)) + shift * is_treated
    return unmatched_contrast(values, models.tolist(), is_treated)


class TestMixedModel:
    def test_of_as_many_heads_a_model_it_is_the_t_test_of_model_means(self) -> None:
        rng = np.random.default_rng(0)
        models = np.repeat(np.arange(9), HEADS)
        values = 1e-6 * (2 * rng.normal(size=9)[models] + rng.normal(size=9 * HEADS))
        found = unmatched_contrast(values, models.tolist(), models < 4).mixed
        means = values.reshape(9, HEADS).mean(axis=1)
        expected = stats.ttest_ind(means[:4], means[4:])
        interval = expected.confidence_interval()
        assert found.effect == pytest.approx(means[:4].mean() - means[4:].mean(), rel=1e-4)
        assert found.statistic == pytest.approx(expected.statistic, rel=1e-3)
        assert found.p_value == pytest.approx(expected.pvalue, rel=1e-2)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-3)
        assert (found.n, found.note) == (9, "")

    @pytest.mark.parametrize("models", [2, 4, 6])
    def test_alike_sides_are_seldom_told_apart_where_walds_z_tells_them(self, models: int) -> None:
        rng = np.random.default_rng(models)
        found = [contrast(models, models, rng, between=3.0).mixed for _ in range(200)]
        of_t = np.mean([f.p_value <= 0.05 for f in found])
        of_z = np.mean([2 * stats.norm.sf(abs(f.statistic)) <= 0.05 for f in found])
        print(f"{models} models a side: t {of_t:.3f}, z {of_z:.3f}")
        assert of_t <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
        assert of_z > of_t
        assert models > 2 or of_z > 0.12

    @pytest.mark.parametrize("between", [0.0, 0.3])
    def test_models_that_hardly_differ_have_a_fit_too(self, between: float) -> None:
        rng = np.random.default_rng(1)
        found = [contrast(4, 4, rng, between).mixed for _ in range(100)]
        assert np.isfinite([f.p_value for f in found]).all()
        assert np.mean([f.p_value <= 0.05 for f in found]) <= 0.12

    def test_depth_is_taken_out(self) -> None:
        rng = np.random.default_rng(2)
        models = np.repeat(np.arange(8), 40)
        # Treated models were surveyed at lower depths only, and the statistic falls with depth.
        depths = np.where(models < 4, rng.random(320) / 2, rng.random(320))
        values = -10 * depths + 0.2 * rng.normal(size=8)[models] + 0.1 * rng.normal(size=320)
        with_depth = unmatched_contrast(values, models.tolist(), models < 4, depths).mixed
        without = unmatched_contrast(values, models.tolist(), models < 4).mixed
        assert abs(with_depth.effect) < 0.6
        assert without.effect > 1.5

    def test_one_model_a_side_is_refused(self) -> None:
        found = contrast(1, 5, np.random.default_rng(3), 1.0).mixed
        assert np.isnan(found.p_value)
        assert "1 treated and 5 control models; needs 2 of each" in found.note


class TestMedians:
    def test_p_value_is_that_of_scipy(self) -> None:
        rng = np.random.default_rng(4)
        models = np.repeat(np.arange(9), HEADS)
        values = rng.normal(size=9)[models] + rng.exponential(size=9 * HEADS) + (models < 4)
        found = unmatched_contrast(values, models.tolist(), models < 4).medians
        medians = np.median(values.reshape(9, HEADS), axis=1)
        expected = stats.permutation_test(
            (medians[:4], medians[4:]), lambda a, b: abs(a.mean() - b.mean()), alternative="greater"
        )
        assert found.effect == pytest.approx(medians[:4].mean() - medians[4:].mean())
        assert found.p_value == pytest.approx(expected.pvalue)

    def test_interval_ends_where_shifts_begin_to_be_rejected(self) -> None:
        rng = np.random.default_rng(5)
        medians = np.r_[rng.normal(1.0, 1.0, 5), rng.normal(0.0, 1.0, 6)]
        models = np.arange(11)
        found = unmatched_contrast(medians, models.tolist(), models < 5).medians

        def one_sided(shift: float, alternative: str) -> float:
            return stats.permutation_test(
                (medians[:5] - shift, medians[5:]),
                lambda a, b: a.mean() - b.mean(),
                alternative=alternative,
            ).pvalue

        step = 1e-6
        assert (
            one_sided(found.low - step, "greater") <= 0.025 < one_sided(found.low + step, "greater")
        )
        assert one_sided(found.high + step, "less") <= 0.025 < one_sided(found.high - step, "less")

    def test_alike_sides_are_seldom_told_apart_and_different_ones_often(self) -> None:
        rng = np.random.default_rng(6)
        alike = [contrast(5, 5, rng, 2.0).medians for _ in range(200)]
        share = np.mean([f.p_value <= 0.05 for f in alike])
        covered = np.mean([f.low <= 0 <= f.high for f in alike])
        print(f"5 models a side: {share:.3f}, interval covers {covered:.3f}")
        assert share <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
        assert covered >= 0.91
        apart = [contrast(5, 5, rng, 1.0, shift=4.0) for _ in range(40)]
        assert np.mean([f.medians.p_value <= 0.05 for f in apart]) > 0.9
        assert np.mean([f.mixed.p_value <= 0.05 for f in apart]) > 0.9

    def test_too_few_models_are_refused_with_the_number_needed(self) -> None:
        found = contrast(3, 3, np.random.default_rng(7), 1.0).medians
        assert np.isnan([found.p_value, found.low, found.high]).all()
        assert np.isfinite(found.effect)
        assert "3 + 3 models cannot give p ≤ 0.05 (at best 0.1); needs 4 a group" in found.note
        nobody = contrast(0, 3, np.random.default_rng(8), 1.0).medians
        assert "0 treated and 3 control models" in nobody.note


class TestInput:
    def test_values_that_are_not_finite_are_left_out(self) -> None:
        rng = np.random.default_rng(9)
        models = np.repeat(np.arange(8), HEADS)
        values = rng.normal(size=8 * HEADS) + models
        dirty = np.r_[values, np.nan, np.inf]
        everyone = [*models.tolist(), 0, 7]
        found = unmatched_contrast(dirty, everyone, np.array(everyone) < 4)
        clean = unmatched_contrast(values, models.tolist(), models < 4)
        assert found.mixed.effect == pytest.approx(clean.mixed.effect)
        assert found.medians.p_value == clean.medians.p_value
        assert "2 of 194 values are not finite" in found.mixed.note
        nothing = unmatched_contrast(np.full(192, np.nan), models.tolist(), models < 4)
        assert np.isnan([nothing.mixed.effect, nothing.medians.effect]).all()

    def test_constant_values(self) -> None:
        models = np.repeat(np.arange(8), HEADS)
        found = unmatched_contrast(np.ones(8 * HEADS), models.tolist(), models < 4)
        assert found.mixed.note == "all values are equal"
        assert (found.medians.effect, found.medians.p_value) == (0, 1)

    def test_shapes_and_sides_are_checked(self) -> None:
        with pytest.raises(ShapeError, match="a value, a model"):
            unmatched_contrast(np.ones(4), ["a"] * 4, np.ones(3, bool))
        with pytest.raises(ShapeError, match="Model a is among the treated and the controls"):
            unmatched_contrast(np.ones(2), ["a", "a"], np.array([True, False]))


def test_standard_error_is_that_of_the_library_where_it_has_one() -> None:
    rng = np.random.default_rng(11)
    model = np.repeat(np.arange(8), 30)
    treated = model < 4
    x = rng.normal(size=8)[model] + rng.normal(size=240)
    fit = MixedLM(x, np.column_stack([np.ones(240), treated]), groups=model).fit(method="powell")
    found = unmatched_contrast(x, model.tolist(), treated).mixed
    assert found.statistic == pytest.approx(fit.params[1] / fit.bse[1], rel=1e-4)


def test_models_of_a_side_that_do_not_differ() -> None:
    rng = np.random.default_rng(12)
    model = np.repeat(np.arange(8), 30)
    treated = model < 4
    for _ in range(20):
        x = rng.normal(size=(8, 30))
        x = (x - x.mean(1, keepdims=True)).ravel() + 3.0 * treated
        found = unmatched_contrast(x, model.tolist(), treated).mixed
        assert found.p_value < 1e-4
        assert found.low < 3.0 < found.high
        assert "no variance" in found.note
