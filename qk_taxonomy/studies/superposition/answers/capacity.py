"""(3) With more targets than dimensions of the head: which are kept, are vectors shared?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qk_taxonomy.statistics.decomposition import SingularVectors
from qk_taxonomy.studies.superposition.alignment import ALIGNED
from qk_taxonomy.studies.superposition.answers.records import (
    Answer,
    instances_by_probability,
    mean_over_seeds,
)
from qk_taxonomy.studies.superposition.measured import MeasuredRun
from qk_taxonomy.studies.superposition.sharing import pair_sharing


def capacity(runs: Sequence[MeasuredRun]) -> Answer:
    """(3) With more targets than dimensions of the head, which are kept, and are singular vectors
    shared? Of runs that differ in d_head, at their lowest probability.
    """
    effects, parts = [], []
    for measured in sorted(runs, key=lambda one: one.run.config.d_head):
        run = measured.run
        chosen = list(instances_by_probability(measured))[-1][1]
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
