"""The river: what share of the heads is in each class, step by step."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from qk_taxonomy.figures.evolution.parts import draw_step_axis
from qk_taxonomy.figures.parts import put_title, wrapped
from qk_taxonomy.figures.style import RGB, SCREEN, UNTRAINED_LINE, Page, class_colours
from qk_taxonomy.studies.evolution.records import Evolution
from qk_taxonomy.taxonomy import HeadClass
from qk_taxonomy.wording import counted

# Panels of classes in a row.
_COLUMNS = 3


def river_figure(evolution: Evolution, title: str, page: Page = SCREEN) -> Figure:
    """Shares of the heads in each class over training, a bend a step; how many heads left their
    first class for good; and the mean histogram of each class beside that of untrained heads.
    """
    colours = class_colours(len(evolution.classes))
    columns = _COLUMNS if page.room is None else 2
    rows = math.ceil(len(evolution.classes) / columns)
    if page.narrow:
        heights = [5.2, 1.6 * rows + 0.5]
        fig = Figure(figsize=(page.width(13.0), sum(heights) + 0.5), layout="constrained")
        left, right = fig.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    else:
        size = page.width(13.0), max(5.2, 1.2 + 2.0 * rows)
        fig = Figure(figsize=size, layout="constrained")
        left, right = fig.subfigures(1, 2, width_ratios=[1.0, 1.1], squeeze=False)[0]
    put_title(fig, title)
    upper, lower = left.subplots(2, 1, height_ratios=[2.2, 1.0], sharex=True)
    _draw_river(upper, evolution, colours)
    _draw_leaving(lower, evolution)
    panels = right.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for ax in panels[len(evolution.classes) :]:
        ax.set_visible(False)
    for ax, group, colour in zip(panels, evolution.classes, colours, strict=False):
        _draw_class(ax, evolution, group, colour)
    for ax in panels[: len(evolution.classes)][-columns:]:
        ax.tick_params(labelbottom=True)
    right.supxlabel("λ / mean λ of the head", fontsize=9)
    label = "density (mean over heads and steps; dashed: untrained heads)"
    right.supylabel(wrapped(label, 3.6), fontsize=9)
    return fig


def river_caption(evolution: Evolution) -> str:
    """What the river shows."""
    s, h = evolution.labels.shape
    return (
        f"Shares of {counted(h)} in each of {len(evolution.classes)} classes of one taxonomy of "
        f"all steps, at {counted(s, 'step')} of training on an axis of log(step + 1); below, what "
        "share of heads has left its first class for good, and has λ beyond the edge of untrained "
        "heads. Panels: the mean histogram of each class over heads and steps, λ in units of the "
        "head's mean λ, with the class's share at the first step and at the last; dashed: "
        "untrained heads."
    )


def _draw_river(ax: Axes, evolution: Evolution, colours: list[RGB]) -> None:
    ax.stackplot(
        evolution.times, *evolution.composition.T, colors=colours,
        labels=[str(group.number) for group in evolution.classes],
        edgecolor="white", linewidth=0.6,
    )  # fmt: skip
    ax.set(ylim=(0, 1), ylabel="share of the heads")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_title("What the model is made of")
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles[::-1], labels[::-1], title="class",
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
    )  # fmt: skip


def _draw_leaving(ax: Axes, evolution: Evolution) -> None:
    """Shares of heads that have come to something for good, step by step."""
    n = len(evolution.names)
    lines = [("left their first class", evolution.left_class, "black")]
    if evolution.null.n:
        lines.append(("have λ beyond the untrained edge", evolution.outliers_born, "#d55e00"))
    for label, index, colour in lines:
        share = [(index <= step).mean() for step in range(n)]
        ax.step(evolution.times, share, where="post", color=colour, label=label)
    draw_step_axis(ax, evolution)
    ax.set(ylim=(0, 1.02), ylabel="for good")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.legend(frameon=False, loc="upper left")


def _draw_class(ax: Axes, evolution: Evolution, group: HeadClass, colour: RGB) -> None:
    edges = evolution.edges
    centres, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    ax.bar(centres, group.mean, width=width, color=colour)
    ax.plot(centres, evolution.null.histogram, **UNTRAINED_LINE)
    share = np.asarray(evolution.composition)[:, group.number]
    ax.set_title(f"Class {group.number}: {share[0]:.0%} → {share[-1]:.0%}")
    ax.set_xlim(0.0, float(edges[-1]))
    ax.locator_params(axis="y", nbins=4)
