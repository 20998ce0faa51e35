"""Figures of the superposition study: what they show, at any size, and that no text covers another.

Warnings are errors here: a glyph that the font lacks, or a layout that collapsed, is a failure.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image
from readable import assert_readable
from synthetic_superposition import TARGETS, superposition_run

from qk_taxonomy.errors import StudyError
from qk_taxonomy.figures.parts import quartiles
from qk_taxonomy.figures.superposition.alignment import TrainingCourse, alignment_figure
from qk_taxonomy.figures.superposition.answers import answer_figure
from qk_taxonomy.figures.superposition.arrows import Plane, arrow_figure
from qk_taxonomy.figures.superposition.decomposition import DecomposedLogits, decomposition_figure
from qk_taxonomy.figures.superposition.dimensionality import dimensionality_figure
from qk_taxonomy.figures.superposition.gram import gram_figure
from qk_taxonomy.figures.superposition.losses import loss_figure
from qk_taxonomy.figures.superposition.norms import norm_figure
from qk_taxonomy.figures.superposition.parts import sparsity_label
from qk_taxonomy.figures.superposition.phases import PhaseMap, phase_figure
from qk_taxonomy.figures.superposition.singular import singular_figure
from qk_taxonomy.figures.superposition.tegum import FactorShares, tegum_figure
from qk_taxonomy.outputs import drawing
from qk_taxonomy.outputs.superposition import (
    write_answer,
    write_phase_diagram,
    write_superposition,
)
from qk_taxonomy.statistics.decomposition import (
    SingularVectors,
    SparseDecomposition,
    sparse_decomposition,
)
from qk_taxonomy.statistics.findings import Finding
from qk_taxonomy.studies.superposition.answers import Answer, Effects
from qk_taxonomy.studies.superposition.config import Target
from qk_taxonomy.studies.superposition.measured import MeasuredRun
from qk_taxonomy.studies.superposition.measures import (
    dimensions_per_feature,
    feature_dimensionality,
    feature_norms,
    gram,
    interference,
)
from qk_taxonomy.studies.superposition.records import SuperpositionRun
from qk_taxonomy.studies.superposition.tables import tables

pytestmark = pytest.mark.filterwarnings("error")

TITLE = "planted: a run that was made up, n = 30, m = 15, r = 10, seed 0 of 20"

#: More targets than a head has dimensions, some of one feature.
MANY = tuple(Target(number % 9, (3 * number + 1) % 15, 1.0) for number in range(14))


@functools.cache
def run_of(shape: str) -> SuperpositionRun:
    if shape == "3 in a plane":
        return superposition_run((1.0, 0.3, 0.05), n=5, m=2, r=2, targets=(Target(0, 1, 1.0),))
    if shape == "12 of 20 seeds":
        return superposition_run(tuple(np.geomspace(1, 1e-3, 12)), n_seeds=20, targets=MANY)
    if shape == "1 frozen":
        return superposition_run((0.1,), n=8, m=4, r=1, training="frozen", targets=TARGETS[:1])
    return superposition_run(tuple(50.0 ** -np.linspace(0, 1, 7)), n_seeds=2)


SHAPES = ("7 of 2 seeds", "3 in a plane", "12 of 20 seeds", "1 frozen")


@pytest.fixture(params=["7 of 2 seeds", "1 frozen"])
def measured(request: pytest.FixtureRequest) -> MeasuredRun:
    return MeasuredRun(run_of(request.param))


def shown(measured: MeasuredRun) -> tuple[np.ndarray, list[str], list[Sequence[Target]]]:
    """The instances of the first seed, their headings and their targets."""
    run = measured.run
    found = measured.of_seed(0)
    headings = [sparsity_label(run.instances.probability[number]) for number in found]
    return found, headings, [run.targets[number] for number in found]


def images(axes: Sequence[Axes]) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for ax in axes for image in ax.images]


def marked(ax: Axes) -> list[float]:
    """The features that are marked above a panel."""
    return [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "v"]


class TestWhatIsDrawn:
    def test_losses(self, measured: MeasuredRun) -> None:
        run = measured.run
        fig = assert_readable(lambda: loss_figure(run, TITLE))
        left, right = fig.axes
        densest = run.instances.probability == run.instances.probability.max()
        median = np.median(run.reconstruction_loss[:4, densest], axis=1)
        np.testing.assert_allclose(left.lines[0].get_ydata()[:4], median)
        assert (
            len(left.collections)
            == len(right.collections)
            == (len(run.config.probabilities) if run.config.n_seeds > 1 else 0)
        )
        # Step 0 has a place on a logarithmic axis.
        assert left.lines[0].get_xdata()[0] == left.get_xlim()[0] > 0
        legend = [text.get_text() for text in fig.legends[0].get_texts()]
        if run.config.training == "frozen":
            assert legend[-1] == "representations are frozen from here on"
            assert left.lines[-1].get_xdata() == [1000, 1000]
            losses, drawn = run.pair_loss[run.steps >= 1000, 0], right.lines[0].get_ydata()
            assert drawn[0] == losses[0]
            # The last points are means of many.
            assert len(drawn) < 130 < len(losses)
            assert drawn[-1] == pytest.approx(losses[-10:].mean(), rel=0.3)
            assert "from step 1,000 on" in right.get_xlabel()
        else:
            assert len(legend) == len(run.config.probabilities)

    def test_norms_and_products(self, measured: MeasuredRun) -> None:
        found, headings, targets = shown(measured)
        w = measured.last.w[found].astype(float)
        norms, shared = feature_norms(w), interference(w)
        fig = assert_readable(lambda: norm_figure(headings, norms, shared, targets, TITLE))
        for ax, heading, norm, share in zip(fig.axes, headings, norms, shared, strict=False):
            assert ax.get_title() == heading
            np.testing.assert_allclose([bar.get_height() for bar in ax.patches], norm)
            # The colours are those of the scale at the side.
            scale = fig.axes[-1]._colorbar.mappable
            np.testing.assert_allclose(
                [bar.get_facecolor() for bar in ax.patches], scale.to_rgba(share)
            )
            assert set(marked(ax)) == {
                feature for target in targets[0] for feature in (target.i, target.j)
            }
        product, bias = gram(w), measured.last.bias[found]
        fig = assert_readable(lambda: gram_figure(headings, product, bias, targets, TITLE))
        drawn = images(fig.axes[: len(headings)])
        np.testing.assert_allclose(drawn[::2], product)
        np.testing.assert_allclose(np.stack(drawn[1::2])[..., 0], bias)

    def test_singular_vectors_by_features(self, measured: MeasuredRun) -> None:
        found, headings, targets = shown(measured)
        w = measured.last.w[found].astype(float)
        u, sigma, v = (one[-1, found] for one in measured.vectors)
        left, right = w.mT @ u, w.mT @ v
        fig = assert_readable(lambda: singular_figure(headings, left, right, sigma, targets, TITLE))
        rows = np.array(fig.axes[: 3 * len(headings)]).reshape(-1, 3)
        for number, row in enumerate(rows):
            np.testing.assert_allclose([bar.get_width() for bar in row[0].patches], sigma[number])
            np.testing.assert_allclose(images(row[1:]), [left[number].T, right[number].T])
            assert set(marked(row[1])) == {target.i for target in targets[number]}
            assert set(marked(row[2])) == {target.j for target in targets[number]}
            opaque = np.asarray(row[1].images[0].get_alpha())[:, 0] == 1
            np.testing.assert_array_equal(opaque, sigma[number] >= 0.01 * sigma[number, 0])

    def test_dimensionality(self, measured: MeasuredRun) -> None:
        run = measured.run
        w = measured.last.w.astype(float)
        values, means = feature_dimensionality(w), dimensions_per_feature(w)
        fig = assert_readable(
            lambda: dimensionality_figure(run.instances, values, means, run.targets, TITLE)
        )
        left, right = fig.axes
        probabilities = np.sort(run.config.probabilities)[::-1]
        np.testing.assert_allclose(left.lines[0].get_xdata(), 1 / probabilities)
        heights = np.concatenate([one.get_offsets()[:, 1] for one in right.collections])
        heights = heights.compressed()
        np.testing.assert_allclose(
            np.sort(heights[np.isfinite(heights)]), np.sort(values, axis=None)
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_all_that_is_written_of_a_run(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that are true, and figures that can be read, whatever the size."""

    def readable_bytes(fig: Figure, *_: object) -> bytes:
        return str(assert_readable(lambda: fig).get_suptitle()).encode()

    monkeypatch.setattr(drawing, "figure_bytes", readable_bytes)
    run = run_of(shape)
    config, last = run.config, run.snapshots[-1]
    names = [path.name for path in write_superposition(MeasuredRun(run), "root")]
    phases = ["training_representations.png", "training_heads.png"]
    assert names == [
        "instances.csv", "features.csv", "targets.csv", "singular_values.csv",
        "losses.png", "norms.png", "gram.png", "singular.png",
        *(["arrows.png"] if config.d_head > 1 else []),
        "dimensionality.png", "tegum.png",
        *(["training.png"] if config.training == "joint" else phases),
        *(["decomposition.png"] if config.d_head > 1 else []),
    ]  # fmt: skip
    folder = Path("root/plots/superposition/planted")
    captions = [name.replace(".png", ".md") for name in names if name.endswith(".png")]
    assert sorted([*names, *captions]) == sorted(path.name for path in folder.iterdir())
    title = (folder / "norms.png").read_text().replace("\n", " ").replace("\u00a0", " ")
    assert title == (
        f"planted: norms of features, n = {config.n_features}, m = {config.d_hidden}, "
        f"r = {config.d_head}, seed 0 of {config.n_seeds}"
    )
    n_instances = len(run.instances.seed)
    features = pd.read_csv(folder / "features.csv")
    assert len(features) == n_instances * config.n_features
    np.testing.assert_allclose(features["norm"], feature_norms(last.w).ravel(), atol=1e-5)
    targets = pd.read_csv(folder / "targets.csv")
    n_targets = len(config.targets)
    assert len(targets) == n_instances * n_targets
    assert targets["i"].tolist() == [target.i for target in config.targets] * n_instances
    if n_targets <= config.d_head:
        assert (targets[["left_cosine", "right_cosine"]] > 0.999).all(axis=None)
        np.testing.assert_allclose(targets["sigma"], targets["weight"], rtol=0.01)
    else:
        # A target without a singular vector of its own says so, and has no σ.
        planted = np.zeros((config.n_features, config.n_features))
        for target in config.targets[: config.d_head]:
            planted[target.i, target.j] += target.weight
        without = targets["singular_vector"] == 0
        assert without.sum() == n_instances * (n_targets - np.linalg.matrix_rank(planted))
        assert targets["sigma"][without].isna().all()


