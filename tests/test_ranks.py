"""The rank hypothesis: p-values by their definition, calibrated on untrained heads."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest
from untrained import Shape, untrained_model

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.nulls import untrained_spectra
from qk_taxonomy.statistics.ranks import (
    RANK_STATISTICS,
    count_outside,
    monte_carlo_p_values,
    rank_test,
)

SHAPE = Shape(layers=10, heads=40, kv_heads=40, d_head=32, d_model=256)
CONTINUOUS = [0, 1, 2]


@pytest.fixture(scope="module")
def null() -> np.ndarray:
    return untrained_spectra(SHAPE.d_head, SHAPE.d_model, 4000)[:, 0]


def test_p_values_by_their_definition() -> None:
    null = np.array([1.0, 2.0, 2.0, 3.0])
    observed = np.array([0.0, 1.0, 2.0, 2.5, 9.0])
    for alternative, extreme in (("less", np.less_equal), ("greater", np.greater_equal)):
        expected = [(1 + sum(extreme(n, o) for n in null)) / 5 for o in observed]
        found = monte_carlo_p_values(observed, null, alternative)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected)


def test_p_values_of_untrained_heads_are_uniform(null: np.ndarray) -> None:
    test = rank_test(untrained_model(np.random.default_rng(1), SHAPE), null)
    assert len(test.p_values) == 400
    for column in CONTINUOUS:
        assert kstest(test.p_values[:, column], "uniform").pvalue > 0.01
    for column in range(len(RANK_STATISTICS)):
        # Discrete statistics have p-values above uniform ones: never too small.
        assert kstest(test.p_values[:, column], "uniform", alternative="greater").pvalue > 0.01
    assert (test.q_values <= 0.05).mean(0).max() <= 0.05


def test_heads_that_share_a_key_are_calibrated_too(null: np.ndarray) -> None:
    shared = Shape(layers=100, heads=8, kv_heads=1, d_head=32, d_model=256)
    test = rank_test(untrained_model(np.random.default_rng(2), shared), null)
    assert (test.p_values[:, CONTINUOUS] <= 0.05).mean() == pytest.approx(0.05, abs=0.02)
    assert (test.q_values <= 0.05).mean(0).max() <= 0.05


def test_planted_low_ranks_are_found(null: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    repeats = 20
    power, false = np.zeros((2, repeats, len(RANK_STATISTICS)))
    for repeat in range(repeats):
        planted = rng.choice(SHAPE.n, SHAPE.n // 10, replace=False)
        test = rank_test(untrained_model(rng, SHAPE, planted, decay=0.05), null)
        found, is_planted = test.q_values <= 0.05, np.isin(np.arange(SHAPE.n), planted)
        power[repeat] = found[is_planted].mean(0)
        false[repeat] = found[~is_planted].sum(0) / np.maximum(found.sum(0), 1)
        ratio = test.observed[is_planted] / np.where(test.null_median > 0, test.null_median, 1)
        assert 0.7 < ratio[:, 1].mean() < 0.95
    assert power[:, CONTINUOUS].mean(0).min() >= 0.9
    assert false.mean(0).max() <= 0.05 + 0.02


def test_a_head_of_one_direction_and_a_dead_head(null: np.ndarray) -> None:
    lam = np.zeros((2, SHAPE.d_head))
    lam[0, 0] = 5.0
    test = rank_test(lam, null)
    assert (test.p_values[0] == 1 / 4001).all()
    assert np.isfinite(test.p_values).all()
    assert (test.p_values[1, CONTINUOUS] == 1 / 4001).all()


def test_edges_in_units_of_the_median(null: np.ndarray) -> None:
    above, below = count_outside(null, null)
    assert (above > 0).mean() == pytest.approx(0.005, abs=0.001)
    assert (below > 0).mean() == pytest.approx(0.005, abs=0.001)
    spiked = null[:5].copy()
    spiked[:, :3] = 100.0
    spiked[:, -2:] = 1e-6
    above, below = count_outside(7.0 * spiked, null)
    assert above.tolist() == [3] * 5
    assert below.tolist() == [2] * 5
    mostly_zero = np.zeros((1, SHAPE.d_head))
    mostly_zero[0, :4] = 1.0
    above, below = count_outside(mostly_zero, null)
    assert (above[0], below[0]) == (4, SHAPE.d_head - 4)


def test_shapes_are_checked(null: np.ndarray) -> None:
    for lam in (null[:3, :5], null[0], null[:0]):
        with pytest.raises(ShapeError):
            rank_test(lam, null)
