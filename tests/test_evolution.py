"""Heads through training: their paths, the untrained null, and which paths are unusual."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from matplotlib.figure import Figure
from PIL import Image
from planted_paths import (
    SHAPE,
    STEPS,
    drifting,
    revisions_of,
    untrained_steps,
    write_revisions,
)
from scipy.spatial.distance import jensenshannon
from scipy.stats import kstest
from sklearn.covariance import LedoitWolf
from untrained import Shape

from qk_taxonomy.cache import load_metadata
from qk_taxonomy.cli import main
from qk_taxonomy.errors import NoSuchSpectraError, SpectraFileError, StudyError, TaxonomyError
from qk_taxonomy.hypotheses.heads import Untrained
from qk_taxonomy.outputs.evolution import FIGURES, write_evolution
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.nulls import untrained_spectra
from qk_taxonomy.studies.evolution import (
    Evolution,
    evolve,
    heads_table,
    load_revisions,
    path_table,
)
from qk_taxonomy.studies.evolution.absent import absence
from qk_taxonomy.studies.evolution.null import untrained_p_values
from qk_taxonomy.studies.evolution.records import settled_from, step_times
from qk_taxonomy.studies.evolution.summary import summary
from qk_taxonomy.studies.evolution.unusual import (
    FEWEST_HEADS,
    most_unusual_feature,
    path_features,
    shrunk_covariance,
    unusual_paths,
)
from qk_taxonomy.taxonomy import joint_taxonomy
from qk_taxonomy.training_steps import choose_checkpoints

ODD = (7, 30)
NAMES = tuple(f"step{step}" for step in STEPS)
SMALL = Shape(layers=2, heads=5, kv_heads=5, d_head=16, d_model=128)


@pytest.fixture(scope="module")
def drifted() -> Evolution:
    """Heads that drift from an untrained start, but for two that jump at once."""
    return evolve(revisions_of(drifting(np.random.default_rng(1), odd=ODD)))


class TestPaths:
    def test_distances_are_those_of_histograms(self, drifted: Evolution) -> None:
        h = drifted.histograms
        between = jensenshannon(h[1:], h[:-1], axis=-1) ** 2
        np.testing.assert_allclose(drifted.travelled, between, atol=1e-12)
        start = jensenshannon(h, np.broadcast_to(h[:1], h.shape), axis=-1) ** 2
        np.testing.assert_allclose(drifted.from_start, start, atol=1e-12)
        widths = np.diff(drifted.edges)
        np.testing.assert_allclose((h * widths).sum(-1), 1.0)

    def test_unit_is_how_far_two_untrained_heads_are_apart(self, drifted: Evolution) -> None:
        lam = untrained_spectra(SHAPE.d_head, SHAPE.d_model, 400, seed=5)[:, 0]
        x = lam / lam.mean(-1, keepdims=True)
        h = np.stack([np.histogram(row, drifted.edges, density=True)[0] for row in x])
        apart = jensenshannon(h[:200], h[200:], axis=-1) ** 2
        assert drifted.null.divergence == pytest.approx(apart.mean(), rel=0.1)
        assert drifted.null.usual == pytest.approx(np.quantile(apart, 0.95), rel=0.15)

    def test_classes_are_those_of_the_joint_taxonomy(self) -> None:
        revisions = revisions_of(
            drifting(np.random.default_rng(2), SMALL, (0, 5, 50)), (0, 5, 50), SMALL
        )
        found = evolve(revisions, n_clusters=3)
        models = [
            dataclasses.replace(one.spectra, metadata={**one.spectra.metadata, "revision": name})
            for one, name in zip(revisions.sets, revisions.names, strict=True)
        ]
        joint = joint_taxonomy(models, n_clusters=3)
        np.testing.assert_array_equal(
            found.labels, np.stack([joint.labels[joint.models == i] for i in range(3)])
        )
        np.testing.assert_array_equal(found.edges, joint.edges)
        np.testing.assert_allclose(found.composition.sum(1), 1.0)

    def test_planted_heads_leave_first(self, drifted: Evolution) -> None:
        assert set(drifted.left_class[list(ODD)]) == {1}
        assert set(drifted.outliers_born[list(ODD)]) == {1}
        others = np.delete(drifted.outliers_born, ODD)
        assert np.median(others) > 4
        assert (drifted.from_start[1, list(ODD)] > drifted.null.usual).all()
        assert np.median(np.delete(drifted.from_start[1], ODD)) < drifted.null.divergence

    def test_half_of_the_heads_is_told_by_the_step_that_half_had_come_by(
        self, drifted: Evolution
    ) -> None:
        lines = summary(drifted)
        for what, index in (
            ("grew λ beyond the untrained edge for good", drifted.outliers_born),
            ("left their first class for good", drifted.left_class),
        ):
            came = index[index < len(drifted.names)]
            by = next(i for i in range(len(drifted.names)) if 2 * (came <= i).sum() >= len(came))
            (line,) = (one for one in lines if what in one)
            assert line.startswith(f"{len(came)} of {len(index)} heads")
            assert line.endswith(f"half of them by {drifted.names[by]}")

    def test_a_head_that_begins_with_outliers_has_grown_none(self, drifted: Evolution) -> None:
        n_outliers = drifted.n_outliers.copy()
        n_outliers[:, 0] = 1.0
        found = dataclasses.replace(drifted, n_outliers=n_outliers)
        grown = int(((found.outliers_born > 0) & (found.outliers_born < len(found.names))).sum())
        (line,) = (one for one in summary(found) if "grew λ" in one)
        assert line.startswith(f"{grown} of {len(found.heads)} heads grew")
        assert line.endswith("; 1 had them from step0 on")
        row = heads_table(found).query("layer == 0 and head == 0").iloc[0]
        assert pd.isna(row["outliers_step"])
        assert row["outliers_revision"] == ""

    def test_travel_beyond_chance_hardly_grows_with_the_number_of_checkpoints(self) -> None:
        shape, steps = dataclasses.replace(SHAPE, layers=2), tuple(range(20))
        lam = drifting(np.random.default_rng(3), shape, steps, growth=4.0)
        few = (0, 5, 10, 15, 19)
        every, some = (
            evolve(revisions_of(lam[list(chosen)], chosen, shape)) for chosen in (steps, few)
        )
        whole = np.median(every.travelled.sum(0)) / np.median(some.travelled.sum(0))
        beyond = np.median(every.travelled_beyond) / np.median(some.travelled_beyond)
        assert abs(np.log(beyond)) < 0.5 * np.log(whole)
        table = heads_table(every).sort_values(["layer", "head"])
        over = np.maximum(every.travelled - every.null.divergence, 0).sum(0)
        np.testing.assert_allclose(table["travelled_beyond_null"], over / every.null.divergence)

    def test_for_good_counts_from_the_last_return(self) -> None:
        away = np.array([[0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 1]], dtype=bool)
        assert settled_from(away).tolist() == [1, 3, 4, 3]

    def test_times(self) -> None:
        np.testing.assert_allclose(step_times(np.array([0.0, 9.0, 99.0])), [0, 1, 2])
        np.testing.assert_allclose(step_times(np.array([0.0, 9.0, 99.0, np.nan])), [0, 1, 2, 3])


class TestNull:
    def test_distance_is_kolmogorov_smirnov(self) -> None:
        rng = np.random.default_rng(0)
        null = untrained_spectra(16, 128, 300)[:, 0]
        lam = np.concatenate(
            [untrained_spectra(16, 128, 5, seed=9)[:, 0], rng.gamma(0.5, 1, (5, 16))]
        )

        def distances(x: np.ndarray) -> np.ndarray:
            pool = (null / null.mean(-1, keepdims=True)).ravel()
            own = x / x.mean(-1, keepdims=True)
            return np.array([kstest(row, pool, method="asymp").statistic for row in own])

        beyond = (distances(null)[None] >= distances(lam)[:, None] - 1e-12).sum(1)
        p = untrained_p_values(lam, Untrained(null))
        np.testing.assert_allclose(p, (1 + beyond) / (1 + len(null)))

    def test_untrained_steps_are_inside_and_no_path_is_unusual(self) -> None:
        inside, rejected, found, left = [], [], [], []
        for seed in range(8):
            lam = untrained_steps(np.random.default_rng(seed), len(STEPS))
            one = evolve(revisions_of(lam))
            inside.append((one.p_untrained <= LEVEL).mean())
            rejected.append((one.unusual.p_values <= LEVEL).mean())
            found.append((one.unusual.q_values <= LEVEL).any())
            left.append((one.left_class < len(STEPS)).mean())
        # 3,840 heads, and 384 paths whose p-values hang together within a model.
        assert 0.035 < np.mean(inside) < 0.065
        # The tails that paths are allowed are heavier than these have.
        assert np.mean(rejected) < 0.05
        assert not any(found)
        # Classes that part untrained heads from each other are not left by leaving one for another.
        assert np.mean(left) < 0.05

    def test_first_step_inside_last_outside(self, drifted: Evolution) -> None:
        outside = (drifted.p_untrained <= LEVEL).mean(1)
        assert outside[0] < 0.15
        assert outside[-1] > 0.7
        assert (drifted.n_outliers[0] == 0).mean() > 0.9

    def test_no_null_where_an_untrained_head_has_no_law_of_its_shape(self) -> None:
        revisions = revisions_of(drifting(np.random.default_rng(3), SMALL, (0, 9)), (0, 9), SMALL)
        sets = tuple(
            dataclasses.replace(
                one,
                spectra=dataclasses.replace(
                    one.spectra, metadata={**one.spectra.metadata, "architecture": "deepseek"}
                ),
            )
            for one in revisions.sets
        )
        found = evolve(dataclasses.replace(revisions, sets=sets))
        assert found.null.n == 0
        assert "--control random" in found.notes[0]
        assert np.isnan(found.p_untrained).all()
        table = path_table(found)
        assert table["from_start"].notna().all()
        assert table["from_start_null"].isna().all()
        assert table["outliers"].isna().all()
        assert not any("untrained" in line for line in summary(found))


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal((n, 5))


def of_layers(rng: np.random.Generator, n: int) -> np.ndarray:
    """Half of the variance is of layers of six heads."""
    return (np.repeat(normal(rng, n // 6), 6, axis=0) + normal(rng, n)) / np.sqrt(2)


def with_counts(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.column_stack([normal(rng, n)[:, :4], np.sqrt(rng.poisson(3, n))])


def heavy_each(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_t(5, (n, 5))


def heavy_together(rng: np.random.Generator, n: int) -> np.ndarray:
    return normal(rng, n) / np.sqrt(rng.chisquare(5, (n, 1)) / 5)


class TestUnusual:
    @pytest.mark.parametrize(
        "draw",
        [normal, of_layers, with_counts, heavy_each, heavy_together],
        ids=lambda d: d.__name__,
    )
    def test_false_alarms(self, draw: Callable[[np.random.Generator, int], np.ndarray]) -> None:
        """Of 60 models of 24 heads none but about one in twenty has a head that is found: 9 of 60
        are beyond a rate of .05 at p = .003. (Against a normal cloud about half of the heavy ones
        have.)"""
        found = [
            (unusual_paths(draw(np.random.default_rng(seed), 24)).q_values <= LEVEL).any()
            for seed in range(60)
        ]
        assert sum(found) <= (8 if draw in (heavy_each, heavy_together) else 2)

    def test_false_alarms_do_not_grow_with_the_number_of_heads(self) -> None:
        found = [
            (unusual_paths(heavy_each(np.random.default_rng(seed), 144)).q_values <= LEVEL).any()
            for seed in range(20)
        ]
        assert sum(found) <= 4

    def test_a_head_beyond_the_distance_that_is_needed_is_found(self) -> None:
        """And one that is eight standard deviations off in one feature in some cases only."""
        far = {8.0: 0, 20.0: 0}
        for seed in range(30):
            for off in far:
                features = normal(np.random.default_rng(seed), 24)
                features[0, seed % 5] += off
                one = unusual_paths(features)
                alone = one.distance[0] > one.needed and (one.distance[1:] < one.needed).all()
                if alone:
                    assert one.q_values[0] <= 1.1 * LEVEL
                elif one.distance.max() < 0.98 * one.needed:
                    assert (one.q_values > LEVEL).all()
                far[off] += int(one.q_values[0] <= LEVEL)
        assert far[8.0] < 20 < 25 < far[20.0]

    def test_shrunk_covariance_is_ledoit_and_wolfs(self) -> None:
        rng = np.random.default_rng(0)
        for n, p in ((12, 1), (24, 5), (200, 3)):
            sets = rng.standard_t(4, (3, n, p)) @ rng.standard_normal((p, p))
            found = shrunk_covariance(sets - sets.mean(1, keepdims=True))
            for one, own in zip(found, sets, strict=True):
                np.testing.assert_allclose(one, LedoitWolf().fit(own).covariance_, rtol=1e-9)

    def test_planted_heads_are_found_and_hide_neither(self, drifted: Evolution) -> None:
        assert set(np.flatnonzero(drifted.unusual.rank <= 2)) == set(ODD)
        assert (drifted.unusual.q_values[list(ODD)] <= LEVEL).all()
        assert (np.delete(drifted.unusual.q_values, ODD) <= LEVEL).sum() <= 1
        (line,) = (one for one in summary(drifted) if "unusual paths" in one)
        assert "if others have the tails of Student's t of 5 degrees of freedom" in line
        for head in ODD:
            assert f"{head // 8}.{head % 8} (" in line

    def test_heads_of_unequal_but_common_kind_are_not_found(self) -> None:
        for seed in range(4):
            one = evolve(revisions_of(drifting(np.random.default_rng(100 + seed))))
            assert (one.unusual.q_values > LEVEL).all()
            (line,) = (line for line in summary(one) if "no head's path stands out" in line)
            assert f"takes a distance of {one.unusual.needed:.3g}" in line
            first = heads_table(one).iloc[0]
            place = f"{first['layer']}.{first['head']}"
            assert line.endswith(f"the farthest, {place}, has {first['unusual_distance']:.3g}")

    @pytest.mark.parametrize(
        ("column", "off", "said"),
        [
            (0, 9.0, "a longer way than others'"),
            (1, -9.0, "half of its way earlier than others"),
            (2, -9.0, "effective rank fell further than others'"),
            (2, 0.9, "effective rank fell less than others'"),
            (2, 9.0, "effective rank rose where others' fell"),
            (3, 9.0, "largest λ grew further than others'"),
            (3, -0.9, "largest λ grew less than others'"),
            (3, -9.0, "largest λ shrank where others' grew"),
            (4, -9.0, "fewer class changes than others"),
        ],
    )
    def test_what_is_unusual_is_told_the_right_way_round(
        self, column: int, off: float, said: str
    ) -> None:
        """Ranks that fell by 1 in the median, and λ that grew by 1: log ratios."""
        features = 0.05 * np.random.default_rng(11).standard_normal((24, 5))
        features += [0.0, 0.0, -1.0, 1.0, 0.0]
        features[5, column] += off
        assert most_unusual_feature(unusual_paths(features))[5] == said

    def test_the_head_whose_rank_fell_furthest_is_told_so(self) -> None:
        """On real weights: all heads lose rank, and one loses most."""
        root = Path(__file__).resolve().parents[1]
        (stack,) = load_revisions("neox-1m", "neox", root).stacks
        table = heads_table(evolve(stack))
        first = table.iloc[0]
        assert first["rank_change"] == table["rank_change"].min() < 0
        assert first["unusual_in"] == "effective rank fell further than others'"

    def test_of_two_steps_none_is_the_one_that_half_had_come_by(self) -> None:
        lam = drifting(np.random.default_rng(2), SMALL, (0, 99))
        found = evolve(revisions_of(lam, (0, 99), SMALL))
        (line,) = (one for one in summary(found) if "left their first class" in one)
        assert re.match(r"[1-9]\d* of 10 heads left", line)
        assert not any("half of them" in one for one in summary(found))

    def test_features(self) -> None:
        times = np.array([0.0, 1.0, 3.0])
        travelled = np.array([[1.0, 0.0], [3.0, 0.0]])
        rank, largest = np.array([[8.0, 4], [6, 4], [4, 4]]), np.array([[1.0, 1], [2, 1], [4, 1]])
        labels = np.array([[0, 0], [1, 0], [0, 0]])
        features = path_features(times, travelled, rank, largest, labels)
        # Half of 4 is done a third of the way from time 1 to time 3.
        expected = [np.log(4), 1 + 2 / 3, -np.log(2), np.log(4), np.sqrt(2)]
        np.testing.assert_allclose(features[0], expected)
        assert np.isnan(features[1]).all()

    def test_affine_changes_of_features_do_not_matter(self) -> None:
        features = np.random.default_rng(4).normal(size=(40, 5))
        one, two = unusual_paths(features), unusual_paths(3.0 + 10.0 * features)
        np.testing.assert_allclose(one.distance, two.distance, rtol=1e-6)

    def test_a_head_without_a_path_and_a_feature_without_variance(self) -> None:
        features = np.random.default_rng(5).normal(size=(30, 5))
        features[:, 4] = 1.0
        features[3] = np.nan
        found = unusual_paths(features)
        assert np.isnan(found.p_values[3])
        assert found.rank[3] == 30
        assert np.isfinite(np.delete(found.p_values, 3)).all()
        assert np.isnan(found.z[:, 4]).all()

    def test_too_few_heads_and_equal_ones(self) -> None:
        few = unusual_paths(np.random.default_rng(6).normal(size=(FEWEST_HEADS - 1, 5)))
        assert np.isnan(few.p_values).all()
        assert few.note == "wanted 8 heads to tell which of their paths are unusual, found 7"
        alike = unusual_paths(np.ones((20, 5)))
        assert np.isnan(alike.q_values).all()
        assert alike.note == "no two paths differ"


class TestFigures:
    @pytest.mark.parametrize("case", ["no null", "dead head", "no head moves", "one head"])
    def test_whatever_the_heads_figures_are_drawn(self, case: str) -> None:
        shape = (
            dataclasses.replace(SMALL, layers=1, heads=1, kv_heads=1)
            if case == "one head"
            else SMALL
        )
        lam = drifting(np.random.default_rng(9), shape, (0, 9, 99))
        if case == "dead head":
            lam[0, 0] = lam[:, -1] = 0.0
        if case == "no head moves":
            lam[:] = lam[0]
        n_clusters = 2 if case == "one head" else 6
        found = evolve(revisions_of(lam, (0, 9, 99), shape), n_clusters=n_clusters)
        if case == "no null":
            nothing = np.full_like(found.labels, np.nan, dtype=np.float64)
            null = dataclasses.replace(found.null, n=0, divergence=np.nan, usual=np.nan)
            found = dataclasses.replace(found, null=null, p_untrained=nothing, n_outliers=nothing)
        told = any("path" in line for line in summary(found))
        assert told == (case not in ("no head moves", "one head"))
        river, maps, densities, paths = drawn(found)
        n_classes = len(found.classes)
        # Two axes of time, and a panel a class, of bars that are its histogram.
        assert len(river.axes) - len(hidden(river)) == 2 + n_classes
        for ax, group in zip(river.axes[2:], found.classes, strict=False):
            np.testing.assert_allclose([bar.get_height() for bar in ax.patches], group.mean)
        known = case != "no null"
        shown = [ax for ax in maps.axes if ax.images]
        assert len(shown) == (6 if known else 4)
        layer = found.heads["layer"].to_numpy()
        for ax in shown:
            assert ax.images[0].get_array().shape == (len(set(layer)), 3)
        from_start = shown[2].images[0].get_array()
        unit = found.null.divergence if known else 1.0
        for row, number in zip(from_start, sorted(set(layer)), strict=True):
            of_layer = found.from_start[:, layer == number].mean(1) / unit
            np.testing.assert_allclose(np.ma.filled(row, np.nan), of_layer)
        # A row a layer and a column a step.
        assert len(densities.axes) == 3 * len(set(layer))
        away, ways, _ = paths.axes
        named = min(6, int(np.isfinite(found.unusual.distance).sum()))
        assert sum(line.get_linewidth() > 1.5 for line in away.lines) == named
        assert len(ways.lines) == len(layer) + named
        assert (ways.get_legend() is None) == (named == 0)
        at = np.array([line.get_ydata() for line in away.lines[: len(layer)]])
        np.testing.assert_allclose(at, found.from_start.T / unit)
        assert np.isnan(found.unusual.q_values).all() == (case in ("no head moves", "one head"))
        assert len(list(write_evolution(found))) == 8


def drawn(evolution: Evolution) -> list[Figure]:
    return [draw(evolution, "a title") for draw, _ in FIGURES.values()]


def hidden(figure: Figure) -> list[Any]:
    return [ax for ax in figure.axes if not ax.get_visible()]


class TestClasses:
    def test_more_classes_than_heads_differ_are_refused(self) -> None:
        """As by other commands: each head at each step would be a class, and all leave theirs."""
        revisions = revisions_of(drifting(np.random.default_rng(2), SMALL, (0, 99)), (0, 99), SMALL)
        with pytest.raises(TaxonomyError, match=r"2 steps.*into 21 .*Choose between 1 and 20 with"):
            evolve(revisions, n_clusters=21)


class TestRevisions:
    def test_in_order_of_step_and_the_newest_last(self) -> None:
        lam = drifting(np.random.default_rng(7), SMALL, (0, 1, 2, 3))
        write_revisions(Path(), lam, ("step1000", "step2", "", "step10"), shape=SMALL)
        loaded = load_revisions("model", "mine")
        assert loaded.stacks[0].names == ("step2", "step10", "step1000", "main")
        assert loaded.stacks[0].steps == (2, 10, 1000, None)
        found = evolve(loaded.stacks[0], n_clusters=2)
        assert "main has no known step" in found.notes[0]
        table = heads_table(found)
        never = table["left_class_revision"] == ""
        main_or_never = table["left_class_revision"].isin(["", "main"])
        assert (table["left_class_step"].isna() == main_or_never).all()
        assert (table["first_class"] == table["last_class"])[never].all()

    def test_the_newest_is_left_out_where_it_is_the_last_step(self) -> None:
        lam = drifting(np.random.default_rng(7), SMALL, (0, 1, 2))
        write_revisions(Path(), lam[[0, 2, 2]], ("step0", "step9", "main"), shape=SMALL)
        loaded = load_revisions("model", "mine")
        assert loaded.stacks[0].names == ("step0", "step9")
        assert loaded.notes == ("main is left out: its spectra are those of step9",)

    def test_what_has_no_step_or_cannot_be_read_is_named(self) -> None:
        lam = drifting(np.random.default_rng(7), SMALL, (0, 1, 2, 3))
        write_revisions(Path(), lam, ("step0", "step5", "step7", "tidy"), shape=SMALL)
        write_revisions(Path(), lam[:1], ("step5-tokens9B",), shape=SMALL)
        Path("data/mine/model@step7.safetensors").write_bytes(b"gone")
        loaded = load_revisions("model", "mine")
        assert loaded.stacks[0].names == ("step0", "step5")
        assert loaded.notes == (
            "tidy is left out: its name tells of no training step",
            "step5-tokens9B is left out: it is of the same step as step5",
        )
        assert list(loaded.failures) == ["mine/model@step7"]

    def test_named_by_family_by_id_and_with_a_revision(self) -> None:
        lam = drifting(np.random.default_rng(7), SMALL, (0, 1))
        write_revisions(Path(), lam, ("step0", "step1"), shape=SMALL)
        model_id = load_metadata("data/mine/model@step0.safetensors")["model_id"]
        for ref in ("model", "mine/model", "model@step0", model_id, f"{model_id}@step1"):
            assert load_revisions(ref).stacks[0].names == ("step0", "step1")
        shutil.copytree("data/mine", "data/yours")
        with pytest.raises(StudyError, match="in several families, mine, yours"):
            load_revisions("model")
        assert load_revisions("model", "yours").stacks[0].sets[0].family == "yours"

    def test_what_is_published_or_begun_and_not_there(self) -> None:
        lam = drifting(np.random.default_rng(7), SMALL, (0, 1, 2, 3))
        write_revisions(Path(), lam, ("step0", "step1", "step2", "step8"), shape=SMALL)
        model_id = load_metadata("data/mine/model@step0.safetensors")["model_id"]
        Path("own").mkdir()
        Path("own/mine.toml").write_text(
            'name = "mine"\ntitle = "Mine"\ndescription = "One."\nlicense = "mit"\n'
            f'[[models]]\nid = "{model_id}"\nparameters = 1\ncheckpoints = {{ revisions = '
            '[{ pattern = "step{step}", first = 0, last = 64, every = 1 }] }\n'
        )
        for stem in ("model@step4", "model@step8", "other@step9", "model@step5~random-0"):
            Path(f"data/mine/.{stem}.unfinished").mkdir()
        loaded = load_revisions("model", catalog="own")
        assert loaded.notes == (
            "4 of the 65 published checkpoints are surveyed",
            "begun and not whole: step4; the command that began them goes on with them",
        )

    def test_a_choice_of_checkpoints_is_no_lack(self) -> None:
        published = [f"step{step}" for step in range(1000)]
        some = choose_checkpoints(published, "log")
        assert absence(some, published, []) == [
            f"{len(some)} of the 1000 published checkpoints are surveyed"
        ]
        assert absence(published, published, []) == []
        assert absence(["mine"], published, []) == []
        (said,) = absence([name for name in some if name != "step64"], published, [])
        assert said.endswith("; --checkpoints log would add step64")
        (said,) = absence(published[:-7], published, [])
        assert said.endswith("would add step993, step994, step995, step996, step997 and 2 more")

    def test_steps_that_are_absent_from_a_grid(self) -> None:
        def said(*steps: int, begun: Sequence[str] = (), published: Sequence[str] = ()) -> str:
            names = ["main", *(f"step{step}" for step in steps)]
            return "; ".join(absence(names, published, begun))

        grid = "the surveyed steps look like every 100 from {} on: {} absent"
        assert said(400, 0, 100, 200) == grid.format(0, "300 is")
        assert said(500, 600, 700, 1000) == grid.format(500, "800, 900 are")
        many = said(*range(0, 1500, 100), 2500)
        assert many == grid.format(0, "1500, 1600, 1700, 1800, 1900 and 5 more are")
        begun = "begun and not whole: step300; the command that began them goes on with them"
        assert said(0, 100, 200, 400, begun=["step300"]) == begun
        no_grid = (
            *((0, 100, 200, 300), (0, 100, 300)),  # whole; too few
            *((0, 100, 200, 400, 700), (0, 100, 200, 450)),  # other gaps; no multiples
            (0, 10, 20, 10**15),  # nearly all of it absent
        )
        for steps in no_grid:
            assert said(*steps) == ""
        # Steps even in their logarithm, as of `--checkpoints log` and of training runs.
        for n in range(2, 20):
            assert said(0, *(2**i for i in range(n))) == ""
            assert said(0, *(2**i for i in range(3, 3 + n))) == ""
            assert said(0, *(2**i for i in range(n)), 1000, 2000, 3000) == ""
            assert said(*dict.fromkeys(round(1.44**i) for i in range(n))) == ""
        # What a catalogue lists is told of by the catalogue; steps of stages begin anew.
        assert "look like" not in said(0, 100, 200, 400, published=["step0", "step400"])
        assert absence([f"stage1-step{step}" for step in (0, 100, 200, 400)], [], []) == []

    def test_steps_of_a_grid_are_told_by_the_command(self) -> None:
        lam = drifting(np.random.default_rng(7), SMALL, (0, 1, 2, 3))
        steps = ("step0", "step100", "step200", "step400")
        write_revisions(Path(), lam, steps, shape=SMALL)
        result = CliRunner().invoke(main, ["evolve", "model"])
        assert result.exit_code == 0, result.output
        assert "Note: the surveyed steps look like every 100" in result.stderr

    def test_one_revision(self) -> None:
        write_revisions(
            Path(),
            drifting(np.random.default_rng(7), SMALL, (0, 1)),
            ("step0", "tidy"),
            shape=SMALL,
        )
        with pytest.raises(StudyError, match=r"at least two revisions of model, found one \(mine/"):
            load_revisions("model", "mine")

    def test_other_shapes(self) -> None:
        lam = drifting(np.random.default_rng(7), SMALL, (0, 1))
        write_revisions(Path(), lam, ("step0", "step1"), shape=SMALL)
        other = dataclasses.replace(SMALL, heads=2, kv_heads=2, layers=5)
        write_revisions(Path(), lam[:1], ("step2",), shape=other)
        with pytest.raises(StudyError) as err:
            load_revisions("model", "mine")
        assert "step0, step1: 2 layers × 5 heads of d_head 16, d_model 128" in str(err.value)
        assert "step2: 5 layers × 2 heads" in str(err.value)

    def test_no_such_model_names_those_there_are(self) -> None:
        write_revisions(
            Path(),
            drifting(np.random.default_rng(7), SMALL, (0, 1)),
            ("step0", "step1"),
            shape=SMALL,
        )
        with pytest.raises(SpectraFileError, match=r"no spectra of modle .*: model \(2\)\."):
            load_revisions("modle", "mine")

    def test_a_circuit_that_none_has(self) -> None:
        write_revisions(
            Path(),
            drifting(np.random.default_rng(7), SMALL, (0, 1)),
            ("step0", "step1"),
            shape=SMALL,
        )
        with pytest.raises(NoSuchSpectraError, match=r"None of 2 .* no ov raw spectra, but"):
            load_revisions("model", "mine", circuit="ov")


def frames_of(page: str) -> dict[str, Any]:
    """What the script of a moving page draws from."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    return dict(json.loads(data))