class TestArrows:
    def plane(self, **changed: object) -> Plane:
        features = np.array([[0.9, 0.1], [-0.2, 1.1], [np.nan, 0.0], [0.0, 0.0]])
        vectors = {"u₁": np.array([1.0, 0.0]), "v₁": np.array([0.95, -0.3]),
                   "u₂": np.array([-0.95, 0.1]), "v₂": np.array([-0.95, -0.1]),
                   "w": np.array([np.nan, 1.0])}  # fmt: skip
        plane = Plane("S = 0", features, vectors, ("h₁", "h₂"), (Target(0, 1), Target(2, 0)))
        return replace(plane, **changed)

    def test_tips_and_names(self) -> None:
        fig = assert_readable(lambda: arrow_figure([self.plane()], TITLE))
        (ax,) = fig.axes
        tips = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines
                if line.get_marker() == "o"]  # fmt: skip
        assert tips == [(0.9, 0.1), (-0.2, 1.1), (0.9, 0.1)]
        # Names of near vectors are written together, also across the end of the angles.
        assert sorted(text.get_text() for text in ax.texts) == ["u₂, v₂", "v₁, u₁"]
        (x,) = (text.get_position()[0] for text in ax.texts if "u₂" in text.get_text())
        assert x < -1

    @pytest.mark.parametrize("sides", [(True, False), (False, True)])
    def test_one_side_is_marked(self, sides: tuple[bool, bool]) -> None:
        plane = self.plane(sides=sides, targets=(Target(0, 1),))
        fig = assert_readable(lambda: arrow_figure([plane] * 5, TITLE))
        tips = [line.get_xdata()[0] for line in fig.axes[0].lines if line.get_marker() == "o"]
        assert tips == [0.9 if sides[0] else -0.2]
        assert len(fig.axes) == 5


