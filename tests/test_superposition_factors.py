"""The fourth question, asked of planted polytopes and of heads whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ortho_group

from qk_taxonomy.errors import StudyError
from qk_taxonomy.statistics.findings import Finding
from qk_taxonomy.studies.superposition.answers.factors import factors
from qk_taxonomy.studies.superposition.answers.records import Answer
from qk_taxonomy.studies.superposition.choice import choose_targets
from qk_taxonomy.studies.superposition.config import Choice, SuperpositionConfig, Target
from qk_taxonomy.studies.superposition.measured import MeasuredRun
from qk_taxonomy.studies.superposition.records import Instances, Snapshot, SuperpositionRun
from qk_taxonomy.studies.superposition.theory import optimum, pair_problem

Array = NDArray[np.float64]

#: Unit vectors u and v of a head, (m, k) each, and its singular values.
Head = tuple[Array, Array, Array]


def simplex(corners: int) -> Array:
    """The corners of a simplex as columns of unit length, (corners − 1, corners)."""
    centred = np.eye(corners) - 1 / corners
    basis = np.linalg.svd(centred)[0][:, :-1]
    return basis.T @ centred / np.sqrt(1 - 1 / corners)


def tegum(*corners: int) -> Array:
    """Simplices in subspaces of their own, turned at random; two corners are antipodes."""
    height = sum(max(1, each - 1) for each in corners)
    w, row, column = np.zeros((height, sum(corners))), 0, 0
    for each in corners:
        factor = simplex(each) if each > 1 else np.ones((1, 1))
        w[row : row + len(factor), column : column + each] = factor
        row, column = row + len(factor), column + each
    return ortho_group.rvs(height, random_state=3) @ w


#: A feature alone, antipodes, a triangle and a tetrahedron: features 0, 1–2, 3–5 and 6–9.
W = tegum(1, 2, 3, 4)

# So rare that inputs have all but no mean, and Σ is the same in all directions of a factor.
RARE = (1e-4, 2e-4)


def optimal(w: Array, p: float, targets: tuple[Target, ...], r: int) -> Head:
    pairs = [(target.i, target.j) for target in targets]
    weights = [target.weight for target in targets]
    found = optimum(pair_problem(w, p, pairs, weights, "product"), r).vectors
    return found.u, found.v, found.sigma


def run(
    where: Choice,
    weights: tuple[float, float] = (2.0, 1.0),
    r: int = 5,
    *,
    head: Callable[[Array, float, tuple[Target, ...], int], Head] = optimal,
    dictionaries: tuple[Array, ...] = (W, W, W),
    probabilities: tuple[float, ...] = RARE,
) -> MeasuredRun:
    """Planted dictionaries, one a seed, with the heads that are given, at the end of training."""
    config = SuperpositionConfig(
        "planted", "Span or split?", probabilities, where, target_weights=weights, d_head=r,
        n_features=W.shape[1], d_hidden=W.shape[0], n_seeds=len(dictionaries), training="frozen",
        importance_decay=1.0, steps=10,
    )  # fmt: skip
    instances = Instances.of(config)
    w = np.stack([dictionaries[seed] for seed in instances.seed])
    targets = tuple(choose_targets(each, where, weights) for each in w)
    a, b = 1e-4 * np.random.default_rng(1).standard_normal((2, len(w), r, W.shape[0]))
    for place, own in enumerate(targets):
        if own:
            u, v, sigma = head(w[place], float(instances.probability[place]), own, r)
            a[place], b[place] = 0.0, 0.0
            a[place, : len(sigma)] = (u * np.sqrt(sigma)).T
            b[place, : len(sigma)] = (v * np.sqrt(sigma)).T
    bias = np.zeros((len(w), W.shape[1]))
    parts = [one.astype(np.float32) for one in (w, bias, a, b)]
    losses = np.ones((1, len(w)))
    last = Snapshot(config.n_steps, "heads", *parts)
    return MeasuredRun(
        SuperpositionRun(
            config, instances, np.array([config.n_steps]), losses, losses, (last,), targets, ()
        )
    )


def numbers(answer: Answer, name: str) -> Iterator[Finding]:
    """What is found of a run: factors, nearest feature, of the optimum, |cos| with it, plane, n."""
    for measure in answer.measures:
        yield dict(measure.effects)[name]


def effects(answer: Answer, name: str) -> list[float]:
    return [found.effect for found in numbers(answer, name)]


@pytest.mark.parametrize("r", [1, 5])
def test_heads_of_unequal_targets_apart_split_the_factors(r: int) -> None:
    answer = factors([run("apart", r=r)])
    name = f"apart 2:1, r = {r}"
    np.testing.assert_allclose(effects(answer, name), [1, 1, 1, 1, 1, min(r, 2)], atol=2e-3)
    assert answer.answer.startswith(
        f"Each singular vector is one feature's: {name} (1.0 factors, |cos| 1, optimum 1.00)."
    )


def test_equal_targets_in_one_factor_make_sums_and_differences() -> None:
    """Corners f and g of a tetrahedron: σ of f − g is to that of f + g as 1 + ⅓ is to 1 − ⅓."""
    answer = factors([run("within", (1.0, 1.0)), run("within", (1.0, 1.0), r=1)])
    sine, cosine = np.sqrt(2 / 3), np.sqrt(1 / 3)
    for r, nearest in ((5, (sine + cosine) / 2), (1, sine)):
        found = effects(answer, f"within 1:1, r = {r}")
        np.testing.assert_allclose(found, [1, nearest, nearest, 1, 1, min(r, 2)], atol=2e-3)
    assert answer.answer.startswith(
        "Singular vectors mix both features: within 1:1, r = 5 (1.0 factors, |cos| 0.7, "
        "optimum 0.70), within 1:1, r = 1 (1.0 factors, |cos| 0.82, optimum 0.82)."
    )


def test_unequal_targets_in_one_factor_are_no_features_either() -> None:
    """By hand: of 2 f gᵀ + g fᵀ, in the basis of f and of what is orthogonal to it."""
    c = -1 / 3
    f, g = np.array([1.0, 0.0]), np.array([c, np.sqrt(1 - c**2)])
    u, _, vh = np.linalg.svd(2 * np.outer(f, g) + np.outer(g, f))
    nearest = np.abs([[f, g] @ side for side in (u, vh.T)]).max(axis=1).mean()
    found = effects(factors([run("within")]), "within 2:1, r = 5")
    np.testing.assert_allclose(found, [1, nearest, nearest, 1, 1, 2], atol=2e-3)
    assert 0.6 < nearest < 0.95


def turned(angle: float) -> Callable[[Array, float, tuple[Target, ...], int], Head]:
    """A head of f gᵀ + g fᵀ with f and g orthogonal, whose left singular vectors are turned."""

    def head(w: Array, p: float, targets: tuple[Target, ...], r: int) -> Head:
        features = w[:, [targets[0].i, targets[0].j]]
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, -sin], [sin, cos]])
        k = min(r, 2)
        sigma = np.array([1.01, 1.0])[:k]
        return (features @ turn)[:, :k], (features[:, ::-1] @ turn)[:, :k], sigma

    return head


@pytest.mark.parametrize("r", [1, 5])
@pytest.mark.parametrize("angle", [0.3, np.pi / 4])
def test_tied_targets_may_be_mixed_at_will(angle: float, r: int) -> None:
    answer = factors([run("apart", (1.0, 1.0), r, head=turned(angle))])
    name = f"apart 1:1, r = {r}"
    spread, nearest, of_optimum, agreement, plane, carrying = numbers(answer, name)
    cos, sin = np.cos(angle), np.sin(angle)
    assert spread.effect == pytest.approx(1 / (cos**4 + sin**4), abs=1e-3)
    assert nearest.effect == pytest.approx(cos, abs=1e-3)
    assert np.isnan(of_optimum.effect)
    assert of_optimum.n == 0
    assert agreement.effect == pytest.approx(1, abs=1e-3)
    assert (plane.effect, carrying.effect) == pytest.approx((1, min(r, 2)), abs=1e-3)
    aligned = "Each singular vector is one feature's" in answer.answer
    assert aligned == (cos >= 0.95)
    assert "open in 6 of 6 instances). Open: the best head may mix" in answer.answer
    # Over angles that are uniform.
    angles = np.linspace(0, np.pi, 10_001)
    at_random = np.maximum(abs(np.cos(angles)), abs(np.sin(angles))).mean()
    assert f"at random to a |cos| of {at_random:.2f}." in answer.answer


def test_a_head_that_is_not_the_optimum_is_told() -> None:
    """It spans two factors where it should split them, or attends to something else."""
    spanning = factors([run("apart", head=turned(np.pi / 4))])
    found = effects(spanning, "apart 2:1, r = 5")
    np.testing.assert_allclose(found, [2, 0.5**0.5, 1, 0.5**0.5, 1, 2], atol=2e-3)
    assert "mix both features: apart 2:1, r = 5 (2.0 factors, |cos| 0.71, " in spanning.answer

    def elsewhere(w: Array, p: float, targets: tuple[Target, ...], r: int) -> Head:
        return w[:, :1], w[:, :1], np.ones(1)

    answer = factors([run("within", head=elsewhere)])
    found = effects(answer, "within 2:1, r = 5")
    np.testing.assert_allclose([found[1], *found[3:]], [0, 0, 0, 1], atol=2e-3)
    assert answer.answer.startswith("Singular vectors are neither feature's nor mix them: within")


def test_small_singular_values_do_not_count() -> None:
    """What a head has of its start is no answer to anything."""

    def noisy(w: Array, p: float, targets: tuple[Target, ...], r: int) -> Head:
        u, v, sigma = optimal(w, p, targets, r)
        return u, v, np.where(sigma > 0.1, sigma, 0.02)

    clean, loud = (factors([run("apart", head=head)]) for head in (optimal, noisy))
    name = "apart 2:1, r = 5"
    np.testing.assert_allclose(effects(loud, name), effects(clean, name), atol=2e-3)


def test_seeds_are_the_units_and_those_without_factors_are_told() -> None:
    alone = np.eye(*W.shape)
    answer = factors([run("apart", dictionaries=(W, alone, W, W))])
    (name, found), (chance, _) = answer.measures[0].effects
    assert (found.n, chance) == (3, "random directions")
    assert name in answer.answer
    assert "Instances with such factors: 6 of 8 (apart);" in answer.answer
    one = factors([run("within", dictionaries=(W,))])
    assert np.isnan(one.measures[0].effects[0][1].low)
    assert "One seed gives no interval" in one.answer
    none = factors([run("apart", dictionaries=(alone, alone))])
    assert none.answer.startswith("No instance has such factors: apart 2:1, r = 5. Instances")
    assert "nan" not in none.answer
    assert all(found.n == 0 for one in none.measures for _, found in one.effects)


def test_random_directions_lie_in_all_factors() -> None:
    answer = factors([run("apart")])
    by_chance = dict(answer.measures[0].effects)["random directions"].effect
    z = np.random.default_rng(0).standard_normal((W.shape[0], 20_000))
    z /= np.linalg.norm(z, axis=0)
    ends = np.cumsum([0, 1, 2, 3, 4])
    masses = np.stack([
        np.square(np.linalg.svd(W[:, a:b])[0][:, : np.linalg.matrix_rank(W[:, a:b])].T @ z).sum(0)
        for a, b in pairwise(ends)
    ])  # fmt: skip
    expected = (1 / np.square(masses).sum(0)).mean()
    assert by_chance == pytest.approx(expected, rel=0.05)


def test_targets_are_chosen_of_polytopes() -> None:
    def chosen(w: Array, where: Choice) -> Any:
        return [(target.i, target.j) for target in choose_targets(w, where, (2.0, 1.0))]

    assert choose_targets(W, "within", (3.0, 0.5)) == (Target(6, 7, 3.0), Target(7, 6, 0.5))
    assert chosen(W, "apart") == [(6, 3), (3, 6)]
    # Of factors alike in size the first.
    assert chosen(tegum(3, 3, 2, 3), "apart") == [(0, 3), (3, 0)]
    assert chosen(tegum(2, 3, 3), "within") == [(2, 3), (3, 2)]
    # A square's antipodes are one direction; here all of it is one factor, by a diagonal.
    diagonal = np.sqrt(0.5)
    square = np.array([[1.0, -1.0, 0.0, diagonal], [0.0, 0.0, 1.0, diagonal]])
    assert chosen(square, "within") == [(0, 2), (2, 0)]
    for w, where in ((tegum(2, 2, 1), "within"), (tegum(4, 2, 1), "apart"),
                     (np.eye(3), "within"), (np.zeros((3, 4)), "apart")):  # fmt: skip
        assert chosen(w, where) == []  # type: ignore[arg-type]


def test_groups_of_features_are_in_the_closed_form() -> None:
    """Features that occur together have other optimal heads than those that do not."""
    alone = run("within")
    config = replace(alone.run.config, groups=((6, 7),))
    together = MeasuredRun(replace(alone.run, config=config))
    *_, before, _, _ = effects(factors([alone]), "within 2:1, r = 5")
    *_, after, _, _ = effects(factors([together]), "within 2:1, r = 5")
    assert before == pytest.approx(1, abs=1e-3)
    assert after < 0.999


@pytest.mark.parametrize("change", [{"target_form": "softmax", "n_keys": 2},
                                    {"targets": (Target(0, 1),)}])  # fmt: skip
def test_runs_that_do_not_ask_it(change: dict[str, Any]) -> None:
    one = run("within")
    other = replace(one.run, config=replace(one.run.config, **change))
    with pytest.raises(StudyError, match=r"chosen by tegum factors.*found planted"):
        factors([MeasuredRun(other)])
