"""A comparison of two models in a few lines, for whoever has just made it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.moves import MOVES
from qk_taxonomy.studies.differences.records import ModelDifference, StackDifference

_NAMED = 5


def summary(difference: ModelDifference) -> Iterator[str]:
    """What moved in each stack, in the units of the first model's own heads, and which heads."""
    for stack in difference.stacks:
        yield from _lines(stack)


def _lines(stack: StackDifference) -> Iterator[str]:
    heads = stack.heads
    yield (
        f"{stack.first.name} to {stack.second.name}: {len(heads)} heads matched by "
        f"{stack.matching}; median Jensen–Shannon divergence "
        f"{heads['jensen_shannon'].median():.3g} nats"
    )
    medians = ", ".join(f"{name} {heads[f'{name}_units'].median():.2g}" for name in MOVES)
    yield f"  median move, 1 being what 1 in 20 pairs of the first model's heads exceeds: {medians}"
    beyond = ", ".join(f"{(heads[f'q_{name}'] <= LEVEL).sum()} in {name}" for name in MOVES)
    yield f"  farther than its heads differ (q ≤ {LEVEL}): {beyond}"
    if heads["q_untrained"].notna().any():
        n = int((heads["q_untrained"] <= LEVEL).sum())
        yield f"  farther in shape than untrained heads differ (q ≤ {LEVEL}): {n}"
    most = ", ".join(
        _named(row) for row in heads[heads["moved"] != ""].head(_NAMED).to_dict("records")
    )
    yield f"  moved most (layer.head): {most or 'none'}"
    if stack.depth is not None:
        p = f"p = {stack.depth.p_value:.2g}" if not stack.depth.note else stack.depth.note
        yield f"  correlation of matched heads' depths: {stack.depth.effect:+.2f}, {p}"


def _named(row: Mapping[Hashable, Any]) -> str:
    """A head, and what of it moved most."""
    size = row[f"{row['moved']}_units"]
    return f"{row['layer']}.{row['head']} ({row['moved']} {size:.2g})"