class TestAlignment:
    def test_what_came_first(self) -> None:
        steps = np.array([0, 1, 10, 100, 1000])
        rising = np.linspace(0.1, 1.0, 5)[:, None] * np.ones(3)
        courses = [
            TrainingCourse("|cos| with u", np.stack([rising, rising]),
                           np.array([[10.0, 10.0, 100.0], [np.inf, np.inf, 10.0]]), "at 0.95"),
            TrainingCourse("orthogonality", np.stack([-rising, np.full_like(rising, np.nan)]),
                           np.array([[0.0, 0.0, 0.0], [np.nan, np.nan, np.nan]]), "at 0.9"),
            TrainingCourse("norm", 1.2 * np.stack([rising, rising])),
        ]  # fmt: skip
        headings = [sparsity_label(p) for p in (1.0, 0.1)]
        fig = assert_readable(
            lambda: alignment_figure(headings, steps, courses, TITLE, of="3 seeds")
        )
        first, second = fig.axes
        np.testing.assert_allclose(first.lines[0].get_ydata(), rising[:, 0])
        diamonds = [[line.get_xdata()[0] for line in ax.lines if line.get_marker() == "D"]
                    for ax in fig.axes]  # fmt: skip
        # Before training is at the left end; a median that never came is not drawn.
        assert diamonds == [[10.0, first.get_xlim()[0]], []]
        assert first.get_ylim()[0] < -1
        assert first.get_ylim()[1] > 1.2
        # One in three came in time: its quartile is drawn to the end.
        ends = [list(line.get_xdata()) for line in second.lines if len(line.get_xdata()) == 2]
        assert ends == [[10.0, 1000.0]]
        legend = [text.get_text() for text in fig.legends[0].get_texts()]
        assert legend == ["|cos| with u; ◆ above: at 0.95", "orthogonality; ◆ above: at 0.9",
                          "norm"]  # fmt: skip

    def test_one_snapshot(self) -> None:
        course = TrainingCourse("|cos|", np.full((1, 1, 1), 0.5))
        fig = assert_readable(lambda: alignment_figure(["S = 0"], [0], [course], "", of="1 seed"))
        assert fig.axes[0].lines[0].get_marker() == "o"


