"""The study's answers, a line each."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.studies.evolution.records import Evolution, Integers
from qk_taxonomy.studies.evolution.table import heads_table
from qk_taxonomy.studies.evolution.unusual import TAIL

# Heads that are named.
_MOST_NAMED = 5


def summary(evolution: Evolution) -> list[str]:
    """What became of the heads, from what they were, and which went their own way.

    What is told of unusual paths takes the others' for a cloud with the tails of Student's t
    (:mod:`~qk_taxonomy.studies.evolution.unusual`).
    """
    s, h = evolution.labels.shape
    lines = [
        f"{evolution.name}: {h} heads at {s} steps, {evolution.names[0]} to {evolution.names[-1]}"
    ]
    if evolution.null.n:
        outside = (evolution.p_untrained <= LEVEL).mean(1)
        lines.append(
            f"unlike {evolution.null.n} untrained heads (p ≤ {LEVEL}, uncorrected: {LEVEL:.0%} "
            f"expected): {outside[0]:.0%} of the heads at {evolution.names[0]}, "
            f"{outside[-1]:.0%} at {evolution.names[-1]}"
        )
        lines.append(
            _when(evolution, "grew λ beyond the untrained edge for good", evolution.outliers_born)
        )
    lines.append(_when(evolution, "left their first class for good", evolution.left_class))
    distance = np.median(evolution.from_start[-1])
    against = ""
    if evolution.null.n:
        times = distance / evolution.null.divergence
        against = f", {times:.2g} times that of two untrained heads"
    lines.append(f"median divergence of the last step from the first {distance:.3f} nats{against}")
    if np.isfinite(evolution.unusual.q_values).any():
        lines.append(_unusual(evolution))
    return lines


def _when(evolution: Evolution, what: str, index: Integers) -> str:
    """How many heads came to something, by which revision half of those had, and how many began
    so.
    """
    came = np.sort(index[(index > 0) & (index < len(evolution.names))])
    line = f"{len(came)} of {len(index)} heads {what}"
    # Of two steps it could only be the last.
    if len(came) and len(evolution.names) > 2:
        line += f", half of them by {evolution.names[came[(len(came) - 1) // 2]]}"
    began = int((index == 0).sum())
    return f"{line}; {began} had them from {evolution.names[0]} on" if began else line


def _unusual(evolution: Evolution) -> str:
    table = heads_table(evolution)
    found = table[table["unusual_q"] <= LEVEL]
    law = f"the tails of Student's t of {TAIL} degrees of freedom"
    if found.empty:
        farthest = table.iloc[0]
        return (
            f"no head's path stands out: that takes a distance of {evolution.unusual.needed:.3g} "
            f"from the others', if these have {law}, and the farthest, {_place(farthest)}, has "
            f"{farthest['unusual_distance']:.3g}"
        )
    shown = found.head(_MOST_NAMED)
    heads = ", ".join(_described(row) for _, row in shown.iterrows())
    more = f", and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return f"unusual paths (q ≤ {LEVEL}, if others have {law}): {heads}{more}"


def _described(row: pd.Series) -> str:
    return f"{_place(row)} ({row['unusual_distance']:.3g}: {row['unusual_in']})"


def _place(row: pd.Series) -> str:
    return f"{row['stack']} {row['layer']}.{row['head']}".strip()
