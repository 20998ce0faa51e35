"""(1) Do singular vectors recover features, at which sparsity?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qk_taxonomy.studies.superposition.alignment import ALIGNED
from qk_taxonomy.studies.superposition.answers.records import (
    Answer,
    instances_by_probability,
    mean_over_seeds,
)
from qk_taxonomy.studies.superposition.measured import MeasuredRun


def recovery(runs: Sequence[MeasuredRun]) -> Answer:
    """(1) Do singular vectors recover features, at which sparsity? Of one run."""
    (measured,) = runs
    lesser = measured.targets.lesser[-1]
    effects = []
    everywhere: list[str] = []
    elsewhere: list[str] = []
    for p, chosen in instances_by_probability(measured):
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