class TestPhases:
    @pytest.mark.parametrize(("n_ratios", "n_probabilities"), [(1, 1), (5, 7), (10, 12)])
    def test_cells_are_written_and_can_be_read(self, n_ratios: int, n_probabilities: int) -> None:
        values = np.random.default_rng(0).uniform(size=(n_ratios, n_probabilities))
        values[-1, -1] = np.nan
        maps = [PhaseMap("alignment", values), PhaseMap("share recovered", 1 - values)]
        ratios = np.linspace(1 / n_ratios, 1, n_ratios)
        probabilities = np.geomspace(1, 0.0005, n_probabilities)
        fig = assert_readable(lambda: phase_figure(ratios, probabilities, maps, TITLE, n_seeds=20))
        assert "20 seeds a cell" in fig.get_suptitle()
        ax = fig.axes[0]
        written = np.array([text.get_text() for text in ax.texts]).reshape(values.shape)
        assert written[-1, -1] == "–"
        for text, value in zip(written.ravel()[:-1], values.ravel()[:-1], strict=True):
            assert float(text) == pytest.approx(value, abs=0.0051)
        # r/m grows upwards.
        assert ax.get_ylim() == (-0.5, n_ratios - 0.5)
        image = ax.images[0]
        for text in ax.texts[:-1]:
            column, row = text.get_position()
            behind = image.to_rgba(np.array(values[int(row), int(column)]))
            light = [np.dot(to_rgba(one)[:3], (0.2126, 0.7152, 0.0722))
                     for one in (text.get_color(), behind)]  # fmt: skip
            assert abs(light[0] - light[1]) > 0.4


