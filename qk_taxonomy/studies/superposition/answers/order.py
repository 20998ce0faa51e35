"""(2) Do singular vectors align before or after the columns of W become orthogonal?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.studies.superposition.answers.records import Answer, instances_by_probability
from qk_taxonomy.studies.superposition.measured import MeasuredRun
from qk_taxonomy.studies.superposition.measures import orthogonality, represented
from qk_taxonomy.studies.superposition.onsets import compare_onsets, onset, progress

#: Share of its end value from which a measure counts as settled.
SETTLED = 0.95

#: Shares of a measure's way at which its onset is compared with another's.
LEVELS = (0.5, 0.8, 0.95)


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
    for p, chosen in instances_by_probability(measured):
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