class TestCommand:
    def run(self, *args: str) -> Result:
        return CliRunner().invoke(main, ["evolve", "model", "--family", "mine", *args])

    def test_writes_tables_figures_and_what_moves(self) -> None:
        steps = (0, 3, 30)
        lam = drifting(np.random.default_rng(8), SMALL, steps)
        write_revisions(Path(), lam, [f"step{step}" for step in steps], shape=SMALL)
        result = self.run("--clusters", "3")
        assert result.exit_code == 0, result.output
        assert "10 heads at 3 steps, step0 to step30" in result.output
        folder = Path("plots/evolution/mine")
        suffixes = (".csv", "_densities.png", "_heads.csv", "_maps.png", "_moving.gif")
        wanted = {f"model{s}" for s in (*suffixes, "_moving.html", "_paths.png", "_river.png")}
        wanted |= {f"model_{name}.md" for name in FIGURES}
        assert {path.name for path in folder.iterdir()} == wanted
        table = pd.read_csv(folder / "model.csv")
        assert len(table) == 30
        assert table["step"].unique().tolist() == list(steps)
        spectrum = np.sort(lam[1, 4])[::-1]
        row = table[(table["step"] == 3) & (table["layer"] == 0) & (table["head"] == 4)].iloc[0]
        assert row["MAX"] == pytest.approx(spectrum[0], rel=1e-5)
        share = spectrum / spectrum.sum()
        rank = np.exp(-(share * np.log(share)).sum())
        assert row["effective_rank_lambda"] == pytest.approx(rank, rel=1e-5)
        heads = pd.read_csv(folder / "model_heads.csv")
        assert heads["unusual"].tolist() == list(range(1, 11))
        with Image.open(io.BytesIO((folder / "model_moving.gif").read_bytes())) as gif:
            assert getattr(gif, "n_frames", 1) == 3
        page = (folder / "model_moving.html").read_text()
        assert not re.search(r"https?:|<link|src=", page)
        frames = frames_of(page)["frames"]
        assert [one["label"] for one in frames] == [f"step{step}" for step in steps]
        found = evolve(load_revisions("model").stacks[0], n_clusters=3)
        for one, histograms in zip(frames, found.histograms, strict=True):
            heights = np.frombuffer(base64.b64decode(one["heads"]), np.uint8).reshape(10, -1)
            # Bytes are 250ths of the axis, and what is above it is cut.
            known = np.minimum(histograms, one["top"] * 255 / 250)
            np.testing.assert_allclose(
                heights * one["top"] / 250, known, atol=0.51 * one["top"] / 250
            )
        before = {path: path.read_bytes() for path in folder.iterdir()}
        shutil.rmtree(folder)
        assert self.run("--clusters", "3").exit_code == 0
        assert {path: path.read_bytes() for path in folder.iterdir()} == before

    def test_the_rest_goes_on_where_a_step_is_missing(self) -> None:
        lam = drifting(np.random.default_rng(8), SMALL, (0, 3, 30))
        write_revisions(Path(), lam, ("step0", "step3", "step30"), shape=SMALL)
        Path("data/mine/model@step3.safetensors").write_bytes(b"gone")
        result = self.run()
        assert result.exit_code == 1
        assert "mine/model@step3" in result.stderr
        assert "Traceback" not in result.stderr
        table = pd.read_csv("plots/evolution/mine/model.csv")
        assert table["step"].unique().tolist() == [0, 30]
