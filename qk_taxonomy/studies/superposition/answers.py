"""The study's four questions, each answered by numbers over seeds and a line that says them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.statistics.decomposition import SingularVectors
from qk_taxonomy.statistics.findings import Finding
from qk_taxonomy.studies.superposition.alignment import ALIGNED
from qk_taxonomy.studies.superposition.measured import MeasuredRun
from qk_taxonomy.studies.superposition.measures import orthogonality, represented, tegum_factors
from qk_taxonomy.studies.superposition.onsets import compare_onsets, onset
from qk_taxonomy.studies.superposition.sharing import factor_spread, pair_sharing

Array = NDArray[np.float64]

#: Share of its end value from which a measure counts as settled.
SETTLED = 0.95


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a line, and the effects it rests on, of one unit.

    effects: a name of each, and what was found over ``n`` seeds. reference: the value that says
    "no effect", or the one that is predicted; None: neither.
    """

    question: str
    answer: str
    unit: str
    effects: tuple[tuple[str, Finding], ...]
    reference: float | None = None


def mean_over_seeds(values: ArrayLike) -> Finding:
    """Mean over seeds (seeds,) with Student's t interval; seeds without a value are left out."""
    from scipy.stats import t

    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    n, method = len(x), "mean over seeds, t interval"
    if n < 2:
        effect = float(x[0]) if n else float("nan")
        return Finding(effect, n=n, method=method, note="fewer than two seeds have no interval")
    half = float(t.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n))
    mean = float(x.mean())
    return Finding(mean, mean - half, mean + half, n=n, method=method)


def _by_probability(measured: MeasuredRun) -> Iterable[tuple[float, NDArray[np.bool_]]]:
    """Each probability, the densest first, and which instances have it."""
    probability = measured.run.instances.probability
    for p in np.unique(probability)[::-1]:
        yield float(p), probability == p


def recovery(runs: Sequence[MeasuredRun]) -> Answer:
    """(1) Do singular vectors recover features, at which sparsity? Of one run."""
    (measured,) = runs
    lesser = measured.targets.lesser[-1]
    effects = []
    everywhere: list[str] = []
    elsewhere: list[str] = []
    for p, chosen in _by_probability(measured):
        cosines = lesser[chosen]
        effects.append((f"p = {p:.3g}", mean_over_seeds(np.nanmean(cosines, axis=-1))))
        aligned = (cosines >= ALIGNED).all(axis=-1)
        if aligned.all():
            everywhere.append(f"{p:.3g}")
        else:
            elsewhere.append(f"{p:.3g} ({aligned.sum()} of {len(aligned)})")
    found, rest = ", ".join(everywhere) or "none", ", ".join(elsewhere)
    answer = f"Every target is aligned (both |cos| ≥ {ALIGNED:g}) in every seed at p = {found}"
    return Answer(
        measured.run.config.question,
        f"{answer}; not in every seed at p = {rest}." if rest else f"{answer}.",
        "the lesser |cos| of both sides, mean over targets",
        tuple(effects),
        1.0,
    )


def order_in_training(runs: Sequence[MeasuredRun]) -> Answer:
    """(2) Do singular vectors align before or after columns become orthogonal? Of one run."""
    (measured,) = runs
    snapshots = measured.run.snapshots
    steps = [one.step for one in snapshots]
    w = np.stack([one.w for one in snapshots]).astype(np.float64)
    aligned = onset(np.nanmin(measured.targets.lesser, axis=-1), steps, ALIGNED)
    effects, parts = [], []
    for p, chosen in _by_probability(measured):
        courses = orthogonality(w[:, chosen], represented(w[-1, chosen]))
        settled = np.array([onset(course, steps, SETTLED * course[-1]) for course in courses.T])
        compared = compare_onsets(aligned[chosen], settled)
        effects.append((f"p = {p:.3g}", compared))
        first = int(compared.statistic)
        parts.append(
            f"{first} of {compared.n} seeds at p = {p:.3g} (p-value {compared.p_value:.2g})"
        )
    return Answer(
        measured.run.config.question,
        f"Alignment settles before orthogonality in {', '.join(parts)}.",
        "steps from orthogonality to alignment, median over seeds (negative: alignment is first)",
        tuple(effects),
        0.0,
    )


