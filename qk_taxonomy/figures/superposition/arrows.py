"""Features and singular vectors as arrows in a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import FixedLocator

from qk_taxonomy.figures.parts import (
    MOST_COLUMNS,
    Array,
    grid_shape,
    legend_under,
    panel_grid,
    put_title,
)
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.figures.superposition.parts import mark_style, target_colours, target_handles
from qk_taxonomy.studies.superposition.config import Target

# Names of vectors nearer to each other than this (in radians) are written together.
_TOGETHER = 0.5

# Room for a name beyond the longest arrow.
_NAME = 0.22

# Inches that a panel has at least.
_WIDTH = 2.2


@dataclass(frozen=True, eq=False)
class Plane:
    """What one panel shows: features (n, 2) and named vectors (2,), in the coordinates of a plane.

    axes: what the coordinates are. sides: whether the i of targets are marked, and their j.
    """

    heading: str
    features: Array
    vectors: Mapping[str, Array]
    axes: tuple[str, str]
    targets: Sequence[Target]
    sides: tuple[bool, bool] = (True, True)


def arrow_figure(planes: Sequence[Plane], title: str, page: Page = SCREEN) -> Figure:
    """Features W_i as arrows from the origin, a panel a plane, those of targets in the colour of
    the target and with its mark; named vectors, such as u₁, in black. Grey: the unit circle.

    A feature outside the plane is drawn by its projection, and is short.
    """
    most = page.columns(MOST_COLUMNS, _WIDTH)
    n_rows, n_columns = grid_shape(len(planes), most)
    # Panels are square: a heading's second line is room that they cannot give.
    lines = max(plane.heading.count("\n") for plane in planes)
    height = (2.75 + 0.2 * lines) * n_rows + 1.1
    fig = Figure(figsize=(page.width(max(2.8 * n_columns, 5.0)), height), layout="constrained")
    put_title(fig, title)
    for ax, plane in zip(panel_grid(fig, len(planes), most_columns=most), planes, strict=True):
        _draw(ax, plane)
    feature = Line2D([], [], color="0.6", lw=1.2, label="other features")
    vector = Line2D([], [], color="black", lw=1.4, ls="--", label="singular vectors")
    legend_under(fig, [*target_handles([plane.targets for plane in planes], "o"), feature, vector])
    return fig


def arrow_caption(planes: Sequence[Plane]) -> str:
    """What the arrows show."""
    return (
        f"Representations of n = {len(planes[0].features)} features as arrows from the origin, in "
        f"{len(planes)} planes, a panel each: the hidden space where it is a plane, else that of "
        "the two leading singular vectors of a side; coordinates have no unit. Features of "
        "targets are in the target's colour, filled for i and hollow for j; dashed: singular "
        "vectors; grey: the unit circle. A feature outside the plane is drawn by its projection, "
        "and is short."
    )


def _draw(ax: Axes, plane: Plane) -> None:
    finite = plane.features[np.isfinite(plane.features).all(axis=-1)]
    longest = max(1.0, float(np.linalg.norm(finite, axis=-1).max(initial=0.0)))
    reach = longest + 2 * _NAME
    ax.add_patch(Circle((0.0, 0.0), 1.0, fill=False, color="0.85", lw=0.8))
    for line in (ax.axhline, ax.axvline):
        line(0.0, color="0.9", lw=0.6, zorder=0)
    for x, y in finite:
        ax.plot([0.0, x], [0.0, y], color="0.7", lw=0.9, zorder=1)
    for x, y, names in _directions(plane.vectors, longest + _NAME):
        ax.text(x, y, ", ".join(names), ha="center", va="center", fontsize=8)
    for vector in plane.vectors.values():
        if np.isfinite(vector).all():
            ax.plot([0.0, vector[0]], [0.0, vector[1]], color="black", lw=1.4, ls="--", zorder=4)
    for target, colour in zip(plane.targets, target_colours(plane.targets), strict=True):
        for number, feature, filled in ((0, target.i, True), (1, target.j, False)):
            x, y = plane.features[feature]
            if plane.sides[number] and np.isfinite((x, y)).all():
                ax.plot([0.0, x], [0.0, y], color=colour, lw=1.6, zorder=2)
                ax.plot([x], [y], zorder=5, **mark_style(colour, filled, "o"))
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=plane.heading)
    ax.set(xlabel=plane.axes[0], ylabel=plane.axes[1])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator([-1, 0, 1]))


def _directions(
    vectors: Mapping[str, Array], radius: float
) -> list[tuple[float, float, list[str]]]:
    """Where the names of vectors are written, on a circle; near ones share a place."""
    angles = sorted(
        (float(np.arctan2(y, x)), name)
        for name, (x, y) in vectors.items()
        if np.isfinite((x, y)).all() and np.hypot(x, y) > 0
    )
    groups: list[list[tuple[float, str]]] = []
    for one in angles:
        if groups and one[0] - groups[-1][0][0] < _TOGETHER:
            groups[-1].append(one)
        else:
            groups.append([one])
    if len(groups) > 1 and groups[0][0][0] + 2 * np.pi - groups[-1][0][0] < _TOGETHER:
        groups[0] = [*groups.pop(), *groups[0]]
    places = []
    for group in groups:
        x, y = (sum(f(angle) for angle, _ in group) for f in (np.cos, np.sin))
        scale = radius / float(np.hypot(x, y))
        places.append((scale * float(x), scale * float(y), [name for _, name in group]))
    return places
