"""What figures of full circuits share: names of circuits and heads, and names beside points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from qk_taxonomy.figures.style import KEPT
from qk_taxonomy.records import CIRCUITS, Circuit

#: Colours of what is trained and of what is not.
TRAINED, CONTROL = KEPT, "0.55"

#: Dots of this many heads or fewer are told apart; beyond, they are small and pale.
_FEW_POINTS = 300

# Rows of names beside a panel: their height in inches at the size they are written in.
_NAME_HEIGHT = 0.135


class Head(NamedTuple):
    """A head of a model; ``stack`` is empty where the model has one."""

    stack: str
    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.stack} {self.layer}.{self.head}".strip()


def circuits_of(table: pd.DataFrame) -> tuple[Circuit, ...]:
    """The circuits that a table has values of."""
    return tuple(
        circuit
        for circuit in CIRCUITS
        if f"{circuit}_largest" in table and table[f"{circuit}_largest"].notna().any()
    )


def column(table: pd.DataFrame, name: str) -> pd.Series:
    """A column as float64; nan throughout where the table, made without a control, has none."""
    values = table[name] if name in table else pd.Series(np.nan, index=table.index)
    return pd.to_numeric(values, errors="coerce").astype(np.float64)


def counted(n: int, noun: str = "head") -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def point_style(n: int) -> dict[str, float]:
    """Size and opacity of the points of ``n`` heads."""
    if n <= _FEW_POINTS:
        return {"s": 18.0, "alpha": 0.9, "linewidth": 0.0}
    return {"s": float(np.clip(4500 / n, 3.0, 12.0)), "alpha": 0.6, "linewidth": 0.0}


def names_beside(
    ax: Axes, x: ArrayLike, y: ArrayLike, names: Sequence[str], height: float
) -> None:
    """Names in a column right of a panel, each tied to its point: they never cover each other.

    ``height``: of the panel in inches, about; the names that find no room are left out, the last
    of ``names`` first.
    """
    points = [
        (float(a), float(b), name)
        for a, b, name in zip(np.asarray(x), np.asarray(y), names, strict=True)
        if np.isfinite((a, b)).all()
    ][: int(height / _NAME_HEIGHT)]
    to_axes = ax.transData + ax.transAxes.inverted()
    points.sort(key=lambda point: point[1])
    wanted = [float(to_axes.transform(point[:2])[1]) for point in points]
    for (a, b, name), at in zip(points, _spread(wanted, _NAME_HEIGHT / height), strict=True):
        ax.annotate(
            name, (a, b), xytext=(1.04, at), textcoords="axes fraction", fontsize=7,
            va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkA": 1.0,
                        "shrinkB": 2.0, "relpos": (0.0, 0.5)},
        )  # fmt: skip


def _spread(wanted: Sequence[float], step: float) -> list[float]:
    """Heights in [0, 1], ascending, at least ``step`` apart and near those that are wanted."""
    placed: list[float] = []
    for number, at in enumerate(wanted):
        lowest = placed[-1] + step if placed else step / 2
        # Room is kept above for all that are still to come.
        highest = 1.0 - step / 2 - step * (len(wanted) - 1 - number)
        placed.append(float(min(max(at, lowest), highest)))
    return placed
