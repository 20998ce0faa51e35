"""Changed heads: distances by their definitions, and both nulls calibrated on untrained models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import false_discovery_control, wasserstein_distance
from untrained import Shape, untrained_model

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics import densities
from qk_taxonomy.statistics.changes import SPECTRAL_DISTANCES, pairs_within, spectral_changes
from qk_taxonomy.statistics.nulls import untrained_spectra

SHAPE = Shape(layers=6, heads=8, kv_heads=8, d_head=32, d_model=128)
GROUPED = Shape(layers=6, heads=8, kv_heads=2, d_head=32, d_model=128)


@pytest.fixture(scope="module")
def null() -> np.ndarray:
    return untrained_spectra(SHAPE.d_head, SHAPE.d_model, 4000)[:, 0]


def test_distances_are_those_of_scipy(null: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    x, y = untrained_model(rng, SHAPE), untrained_model(rng, SHAPE)
    found = spectral_changes(x, y, *SHAPE.places, null).distances
    normal_x, normal_y = (v / v.mean(-1, keepdims=True) for v in (x, y))
    top = np.quantile(np.concatenate([normal_x, normal_y]), 0.96)
    for head in range(0, SHAPE.n, 7):
        p, q = (np.histogram(v[head], 24, (0, top))[0] for v in (normal_x, normal_y))
        assert found[head, 0] == pytest.approx(jensenshannon(p, q) ** 2)
        assert found[head, 1] == pytest.approx(wasserstein_distance(normal_x[head], normal_y[head]))


def test_wasserstein_distance_is_a_metric() -> None:
    x, y, z = np.random.default_rng(1).gamma(1.0, 1.0, (3, 50, 16))
    xy, yz, xz = (densities.wasserstein_distance(a, b) for a, b in ((x, y), (y, z), (x, z)))
    np.testing.assert_allclose(xy, densities.wasserstein_distance(y, x[:, ::-1]))
    assert (xz <= xy + yz + 1e-12).all()
    assert densities.wasserstein_distance(x[0], x[0]) == 0.0
    with pytest.raises(ShapeError):
        densities.wasserstein_distance(x, y[:, :4])


def test_pairs_within_are_of_different_layers() -> None:
    layers, groups = GROUPED.places
    first, second = pairs_within(layers, groups)
    assert (layers[first] != layers[second]).all()
    assert len(first) == 48 * 47 // 2 - 6 * (8 * 7 // 2)
    # Of one layer, heads that share no key: two groups of four.
    first, second = pairs_within(layers[:8], groups[:8])
    assert (groups[first] != groups[second]).all()
    assert len(first) == 16
    many = pairs_within(np.arange(5000), np.zeros(5000, dtype=int))
    assert len(many[0]) == 10_000
    assert (many[0] != many[1]).all()
    alone = pairs_within(np.array([0]), np.array([0]))
    assert len(alone[0]) == 0


def test_only_one_head_has_no_null_within_its_model(null: np.ndarray) -> None:
    changes = spectral_changes(null[:1], null[1:2], np.array([0]), np.array([0]), null)
    assert np.isnan(changes.p_within).all()
    assert np.isfinite(changes.p_untrained).all()
    without = spectral_changes(null[:4], null[4:8], np.arange(4), np.zeros(4, dtype=int), None)
    assert np.isnan(without.p_untrained).all()
    assert np.isfinite(without.p_within).all()


def test_identical_models_have_not_changed(null: np.ndarray) -> None:
    x = untrained_model(np.random.default_rng(2), SHAPE)
    changes = spectral_changes(x, 3.0 * x, *SHAPE.places, null)
    np.testing.assert_allclose(changes.distances, 0, atol=1e-12)
    assert changes.p_untrained.min() == changes.p_within.min() == 1.0


def test_dead_heads_and_shapes(null: np.ndarray) -> None:
    x = untrained_model(np.random.default_rng(3), SHAPE)
    y = x.copy()
    y[5] = 0.0
    changes = spectral_changes(x, y, *SHAPE.places, null)
    assert changes.distances[5].argmin() == 0
    assert np.isfinite(changes.distances).all()
    with pytest.raises(ShapeError, match="one shape"):
        spectral_changes(x, y[:, :4], *SHAPE.places, null)
    with pytest.raises(ShapeError, match="zero"):
        spectral_changes(0 * x, 0 * y, *SHAPE.places, null)


@pytest.mark.parametrize("shape", [SHAPE, GROUPED], ids=["separate", "grouped"])
def test_calibration_between_untrained_models(shape: Shape, null: np.ndarray) -> None:
    """False positives of 200 pairs of models, and discovery of heads planted in one of them."""
    rng = np.random.default_rng(4)
    repeats = 200
    rejected = np.zeros((2, len(SPECTRAL_DISTANCES)))
    false, power = np.zeros((2, repeats, 2)), np.zeros((2, repeats, 2))
    for repeat in range(repeats):
        control = untrained_model(rng, shape)
        changes = spectral_changes(untrained_model(rng, shape), control, *shape.places, null)
        planted = rng.choice(shape.n, shape.n // 10, replace=False)
        other = untrained_model(rng, shape, planted, decay=0.08)
        found = spectral_changes(other, control, *shape.places, null)
        is_planted = np.isin(np.arange(shape.n), planted)
        for row, name in enumerate(("p_untrained", "p_within")):
            rejected[row] += (getattr(changes, name) <= 0.05).mean(0) / repeats
            discovered = false_discovery_control(getattr(found, name), axis=0) <= 0.05
            wrong = (discovered & ~is_planted[:, None]).sum(0)
            false[row, repeat] = wrong / np.maximum(discovered.sum(0), 1)
            power[row, repeat] = discovered[is_planted].mean(0)
    # Heads of one model share the null and, in groups, keys: their standard error is a model's.
    np.testing.assert_array_less(rejected, 0.05 + 2 * np.sqrt(0.05 * 0.95 / repeats))
    assert rejected.min() > 0.02
    assert false.mean(1).max() <= 0.1
    assert power.mean(1).min() >= 0.8, power.mean(1)