class TestTegum:
    def test_shares_and_marks(self) -> None:
        rng = np.random.default_rng(0)
        factors = (*((n,) for n in range(6)), (6, 21), (7, 8, 9), tuple(range(10, 21)))
        k = 3
        panel = FactorShares(
            "S = 0.9, targets apart", factors, (1,) * 7 + (2, 5), rng.uniform(size=(k, 9)),
            rng.uniform(size=(k, 9)), np.array([2.0, 1.0, np.nan]),
            (Target(2, 4), Target(7, 8), Target(28, 7)),
        )  # fmt: skip
        one = replace(panel, factors=factors[:1], dimensions=(1,), left=panel.left[:1, :1],
                      right=panel.right[:1, :1], singular_values=np.ones(1))  # fmt: skip
        fig = assert_readable(lambda: tegum_figure([panel, one, panel, panel], TITLE))
        ax = fig.axes[0]
        (drawn,) = images([ax])
        np.testing.assert_allclose(drawn[:, ::2], panel.left.T)
        np.testing.assert_allclose(drawn[:, 1::2], panel.right.T)
        names = [text.get_text() for text in ax.get_yticklabels()]
        assert names[6:] == ["6, 21: 1", "7, 8, 9: 2", "10, 11, … (11): 5"]
        assert [text.get_text() for text in ax.get_xticklabels()] == [
            "u₁", "v₁", "u₂", "v₂", "u₃", "v₃",
        ]  # fmt: skip
        rows = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"]
        # Feature 28 is in no factor.
        assert rows == [2, 4, 7, 7, 7]


def decomposed(n_pairs: int, k: int = 6, seed: int = 0) -> SparseDecomposition:
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((12, k)))[0] for _ in range(2))
    vectors = SingularVectors(u, np.geomspace(2.0, 0.05, k), v)
    h, g = rng.standard_normal((2, n_pairs, 12))
    h[0] = 0.0  # a logit of nothing
    return sparse_decomposition(vectors, h, g, n_draws=5, seed=seed)


class TestDecomposition:
    @pytest.mark.parametrize("n_groups", [1, 3, 12])
    def test_boxes_of_both_and_of_differences(self, n_groups: int) -> None:
        groups = [
            DecomposedLogits(sparsity_label(p), [decomposed(40, seed=0), decomposed(30, seed=1)])
            for p in np.geomspace(1, 0.01, n_groups)
        ]
        if n_groups > 1:
            groups[1] = DecomposedLogits("none", [])
        fig = assert_readable(lambda: decomposition_figure(groups, TITLE, share=0.9))
        assert fig.get_suptitle().endswith(
            "\n68 logits each" if n_groups == 1 else "\n0 to 68 logits each"
        )
        both = groups[0].decompositions
        observed = np.concatenate([one.sparseness[1:] for one in both])
        rotated = np.concatenate([one.rotated_sparseness[:, 1:].ravel() for one in both])
        means = np.concatenate([one.rotated_sparseness[:, 1:].mean(axis=0) for one in both])
        # Of a box, the median is the last of six lines: box apart, whiskers, caps, median.
        medians = [line.get_ydata()[0] for line in fig.axes[0].lines if line.get_color() == "black"
                   and len(set(line.get_ydata())) == 1 and line.get_linewidth() == 1.0]  # fmt: skip
        assert np.median(observed) in medians
        assert np.median(rotated) in medians
        share = f"{np.mean(observed < means):.0%}\nbelow 0"
        assert fig.axes[1].texts[0].get_text() == share
        assert "90%" in fig.axes[2].get_ylabel()


