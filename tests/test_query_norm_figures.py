"""Figures of query norms: what they show, at any size, and that no text covers another.

Warnings are errors here: a glyph that the font lacks, or a layout that collapsed, is a failure.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from readable import assert_readable
from synthetic_query_norm import (
    N_TEXTS,
    N_TOKENS,
    planted_sample,
    planted_scaling,
    planted_spectra,
    planted_texts,
)

from qk_taxonomy.figures.query_norm.associations import association_figure
from qk_taxonomy.figures.query_norm.classes import behaviour_figure
from qk_taxonomy.figures.query_norm.histograms import histogram_figure
from qk_taxonomy.figures.query_norm.layers import layer_figure
from qk_taxonomy.figures.query_norm.maps import correlation_map
from qk_taxonomy.figures.query_norm.parts import by_layer
from qk_taxonomy.figures.query_norm.prediction import prediction_figure
from qk_taxonomy.figures.query_norm.scaling import scaling_figure
from qk_taxonomy.figures.query_norm.scatter import extreme_heads, scatter_figure
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.studies.query_norm.behaviour import head_behaviour
from qk_taxonomy.studies.query_norm.bridge import Bridge, bridge
from qk_taxonomy.studies.query_norm.correlations import HeadCorrelations, correlate
from qk_taxonomy.studies.query_norm.criteria import load_criteria
from qk_taxonomy.studies.query_norm.records import MEASURES

pytestmark = pytest.mark.filterwarnings("error")

TITLE = "SmolLM2-135M-Instruct.Q4_1 (smollm2-gguf), query norm and attention entropy"
CRITERIA = replace(load_criteria(), n_permutations=10)
SHAPES = ((2, 1), (30, 9), (80, 64))


@functools.cache
def found(n_layers: int, n_heads: int) -> HeadCorrelations:
    return correlate(planted_texts(n_layers, n_heads), CRITERIA)


@functools.cache
def behaviour_of(n_layers: int, n_heads: int) -> pd.DataFrame:
    return head_behaviour(planted_texts(n_layers, n_heads))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestOfCorrelations:
    def test_map(self, shape: tuple[int, int]) -> None:
        heads = found(*shape).heads
        fig = assert_readable(lambda: correlation_map(heads, TITLE, consistent=0.3))
        columns = ("pearson", "partial_pearson", "spearman", "partial_spearman")
        for ax, column in zip(fig.axes, columns, strict=False):
            (image,) = ax.images
            np.testing.assert_allclose(
                image.get_array(), heads[column].to_numpy().reshape(shape).T, rtol=1e-12
            )
            (dots,) = ax.lines
            kind = "partial" if column.startswith("partial") else "raw"
            passing = heads[heads[f"consistent_{kind}"] > 0.3]
            drawn = set(zip(*(np.asarray(xy).tolist() for xy in dots.get_data()), strict=True))
            assert drawn == set(zip(passing["layer"], passing["head"], strict=True))
            assert f"{len(passing)} consistent" in ax.get_title()

    def test_scatter(self, shape: tuple[int, int]) -> None:
        texts, heads = planted_texts(*shape), found(*shape).heads
        chosen = extreme_heads(heads)
        fig = assert_readable(lambda: scatter_figure(texts, chosen, TITLE))
        for number, one in enumerate(chosen):
            above, below = fig.axes[number], fig.axes[len(chosen) + number]
            offsets = np.asarray(above.collections[0].get_offsets())
            # The first two tokens of a text have no entropy.
            assert len(offsets) == N_TEXTS * (N_TOKENS - 2)
            values = texts[0].layers[one.head.layer].values
            expected = {
                tuple(pair)
                for pair in np.stack(
                    [values[name][one.head.head] for name in ("query_norm", "entropy")], axis=1
                ).tolist()[2:]
            }
            assert expected <= {tuple(pair) for pair in offsets.tolist()}
            left = np.asarray(below.collections[0].get_offsets())
            # Over texts of one relation, pooled residuals have nearly the mean of their r.
            assert abs(np.corrcoef(left.T)[0, 1] - one.partial) < 0.1
            assert np.abs(left.mean(axis=0)).max() < 1e-4

    def test_histograms(self, shape: tuple[int, int]) -> None:
        heads, behaviour = found(*shape).heads, behaviour_of(*shape)
        fig = assert_readable(lambda: histogram_figure(heads, behaviour, TITLE, correlation=0.5))
        for ax in fig.axes:
            assert sum(patch.get_height() for patch in ax.patches) == len(heads)
        beyond = int((heads["pearson"].abs() >= 0.5).sum())
        assert f"{beyond} of {len(heads)} at |r| ≥ 0.5" in fig.axes[0].get_title()

    def test_layers(self, shape: tuple[int, int]) -> None:
        heads, behaviour = found(*shape).heads, behaviour_of(*shape)
        fig = assert_readable(lambda: layer_figure(heads, behaviour, TITLE))
        raw, partial = fig.axes[0].lines[:2]
        for line, column in ((raw, "pearson"), (partial, "partial_pearson")):
            medians = heads.groupby("layer")[column].median()
            np.testing.assert_allclose(line.get_ydata(), medians, rtol=1e-12)
            np.testing.assert_array_equal(line.get_xdata(), medians.index)


class TestEdges:
    def test_heads_without_a_correlation_are_grey_and_counted_out(self) -> None:
        heads = found(4, 4).heads.assign(n_samples=1)
        values = ["pearson", "spearman", "partial_pearson", "partial_spearman", "control"]
        heads.loc[heads["layer"] < 3, values] = np.nan
        fig = assert_readable(lambda: correlation_map(heads, TITLE, consistent=0.3))
        assert "median" in fig.axes[0].get_title()
        assert ", 4 heads" in fig.axes[0].get_title()
        assert int(np.ma.getmaskarray(fig.axes[0].images[0].get_array()).sum()) == 12
        chosen = extreme_heads(heads)
        assert {one.head.layer for one in chosen} == {3}
        assert len(chosen) == len({one.head for one in chosen}) == 4
        heads[values] = np.nan
        assert_readable(lambda: correlation_map(heads, TITLE, consistent=0.3))
        behaviour = behaviour_of(4, 4)
        fig = assert_readable(lambda: histogram_figure(heads, behaviour, TITLE, correlation=0.5))
        assert "no head has a value" in [text.get_text() for text in fig.axes[0].texts]
        assert extreme_heads(heads) == []

    def test_only_some_layers_attend(self) -> None:
        heads = found(4, 4).heads.assign(layer=lambda rows: 3 + 4 * rows["layer"])
        fig = assert_readable(lambda: correlation_map(heads, TITLE, consistent=0.3))
        assert fig.axes[0].get_xlim() == (2.5, 15.5)
        layers, values = by_layer(heads, heads["pearson"].to_numpy())
        assert layers.tolist() == [3, 7, 11, 15]
        assert values.shape == (4, 4)

    def test_layers_of_unlike_numbers_of_heads(self) -> None:
        heads = found(4, 4).heads
        heads = heads[(heads["layer"] != 1) | (heads["head"] < 2)]
        _, values = by_layer(heads, heads["pearson"].to_numpy())
        assert np.isfinite(values).sum(axis=1).tolist() == [4, 2, 4, 4]
        behaviour = behaviour_of(4, 4)
        assert_readable(lambda: layer_figure(heads, behaviour, TITLE))
        assert_readable(lambda: correlation_map(heads, TITLE, consistent=0.3))

    def test_each_kind_of_extreme_head_has_its_own_of_few(self) -> None:
        heads = found(4, 4).heads
        reasons = [one.reason for one in extreme_heads(heads.iloc[:3])]
        assert reasons == ["lowest r", "highest r", "largest |r| given position"]
        chosen = extreme_heads(heads)
        assert chosen[0].raw == heads["pearson"].min()
        assert chosen[2].raw == heads["pearson"].max()

    def test_residuals_in_a_sliding_window_are_given_the_number_of_keys(self) -> None:
        slopes = np.linspace(-1.0, 1.0, 4).reshape(1, 4)
        text = planted_sample("text", 0, slopes, n_tokens=300, position=1.0, window=16)
        heads = correlate([text], CRITERIA).heads
        (_, one, *_) = chosen = extreme_heads(heads)
        fig = assert_readable(lambda: scatter_figure([text], chosen, TITLE))
        left = np.asarray(fig.axes[len(chosen) + 1].collections[0].get_offsets())
        assert np.corrcoef(left.T)[0, 1] == pytest.approx(one.partial, abs=1e-6)

    def test_scatter_of_a_stack(self) -> None:
        texts = planted_texts(2, 2, stack="encoder", causal=False)
        both = tuple(
            replace(one, layers=(*one.layers, *planted_texts(2, 2)[number].layers))
            for number, one in enumerate(texts)
        )
        heads = correlate(both, CRITERIA).heads
        chosen = extreme_heads(heads[heads["stack"] == "encoder"])
        fig = assert_readable(lambda: scatter_figure(both, chosen, TITLE))
        assert len(fig.axes) == 2 * len(chosen) + 1
        assert "encoder" in fig.axes[0].get_title()


@pytest.mark.parametrize("n", [1, 6, 40])
def test_scaling(n: int) -> None:
    scaling = planted_scaling(n)
    fig = assert_readable(lambda: scaling_figure(scaling, TITLE))
    left, right = fig.axes
    # Entropies that are straight lines in log α lie on their tangents.
    line, tangent = left.lines[:2]
    x, y = (np.asarray(one.get_xdata()) for one in (tangent, line))
    expected = np.interp(np.log(x), np.log(y), np.asarray(line.get_ydata()))
    np.testing.assert_allclose(tangent.get_ydata(), expected)
    n_slopes = sum(len(points.get_xdata()) for points in right.lines[1:])
    assert n_slopes == scaling.slope.size
    assert right.get_title() == f"{n_slopes} slopes, largest relative deviation\n0.01"
    told = [text.get_text() for text in fig.legends[0].get_texts()]
    assert len(told) == (n + 1 if n <= 8 else 1)


@functools.cache
def planted_bridge(n_layers: int, n_heads: int) -> Bridge:
    behaviour = behaviour_of(n_layers, n_heads)
    return bridge(behaviour, *planted_spectra(behaviour), n_permutations=20)


class TestOfBridge:
    @pytest.mark.parametrize("shape", [(4, 4), (30, 9)], ids=str)
    def test_prediction(self, shape: tuple[int, int]) -> None:
        table = planted_bridge(*shape).prediction
        fig = assert_readable(lambda: prediction_figure(table, TITLE))
        (ax,) = fig.axes
        drawn = [line for line in ax.lines if line.get_marker() == "o"]
        for line, row in zip(drawn, table.itertuples(), strict=True):
            assert line.get_xdata()[0] == row.r2_within
        for bar, low, high in zip(
            ax.patches, table["null_low"], table["null_high"], strict=False
        ):  # fmt: skip
            assert bar.get_x() == pytest.approx(max(low, -1.0))
            assert bar.get_x() + bar.get_width() == pytest.approx(max(high, -1.0))

    def test_predictions_that_are_worse_than_can_be_shown_or_none(self) -> None:
        table = planted_bridge(4, 4).prediction.assign(q=0.01)
        table.loc[:1, ["r2_within", "r2_depth"]] = [[-7.0, np.nan], [np.nan, np.nan]]
        fig = assert_readable(lambda: prediction_figure(table, TITLE))
        (ax,) = fig.axes
        assert [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "<"] == [0]
        said = [text.get_text() for text in ax.texts]
        # Worse than the mean is no prediction, whatever chance would do.
        assert said[:2] == ["R² = −7.00, q = 0.01", "not predicted"]
        positive = [row.r2_within > 0 for row in table.iloc[2:].itertuples()]
        assert [text.endswith("*") for text in said[2:]] == positive

    def test_associations(self) -> None:
        found = planted_bridge(30, 9).associations
        fig = assert_readable(lambda: association_figure(found, TITLE))
        image = np.asarray(fig.axes[0].images[0].get_array())
        wide = found.set_index(["behaviour", "statistic"])["spearman"].unstack(sort=False)
        np.testing.assert_allclose(image, wide.to_numpy())
        (dots,) = fig.axes[0].lines
        assert len(dots.get_xdata()) == (found["q"] <= LEVEL).sum() > 0

    @pytest.mark.parametrize("shape", [(4, 4), (80, 64)], ids=str)
    def test_classes(self, shape: tuple[int, int]) -> None:
        behaviour = behaviour_of(*shape)
        label = planted_spectra(behaviour)[1]["class"].astype(float)
        label.iloc[0] = np.nan
        heads = behaviour.assign(**{"class": label})
        tests = pd.DataFrame({"behaviour": MEASURES, "eta_squared": 0.4, "p": 0.01, "q": 0.03})
        tests.loc[1, ["eta_squared", "p", "q"]] = np.nan
        fig = assert_readable(lambda: behaviour_figure(heads, tests, TITLE))
        assert len(fig.axes) == len(MEASURES)
        assert "not tested" in fig.axes[1].get_title()
        for ax, measure in zip(fig.axes, MEASURES, strict=True):
            points = [np.asarray(one.get_offsets())[:, 1] for one in ax.collections]
            assert sum(map(len, points)) == len(heads) - 1
            np.testing.assert_allclose(points[2], heads.loc[label == 2, measure])

    def test_many_classes(self) -> None:
        behaviour = behaviour_of(30, 9)
        heads = behaviour.assign(**{"class": np.arange(len(behaviour)) % 12})
        tests = pd.DataFrame({"behaviour": MEASURES, "eta_squared": 0.4, "p": 0.5, "q": 0.6})
        assert_readable(lambda: behaviour_figure(heads, tests, TITLE))
