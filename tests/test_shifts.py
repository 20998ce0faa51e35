"""Shifts of matched heads: exact laws, other libraries, and units that depend on each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import norm, rankdata, wilcoxon
from untrained import Shape, untrained_model

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.moments import describe
from qk_taxonomy.statistics.shifts import (
    FLIP_GROUPS,
    FLIP_LAYERS,
    WILCOXON,
    hodges_lehmann,
    paired_shifts,
    signed_rank,
)


def shifts_of(differences: np.ndarray, layers: np.ndarray, groups: np.ndarray, **options: int):  # type: ignore[no-untyped-def]
    found = paired_shifts(differences, layers, groups, **options)
    return {(s.finding.method, s.layer, s.column): s.finding for s in found}


@pytest.mark.parametrize("n", [6, 9, 14])
def test_interval_inverts_the_exact_test(n: int) -> None:
    d = np.random.default_rng(n).normal(0.3, 1.0, n)
    shift, low, high = hodges_lehmann(d)
    walsh = [(d[i] + d[j]) / 2 for i, j in itertools.combinations_with_replacement(range(n), 2)]
    assert shift == pytest.approx(np.median(walsh))
    # Values just inside the interval are kept by the exact test at 5 %, those just outside are not.
    for end, inside in ((low, 1e-9), (high, -1e-9)):
        assert wilcoxon(d - end - inside).pvalue > 0.05
        assert wilcoxon(d - end + inside).pvalue <= 0.05


def test_interval_covers() -> None:
    rng = np.random.default_rng(0)
    for n in (12, 80):
        hits = 0
        for _ in range(400):
            _, low, high = hodges_lehmann(rng.standard_t(3, n) + 1.0)
            hits += low <= 1.0 <= high
        assert 0.92 <= hits / 400 <= 0.98


def test_signed_rank_is_scipys() -> None:
    d = np.random.default_rng(1).normal(0.2, 1.0, 30)
    d[3] = 0.0
    found = signed_rank(d)
    assert found.p_value == pytest.approx(wilcoxon(d[d != 0]).pvalue)
    assert (found.n, found.method) == (30, WILCOXON)
    assert found.low <= found.effect <= found.high


def test_too_few_units_and_none_that_differ() -> None:
    few = signed_rank(np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert np.isnan(few.p_value)
    assert "6" in few.note
    same = signed_rank(np.zeros(20))
    assert same.effect == 0.0
    assert np.isnan(same.p_value)
    assert same.note.startswith("0 of 20 units differ")
    some = signed_rank(np.r_[np.zeros(5), np.arange(1.0, 11.0)])
    assert some.note == "10 of 15 units differ"
    assert some.p_value == pytest.approx(2 / 2**10)
    assert np.isnan(signed_rank(np.array([])).effect)


def test_permutation_p_values_are_those_of_all_sign_flips() -> None:
    rng = np.random.default_rng(2)
    layers, groups = np.repeat([0, 1], 5), np.tile(np.arange(5), 2)
    d = rng.normal(0.5, 1.0, (10, 1))

    def mean_biserial(values: np.ndarray) -> float:
        total = 0.0
        for layer in (0, 1):
            v = values[layers == layer]
            rank = np.abs(v).argsort().argsort() + 1
            total += (np.sign(v) * rank).sum() / rank.sum() / 2
        return total

    observed = mean_biserial(d[:, 0])
    flips = np.array(list(itertools.product((-1, 1), repeat=10)))
    every = np.array([mean_biserial(f * d[:, 0]) for f in flips])
    exact = (np.abs(every) >= abs(observed) - 1e-12).mean()
    found = shifts_of(d, layers, groups, permutations=20_000)[FLIP_GROUPS, None, 0]
    assert found.effect == pytest.approx(observed)
    assert found.p_value == pytest.approx(exact, abs=0.01)
    whole = shifts_of(d, layers, groups, permutations=999)[FLIP_LAYERS, None, 0]
    assert np.isnan(whole.p_value)
    assert "2 of 2 units differ, which cannot give p ≤ 0.05" in whole.note


def test_heads_of_one_group_count_once() -> None:
    rng = np.random.default_rng(3)
    d = rng.normal(size=(12, 2))
    layers, groups = np.repeat([0, 1], 6), np.tile(np.arange(6), 2)
    alone = shifts_of(d, layers, groups)
    repeated = shifts_of(d.repeat(4, axis=0), layers.repeat(4), groups.repeat(4))
    assert alone == repeated


def test_values_that_do_not_exist_are_left_out() -> None:
    d = np.random.default_rng(4).normal(1.0, 0.1, (16, 2))
    d[0, 0], d[5, 0] = np.inf, np.nan
    layers, groups = np.repeat([0, 1], 8), np.tile(np.arange(8), 2)
    found = shifts_of(d, layers, groups)
    assert found[WILCOXON, None, 0].n == 14
    assert found[WILCOXON, None, 1].n == 16
    assert found[FLIP_GROUPS, 0, 0].n == 6
    assert found[FLIP_GROUPS, None, 0].effect == pytest.approx(1.0)
    nothing = shifts_of(np.full((8, 1), np.nan), layers[:8], groups[:8])
    assert all(np.isnan(f.p_value) or f.n for f in nothing.values())


def test_identical_models() -> None:
    layers, groups = np.repeat([0, 1, 2], 8), np.tile(np.arange(8), 3)
    found = shifts_of(np.zeros((24, 1)), layers, groups)
    assert {finding.effect for finding in found.values()} == {0.0}
    assert all(np.isnan(f.p_value) and " differ" in f.note for f in found.values())


def test_layers_without_values_are_not_part_of_the_mean() -> None:
    rng = np.random.default_rng(6)
    layers, groups = np.repeat(np.arange(8), 8), np.tile(np.arange(8), 8)
    d = rng.normal(3.0, 0.1, (64, 2))
    d[8:, 0] = np.nan
    d[:, 1] = np.nan
    found = shifts_of(d, layers, groups)
    one, none = found[FLIP_GROUPS, None, 0], found[FLIP_GROUPS, None, 1]
    assert one.effect == pytest.approx(1.0)
    assert one.n == 8
    assert one.low > 0
    assert found[FLIP_LAYERS, None, 0].n == 1
    assert np.isnan([none.effect, none.low, none.high, none.p_value]).all()


def test_tied_differences_have_exact_p_values() -> None:
    d = np.array([1.0, 1.0, 1.0, -1.0, 2.0, 2.0, -3.0, 1.0])
    ranks = rankdata(np.abs(d))
    observed = ranks[d > 0].sum()
    sums = [
        ranks[np.array(signs, bool)].sum() for signs in itertools.product((0, 1), repeat=len(d))
    ]
    tails = np.mean(np.array(sums) >= observed), np.mean(np.array(sums) <= observed)
    assert signed_rank(d).p_value == pytest.approx(min(1.0, 2 * min(tails)))


@pytest.mark.parametrize("shift", [0.0, 0.8, 1.5])
@pytest.mark.parametrize(("n_layers", "n_groups"), [(1, 12), (3, 4), (12, 8)])
def test_rank_biserial_intervals_cover(shift: float, n_layers: int, n_groups: int) -> None:
    """Of 2 P(D₁ + D₂ > 0) − 1, for normal differences 2 Φ(√2 · shift) − 1; layers stratify it."""
    rng = np.random.default_rng(7)
    layers, groups = (
        np.repeat(np.arange(n_layers), n_groups),
        np.tile(np.arange(n_groups), n_layers),
    )
    single, double = norm.cdf(shift), norm.cdf(np.sqrt(2) * shift)
    # Walsh averages of n units: n of one unit, the others of two.
    share = (2 * single + (n_groups - 1) * double) / (n_groups + 1)
    hits = 0
    for repeat in range(200):
        d = rng.normal(shift, 1.0, (n_layers * n_groups, 1))
        found = shifts_of(d, layers, groups, permutations=1, seed=repeat)[FLIP_GROUPS, None, 0]
        hits += found.low <= 2 * share - 1 <= found.high
    assert hits / 200 >= 0.93


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError):
        paired_shifts(np.zeros((4, 1)), np.zeros(3, dtype=int), np.zeros(4, dtype=int))
    with pytest.raises(ShapeError):
        paired_shifts(np.zeros((0, 1)), np.zeros(0, dtype=int), np.zeros(0, dtype=int))


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_false_positives_between_untrained_models(kv_heads: int) -> None:
    shape = Shape(layers=6, heads=8, kv_heads=kv_heads, d_head=16, d_model=64)
    rng = np.random.default_rng(5)
    layers, groups = shape.places
    rejected: dict[str, list[bool]] = {}
    for repeat in range(200):
        d = describe(untrained_model(rng, shape)) - describe(untrained_model(rng, shape))
        # Three of the statistics, none a function of the others.
        for shift in paired_shifts(d[:, [2, 4, 9]], layers, groups, permutations=199, seed=repeat):
            if shift.layer is None:
                p = shift.finding.p_value
                rejected.setdefault(shift.finding.method, []).append(p <= 0.05)
    assert set(rejected) == {WILCOXON, FLIP_GROUPS, FLIP_LAYERS}
    for method, found in rejected.items():
        assert np.mean(found) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200), method
