"""What happens when in training: alignment, orthogonality and norms by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from qk_taxonomy.figures.parts import (
    MOST_COLUMNS,
    Array,
    at_the_bottom,
    at_the_left,
    band,
    grid_shape,
    legend_under,
    panel_grid,
    put_title,
    quartiles,
)
from qk_taxonomy.figures.style import SCREEN, Page, class_colours
from qk_taxonomy.figures.superposition.parts import drawn_steps, step_axis

_STYLES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))

# Above a panel, in its height: between the marks of one course and the next.
_MARK = 0.045

# Inches that a panel has at least.
_WIDTH = 2.3


@dataclass(frozen=True, eq=False)
class TrainingCourse:
    """One line of the figure: values (panels, steps, k) in about [0, 1], of k seeds or of k
    targets and seeds; reached: (panels, k), the step at which each came to what is named in
    ``what`` to stay there, infinite where it never did.
    """

    label: str
    values: Array
    reached: Array | None = None
    what: str = ""


def alignment_figure(
    headings: Sequence[str],
    steps: ArrayLike,
    courses: Sequence[TrainingCourse],
    title: str,
    page: Page = SCREEN,
    *,
    of: str,
) -> Figure:
    """Courses over training, a panel a heading: medians and quartiles by step, logarithmic; above
    each panel, the median step and its quartiles from which on each course was where it was to
    come, so that what came first is seen.

    of: what the quartiles are over, such as "20 seeds".
    """
    x = np.asarray(steps, dtype=np.int64)
    most = page.columns(MOST_COLUMNS, _WIDTH)
    n_rows, n_columns = grid_shape(len(headings), most)
    size = page.width(max(3.0 * n_columns + 0.4, 6.4)), 2.6 * n_rows + 1.3
    fig = Figure(figsize=size, layout="constrained")
    put_title(fig, title, f"median and quartiles over {of}")
    axes = panel_grid(fig, len(headings), most_columns=most, sharey=True)
    colours = class_colours(len(courses))
    styles = [_STYLES[number % len(_STYLES)] for number in range(len(courses))]
    marked = [course for course in courses if course.reached is not None]
    for number, (ax, heading) in enumerate(zip(axes, headings, strict=True)):
        step_axis(ax, x)
        for course, colour, style in zip(courses, colours, styles, strict=True):
            band(ax, drawn_steps(x), course.values[number], colour, ls=style, lw=1.5,
                 marker="o" if len(x) == 1 else "", ms=3)  # fmt: skip
            if course.reached is not None:
                level = marked.index(course)
                _draw_reached(ax, course.reached[number], level, colour)
        ax.set_title(heading, pad=6.0 + 8.0 * len(marked))
    for ax in at_the_left(axes):
        ax.set_ylabel("value (1: aligned;\northogonal; of unit length)")
    between = " " if page.room is None else "\n"
    before = between.join(("step of training", "(left end: before it)"))
    for ax in at_the_bottom(axes):
        ax.set_xlabel(before if (x <= 0).any() else "step of training")
    axes[0].set_ylim(_reach(courses))
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=colour, ls=style, lw=1.5,
               label=course.label + (f"; ◆ above: {course.what}" if course.what else ""))
        for course, colour, style in zip(courses, colours, styles, strict=True)
    ]  # fmt: skip
    legend_under(fig, handles, per_row=2)
    return fig


def alignment_caption(headings: Sequence[str], courses: Sequence[TrainingCourse], of: str) -> str:
    """What the courses over training show."""
    what = "; ".join(course.label for course in courses)
    return (
        f"Over training, its steps on a logarithmic axis (left end: before it), a panel each of "
        f"{len(headings)} sparsities: {what}; without unit, 1: aligned, orthogonal, of unit "
        f"length. Lines: medians over {of}; bands: quartiles. Diamonds above a panel: the median "
        "step from which on a course was where it was to come, with its quartiles."
    )


def _reach(courses: Sequence[TrainingCourse]) -> tuple[float, float]:
    """Limits that hold 0, 1 and all quartiles, with a margin."""
    values = np.concatenate([quartiles(course.values).ravel() for course in courses])
    finite = values[np.isfinite(values)]
    low, high = float(finite.min(initial=0.0)), float(finite.max(initial=1.0))
    margin = 0.03 * (high - low)
    return low - margin, high + margin


def _draw_reached(ax: Axes, reached: Array, level: int, colour: object) -> None:
    known = reached[~np.isnan(reached)]
    if not known.size:
        return
    # Steps that are there: between a step and one that never came there is nothing.
    low, median, high = np.quantile(known, (0.25, 0.5, 0.75), method="inverted_cdf")
    if not np.isfinite(low):
        return
    height = 1.04 + 1.5 * _MARK * level
    where = ax.get_xaxis_transform()
    # Step 0 is at the left end of the axis, never is at the right one.
    left, right = ax.get_xlim()
    ends = np.clip((low, high), left, right)
    ax.plot(ends, [height, height], color=colour, lw=1.2, transform=where, clip_on=False)
    if np.isfinite(median):
        at = max(float(median), left)
        ax.plot([at], [height], color=colour, marker="D", ms=4, transform=where, clip_on=False)
        ax.axvline(at, color=colour, lw=0.8, ls=":", zorder=0)