class TestAnswers:
    def test_effects_with_and_without_intervals(self) -> None:
        effects = (
            ("p = 1", Finding(0.184, -0.1, 0.31, n=20)),
            ("p = 0.02", Finding(0.9987, n=1)),
            ("p = 0.01", Finding(np.inf, 300.0, np.inf, n=8)),
            ("never trained", Finding(n=0)),
        )
        answer = Answer(
            "Do singular vectors recover features, and at which sparsity?",
            "Yes, at S ≥ 0.3: |cos| 0.998 [0.997, 0.999] over 20 seeds",
            (
                Effects("lesser |cos| of both sides", effects, 0.95, (0.5, 0.6, 0.7, np.nan)),
                Effects("steps", effects[:1]),
            ),
        )
        fig = assert_readable(lambda: answer_figure(answer, "planted"))
        first, second = fig.axes
        assert [text.get_text() for text in first.texts] == [
            "0.184 [−0.1, 0.31], 20 seeds", "0.9987, 1 seed", "never, 8 seeds",
            "no value, 0 seeds",
        ]  # fmt: skip
        (chance,) = (line for line in first.lines if line.get_marker() == "|")
        np.testing.assert_array_equal(chance.get_xdata(), [0.5, 0.6, 0.7, np.nan])
        assert len(second.lines) == 2  # an interval and its effect: there is no reference
        folder = Path("root/plots/superposition/planted")
        written = list(write_answer(answer, "planted", "root"))
        assert written == [folder / "answer.csv", folder / "answer.png"]
        table = pd.read_csv(written[0])
        assert table["measure"].tolist() == ["lesser |cos| of both sides"] * 4 + ["steps"]
        assert table["name"].tolist() == [name for name, _ in (*effects, effects[0])]
        np.testing.assert_array_equal(table["effect"], [0.184, 0.9987, np.inf, np.nan, 0.184])
        np.testing.assert_array_equal(table["chance"], [0.5, 0.6, 0.7, np.nan, np.nan])


