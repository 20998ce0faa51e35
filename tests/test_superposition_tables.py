"""Tables of trainings, of runs whose numbers are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from synthetic_superposition import TARGETS, superposition_run

from qk_taxonomy.studies.superposition.measured import MeasuredRun
from qk_taxonomy.studies.superposition.records import SuperpositionRun
from qk_taxonomy.studies.superposition.tables import tables
from qk_taxonomy.studies.superposition.theory import optimum, pair_problem

THEORY = ["excess_loss", "sigma_ratio", "u1_cosine", "v1_cosine"]


def test_a_head_of_its_targets() -> None:
    """Planted: σ are the weights, along orthonormal features; the rest of the head is noise."""
    found = tables(MeasuredRun(superposition_run((0.5, 0.1), n_seeds=2)))
    instances, features, targets = (found[name] for name in ("instances", "features", "targets"))
    assert not set(THEORY) & set(instances)
    for side in ("left", "right"):
        np.testing.assert_allclose(instances[f"{side}_capture"], 1, atol=1e-4)
        assert (instances[f"{side}_angle"] < 1).all()
    np.testing.assert_allclose(targets["logit"], targets["weight"], rtol=0.01)
    assert (targets["p_value"] == 1e-4).all()
    assert targets["chance"].between(0.4, 0.8).all()
    for side, mine in (("left", {2, 5}), ("right", {4, 8})):
        capture = features[f"{side}_capture"]
        np.testing.assert_allclose(capture[features["feature"].isin(mine)], 1, atol=1e-4)
        # Others are orthogonal or antipodes of these: 1, or nothing.
        others = capture[(features["feature"] < 15) & ~features["feature"].isin(mine)]
        np.testing.assert_allclose(others, 0, atol=1e-4)


def of_optimum(run: SuperpositionRun) -> SuperpositionRun:
    """The run with the best heads of its rank."""
    config, last = run.config, run.snapshots[-1]
    a, b = last.a.copy(), last.b.copy()
    for number, p in enumerate(run.instances.probability):
        pairs = [(target.i, target.j) for target in TARGETS]
        problem = pair_problem(last.w[number], p, pairs, [1.0, 2.0], "product")
        best = optimum(problem, config.d_head).vectors
        a[number], b[number] = (best.u * best.sigma).T, best.v.T
    return replace(run, snapshots=(*run.snapshots[:-1], replace(last, a=a, b=b)))


@pytest.mark.parametrize("r", [1, 4])
def test_frozen_heads_are_held_against_the_optimum(r: int) -> None:
    run = superposition_run((0.5, 0.1), r=r, n=12, m=9, training="frozen")
    found = tables(MeasuredRun(of_optimum(run)))["instances"]
    np.testing.assert_allclose(found["excess_loss"], 0, atol=1e-6)
    np.testing.assert_allclose(found[THEORY[1:]], 1, atol=1e-4)
    # A head that is twice as large has the optimum's vectors, and loses by it.
    best = of_optimum(run)
    last = replace(best.snapshots[-1], a=2 * best.snapshots[-1].a)
    twice = tables(MeasuredRun(replace(best, snapshots=(*best.snapshots[:-1], last))))["instances"]
    np.testing.assert_allclose(twice["sigma_ratio"], 2, rtol=1e-4)
    np.testing.assert_allclose(twice[["u1_cosine", "v1_cosine"]], 1, atol=1e-4)
    assert (twice["excess_loss"] > 0.1).all()


@pytest.mark.parametrize("change", [{"target_form": "softmax", "n_keys": 4}, {}])
def test_without_a_closed_form_and_without_targets(change: dict[str, Any]) -> None:
    run = superposition_run((0.5, 0.1), r=4, n=12, m=9, training="frozen")
    run = replace(run, config=replace(run.config, **change), targets=(TARGETS, ()))
    found = tables(MeasuredRun(run))
    columns = ["left_capture", "right_capture", "left_angle", "right_angle"]
    if change:
        assert not set(THEORY) & set(found["instances"])
    else:
        columns += THEORY
    assert found["instances"][columns].notna().all(axis=1).tolist() == [True, False]
    assert len(found["targets"]) == 2
