"""How symmetric QK circuits are by depth, for one model or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qk_taxonomy.figures.circuits.parts import CONTROL, column
from qk_taxonomy.figures.parts import at_the_left, panel_grid, put_title
from qk_taxonomy.figures.style import SCREEN, Page, class_colours
from qk_taxonomy.wording import counted

# Beyond these layers markers run into each other; beyond these models bands do.
_MOST_MARKERS, _MOST_BANDS = 40, 4

# Inches that a panel has at least.
_WIDTH = 4.4


@dataclass(frozen=True, eq=False)
class SymmetryCourse:
    """What one line shows: the heads of one stack and convention of a model.

    kind: heading of the panel that the line is drawn in, such as "encoder"; courses of one kind
    share a panel.
    """

    label: str
    kind: str
    table: pd.DataFrame


def symmetry_figure(courses: Sequence[SymmetryCourse], title: str, page: Page = SCREEN) -> Figure:
    """The symmetry of QK by depth, a panel a kind: medians over heads, bands to their quartiles;
    dotted, of scores less each query's mean over all keys, which is what a softmax sees; in grey
    the mean of each model's control. 1: symmetric, −1: antisymmetric, 0: as an untrained head.
    """
    kinds = list(dict.fromkeys(course.kind for course in courses))
    most = max(sum(course.kind == kind for course in courses) for kind in kinds)
    n_columns = page.columns(len(kinds), _WIDTH)
    n_rows = -(-len(kinds) // n_columns)
    size = page.width(5.6 * len(kinds) + 0.6), (4.0 + 0.17 * most) * n_rows
    fig = Figure(figsize=size, layout="constrained")
    put_title(fig, title)
    axes = panel_grid(fig, len(kinds), most_columns=n_columns, sharey=True)
    for ax, kind in zip(axes, kinds, strict=True):
        _draw(ax, [course for course in courses if course.kind == kind])
        n = sum(int(column(one.table, "qk_symmetry").notna().sum())
                for one in courses if one.kind == kind)  # fmt: skip
        ax.set_title(f"{kind}: {counted(n)}" if kind else counted(n))
    for ax in at_the_left(axes):
        ax.set_ylabel("symmetry of QK, (‖sym‖² − ‖anti‖²) / ‖F‖²\nmedian and quartiles over heads")
    return fig


def symmetry_caption(courses: Sequence[SymmetryCourse]) -> str:
    """What the figure of symmetry by depth shows."""
    of = "; ".join(
        f"{one.label}, {counted(int(column(one.table, 'qk_symmetry').notna().sum()))}"
        for one in courses
    )
    return (
        f"Symmetry of full QK circuits by depth ({of}): squared Frobenius norm of the symmetric "
        "part less that of the antisymmetric one, over that of the circuit, without unit; 1: "
        "symmetric, −1: antisymmetric, 0: as an untrained head. Lines: medians over the heads of a "
        f"layer; bands, of up to {_MOST_BANDS} models: quartiles over heads; dotted: medians of "
        "what a softmax over keys sees, scores less each query's mean; grey: the mean over the "
        "heads of each model's control."
    )


def _draw(ax: Axes, courses: Sequence[SymmetryCourse]) -> None:
    colours = class_colours(len(courses))
    ax.axhline(0.0, color="0.85", lw=0.7, zorder=0)
    for course, colour in zip(courses, colours, strict=True):
        heads = course.table.assign(symmetry=column(course.table, "qk_symmetry"))
        found = heads.dropna(subset="symmetry")
        by_layer = found.groupby("layer")["symmetry"].quantile([0.25, 0.5, 0.75]).unstack()
        # A lone layer is all of its model, and stands in the middle.
        last = int(heads["layer"].max())
        depth = by_layer.index.to_numpy(np.float64) / last if last else np.full(len(by_layer), 0.5)
        label = f"{course.label}: {counted(len(by_layer), 'layer')}, {counted(len(found))}"
        if len(by_layer):
            low, median, high = by_layer.to_numpy(np.float64).T
            if len(courses) <= _MOST_BANDS:
                ax.fill_between(depth, low, high, color=colour, alpha=0.2, linewidth=0)
            marker = "o" if len(by_layer) <= _MOST_MARKERS else ""
            ax.plot(depth, median, color=colour, marker=marker, ms=3, lw=1.4, label=label)
        centred = heads.assign(centred=column(heads, "qk_symmetry_centred")).dropna(
            subset="centred"
        )
        if len(centred):
            seen = centred.groupby("layer")["centred"].median()
            at = seen.index.to_numpy(np.float64) / last if last else np.full(len(seen), 0.5)
            ax.plot(at, seen, color=colour, ls=":", lw=1.4, label="_")
    if any(column(one.table, "qk_symmetry_centred").notna().any() for one in courses):
        ax.plot([], [], color="0.2", ls=":", lw=1.4, label="what a softmax over keys sees")
    controls = [column(one.table, "qk_symmetry_control").dropna() for one in courses]
    means = [control.mean() for control in controls if len(control)]
    for number, mean in enumerate(means):
        # An underscore keeps all but the first out of the legend.
        label = "_" if number else "mean of the control's heads"
        ax.axhline(mean, color=CONTROL, lw=1.0, zorder=1, label=label)
    ax.set(xlim=(-0.03, 1.03), xlabel="depth: layer / last layer")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
