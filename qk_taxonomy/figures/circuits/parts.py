"""What figures of full circuits share: names of circuits and heads, and names beside points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from qk_taxonomy.figures.style import KEPT
from qk_taxonomy.records import CIRCUITS, Circuit

#: Colours of what is trained and of what is not.
TRAINED, CONTROL = KEPT, "0.55"

#: Dots of this many heads or fewer are told apart; beyond, they are small and pale.
_FEW_POINTS = 300

# Area of a point of few, in square points.
_POINT = 18.0

# Between panels that have names beside them, in inches.
_BETWEEN = 0.1

# Rows of names beside a panel: their height in inches at the size they are written in.
_NAME_HEIGHT = 0.145


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


def point_style(n: int) -> dict[str, Any]:
    """Size and opacity of the points of ``n`` heads, as of ``Axes.scatter``."""
    if n <= _FEW_POINTS:
        return {"s": _POINT, "alpha": 0.9, "linewidth": 0.0}
    return {"s": float(np.clip(4500 / n, 3.0, 12.0)), "alpha": 0.6, "linewidth": 0.0}


def legend_below(ax: Axes, title: str | None = None) -> None:
    """A legend below a panel of points, its own points of readable size."""
    legend = ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False, title=title
    )  # fmt: skip
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_alpha(1.0)
            handle.set_sizes([max(_POINT, float(handle.get_sizes()[0]))])


def leave_room(figure: Figure) -> None:
    """Room between panels, where the names beside one would touch the next one's label."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(w_pad=_BETWEEN)


def names_beside(ax: Axes, x: ArrayLike, y: ArrayLike, names: Sequence[str], height: float) -> None:
    """Names in a column right of a panel, each tied to its ringed point: they cover nothing.

    ``height``: of the panel in inches, about; the names that find no room are left out, the last
    of ``names`` first.
    """
    points = [
        (float(a), float(b), name)
        for a, b, name in zip(np.asarray(x), np.asarray(y), names, strict=True)
        if np.isfinite((a, b)).all()
    ][: int(height / _NAME_HEIGHT)]
    points.sort(key=lambda point: point[1])
    for a, b, _ in points:
        ax.scatter([a], [b], s=26, facecolor="none", edgecolor="black", linewidth=0.7, zorder=4)
    low, high = ax.get_ylim()
    wanted = [(b - low) / (high - low) for _, b, _ in points]
    for (a, b, name), at in zip(points, _spread(wanted, _NAME_HEIGHT / height), strict=True):
        ax.annotate(
            name, (a, b), xytext=(1.04, at), textcoords="axes fraction", fontsize=8,
            va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkA": 1.0,
                        "shrinkB": 2.0, "relpos": (0.0, 0.5)},
        )  # fmt: skip


def _spread(wanted: Sequence[float], step: float) -> list[float]:
    """Heights in [0, 1], ascending and at least ``step`` apart, nearest to those that are wanted.

    Less ``step`` times their number, such heights only ascend: least squares is then isotonic.
    """
    if not wanted:
        return []
    numbers = step * np.arange(len(wanted))
    free = isotonic_regression(np.array(wanted) - numbers).x
    return list(np.clip(free, step / 2, 1.0 - step / 2 - numbers[-1]) + numbers)