class TestWhatIsMissing:
    def test_values_that_are_not_finite(self) -> None:
        """A run of which one instance has nothing finite left, in losses and in weights."""
        run = superposition_run((1.0, 0.5, 0.2), n=12, m=6, r=4, n_seeds=2, targets=TARGETS)
        bad = [one.copy() for one in (run.reconstruction_loss, run.pair_loss)]
        bad[0][:, 0] = np.nan  # of the densest; the other seed has its losses
        bad[1][5:, 0] = np.inf
        bad[1][:, 1] = 0.0
        spoilt = replace(run, reconstruction_loss=bad[0], pair_loss=bad[1])
        fig = assert_readable(lambda: loss_figure(spoilt, TITLE))
        assert np.isfinite(fig.axes[0].lines[0].get_ydata()).all()
        nothing = replace(run, pair_loss=np.full_like(run.pair_loss, np.nan))
        fig = assert_readable(lambda: loss_figure(nothing, TITLE))
        assert [text.get_text() for text in fig.axes[1].texts] == ["no loss was kept"]
        found, headings, targets = shown(MeasuredRun(run))
        w = run.snapshots[-1].w[found].astype(float)
        norms, shared, products = feature_norms(w), interference(w), gram(w)
        for one in (norms, shared, products):
            one[0] = np.nan
            one[1, :2] = np.inf
        fig = assert_readable(lambda: norm_figure(headings, norms, shared, targets, TITLE))
        assert fig.axes[0].patches[0].get_facecolor() == to_rgba("0.85")
        fig = assert_readable(lambda: gram_figure(headings, products, shared, targets, TITLE))
        assert np.ma.getmaskarray(fig.axes[0].images[0].get_array()).all()
        sigma = np.full((3, 4), np.nan)
        product = np.full((3, 12, 4), np.nan)
        assert_readable(lambda: singular_figure(headings, product, product, sigma, targets, TITLE))
        values = feature_dimensionality(run.snapshots[-1].w)
        values[:3] = np.nan
        means = np.full(len(values), np.inf)
        fig = assert_readable(
            lambda: dimensionality_figure(run.instances, values, means, run.targets, TITLE)
        )
        assert np.isnan(fig.axes[0].lines[0].get_ydata()).all()

    def test_targets_of_their_own_and_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Instances that chose their targets, of which one found none."""
        run = superposition_run((1.0, 0.5, 0.2), n=12, m=6, r=4, n_seeds=2, targets=TARGETS)
        own = (TARGETS, (), (Target(0, 1), Target(1, 0)), *run.targets[3:])
        run = replace(run, targets=own)
        _, headings, targets = shown(MeasuredRun(run))
        w = run.snapshots[-1].w[:3].astype(float)
        fig = assert_readable(
            lambda: norm_figure(headings, feature_norms(w), interference(w), targets, TITLE)
        )
        legend = [text.get_text() for text in fig.legends[0].get_texts()]
        assert legend[:2] == ["target number 1", "target number 2"]
        assert marked(fig.axes[1]) == []
        assert marked(fig.axes[2]) == [0, 1, 1, 0]
        table = tables(MeasuredRun(run))["targets"]
        assert len(table) == 2 * 5
        courses = MeasuredRun(run).targets
        assert np.isnan(courses.lesser[:, 1]).all()

        def headings_bytes(fig: Figure, *_: object) -> bytes:
            drawn = assert_readable(lambda: fig)
            return "; ".join(ax.get_title() for ax in drawn.axes if ax.get_title()).encode()

        monkeypatch.setattr(drawing, "figure_bytes", headings_bytes)
        written = {
            path.name: path.read_text() for path in write_superposition(MeasuredRun(run), "root")
        }
        assert written["norms.png"] == (
            "S = 0 (p = 1)\n2 → 4, 5 → 8; S = 0.5 (p = 0.5)\nno such targets; "
            "S = 0.8 (p = 0.2)\n0 → 1, 1 → 0"
        )
        assert written["training.png"] == "; ".join(map(sparsity_label, (1.0, 0.5, 0.2)))

    def test_no_seed_of_that_number(self) -> None:
        with pytest.raises(StudyError, match=r"Wanted a seed of planted, 0, 1, found 2\."):
            next(write_superposition(MeasuredRun(run_of("7 of 2 seeds")), "root", seed=2))


class TestFiles:
    def test_a_phase_diagram_of_heads(self) -> None:
        runs = [
            superposition_run((0.1, 1.0), n=12, m=6, r=r, n_seeds=3, targets=MANY[:4])
            for r in (6, 2)
        ]
        lesser = MeasuredRun(runs[1]).targets.lesser[-1]
        # Two of four targets have a singular vector.
        np.testing.assert_array_equal((lesser == 0).sum(axis=-1), 2)
        other = superposition_run((0.1,), n=12, m=6, r=4, name="other")
        with pytest.raises(StudyError, match=r"found 2 kinds of them in planted, planted, other\."):
            write_phase_diagram([MeasuredRun(run) for run in (*runs, other)], "heads", "root")
        (path,) = write_phase_diagram([MeasuredRun(run) for run in runs], "heads", "root")
        assert path == Path("root/plots/superposition/heads/phases.png")
        with Image.open(path) as image:
            image.verify()


def test_quartiles_leave_out_what_is_not_finite() -> None:
    values = np.array([[1.0, 2.0, 3.0, np.nan], [np.inf, np.nan, np.nan, -np.inf]])
    np.testing.assert_array_equal(quartiles(values), [[1.5, np.nan], [2, np.nan], [2.5, np.nan]])