def capacity(runs: Sequence[MeasuredRun]) -> Answer:
    """(3) With more targets than dimensions of the head, which are kept, and are singular vectors
    shared? Of runs that differ in d_head.
    """
    ordered = sorted(runs, key=lambda one: one.run.config.d_head)
    effects, parts = [], []
    for measured in ordered:
        run = measured.run
        chosen = list(_by_probability(measured))[-1][1]
        lesser = measured.targets.lesser[-1][chosen]
        found = lesser >= ALIGNED
        effects.append((f"r = {run.config.d_head}", mean_over_seeds(found.sum(axis=-1))))
        order = np.argsort([-abs(target.weight) for target in run.targets[0]])
        ranked = found[:, order]
        heaviest = sum(row.sum() == np.argmin(np.append(row, False)) for row in ranked)
        pairs = np.array([(target.i, target.j) for target in run.targets[0]])
        vectors = SingularVectors(*(one[-1, chosen] for one in measured.vectors))
        shared = pair_sharing(measured.last.w[chosen], vectors, pairs).vectors_per_pair
        parts.append(
            f"r = {run.config.d_head}: {found.sum(axis=-1).mean():.1f} of {lesser.shape[-1]} "
            f"recovered (the heaviest in {heaviest} of {len(found)} seeds), a pair over "
            f"{np.nanmedian(shared):.1f} vectors"
        )
    return Answer(
        ordered[0].run.config.question,
        "; ".join(parts) + ".",
        f"targets recovered, both |cos| ≥ {ALIGNED:g}, at the lowest p",
        tuple(effects),
    )


def factors(runs: Sequence[MeasuredRun]) -> Answer:
    """(4) Do singular vectors span tegum factors or keep to one? Of both kinds of targets."""
    effects, parts = [], []
    for measured in runs:
        run, w = measured.run, measured.last.w.astype(np.float64)
        u = measured.vectors.u[-1]
        for p, chosen in _by_probability(measured):
            with_targets = chosen & np.array([bool(targets) for targets in run.targets])
            if not with_targets.any():
                continue
            w_p, labels = w[with_targets], tegum_factors(w[with_targets])
            # Two targets call for two singular vectors.
            spread = factor_spread(w_p, labels, u[with_targets][..., :2])
            kept = spread.factors_per_vector.mean(axis=-1)
            name = f"{run.config.name.removeprefix('tegum-')}, p = {p:.3g}"
            found = mean_over_seeds(kept)
            effects.append((name, found))
            parts.append(f"{name}: {found.effect:.2f} ({spread.by_chance.mean():.1f} by chance)")
    return Answer(
        "A head attends to features of tegum factors: do singular vectors keep to one each?",
        f"Factors to a leading singular vector, 1 if it keeps to one: {'; '.join(parts)}.",
        "tegum factors that a leading singular vector lies in",
        tuple(effects),
        1.0,
    )


#: The presets that each question is asked of.
QUESTIONS: Mapping[tuple[str, ...], Callable[[Sequence[MeasuredRun]], Answer]] = {
    ("basic",): recovery,
    ("dynamics",): order_in_training,
    ("head-size",): capacity,
    ("tegum-apart", "tegum-within"): factors,
}


def answers(runs: Mapping[str, Sequence[MeasuredRun]]) -> list[Answer]:
    """What can be answered of the questions by the runs of presets, by their names."""
    return [
        answer([run for name in names for run in runs[name]])
        for names, answer in QUESTIONS.items()
        if all(name in runs for name in names)
    ]
