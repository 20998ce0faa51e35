"""(1) Do singular vectors recover features, at which sparsity?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qk_taxonomy.statistics.findings import Finding
from qk_taxonomy.studies.superposition.alignment import ALIGNED
from qk_taxonomy.studies.superposition.answers.records import (
    Answer,
    Effects,
    instances_by_probability,
    listed,
    mean_over_seeds,
    seeds_without_interval,
    with_interval,
)
from qk_taxonomy.studies.superposition.measured import MeasuredRun


def recovery(runs: Sequence[MeasuredRun]) -> Answer:
    """(1) Do singular vectors recover features, at which sparsity? Of one run.

    Beside a cosine stands what random vectors reach in one of twenty draws; the weight that σ is
    held against is what it is to be for product targets of orthonormal features.
    """
    (measured,) = runs
    run, last = measured.run, measured.targets
    config, targets = run.config, run.targets[0]
    cosines: list[tuple[str, Finding]] = []
    chance: list[float] = []
    ratios: list[list[tuple[str, Finding]]] = [[] for _ in targets]
    everywhere: list[str] = []
    elsewhere: list[str] = []
    for p, chosen in instances_by_probability(measured):
        lesser, name = last.lesser[-1, chosen], f"p = {p:.3g}"
        cosines.append((name, mean_over_seeds(lesser.mean(axis=-1))))
        chance.append(_mean(last.chance[-1, chosen]))
        for place, target in enumerate(targets):
            ratio = last.sigma[-1, chosen, place] / abs(target.weight)
            ratios[place].append((name, mean_over_seeds(ratio)))
        aligned = (lesser >= ALIGNED).all(axis=-1)
        if aligned.all():
            everywhere.append(f"{p:.3g}")
        else:
            elsewhere.append(f"{p:.3g} ({aligned.sum()} of {len(aligned)})")
    known = [level for level in chance if np.isfinite(level)]
    weakest, found = min(cosines, key=lambda one: one[1].effect)
    every = "the seed" if config.n_seeds == 1 else f"all {config.n_seeds} seeds"
    where = f"p = {listed(everywhere)}"
    if not elsewhere and len(everywhere) > 2:
        where = f"all {len(everywhere)} p from {everywhere[0]} to {everywhere[-1]}"
    parts = [
        f"Every target is aligned (both |cos| ≥ {ALIGNED:g}) in {every} at {where}"
        if everywhere
        else f"At no p is every target aligned (both |cos| ≥ {ALIGNED:g}) in {every}"
    ]
    if elsewhere:
        parts.append(f"not at p = {listed(elsewhere)}")
    parts.append(
        f"the mean |cos| is {with_interval(found, 4)} or more (least at {weakest})"
        + (f", by chance {max(known):.2g} in one of twenty draws" if known else "")
    )
    if config.target_form == "indicator" and 1.0 in config.probabilities:
        parts.append("at p = 1 the target is constant, and there is nothing to align with")
    predicted = 1.0 if config.target_form == "product" else None
    return Answer(
        config.question,
        f"{'; '.join(parts)}.{seeds_without_interval(config.n_seeds)}",
        (
            Effects(
                "lesser |cos| of both sides, mean over targets", tuple(cosines), 1.0, tuple(chance)
            ),
            *(
                Effects(
                    f"σ of {target.i} → {target.j} over its weight {target.weight:g}",
                    tuple(rows),
                    predicted,
                )
                for target, rows in zip(targets, ratios, strict=True)
            ),
        ),
    )


def _mean(chance: np.ndarray) -> float:
    """Of what is known: a target without a singular vector has no chance level."""
    known = chance[np.isfinite(chance)]
    return float(known.mean()) if known.size else float("nan")
