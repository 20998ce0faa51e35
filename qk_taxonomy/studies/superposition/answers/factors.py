"""(4) Targets in two tegum factors, or in one: do singular vectors span them or split them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.errors import StudyError
from qk_taxonomy.statistics.decomposition import SingularVectors
from qk_taxonomy.statistics.findings import Finding
from qk_taxonomy.studies.superposition.alignment import ALIGNED
from qk_taxonomy.studies.superposition.answers.records import (
    Answer,
    Effects,
    mean_over_seeds,
    seeds_without_interval,
    with_interval,
)
from qk_taxonomy.studies.superposition.config import Choice
from qk_taxonomy.studies.superposition.measured import CARRIES, MeasuredRun
from qk_taxonomy.studies.superposition.measures import directions, principal_angles, tegum_factors
from qk_taxonomy.studies.superposition.sharing import factor_spread
from qk_taxonomy.studies.superposition.theory import (
    TIE,
    Optimum,
    PairProblem,
    QuadraticForm,
    compare_with_optimum,
    optimum,
    pair_problem,
)

Array = NDArray[np.float64]

# A singular vector of which less than this lies in the plane of the two features is not theirs.
_ELSEWHERE = 0.5

# Of cos a · f + sin a · g with f and g orthogonal, the mean over angles of the greater |cos|.
_AT_RANDOM = 2 * np.sqrt(2) / np.pi


class _Found(NamedTuple):
    """Of one instance: means over the singular vectors, left and right, that carry logits.

    ``feature``: the greater |cos| with W_f and W_g. ``plane``: their share in the span of both.
    ``of_optimum``: |cos| with the optimal head's, ``feature_of_optimum``: that head's own
    ``feature``, nan where the optimum leaves it open. ``chance``: ``factors`` of random directions.
    """

    carrying: float
    factors: float
    chance: float
    feature: float
    plane: float
    of_optimum: float
    feature_of_optimum: float


class _Row(NamedTuple):
    """A run of the grid and what was found over seeds; name: choice, weights and size of head.

    n_measured: of n_instances, those that have targets. n_open: those of them whose optimum leaves
    open what its singular vectors are.
    """

    name: str
    where: Choice
    over_seeds: Mapping[str, Finding]
    n_instances: int
    n_measured: int
    n_open: int


def factors(runs: Sequence[MeasuredRun]) -> Answer:
    """(4) Do singular vectors span the subspaces of tegum factors, or split them?

    Of frozen runs that differ in where targets are ("apart" or "within"), in their weights and in
    d_head. Each number is a mean over the singular vectors that carry logits and over both sides,
    then over the probabilities of a seed; seeds are the units. Raises StudyError for other runs.
    """
    rows = [_row(one) for one in runs]
    first = runs[0].run.config
    measures = (
        ("factors", "tegum factors that a singular vector lies in", None),
        ("feature", "|cos| of a singular vector with the nearer feature", None),
        ("feature_of_optimum", "|cos| of the optimal head's vector with the nearer feature", None),
        ("of_optimum", "|cos| with the optimal head's vector, or the span of those of its σ", 1.0),
        ("plane", "share of a singular vector in the plane of both features", None),
        ("carrying", f"singular vectors that carry: σ ≥ {CARRIES:.0%} of σ₁", None),
    )
    # The representations of all runs are the same, but not all have targets of either kind.
    chance = max(rows, key=lambda row: row.n_measured).over_seeds["chance"]
    # Which features are chosen does not depend on the rest of the grid.
    measured = {
        row.where: f"{row.n_measured} of {row.n_instances} ({row.where})" for row in rows
    }.values()
    return Answer(
        first.question,
        _line(rows)
        + (f" Random directions lie in {chance.effect:.1f} factors." if chance.n else "")
        + f" Instances with such factors: {', '.join(measured)}; 2:1 and the like are weights."
        + seeds_without_interval(first.n_seeds),
        tuple(
            Effects(
                measure,
                tuple((row.name, row.over_seeds[key]) for row in rows)
                + ((("random directions", chance),) if key == "factors" else ()),
                reference,
            )
            for key, measure, reference in measures
        ),
    )


def _row(measured: MeasuredRun) -> _Row:
    run = measured.run
    config = run.config
    if not isinstance(config.targets, str) or config.target_form == "softmax":
        raise StudyError(
            "Wanted runs whose targets are chosen by tegum factors, of a form that has an optimum "
            f"in closed form, found {config.name} with {config.target_form} targets."
        )
    form = config.target_form
    first, second = config.target_weights
    found = np.array([_of_instance(measured, form, place) for place in range(len(run.targets))])
    n_measured = sum(map(bool, run.targets))
    seeds = [found[run.instances.seed == seed] for seed in np.unique(run.instances.seed)]
    return _Row(
        f"{config.targets} {first:g}:{second:g}, r = {config.d_head}",
        config.targets,
        {
            name: mean_over_seeds([_mean(of_seed[:, place]) for of_seed in seeds])
            for place, name in enumerate(_Found._fields)
        },
        len(run.targets),
        n_measured,
        n_measured - int(np.isfinite(found[:, _Found._fields.index("feature_of_optimum")]).sum()),
    )


def _of_instance(measured: MeasuredRun, form: QuadraticForm, place: int) -> _Found:
    run, targets = measured.run, measured.run.targets[place]
    if not targets:
        return _Found(*[np.nan] * len(_Found._fields))
    w = measured.last.w[place].astype(np.float64)
    vectors = SingularVectors(*(one[-1, place] for one in measured.vectors))
    problem = pair_problem(
        w,
        run.instances.probability[place],
        [(target.i, target.j) for target in targets],
        [target.weight for target in targets],
        form,
        run.config.groups,
    )
    best, open_choice = _optimum(problem, run.config.d_head)
    features = directions(w)[:, sorted({i for target in targets for i in (target.i, target.j)})]
    carried = vectors.sigma >= CARRIES * vectors.sigma[0]
    optimal = best.vectors.sigma >= CARRIES * best.vectors.sigma[0]
    k = int(min(carried.sum(), optimal.sum()))
    agreement = compare_with_optimum(problem, vectors, best, k)
    sides = [side[:, carried] for side in (vectors.u, vectors.v)]
    optima = [side[:, optimal] for side in (best.vectors.u, best.vectors.v)]
    spreads = [factor_spread(w, tegum_factors(w), side) for side in sides]
    return _Found(
        carrying=float(carried.sum()),
        factors=_mean([one.factors_per_vector for one in spreads]),
        chance=float(spreads[0].by_chance),
        feature=_mean([_nearest(features, side) for side in sides]),
        plane=_mean([principal_angles(features, side).capture for side in sides]),
        of_optimum=_mean([agreement.left, agreement.right]),
        feature_of_optimum=np.nan
        if open_choice
        else _mean([_nearest(features, side) for side in optima]),
    )


def _optimum(problem: PairProblem, rank: int) -> tuple[Optimum, bool]:
    """The best head of a rank, and whether it leaves open what its singular vectors are.

    Where the next dimension of a head would be worth as much as its last one, any mixture of both
    is as good: then that of the rank that has them all.
    """
    best = optimum(problem, rank)
    sizes = np.sqrt(best.gains)
    last = sizes[rank - 1]
    if last >= CARRIES * sizes[0]:
        whole = int((sizes >= (1 - TIE) * last).sum())
        if whole > rank:
            return optimum(problem, whole), True
    sigma = best.vectors.sigma[best.vectors.sigma >= CARRIES * best.vectors.sigma[0]]
    return best, bool((sigma[1:] >= (1 - TIE) * sigma[:-1]).any())


def _nearest(features: Array, vectors: Array) -> Array:
    """Of each vector (m, k), the greatest |cos| with a feature (m, n): (k,)."""
    return np.abs(features.T @ vectors).max(axis=0)


def _mean(values: ArrayLike) -> float:
    """The mean of what is finite; nan where nothing is."""
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    return float(x.mean()) if x.size else np.nan


def _line(rows: Sequence[_Row]) -> str:
    """What singular vectors are in the rows of each verdict."""
    parts = []
    for verdict in dict.fromkeys(map(_verdict, rows)):
        said = [f"{row.name}{_numbers(row)}" for row in rows if _verdict(row) == verdict]
        parts.append(f"{verdict}: {', '.join(said)}.")
    if any(row.n_open for row in rows):
        parts.append(
            "Open: the best head may mix its singular vectors at will, at random to a |cos| of "
            f"{_AT_RANDOM:.2f}."
        )
    return " ".join(parts)


def _verdict(row: _Row) -> str:
    if not row.n_measured:
        return "No instance has such factors"
    if row.over_seeds["plane"].effect < _ELSEWHERE:
        return "Singular vectors are neither feature's nor mix them"
    if row.over_seeds["feature"].effect >= ALIGNED:
        return "Each singular vector is one feature's"
    return "Singular vectors mix both features"


def _numbers(row: _Row) -> str:
    if not row.n_measured:
        return ""
    found = row.over_seeds
    theory = f"optimum {found['feature_of_optimum'].effect:.2f}"
    if row.n_open:
        theory = f"open in {row.n_open} of {row.n_measured} instances"
    return (
        f" ({found['factors'].effect:.1f} factors, |cos| {with_interval(found['feature'], 2)}, "
        f"{theory})"
    )
