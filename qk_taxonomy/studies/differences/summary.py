"""A comparison of two models in a few lines, for whoever has just made it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from qk_taxonomy.hypotheses.summary import effects_found
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.moves import MOVES
from qk_taxonomy.statistics.shifts import FLIP_LAYERS
from qk_taxonomy.studies.differences.records import ModelDifference, StackDifference

#: The statistics whose shifts are those of all heads' scale (ln Σλ) and rank.
MOVED_STATISTICS = {"scale": "MEAN", "rank": "effective_rank_lambda"}

_NAMES = {"scale": "scale, ln Σλ", "rank": "rank, effective rank of λ"}
_NAMED = 5


def summary(difference: ModelDifference) -> Iterator[str]:
    """Of each stack: whether all heads together moved, how far each did, and which the farthest."""
    for stack in difference.stacks:
        yield from _lines(stack)


def _lines(stack: StackDifference) -> Iterator[str]:
    heads = stack.heads
    yield (
        f"{stack.first.name} to {stack.second.name}: {len(heads)} heads matched by "
        f"{stack.matching}; median Jensen–Shannon divergence "
        f"{heads['jensen_shannon'].median():.3g} nats"
    )
    yield from _shift_lines(stack)
    yield (
        "  how far each head moved, 100 % being how far two unlike heads of the first model are "
        "apart (1 pair in 20 is farther):"
    )
    for name in MOVES:
        sizes = heads[f"{name}_units"]
        known = f"{_percent(sizes.median())} in the median, {_percent(sizes.max())} at most"
        yield f"    {name}: {known if sizes.notna().any() else 'no two heads to compare with'}"
    if heads["q_untrained"].notna().any():
        n = int((heads["q_untrained"] <= LEVEL).sum())
        yield (
            f"  by a finer yardstick, the shape of {n} of {len(heads)} moved farther than two "
            f"untrained heads are apart (q ≤ {LEVEL}): those are nearly alike, and heads of a "
            "trained model are not, so that both can be true"
        )
    most = ", ".join(
        _named(row) for row in heads[heads["moved"] != ""].head(_NAMED).to_dict("records")
    )
    yield f"  moved most (layer.head): {most or 'none'}"
    if stack.depth is not None:
        p = f"p = {stack.depth.p_value:.2g}" if not stack.depth.note else stack.depth.note
        yield f"  correlation of matched heads' depths: {stack.depth.effect:+.2f}, {p}"


def _shift_lines(stack: StackDifference) -> Iterator[str]:
    """All heads together: scale and rank, and what else shifted."""
    shifts = stack.shifts
    if not shifts["p_value"].notna().any():
        yield f"  all heads together: not tested ({shifts['note'].iloc[0]})"
        return
    unit = "whole layers" if (shifts["method"] == FLIP_LAYERS).all() else "key-value groups"
    yield (
        f"  all heads together (sign flips of {unit}; r: rank-biserial correlation, 95 % interval; "
        f"q over {len(shifts)} statistics):"
    )
    for name, statistic in MOVED_STATISTICS.items():
        for row in shifts[shifts["statistic"] == statistic].to_dict("records"):
            p = f"p = {row['p_value']:.2g}, q = {row['q_value']:.2g}, n = {row['n']}"
            tested = p if row["p_value"] == row["p_value"] else f"not tested ({row['note']})"
            yield (
                f"    {_NAMES[name]}: {stack.heads[name].median():+.3g} in the median; "
                f"r = {row['effect']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}], {tested}"
            )
    others = shifts[~shifts["statistic"].isin(MOVED_STATISTICS.values())]
    yield f"    others found to have shifted (r, q ≤ {LEVEL}): {effects_found(others)}"


def _named(row: Mapping[Hashable, Any]) -> str:
    """A head, and what of it moved most."""
    size = row[f"{row['moved']}_units"]
    return f"{row['layer']}.{row['head']} ({row['moved']} {_percent(size)})"


def _percent(share: float) -> str:
    """A share in per cent: two digits, or all that are before the point."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
