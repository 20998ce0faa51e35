"""(2) Do singular vectors align before or after the columns of W become orthogonal?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qk_taxonomy.statistics.findings import LEVEL, Finding
from qk_taxonomy.studies.superposition.alignment import ALIGNED
from qk_taxonomy.studies.superposition.answers.records import (
    Answer,
    Effects,
    instances_by_probability,
    listed,
)
from qk_taxonomy.studies.superposition.measured import MeasuredRun
from qk_taxonomy.studies.superposition.onsets import compare_onsets, median_onset, onset
from qk_taxonomy.wording import counted

#: Shares of a measure's way at which its onset is compared with another's.
LEVELS = (0.5, 0.8, 0.95)


def order_in_training(runs: Sequence[MeasuredRun]) -> Answer:
    """(2) Do singular vectors align before or after columns become orthogonal? Of one run.

    A cosine and a measure of orthogonality have no level in common, so each is held against its own
    way, from its first to its last value, at several levels of it. One of both is said to be first
    by a sign test over seeds, whose p-value is multiplied by the number of such tests (Bonferroni).
    Heads that are not aligned in the end never align.
    """
    (measured,) = runs
    run = measured.run
    steps = [one.step for one in run.snapshots]
    alignment, orthogonality = measured.onsets(LEVELS)
    stays = onset(measured.alignment, steps, ALIGNED)
    compared: list[list[tuple[str, Finding]]] = [[] for _ in LEVELS]
    aligned_from, parts = [], []
    n_tests = len(run.config.probabilities) * len(LEVELS)
    for p, chosen in instances_by_probability(measured):
        name = f"p = {p:.3g}"
        sides = []
        for place in range(len(LEVELS)):
            first, second = alignment[place, chosen], orthogonality[place, chosen]
            one = compare_onsets(first, second)
            compared[place].append((name, one))
            told = one.p_value * n_tests <= LEVEL
            sides.append(int(np.sign((first > second).sum() - one.statistic)) if told else 0)
        start = median_onset(stays[chosen])
        aligned_from.append((name, start))
        parts.append(f"{name}: {_first(sides)}, {_from(start)}")
    n_seeds = run.config.n_seeds
    levels = listed([f"{level:.0%}" for level in LEVELS])
    # The least p-value of a sign test is that of seeds which all say the same.
    enough = 2.0 ** (1 - n_seeds) * n_tests <= LEVEL
    few = "" if enough else " So few seeds cannot tell what is first: --seeds 10 can."
    return Answer(
        run.config.question,
        f"At {levels} of the way of each, in {counted(n_seeds, 'seed')}: {'; '.join(parts)}.{few}",
        (
            *(
                Effects(
                    f"steps from {level:.0%} of orthogonality to {level:.0%} of alignment, median "
                    "(negative: alignment is first)",
                    tuple(rows),
                    0.0,
                )
                for level, rows in zip(LEVELS, compared, strict=True)
            ),
            Effects(
                f"step from which every target stays at |cos| ≥ {ALIGNED:g}, median",
                tuple(aligned_from),
            ),
        ),
    )


def _first(sides: Sequence[int]) -> str:
    """Which of both is first at which levels, of −1 (alignment), 1 (orthogonality) and 0."""
    parts = []
    for side, name in ((-1, "alignment"), (1, "orthogonality")):
        at = [f"{level:.0%}" for level, one in zip(LEVELS, sides, strict=True) if one == side]
        if at:
            parts.append(f"{name} is first at {listed(at)}")
    return ", ".join(parts) or "not told apart"


def _from(start: Finding) -> str:
    """From which step on targets are aligned."""
    if not np.isfinite(start.effect):
        return "targets are not aligned to stay"
    text = f"targets stay aligned from step {start.effect:,.0f}"
    if np.isnan((start.low, start.high)).any():
        return text
    ends = [f"{end:,.0f}" if np.isfinite(end) else "never" for end in (start.low, start.high)]
    return f"{text} [{', '.join(ends)}] on"
