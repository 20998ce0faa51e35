"""Answers of the superposition study, of runs whose answers are known, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from readable import assert_readable
from synthetic_superposition import superposition_run

from qk_taxonomy.figures.superposition.answers import answer_figure
from qk_taxonomy.statistics.findings import Finding
from qk_taxonomy.studies.superposition.answers import (
    Answer,
    capacity,
    mean_over_seeds,
    order_in_training,
    recovery,
)
from qk_taxonomy.studies.superposition.config import Target
from qk_taxonomy.studies.superposition.measured import MeasuredRun
from qk_taxonomy.studies.superposition.records import SuperpositionRun

pytestmark = pytest.mark.filterwarnings("error")


def planted(r: int = 10, n_seeds: int = 8, **options: Any) -> MeasuredRun:
    return MeasuredRun(superposition_run([0.5, 0.1], r=r, n_seeds=n_seeds, **options))


def with_heads(measured: MeasuredRun, a: np.ndarray, b: np.ndarray) -> MeasuredRun:
    """The run with other heads (instances, r, m) in the end."""
    last = replace(measured.last, a=a.astype(np.float32), b=b.astype(np.float32))
    run = measured.run
    return MeasuredRun(replace(run, snapshots=(*run.snapshots[:-1], last)))


def columns(measured: MeasuredRun, features: Sequence[int]) -> np.ndarray:
    """W_i of features, (instances, features, m)."""
    return measured.last.w[:, :, list(features)].transpose(0, 2, 1).astype(np.float64)


def of(answer: Answer, measure: str) -> dict[str, Finding]:
    (found,) = (one for one in answer.measures if one.measure.startswith(measure))
    return dict(found.effects)


class TestMeans:
    def test_intervals_stay_within_the_values(self) -> None:
        found = mean_over_seeds([0.9, 0.99, 1.0, np.nan])
        assert (found.effect, found.n) == (pytest.approx(2.89 / 3), 3)
        # Student's t would reach beyond 1; of three seeds, the range is all that is known.
        assert (found.low, found.high) == (0.9, 1.0)
        assert "seeds without a value: 1" in found.note

    def test_intervals_cover_the_mean(self) -> None:
        rng = np.random.default_rng(1)
        drawn = [mean_over_seeds(x) for x in rng.standard_normal((300, 10))]
        # Within four standard errors of 95 %.
        assert np.mean([one.low <= 0 <= one.high for one in drawn]) == pytest.approx(0.95, abs=0.05)

    @pytest.mark.parametrize("values", [[0.5], [1.0, 1.0, 1.0], [0.0, 0.0], [np.nan]])
    def test_without_spread_there_is_none(self, values: list[float]) -> None:
        found = mean_over_seeds(values)
        np.testing.assert_equal(found.effect, values[0])
        assert np.isnan((found.low, found.high)).all()
        assert found.note


class TestRecovery:
    def test_planted_heads(self) -> None:
        answer = recovery([planted()])
        assert answer.answer.startswith(
            "Every target is aligned (both |cos| ≥ 0.95) in all 8 seeds at p = 0.5 and 0.1; the "
        )
        assert "one of twenty draws" in answer.answer
        cosines, *ratios = answer.measures
        assert [(finding.n, finding.effect > 0.99) for _, finding in cosines.effects] == [
            (8, True), (8, True),
        ]  # fmt: skip
        # Of ten random vectors in R¹⁵ none reaches this.
        assert 0.4 < cosines.chance[0] == cosines.chance[1] < 0.8
        for measure in ratios:
            assert measure.reference == 1.0
            for _, finding in measure.effects:
                assert finding.effect == pytest.approx(1, abs=0.01)

    def test_a_seed_that_lost_a_target(self) -> None:
        measured = planted()
        a, b = measured.last.a.copy(), measured.last.b.copy()
        a[1] = a[1][:, ::-1]  # seed 0 at p = .1
        answer = recovery([with_heads(measured, a, b)])
        assert "in all 8 seeds at p = 0.5; not at p = 0.1 (7 of 8);" in answer.answer
        assert of(answer, "lesser")["p = 0.1"].low < 0.95

    def test_no_head_at_all(self) -> None:
        measured = planted(n_seeds=1)
        nothing = np.zeros_like(measured.last.a)
        answer = recovery([with_heads(measured, nothing, nothing)])
        assert answer.answer.startswith("At no p is every target aligned")
        assert answer.answer.endswith(" One seed gives no interval: --seeds 10 gives one.")
        assert "nan" not in answer.answer
        assert "by chance" not in answer.answer

    def test_a_constant_target_is_told(self) -> None:
        run = superposition_run([1.0, 0.1])
        config = replace(run.config, target_form="indicator")
        answer = recovery([MeasuredRun(replace(run, config=config))])
        assert "at p = 1 the target is constant" in answer.answer
        assert answer.measures[1].reference is None


#: Of equal importance in the middle: weights fall as features become less important on one side.
TARGETS = tuple(Target(i, 10 - i, 8.0 - i) for i in range(5))


class TestCapacity:
    def test_the_heaviest_are_kept(self) -> None:
        """Planted: a head of r has the first r of the targets."""
        answer = capacity([planted(r, targets=TARGETS) for r in (15, 4, 2)])
        assert {name: one.effect for name, one in of(answer, "targets recovered").items()} == {
            "p = 0.5, r = 2": 2.0, "p = 0.5, r = 4": 4.0, "p = 0.5, r = 15": 5.0,
            "p = 0.1, r = 2": 2.0, "p = 0.1, r = 4": 4.0, "p = 0.1, r = 15": 5.0,
        }  # fmt: skip
        assert answer.answer.startswith(
            "p = 0.5: r = m = 15 recovers 5 of 5 targets; r = 2 and 4 recover 2 and 4; what these "
            "span goes with weight by ρ = 0.79; with importance of i by 0.79; of j by -0.79; "
            "a recovered pair's singular vector serves 1 pairs."
        )
        # Of five targets, two are spanned alike, and four.
        assert of(answer, "Spearman")["p = 0.5, r = 2"].effect == pytest.approx(0.75**0.5)
        assert of(answer, "Spearman")["p = 0.5, r = 4"].effect == pytest.approx(0.5**0.5)
        assert "p = 0.5, r = 15" not in of(answer, "Spearman")
        # Where all are recovered, nothing tells which are.
        assert "p = 0.5, r = 15" not in of(answer, "AUC of the weight")
        for side, sign in (("i", 1), ("j", -1)):
            found = of(answer, f"ρ of the importance of feature {side}")["p = 0.1, r = 2"]
            assert found.effect == pytest.approx(sign * 0.75**0.5)
        for one in of(answer, "overlap").values():
            assert one.effect == pytest.approx(0, abs=1e-2)

    def test_the_lightest_are_kept(self) -> None:
        answer = capacity([planted(2, targets=TARGETS[::-1])])
        assert {one.effect for one in of(answer, "AUC of the weight").values()} == {0.0}
        assert "r = m" not in answer.answer

    def test_a_singular_vector_of_two_pairs_is_told_as_shared(self) -> None:
        """u₁ = (W₀ + W₁)/√2, v₁ = (W₅ + W₆)/√2 serves two pairs, and recovers neither."""
        targets = (Target(0, 5, 2.0), Target(1, 6, 1.5), Target(2, 7, 1.0))
        measured = planted(2, targets=targets)
        left, right = columns(measured, [0, 1, 2]), columns(measured, [5, 6, 7])
        mix = np.array([[0.5**0.5, 0.5**0.5, 0.0], [0.0, 0.0, 1.0]])
        answer = capacity([with_heads(measured, np.diag([3.0, 1.0]) @ mix @ left, mix @ right)])
        assert of(answer, "targets recovered")["p = 0.1, r = 2"].effect == 1
        assert of(answer, "pairs on a singular")["p = 0.1, r = 2"].effect == pytest.approx(1)
        other = of(answer, "pairs on another")["p = 0.1, r = 2"]
        assert other.effect == pytest.approx(2, abs=1e-3)
        assert "singular vector serves 1 pairs; any other 2." in answer.answer
        assert of(answer, "singular vectors that a lost")["p = 0.1, r = 2"].effect == (
            pytest.approx(1, abs=1e-3)
        )

    def test_nothing_is_recovered(self) -> None:
        measured = planted(1, targets=TARGETS)
        rng = np.random.default_rng(0)
        answer = capacity([with_heads(measured, *rng.standard_normal((2, 16, 1, 15)))])
        names = [one.measure.split()[0] for one in answer.measures]
        assert names == ["targets", "Spearman's", "ρ", "ρ", "pairs", "singular"]
        assert "p = 0.5: r = 1 recovers 0; what these span goes with weight" in answer.answer
        assert "nan" not in answer.answer

    def test_one_seed(self) -> None:
        answer = capacity([planted(2, n_seeds=1, targets=TARGETS)])
        assert answer.answer.endswith("One seed gives no interval: --seeds 10 gives one.")


def moved(run: SuperpositionRun, alignment_first: bool, seeds: Sequence[int]) -> SuperpositionRun:
    """The weights of one side are at their end while the other's begin to move, in such seeds; in
    others it is the other way round.
    """
    last, first, n = run.snapshots[-1], run.snapshots[0], len(run.snapshots)
    other = ~np.isin(run.instances.seed, seeds)[:, None, None]

    def mixed(name: str, share: np.ndarray) -> np.ndarray:
        ends = getattr(last, name), getattr(first, name)
        return (share * ends[0] + (1 - share) * ends[1]).astype(np.float32)

    snapshots = []
    for place, one in enumerate(run.snapshots):
        early, late = min(1.0, place / 2), max(0.0, (place - n + 3) / 2)
        of_head = np.where(other ^ alignment_first, early, late)
        of_w = np.where(other ^ alignment_first, late, early)
        # Heads point along the end's features, whatever the others are; those of targets are there.
        w = mixed("w", of_w)
        w[:, :, [2, 4, 5, 8]] = last.w[:, :, [2, 4, 5, 8]]
        snapshots.append(replace(one, w=w, a=mixed("a", of_head), b=mixed("b", of_head)))
    return replace(run, snapshots=tuple(snapshots))


class TestOrder:
    @pytest.mark.parametrize(
        ("alignment_first", "said"),
        [(True, "alignment is first"), (False, "orthogonality is first")],
    )
    def test_what_comes_first(self, alignment_first: bool, said: str) -> None:
        run = superposition_run([0.5, 0.1], n_seeds=8, steps=100_000)
        measured = MeasuredRun(moved(run, alignment_first, range(8)))
        answer = order_in_training([measured])
        for p in ("0.5", "0.1"):
            assert f"p = {p}: {said} at 50%, 80% and 95%, targets" in answer.answer
        *compared, start = answer.measures
        assert [len(one.effects) for one in compared] == [2, 2, 2]
        for _, finding in compared[0].effects:
            assert finding.p_value == 2**-7
            assert finding.statistic == (8 if alignment_first else 0)
        steps = {one.step for one in run.snapshots}
        for _, finding in start.effects:
            assert finding.effect in steps
            assert f"stay aligned from step {finding.effect:,.0f} [" in answer.answer

    def test_seeds_that_disagree_tell_nothing(self) -> None:
        run = superposition_run([0.5], n_seeds=8, steps=100_000)
        answer = order_in_training([MeasuredRun(moved(run, True, range(5)))])
        assert "p = 0.5: not told apart, targets" in answer.answer
        assert answer.measures[2].effects[0][1].statistic == 5

    def test_the_same_onsets_are_drawn(self) -> None:
        """Targets pooled or apart, the figure has the answer's onsets."""
        run = superposition_run([0.5, 0.1], n_seeds=3, steps=100_000)
        measured = MeasuredRun(moved(run, True, range(3)))
        alignment, orthogonality = measured.onsets((0.95,))
        assert alignment.shape == (1, 6)
        assert (alignment < orthogonality).all()
        kept = list(range(3, len(run.snapshots)))
        later, _ = measured.onsets((0.95,), kept)
        assert (later >= alignment).all()

    def test_heads_that_never_align(self) -> None:
        measured = planted(n_seeds=1)
        rng = np.random.default_rng(0)
        never = with_heads(measured, *rng.standard_normal((2, 2, 10, 15)))
        answer = order_in_training([never])
        assert "targets are not aligned to stay" in answer.answer
        assert "So few seeds cannot tell what is first: --seeds 10 can." in answer.answer
        for text in ("nan", "inf", "0 of 0"):
            assert text not in answer.answer
        assert np.isinf(of(answer, "step from which")["p = 0.5"].effect)


ANSWERS = {
    "recovery": lambda: recovery([planted()]),
    "recovery, one seed": lambda: recovery([planted(n_seeds=1)]),
    "order": lambda: order_in_training([planted()]),
    "order, one seed": lambda: order_in_training([planted(n_seeds=1)]),
    "capacity": lambda: capacity([planted(r, targets=TARGETS) for r in (1, 2, 3, 4, 8, 15)]),
    "capacity, one seed": lambda: capacity([planted(3, n_seeds=1, targets=TARGETS)]),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_drawn(name: str) -> None:
    answer = ANSWERS[name]()
    fig = assert_readable(lambda: answer_figure(answer, "a-preset-10-seeds-20-steps"))
    assert len(fig.axes) == len(answer.measures)
    title = fig.get_suptitle().replace("\n", " ")
    assert answer.answer in title
    for ax, measure in zip(fig.axes, answer.measures, strict=True):
        assert [text.get_text() for text in ax.get_yticklabels()] == [
            name for name, _ in measure.effects
        ]
        assert len(ax.texts) == len(measure.effects)
