"""The study's questions, each answered by numbers over seeds and a line that says them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.statistics.decomposition import SingularVectors
from qk_taxonomy.statistics.findings import LEVEL, Finding
from qk_taxonomy.studies.superposition.alignment import ALIGNED
from qk_taxonomy.studies.superposition.measured import MeasuredRun
from qk_taxonomy.studies.superposition.measures import orthogonality, represented
from qk_taxonomy.studies.superposition.onsets import compare_onsets, onset, progress
from qk_taxonomy.studies.superposition.sharing import pair_sharing

Array = NDArray[np.float64]

#: Share of its end value from which a measure counts as settled.
SETTLED = 0.95

#: Shares of a measure's way at which its onset is compared with another's.
LEVELS = (0.5, 0.8, 0.95)


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
    """(2) Do singular vectors align before or after columns become orthogonal? Of one run.

    A cosine and a measure of orthogonality have no level in common, so each is held against its own
    way, from its first to its last value, at several levels of it.
    """
    (measured,) = runs
    snapshots = measured.run.snapshots
    steps = [one.step for one in snapshots]
    w = np.stack([one.w for one in snapshots]).astype(np.float64)
    aligned = progress(np.nanmin(measured.targets.lesser, axis=-1))
    effects, parts = [], []
    for p, chosen in _by_probability(measured):
        orthogonal = progress(orthogonality(w[:, chosen], represented(w[-1, chosen])))
        firsts = []
        for level in LEVELS:
            onsets = (onset(x, steps, level) for x in (aligned[:, chosen], orthogonal))
            compared = compare_onsets(*onsets)
            effects.append((f"p = {p:.3g}, {level:.0%}", compared))
            told = compared.p_value <= LEVEL
            firsts.append(np.sign(compared.effect) if told else 0.0)
        said = {-1.0: "alignment is first", 1.0: "orthogonality is first"}.get(
            firsts[0] if len(set(firsts)) == 1 else 0.0,
            "not told apart at all levels",
        )
        parts.append(f"p = {p:.3g}: {said}")
    levels = ", ".join(f"{level:.0%}" for level in LEVELS)
    return Answer(
        measured.run.config.question,
        f"At {levels} of the way of each, by sign tests over seeds: {'; '.join(parts)}.",
        "steps from orthogonality to alignment, median over seeds (negative: alignment is first)",
        tuple(effects),
        0.0,
    )


def capacity(runs: Sequence[MeasuredRun]) -> Answer:
    """(3) With more targets than dimensions of the head, which are kept, and are singular vectors
    shared? Of runs that differ in d_head, at their lowest probability.
    """
    effects, parts = [], []
    for measured in sorted(runs, key=lambda one: one.run.config.d_head):
        run = measured.run
        chosen = list(_by_probability(measured))[-1][1]
        found = measured.targets.lesser[-1][chosen] >= ALIGNED
        name = f"r = {run.config.d_head}"
        effects.append((name, mean_over_seeds(found.sum(axis=-1))))
        weights = np.abs([target.weight for target in run.targets[0]])
        # Where some are recovered and some are not: is none of the others heavier?
        some = [row for row in found if 0 < row.sum() < len(row)]
        heaviest = sum(weights[row].min() >= weights[~row].max() for row in some)
        pairs = np.array([(target.i, target.j) for target in run.targets[0]])
        vectors = SingularVectors(*(one[-1, chosen] for one in measured.vectors))
        overlap = pair_sharing(measured.last.w[chosen], vectors, pairs).overlap
        both = found[:, :, None] & found[:, None] & ~np.eye(len(pairs), dtype=bool)
        parts.append(
            f"{name}: {found.sum(axis=-1).mean():.1f} of {len(pairs)}"
            + (f", the heaviest in {heaviest} of {len(some)} seeds" if some else "")
            + (f", overlap {np.median(overlap[both]):.2f}" if both.any() else "")
        )
    return Answer(
        runs[0].run.config.question,
        f"Recovered, and overlap of two of them over singular vectors: {'; '.join(parts)}.",
        f"targets recovered, both |cos| ≥ {ALIGNED:g}, at the lowest p",
        tuple(effects),
    )


#: The preset that each question is asked of.
QUESTIONS: Mapping[str, Callable[[Sequence[MeasuredRun]], Answer]] = {
    "basic": recovery,
    "dynamics": order_in_training,
    "head-size": capacity,
}


def answers(runs: Mapping[str, Sequence[MeasuredRun]]) -> list[Answer]:
    """What can be answered of the questions by the runs of presets, by their names."""
    return [answer(runs[name]) for name, answer in QUESTIONS.items() if name in runs]
