"""A question of the study, and what was found: effects with their intervals."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from qk_taxonomy.figures.parts import grid_shape, legend_under, panel_grid
from qk_taxonomy.figures.style import KEPT, SCREEN, Page
from qk_taxonomy.statistics.findings import Finding
from qk_taxonomy.studies.superposition.answers import Answer, Effects, with_interval
from qk_taxonomy.wording import counted

# Inches of a row, and of a panel without its rows; panels side by side.
_ROW, _AROUND, _WIDTH = 0.24, 0.9, 4.6
_MOST_COLUMNS = 3

# Inches of a line above all panels, and of a character of it, about.
_SAID, _CHARACTER = 0.155, 0.075

# Characters of a panel's title.
_LINE = 48

# Effects are of the order of one: an axis shows no less than this.
_NARROWEST = 0.05

_REFERENCE: dict[str, Any] = {"color": "black", "ls": ":", "lw": 1.0}
_CHANCE: dict[str, Any] = {"color": "0.45", "marker": "|", "ms": 9.0, "mew": 1.4, "ls": ""}


def answer_figure(answer: Answer, title: str, page: Page = SCREEN) -> Figure:
    """Effects with their intervals, a panel a measure, an effect a row; dotted: the reference."""
    most = page.columns(_MOST_COLUMNS, _WIDTH - 0.2)
    n_rows, n_columns = grid_shape(len(answer.measures), most)
    heights = [
        max(len(one.effects) for one in answer.measures[row * n_columns : (row + 1) * n_columns])
        for row in range(n_rows)
    ]
    inches = [_ROW * height + _AROUND for height in heights]
    width = page.width(max(_WIDTH * n_columns, 7.0))
    said = [
        line
        for text in (f"{title}: {answer.question}", answer.answer, "intervals of 95 % over seeds")
        for line in wrap(text, int(width / _CHARACTER), break_on_hyphens=False)
    ]
    fig = Figure(figsize=(width, sum(inches) + _SAID * len(said) + 0.5), layout="constrained")
    fig.suptitle("\n".join(said), fontsize=9, x=0.01, ha="left")
    panels = panel_grid(fig, len(answer.measures), most_columns=most, height_ratios=inches)
    for ax, measure in zip(panels, answer.measures, strict=True):
        _draw(ax, measure)
    handles = []
    if any(one.reference is not None for one in answer.measures):
        label = "what is predicted, or no effect"
        handles.append(Line2D([], [], label=label, **_REFERENCE))
    if any(one.chance for one in answer.measures):
        label = "reached in one of twenty random rotations"
        handles.append(Line2D([], [], label=label, **_CHANCE))
    legend_under(fig, handles)
    return fig


def answer_caption(answer: Answer) -> str:
    """What the figure of an answer shows."""
    n = sum(len(one.effects) for one in answer.measures)
    seeds = max((effect.n for one in answer.measures for _, effect in one.effects), default=0)
    return (
        f"{answer.question} {answer.answer} n = {n} effects, a row each and a panel a measure, "
        f"with intervals of 95 % over up to {counted(seeds, 'seed')}, which are the unit; measures "
        "have no unit but where their name says so. Dotted: what is predicted, or no effect."
    )


def _draw(ax: Axes, measure: Effects) -> None:
    for place, (_, effect) in enumerate(measure.effects):
        if np.isfinite((effect.low, effect.high)).all():
            ax.plot([effect.low, effect.high], [place, place], color=KEPT, lw=1.6)
        if np.isfinite(effect.effect):
            ax.plot([effect.effect], [place], marker="o", ms=4, color=KEPT)
        ax.annotate(_numbers(effect), (1.01, place), xycoords=("axes fraction", "data"),
                    va="center", fontsize=8, annotation_clip=False)  # fmt: skip
    if measure.chance:
        ax.plot(measure.chance, range(len(measure.chance)), **_CHANCE)
    if measure.reference is not None:
        ax.axvline(measure.reference, **_REFERENCE)
    left, right = ax.get_xlim()
    if right - left < _NARROWEST:
        # Rounding of training is no difference to be seen.
        ax.set_xlim((left + right - _NARROWEST) / 2, (left + right + _NARROWEST) / 2)
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    names = [name for name, _ in measure.effects]
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_title("\n".join(wrap(measure.measure, _LINE)), loc="left", fontsize=8.5)


def _numbers(effect: Finding) -> str:
    n = counted(effect.n, "seed")
    if np.isnan(effect.effect):
        return f"no value, {n}"
    if np.isinf(effect.effect):
        return f"never, {n}"
    text = with_interval(effect, 4)
    return f"{text.replace('-', '−').replace('inf', '∞')}, {n}"
