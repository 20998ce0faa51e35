"""A family over its sizes: planted slopes found, none where there is none, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image
from planted_heads import heads_of, write_heads
from train_neox import ORGANISATION, Plan
from train_neox import SIZES as SIZES_OF_NEOX
from transformers import GPTNeoXForCausalLM

from qk_taxonomy.catalog import find_family, load_families
from qk_taxonomy.cli import main
from qk_taxonomy.errors import HypothesisError, SpectraFileError
from qk_taxonomy.hypotheses.table import COLUMNS
from qk_taxonomy.records import PREDECESSOR_FORMULA, Family
from qk_taxonomy.statistics.moments import STATISTICS
from qk_taxonomy.statistics.slopes import (
    LEAST_SQUARES,
    MEAN_SLOPE,
    THEIL_SEN,
    mean_slope,
    slopes_against,
)
from qk_taxonomy.studies.sizes import (
    BY_DEPTH,
    BY_SIZE,
    UNTRAINED_BY_SIZE,
    family_sizes,
    size_trends,
    summary,
    told_slope,
)

Array = NDArray[np.float64]

SIZES = (70e6, 160e6, 410e6, 1.0e9, 2.8e9)

IDS = tuple(f"made/m{i}" for i in range(len(SIZES)))

LABELS = ("70M", "160M", "410M", "1B", "2.8B")

FAMILY = """
name = "made"
title = "Made up"
description = "Planted spectra."
license = "none"
"""


def qk(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def planted(
    seed: int, size: float, *, by_depth: float = 0.0, by_size: float = 0.0, n_layers: int = 8
) -> Array:
    """λ (layers, 4, 16) whose ln mean rises by ``by_depth`` over the depth, and by ``by_size`` for
    every factor of ten in ``size``.
    """
    rng = np.random.default_rng(seed)
    depth = np.linspace(0, 1, n_layers)[:, None, None]
    level = by_depth * depth + by_size * np.log10(size / 1e9) + 0.02 * rng.standard_normal()
    heads = rng.gamma(3.0, 1.0, (n_layers, 4, 16))
    heads /= heads.mean(-1, keepdims=True)
    return -np.sort(-heads * np.exp(level + 0.02 * rng.standard_normal(heads[..., :1].shape)))


def find_neox(root: Path) -> Family:
    return find_family("neox", load_families(root / "tests/neox"))


def catalogue(root: Path) -> Path:
    entries = "".join(
        f'[[models]]\nid = "made/m{i}"\nparameters = {int(size)}\nlicense = "none"\n'
        for i, size in enumerate(SIZES)
    )
    (root / "catalogue").mkdir()
    (root / "catalogue/made.toml").write_text(FAMILY + entries)
    return root / "catalogue"


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """Five sizes, whose ln mean λ rises by 2 with depth and falls by 1 a factor of ten."""
    for i, size in enumerate(SIZES):
        lam = planted(i, size, by_depth=2.0, by_size=-1.0, n_layers=6 + 2 * i)
        write_heads(tmp_path, f"made/m{i}", lam)
    return tmp_path


class TestSlopes:
    def test_mean_slope_is_a_one_sample_t_test(self) -> None:
        slopes = np.array([0.4, 1.1, 0.7, np.nan, 0.9])
        found = mean_slope(slopes)
        oracle = sm.stats.DescrStatsW(slopes[np.isfinite(slopes)])
        assert found.effect == pytest.approx(oracle.mean)
        assert (found.low, found.high) == pytest.approx(oracle.tconfint_mean(0.05))
        assert found.p_value == pytest.approx(oracle.ttest_mean(0.0)[1])
        assert found.n == 4
        assert "1 of 5 models left out" in found.note

    def test_slopes_against_is_ordinary_least_squares(self) -> None:
        rng = np.random.default_rng(0)
        x = np.linspace(7.8, 9.5, 7)
        y = 3.0 - 0.5 * x + 0.1 * rng.standard_normal(7)
        least, median = slopes_against(x, y)
        oracle = sm.OLS(y, sm.add_constant(x)).fit()
        assert least.effect == pytest.approx(oracle.params[1])
        assert (least.low, least.high) == pytest.approx(tuple(oracle.conf_int()[1]))
        assert least.p_value == pytest.approx(oracle.pvalues[1])
        pairs = [(y[j] - y[i]) / (x[j] - x[i]) for i in range(7) for j in range(i)]
        assert median.effect == pytest.approx(np.median(pairs))
        assert median.low < -0.5 < median.high
        # One model that is far off moves the second little.
        y[-1] += 50
        least, robust = slopes_against(x, y)
        assert abs(robust.effect - median.effect) < 0.5 < abs(least.effect)

    def test_refused_below_three_models_and_of_one_size(self) -> None:
        x, y = np.arange(2.0), np.arange(2.0)
        for found in (mean_slope(y), *slopes_against(x, y)):
            assert "2 models are too few (wanted 3)" in found.note
            assert np.isnan([found.effect, found.p_value]).all()
        for found in slopes_against(np.ones(4), np.arange(4.0)):
            assert "one size" in found.note
            assert np.isnan(found.effect)
        assert np.isnan(slopes_against(np.arange(3.0), np.array([1.0, 2.0, 4.0]))[1].low)

    def test_calibration(self) -> None:
        """Without a slope, one test in twenty finds one, of three models as of eight."""
        rng = np.random.default_rng(1)
        for n in (3, 8):
            x = np.sort(rng.uniform(8, 11, n))
            p_values = np.array(
                [
                    (mean_slope(y).p_value, slopes_against(x, y)[0].p_value)
                    for y in rng.standard_normal((600, n))
                ]
            )
            share = (p_values <= 0.05).mean(0)
            assert ((share > 0.03) & (share < 0.075)).all(), (n, share)


class TestTrends:
    def test_planted_slopes(self, family: Path) -> None:
        found = family_sizes("made", family, catalog=catalogue(family))
        (trends,) = found.trends
        assert [heads.model for heads in trends.models] == [f"m{i}" for i in range(5)]
        np.testing.assert_allclose(trends.parameters, SIZES)
        assert tuple(found.rows.columns) == COLUMNS
        rows = found.rows.set_index(["statistic", "method"])
        assert len(rows) == 3 * len(STATISTICS)
        depth = rows.loc[("MEAN", MEAN_SLOPE)]
        assert depth["low"] < 2.0 < depth["high"]
        assert depth["effect"] == pytest.approx(2.0, abs=0.1)
        least, median = (rows.loc[("MEAN", method)] for method in (LEAST_SQUARES, THEIL_SEN))
        assert least["effect"] == pytest.approx(-1.0, abs=0.1)
        assert median["effect"] == pytest.approx(-1.0, abs=0.1)
        for row in (depth, least):
            assert row["q_value"] <= 0.05
            assert row["n"] == 5
        # What scale does not touch has neither slope.
        shape = rows.loc["effective_rank_lambda"]
        assert (shape["q_value"].dropna() > 0.05).all()

    def test_depth_slope_spans_the_whole_model(self, tmp_path: Path) -> None:
        """However many layers, and although early ones are left out of the line."""
        sets = [
            heads_of(write_heads(tmp_path, f"f/{n}", planted(n, 1e9, by_depth=3.0, n_layers=n)))
            for n in (4, 14, 30)
        ]
        trends = size_trends(sets, {})
        np.testing.assert_allclose(trends.slopes["MEAN"], 3.0, atol=0.15)
        assert not trends.by_size
        assert BY_SIZE not in set(trends.rows["hypothesis"])

    def test_models_of_unknown_size_are_left_out_of_slopes_with_size(self, family: Path) -> None:
        write_heads(family, "made/m9", planted(9, 1e9, by_depth=2.0))
        found = family_sizes("made", family, catalog=catalogue(family))
        (trends,) = found.trends
        assert [heads.model for heads in trends.models][-1] == "m9"
        by_size = trends.rows[trends.rows["hypothesis"] == BY_SIZE]
        assert set(by_size["n"]) == {5}
        assert set(by_size["note"]) == {""}
        (note,) = found.notes
        assert note.startswith("left out of slopes with parameters: the catalogue has no number")
        assert "for m9 (" in note

    def test_a_model_counts_once(self, family: Path) -> None:
        """Revisions and controls of a model are no models of their own."""
        for name in ("m0@step1000", "m0~random-0"):
            write_heads(family, f"made/{name}", planted(9, 1e9), model_id="made/m0")
        found = family_sizes("made", family, catalog=catalogue(family))
        assert [len(one.models) for one in found.trends] == [5]
        assert "m0" in {heads.model for heads in found.trends[0].models}
        assert found.notes == ()

    def test_of_models_with_revisions_alone_the_last_step_counts(self, family: Path) -> None:
        for path in sorted((family / "data/made").glob("*.safetensors")):
            for step in ("step0", "step9", "step10"):
                copy = path.with_name(f"{path.stem}@{step}.safetensors")
                copy.write_bytes(path.read_bytes())
            if path.stem != "m4":
                path.unlink()
        known = catalogue(family)
        found = family_sizes("made", family, catalog=known)
        last = [f"m{i}@step10" for i in range(4)]
        assert [heads.model for heads in found.trends[0].models] == [*last, "m4"]
        assert found.notes == (f"of models with revisions alone, the last: {', '.join(last)}",)
        early = family_sizes("made", family, revision="step0", catalog=known)
        assert [heads.model for heads in early.trends[0].models] == [
            f"m{i}@step0" for i in range(5)
        ]
        with pytest.raises(HypothesisError, match=r"trained apart at step3, found none\. `qk"):
            family_sizes("made", family, revision="step3")

    def test_imported_spectra_are_not_mixed_with_exact_ones(self, family: Path) -> None:
        formula = f'{{"formula": "{PREDECESSOR_FORMULA}"}}'
        write_heads(family, "made/old", planted(9, 1e9), provenance=formula)
        found = family_sizes("made", family)
        assert [len(one.models) for one in found.trends] == [5]
        assert any("1 imported" in note for note in found.notes)
        assert any("no slopes with parameters" in note and "m4" in note for note in found.notes)

    def test_refused(self, tmp_path: Path) -> None:
        for i in range(2):
            write_heads(tmp_path, f"few/m{i}", planted(i, 1e9))
        with pytest.raises(HypothesisError, match=r"want 3 models or more.*found 2 with qk raw"):
            family_sizes("few", tmp_path)
        with pytest.raises(SpectraFileError, match="no spectra of pythia"):
            family_sizes("pythia", tmp_path)
        # The rxnfp models are one that was trained further, twice.
        root = Path(__file__).resolve().parents[1]
        with pytest.raises(HypothesisError, match=r"found 1 with qk raw.*same training"):
            family_sizes("rxnfp", root)


class TestCommand:
    def test_page_tables_and_figures(self, family: Path) -> None:
        known = catalogue(family)
        done = qk("sizes", "--family", "made", "--data-root", family, "--catalog", known)
        assert done.exit_code == 0, done.output
        assert f"{BY_DEPTH}, per whole depth (q ≤ 0.05):\n" in done.stdout
        assert re.search(r"^ +\+\d[\d.]*  ln MIN: smallest λ$", done.stdout, re.MULTILINE)
        assert "d_model and d_head alone move slopes with parameters" in done.stdout
        assert "untrained:" not in done.stdout
        folder = family / "plots/sizes/made"
        page = (folder / "made.md").read_text()
        for name in ("made_depth.png", "made_parameters.png", "made_moving.gif"):
            assert f"]({name})" in page
            assert (folder / name).stat().st_size > 20_000
        with Image.open(folder / "made_moving.gif") as gif:
            assert getattr(gif, "n_frames", 1) == 5
        moving = (folder / "made_moving.html").read_text()
        order = [moving.index(f'"m{i}, {size}"') for i, size in enumerate(LABELS)]
        assert order == sorted(order)
        assert "| m0 | 70,000,000 | 6 | 4 | 4 | 16 | 64 |" in page
        models = pd.read_csv(folder / "made_models.csv")
        assert models["parameters"].tolist() == [int(size) for size in SIZES]
        np.testing.assert_allclose(models["MEAN_slope"], 2.0, atol=0.2)
        rows = pd.read_csv(folder / "made.csv")
        assert len(rows) == 3 * len(STATISTICS)
        mean = rows[(rows["statistic"] == "MEAN") & (rows["method"] == MEAN_SLOPE)].iloc[0]
        assert f"| ln MEAN: mean λ | {mean['effect']:.3g} [{mean['low']:.3g}, " in page

    def test_nothing_is_drawn_or_said_of_sizes_that_are_not_known(self, family: Path) -> None:
        done = qk("sizes", "--family", "made", "--data-root", family)
        assert done.exit_code == 0, done.output
        assert BY_SIZE not in done.stdout
        assert done.stderr.count("no slopes with parameters") == 1
        folder = family / "plots/sizes/made"
        assert not (folder / "made_parameters.png").exists()
        page = (folder / "made.md").read_text()
        assert "| statistic | slope with depth | q |\n" in page
        assert "left out" not in page
        assert page.count("no slopes with parameters") == 1

    def test_figures_of_an_earlier_run_are_not_left_beside_new_tables(self, family: Path) -> None:
        for path in (family / "data/made").glob("*.safetensors"):
            lam = planted(9, 1e9)
            write_heads(family, f"made/{path.stem}@step0", lam, model_id=f"made/{path.stem}")
        once = ("sizes", "--family", "made", "--data-root", family)
        known = ("--catalog", catalogue(family))
        assert qk(*once, *known, "--format", "png", "--format", "svg").exit_code == 0
        assert qk(*once, *known, "--revision", "step0").exit_code == 0
        folder = family / "plots/sizes/made"
        (folder / "made.ov.raw_depth.png").touch()
        others = (
            *("made_notes.md", "made_parameters.ods", "other_parameters.png"),
            "made.5_depth.png",  # of a revision or family with a dot in its name
        )
        for name in others:
            (folder / name).touch()
        before = {path.name for path in folder.iterdir()}
        assert qk(*once).exit_code == 0
        gone = before - {path.name for path in folder.iterdir()}
        assert gone == {
            "made.ov.raw_depth.png",
            *(f"made_parameters.{ending}" for ending in ("png", "svg", "md")),
        }
        assert (folder / "made@step0_parameters.png").is_file()

    def test_slopes_that_untrained_models_have_too_are_told(self, family: Path) -> None:
        """Planted: ln mean λ falls by half as much per factor of ten before training, and no model
        has a slope of its shape.
        """
        known = catalogue(family)
        for i, size in enumerate(SIZES):
            lam = planted(20 + i, size, by_size=-0.5, n_layers=6 + 2 * i)
            write_heads(family, f"made/m{i}@step0", lam, model_id=f"made/m{i}")
        (trends,) = family_sizes("made", family, catalog=known).trends
        rows = trends.rows.set_index(["hypothesis", "method", "statistic"])
        before = rows.loc[(UNTRAINED_BY_SIZE, LEAST_SQUARES, "MEAN")]
        assert before["effect"] == pytest.approx(-0.5, abs=0.1)
        trained = trends.rows.query("hypothesis == @BY_SIZE and method == @LEAST_SQUARES")
        trained = trained.set_index("statistic")
        assert trained.loc["MEAN", "note"] == f"also untrained: {before['effect']:+.3g}"
        assert trained.loc["effective_rank_lambda", "note"] == ""
        # Trained rows are corrected as without the others.
        alone = size_trends(trends.models, dict(zip(IDS, map(int, SIZES), strict=True)))
        assert not alone.untrained_known
        least = alone.rows[alone.rows["method"] == LEAST_SQUARES]
        np.testing.assert_allclose(least["q_value"], trained["q_value"])
        done = qk("sizes", "--family", "made", "--data-root", family, "--catalog", known)
        assert done.exit_code == 0, done.output
        effect = trained.loc["MEAN", "effect"]
        line = f"{effect:+.3g}  ln MEAN: mean λ; also untrained: {before['effect']:+.3g}\n"
        assert line in done.stdout
        assert "d_model and d_head alone" not in done.stdout
        folder = family / "plots/sizes/made"
        said = f"{before['effect']:.3g}".replace("-", "−")
        assert f"| also {said} [" in (folder / "made.md").read_text()
        assert '"Also untrained": the slope' in (folder / "made_parameters.md").read_text()
        table = pd.read_csv(folder / "made.csv")
        assert (table["hypothesis"] == UNTRAINED_BY_SIZE).sum() == len(STATISTICS)

    def test_untrained_models_are_wanted_of_all(self, family: Path) -> None:
        """And a slope of the other sign is no slope that both have."""
        for i, size in enumerate(SIZES):
            lam = planted(20 + i, size, by_size=0.5, n_layers=6 + 2 * i)
            write_heads(family, f"made/m{i}@step0", lam, model_id=f"made/m{i}")
        known = catalogue(family)
        found = family_sizes("made", family, catalog=known)
        (trends,) = found.trends
        assert trends.untrained_known
        assert not trends.rows["note"].str.contains("also").any()
        (mean,) = (line for line in summary(found) if "ln MEAN" in line and "; " in line)
        assert re.search(r"; untrained: \+0\.\d+ \(q = ", mean)
        early = family_sizes("made", family, revision="step0", catalog=known)
        assert early.trends[0].are_untrained
        assert not early.trends[0].untrained_known
        assert not any("d_model and d_head alone" in line for line in summary(early))
        (family / "data/made/m2@step0.safetensors").unlink()
        (trends,) = family_sizes("made", family, catalog=known).trends
        assert not trends.untrained_known

    def test_theil_and_sen_are_named_where_they_disagree(self, tmp_path: Path) -> None:
        """One model of five far off the line of the others."""
        for i, size in enumerate(SIZES):
            off = 3.0 if i == 0 else 0.0
            lam = planted(i, size, by_size=1.0) * np.exp(-off)
            write_heads(tmp_path, f"made/m{i}", lam)
        found = family_sizes("made", tmp_path, catalog=catalogue(tmp_path))
        rows = found.rows.set_index(["hypothesis", "method", "statistic"])
        row = found.rows[(found.rows["statistic"] == "MEAN")].iloc[1].copy()
        median = rows.loc[(BY_SIZE, THEIL_SEN, "MEAN"), "effect"]
        assert row["effect"] > 1.5 * median
        said = told_slope(row, found.rows)
        assert said == f"{row['effect']:>+8.3g}  ln MEAN: mean λ (Theil–Sen {median:+.3g})"

    def test_a_real_family(self, tmp_path: Path) -> None:
        """The sizes of tests/train_neox.py: its catalogue tells what transformers counts."""
        root = Path(__file__).resolve().parents[1]
        known = {entry.id: entry.parameters for entry in find_neox(root).models}
        for size, n_heads in SIZES_OF_NEOX.items():
            with torch.device("meta"):
                model = GPTNeoXForCausalLM(Plan(n_heads=n_heads).config)
            assert known[f"{ORGANISATION}/{size}"] == model.num_parameters()
        found = family_sizes("neox", root, conventions=("raw",), catalog=root / "tests/neox")
        assert [len(one.models) for one in found.trends] == [5, 5]
        rows = found.trends[0].rows
        rows = rows[rows["hypothesis"] != UNTRAINED_BY_SIZE].set_index(["statistic", "method"])
        rank = rows.loc[("effective_rank_lambda", LEAST_SQUARES)]
        medians = [
            heads.statistics["effective_rank_lambda"].groupby(heads.layer).median().median()
            for heads in found.trends[0].models
        ]
        slope = np.polyfit(np.log10(found.trends[0].parameters), medians, 1)[0]
        assert rank["effect"] == pytest.approx(slope)
        # What is geometry is said to be: step 0 of each is surveyed too.
        early = family_sizes(
            "neox", root, conventions=("raw",), revision="step0", catalog=root / "tests/neox"
        )
        first = early.trends[0].rows.set_index(["statistic", "method"])
        untrained = first.loc[("effective_rank_lambda", LEAST_SQUARES), "effect"]
        assert untrained > 2 * slope
        assert rank["note"] == f"also untrained: {untrained:+.3g}"

    def test_one_family_of_two_fails(self, family: Path) -> None:
        done = qk("sizes", "--family", "made", "--family", "opt", "--data-root", family)
        assert done.exit_code == 1
        assert "opt: There are no spectra of opt" in done.stderr
        assert (family / "plots/sizes/made/made.md").is_file()

    def test_a_family_is_wanted(self) -> None:
        done = qk("sizes")
        assert done.exit_code == 2
        assert "--family NAME" in done.stderr
