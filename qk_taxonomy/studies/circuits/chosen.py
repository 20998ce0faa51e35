"""Heads of the study that are shown: those asked for, or those that the table tells of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from qk_taxonomy.errors import QKTaxonomyError
from qk_taxonomy.records import CIRCUITS, LayerPlan

#: Heads that are shown of each kind unless some are asked for.
N_SHOWN = 4


class Head(NamedTuple):
    """A head of a model; ``stack`` is empty where the model has one."""

    stack: str
    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.stack} {self.layer}.{self.head}".strip()


@dataclass(frozen=True)
class ChosenHeads:
    """Heads that are shown together, and why."""

    reason: str
    heads: tuple[Head, ...]


def chosen_heads(table: pd.DataFrame, n: int = N_SHOWN) -> list[ChosenHeads]:
    """The most unusual heads, and of the others the most copying; what the table can tell of.

    ``table``: the heads of one convention, of one stack or of all.
    """
    unknown = pd.Series(np.nan, table.index)
    ranks = [table.get(f"{circuit}_unusual", unknown) for circuit in CIRCUITS]
    # Ranks are 1 for the most unusual; a head counts by the circuit in which it is more so.
    best = pd.concat(ranks, axis=1).astype(np.float64).min(axis=1)
    unusual = best.dropna().sort_values(kind="stable").index[:n]
    copying = table.get("ov_copying", unknown).astype(np.float64).drop(unusual).dropna()
    most = copying.sort_values(ascending=False, kind="stable").index[:n]
    chosen = [
        ChosenHeads("most unusual heads", _heads(table, unusual)),
        ChosenHeads("most copying heads", _heads(table, most)),
    ]
    return [group for group in chosen if group.heads] or [
        ChosenHeads("first heads", _heads(table, table.index[:n]))
    ]


def _heads(table: pd.DataFrame, index: pd.Index) -> tuple[Head, ...]:
    rows = table.loc[index, ["stack", "layer", "head"]].itertuples(index=False)
    return tuple(Head(str(row.stack), int(row.layer), int(row.head)) for row in rows)


def asked_heads(
    plans: Sequence[LayerPlan], layers: Sequence[int] | None, heads: Sequence[int] | None
) -> tuple[Head, ...]:
    """Heads of some numbers in layers of some numbers, every one where none is given.

    Raises QKTaxonomyError for a layer or a head that there is not.
    """
    numbers = sorted({plan.layer for plan in plans})
    missing = sorted(set(layers or ()) - set(numbers))
    if missing:
        raise QKTaxonomyError(
            f"There is no attention layer {', '.join(map(str, missing))}, only {_runs(numbers)}."
        )
    of = [plan for plan in plans if not layers or plan.layer in layers]
    most = max((plan.geometry.n_heads for plan in of), default=0)
    missing = sorted(head for head in set(heads or ()) if not 0 <= head < most)
    if missing:
        raise QKTaxonomyError(
            f"There is no head {', '.join(map(str, missing))}: the layers have heads 0 to "
            f"{most - 1}."
        )
    return tuple(
        Head(plan.stack, plan.layer, head)
        for plan in of
        for head in range(plan.geometry.n_heads)
        if not heads or head in heads
    )


def _runs(numbers: Sequence[int]) -> str:
    """Numbers in order, as runs: 0 to 5, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first} to {last}" if last > first else f"{first}" for first, last in runs)
