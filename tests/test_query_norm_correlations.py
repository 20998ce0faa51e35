"""Correlations of series: other libraries, planted relations, calibration under autocorrelation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_query_norm import autoregressive, planted_sample

from qk_taxonomy.errors import CatalogError, ShapeError, StudyError
from qk_taxonomy.statistics.correlations import (
    correlation_p_values,
    effective_size,
    fisher_interval,
    pearson,
    ranked,
    shuffled_pearson,
)
from qk_taxonomy.statistics.findings import benjamini_hochberg
from qk_taxonomy.studies.query_norm.correlations import CORRELATIONS, HEAD, correlate
from qk_taxonomy.studies.query_norm.criteria import load_criteria
from qk_taxonomy.studies.query_norm.records import Sample
from qk_taxonomy.studies.query_norm.verdict import decide

CRITERIA = replace(load_criteria(), n_permutations=20)


def test_raw_correlations_are_scipys() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 80))
    y += 0.5 * x
    x[1], y[1] = np.round(x[1]), np.round(y[1])
    x[2, :7], y[2, 40:43] = np.nan, np.nan
    for row in range(5):
        both = ~(np.isnan(x[row]) | np.isnan(y[row]))
        pair = x[row, both], y[row, both]
        linear, monotone = stats.pearsonr(*pair), stats.spearmanr(*pair)
        assert pearson(x, y)[row] == pytest.approx(linear.statistic)
        assert pearson(*ranked(x, y))[row] == pytest.approx(monotone.statistic)
        p = correlation_p_values(pearson(x, y)[row], both.sum())
        assert p == pytest.approx(linear.pvalue)
        low, high = fisher_interval(linear.statistic, both.sum())
        assert (low, high) == pytest.approx(tuple(linear.confidence_interval()), abs=1e-6)


def test_partial_correlations_are_of_what_regression_leaves() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(2, 60))
    x, y = rng.normal(size=(2, 4, 60)) + 2 * z[0] - z[1]
    x[3, :5] = np.nan

    def expected(first: np.ndarray, second: np.ndarray, given: np.ndarray) -> float:
        design = np.column_stack([np.ones(given.shape[1]), *given])
        rests = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (first, second)]
        return float(stats.pearsonr(*rests).statistic)

    for row in range(4):
        there = ~np.isnan(x[row])
        series = x[row, there], y[row, there]
        assert pearson(x, y, z)[row] == pytest.approx(expected(*series, z[:, there]))
        ranks = [stats.rankdata(v) for v in (*series, *z[:, there])]
        assert pearson(*ranked(x, y, z))[row] == pytest.approx(
            expected(*ranks[:2], np.array(ranks[2:]))
        )
    # What is constant, or said twice, holds nothing more fixed.
    again = np.stack([z[0], z[0], np.ones(60)])
    np.testing.assert_allclose(pearson(x, y, again), pearson(x, y, z[:1]))


def test_partial_p_values_are_those_of_regression() -> None:
    import statsmodels.api as sm

    rng = np.random.default_rng(2)
    x, y, z = rng.normal(size=(3, 40))
    y = y + 0.3 * x + z
    fitted = sm.OLS(y, sm.add_constant(np.column_stack([x, z]))).fit()
    p = correlation_p_values(pearson(x, y, z[None]), 40, 1)
    assert p == pytest.approx(fitted.pvalues[1])


def test_series_without_variation_have_no_correlation() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 50))
    y = x + rng.normal(size=(4, 50))
    x[0] = 3.7
    y[1] = np.nan
    x[2] = np.float32(1e4) + np.float32(1e-3) * np.round(x[2])
    constant = np.where(np.arange(4)[:, None] == 2, 1.0, x)
    found = np.stack([pearson(x, y), pearson(*ranked(constant, y))])
    assert np.isnan(found[:, :3]).all()
    assert np.isfinite(found[:, 3]).all()
    # A trend that position explains leaves nothing to correlate.
    position = np.log(np.arange(1, 51))
    assert np.isnan(pearson(2 * position[None] + 1, y[:1], position[None]))[0]
    with pytest.raises(ShapeError, match="one shape"):
        pearson(x, y[:2])


def test_effective_size_is_that_of_its_formula() -> None:
    rng = np.random.default_rng(4)
    x, y = autoregressive(rng, (2, 100), 0.7)
    n, total = 100, 0.0
    a, b = x - x.mean(), y - y.mean()
    for j in range(1, 21):
        r = [n / (n - j) * (v[j:] @ v[:-j]) / (v @ v) for v in (a, b)]
        total += (n - j) / n * r[0] * r[1]
    assert effective_size(x, y) == pytest.approx(n / (1 + 2 * total))
    gap = np.r_[[np.nan] * 3, x]
    assert effective_size(gap, np.r_[rng.normal(size=3), y]) == pytest.approx(
        float(effective_size(x, y)), rel=0.02
    )
    alternating = autoregressive(rng, (100,), -0.8)
    assert effective_size(x, alternating) == 100
    assert effective_size(np.full(9, np.nan), np.arange(9.0)) == 1


def test_effective_size_of_ar1_series_is_bretherton_and_others() -> None:
    rng = np.random.default_rng(5)
    for first, second in ((0.9, 0.9), (0.5, 0.95), (0.0, 0.9)):
        x = autoregressive(rng, (200, 1000), first)
        y = autoregressive(rng, (200, 1000), second)
        expected = 1000 * (1 - first * second) / (1 + first * second)
        assert np.median(effective_size(x, y)) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("coefficient", [0.0, 0.8, 0.95])
def test_p_values_are_calibrated_for_series_that_follow_themselves(coefficient: float) -> None:
    rng = np.random.default_rng(6)
    x, y = (autoregressive(rng, (1500, 400), coefficient) for _ in range(2))
    position = np.log(np.arange(1, 401))[None]
    n = effective_size(x, y, position)
    for given in ((), position):
        r = pearson(x, y, given)
        rate = (correlation_p_values(r, n, len(given)) <= 0.05).mean()
        assert 0.02 <= rate <= 0.085
        naive = (correlation_p_values(r, 400, len(given)) <= 0.05).mean()
        assert naive > 0.3 if coefficient > 0.5 else 0.02 <= naive <= 0.085


def test_a_trend_with_position_is_certain() -> None:
    rng = np.random.default_rng(7)
    position = np.log(np.arange(1, 401))
    x, y = rng.normal(size=(2, 50, 400)) + 2 * position
    assert np.median(effective_size(x, y, position[None])) > 300
    assert np.median(effective_size(x, y)) < 60
    assert np.abs(pearson(x, y, position[None])).max() < 0.25 < pearson(x, y).min()


def test_shuffled_correlations_are_of_permuted_pairs() -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(3, 300))
    y = x.copy()
    x[:, :2] = np.nan
    x[2] = 1.0
    found = shuffled_pearson(x, y, 200, seed=1)
    assert found.shape == (200, 3)
    assert np.isnan(found[:, 2]).all()
    # Variance of r under permutation is 1 / (n − 1).
    assert found[:, :2].std(0) == pytest.approx(np.full(2, 297**-0.5), rel=0.2)
    assert np.abs(found[:, :2].mean(0)).max() < 0.02
    np.testing.assert_array_equal(found, shuffled_pearson(x, y, 200, seed=1))


def test_few_values_have_no_p_value_and_no_interval() -> None:
    assert np.isnan(correlation_p_values(0.9, 2.5))
    assert correlation_p_values([1.0, -1.0, 0.0], 10) == pytest.approx([0.0, 0.0, 1.0])
    assert np.isnan(fisher_interval(0.5, 4, 1)).all()
    q = benjamini_hochberg([[0.01, np.nan], [0.04, 0.03]])
    np.testing.assert_allclose(q, [[0.03, np.nan], [0.04, 0.04]])
    assert np.isnan(benjamini_hochberg([np.nan])).all()


def planted(slopes: np.ndarray, n: int = 4, **options: object) -> list[Sample]:
    return [planted_sample(f"text {i}", i, slopes, **options) for i in range(n)]  # type: ignore[arg-type]


def test_planted_correlations_are_found_with_their_signs() -> None:
    slopes = np.array([[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    found = correlate(planted(slopes), CRITERIA)
    heads = found.heads.set_index(HEAD)
    expected = slopes / np.sqrt(1 + slopes**2)
    for (_, layer, head), row in heads.iterrows():
        for name in CORRELATIONS:
            assert row[name] == pytest.approx(expected[layer, head], abs=0.12)
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
        assert row["consistent_partial"] == (slopes[layer, head] != 0)
        assert row["sign"] == row["sign_raw"] == np.sign(slopes[layer, head])
    assert set(found.heads["interval"]) == {"windows"}
    assert (found.by_sample["n_tokens"] == 398).all()
    assert found.by_sample["shuffled_mean"].abs().max() < 0.05
    verdict = decide(found, CRITERIA)
    assert verdict.kind == "go"
    assert verdict.numbers["partial"] == 2
    assert (verdict.numbers["partial_negative"], verdict.numbers["partial_positive"]) == (1, 1)
    assert "2 of 6 heads (33.3%)" in verdict.line


def test_a_relation_through_position_alone_is_called_confounded() -> None:
    found = correlate(planted(np.zeros((2, 4)), position=2.0), CRITERIA)
    assert (found.heads["pearson"] > 0.5).all()
    assert (found.heads["partial_pearson"].abs() < 0.2).all()
    assert (found.heads["position_entropy"] > 0.7).all()
    verdict = decide(found, CRITERIA)
    assert verdict.kind == "confounded by position"
    assert "8 of 8 heads (100.0%)" in verdict.line
    assert "in 0 of 8 heads (0.0%) given position" in verdict.line
    assert verdict.line.startswith("Confounded by position, with the opposite sign: ")


def test_a_relation_that_position_hides_is_found() -> None:
    found = correlate(planted(np.full((2, 4), -1.5), position=1.5), CRITERIA)
    verdict = decide(found, CRITERIA)
    assert verdict.kind == "go"
    assert verdict.numbers["partial_negative"] == 8
    assert "opposite" not in verdict.line


def test_no_relation_is_a_no_go_and_the_control_can_fail() -> None:
    found = correlate(planted(np.zeros((2, 4))), CRITERIA)
    verdict = decide(found, CRITERIA)
    assert verdict.kind == "no-go"
    assert "in 0 of 8 heads" in verdict.line
    # So few tokens correlate by chance, which the control tells.
    short = decide(correlate(planted(np.zeros((2, 4)), n_tokens=8), CRITERIA), CRITERIA)
    assert short.kind == "control failed"
    assert short.numbers["control_share"] > 0.05


def test_sliding_windows_hold_the_number_of_keys_fixed() -> None:
    samples = planted(np.zeros((1, 4)), window=40)
    # Entropy that rises with the number of keys, and norms too, until the window is full.
    layer = samples[0].layers[0]
    keys = np.log(layer.n_keys).astype(np.float32)
    values = {**layer.values, **{k: layer.values[k] + 4 * keys for k in ("query_norm", "entropy")}}
    sample = replace(samples[0], layers=(replace(layer, values=values),))
    found = correlate([sample], CRITERIA)
    assert (found.by_sample["n_given"] == 2).all()
    assert (found.by_sample["pearson"] > 0.5).all()
    assert (found.by_sample["partial_pearson"].abs() < 0.2).all()
    assert any("sliding window" in note for note in found.notes)


def test_encoders_and_single_texts_are_told() -> None:
    found = correlate(planted(np.zeros((1, 2)), n=1, causal=False), CRITERIA)
    assert any("bidirectional" in note for note in found.notes)
    assert any("one window" in note for note in found.notes)
    assert set(found.heads["interval"]) == {"tokens"}
    assert (found.by_sample["n_tokens"] == 400).all()


def test_heads_without_variation_are_counted_and_pass_nowhere() -> None:
    samples = planted(np.full((1, 3), -3.0), n=2)
    for sample in samples:
        sample.layers[0].values["query_norm"][1] = 4.0
        sample.layers[0].values["entropy"][2] = np.nan
    found = correlate(samples, CRITERIA)
    assert found.heads["n_samples"].tolist() == [2, 0, 0]
    assert found.heads["consistent_partial"].tolist() == [1.0, 0.0, 0.0]
    assert found.heads["interval"].tolist() == ["windows", "", ""]
    verdict = decide(found, CRITERIA)
    assert (verdict.kind, verdict.numbers["heads_undefined"]) == ("go", 2)
    for sample in samples:
        sample.layers[0].values["query_norm"][:] = 4.0
    nothing = decide(correlate(samples, CRITERIA), CRITERIA)
    assert (nothing.kind, nothing.numbers["heads_undefined"]) == ("no-go", 3)


def test_layers_may_differ_in_heads_and_samples_need_names() -> None:
    one = planted_sample("a", 0, np.zeros((1, 2)))
    two = planted_sample("a", 1, np.zeros((1, 5)), layers=[7])
    both = replace(one, layers=(*one.layers, *two.layers))
    found = correlate([both], CRITERIA).heads
    assert list(zip(found["layer"], found["head"], strict=True)) == [
        *((0, head) for head in range(2)),
        *((7, head) for head in range(5)),
    ]
    with pytest.raises(StudyError, match="a name for each sample"):
        correlate([one, two], CRITERIA)
    with pytest.raises(StudyError, match="found none"):
        correlate([], CRITERIA)


def test_results_hang_on_the_seed_alone() -> None:
    samples = planted(np.zeros((2, 2)), n=2)
    first, again = (correlate(samples, CRITERIA).by_sample for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    other = correlate(samples, replace(CRITERIA, seed=1)).by_sample
    assert (other["shuffled_mean"] != first["shuffled_mean"]).all()
    pd.testing.assert_series_equal(other["pearson"], first["pearson"])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[criteria]\ncorrelation = 0.5", CatalogError, "criteria.p_value: this key is required"),
        ("", CatalogError, "criteria: this key is required"),
        ("correlation = 1.5", StudyError, "correlation above 0 and at most 1, found 1.5"),
        ("seed = -1", StudyError, "a seed that is not negative, found 100 and -1"),
        ("n_permutations = 0.5", CatalogError, "wanted a whole number, found 0.5"),
        ("share = 0.5", CatalogError, "unknown key; known are correlation"),
    ],
)
def test_criteria_that_cannot_be_used(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "criteria.toml"
    if text.startswith("[") or not text:
        path.write_text(text)
    else:
        key = text.split(" = ")[0]
        builtin = Path(__file__).parents[1] / "catalog/query-norm.toml"
        lines = [
            line for line in builtin.read_text().splitlines() if not line.startswith(f"{key} ")
        ]
        path.write_text("\n".join([*lines, text]))
    with pytest.raises(error, match=message):
        load_criteria(path)
