"""The figure of a joint taxonomy: maps by class and by model, a panel a class, and what each model
is made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from qk_taxonomy.figures.classes import draw_map, draw_panels, point_size
from qk_taxonomy.figures.style import RGB, class_colours, model_colours
from qk_taxonomy.taxonomy import Taxonomy

# Groups that the second map tells apart; where there are more, the smallest are "others".
_MOST_COLOURS = 8
# Bars that can be read on a page: more models than these are shown by family.
_MOST_BARS = 40

_LEGEND_LETTERS, _BAR_LETTERS = 26, 44
_OTHERS: RGB = (0.75, 0.75, 0.75)

#: A group of heads: its name, and which of the pool's heads (n,) are in it.
Group = tuple[str, NDArray[np.bool_]]


def joint_figure(
    taxonomy: Taxonomy, names: Sequence[str], families: Sequence[str], title: str
) -> Figure:
    """The figure of a joint taxonomy: two UMAP maps, by class and by model (by family where there
    are many models); each class's mean ± std histogram with its gamma density; and a bar a model
    (or family), the shares of its heads in each class.

    names, families: of the models handed to :func:`joint_taxonomy`, in their order.
    """
    colours = class_colours(len(taxonomy.classes))
    n_models = len(np.unique(taxonomy.models))
    bars = _groups(taxonomy, names, families, _MOST_BARS)
    top = 2.1 * max(3, math.ceil(len(taxonomy.classes) / 2))
    bottom = 0.8 + 0.23 * len(bars)
    fig = Figure(figsize=(13.0, 0.6 + top + bottom), layout="constrained")
    fig.suptitle(title)
    upper, lower = fig.subfigures(2, 1, height_ratios=[top, bottom], squeeze=False)[:, 0]
    left, right = upper.subfigures(1, 2, width_ratios=[1.0, 1.15], squeeze=False)[0]
    map_ax, model_ax = left.subplots(2, 1)
    draw_map(map_ax, taxonomy, colours)
    groups = _groups(taxonomy, names, families, _MOST_COLOURS)
    by = "model" if n_models <= _MOST_COLOURS else "family"
    _draw_groups(model_ax, taxonomy, _largest(groups), f"The same map by {by}")
    draw_panels(right, taxonomy, colours)
    ax = lower.subplots()
    _draw_composition(ax, taxonomy, bars, colours)
    ax.set_title(f"What {'models' if n_models <= _MOST_BARS else 'families'} are made of")
    return fig


def _groups(
    taxonomy: Taxonomy, names: Sequence[str], families: Sequence[str], most: int
) -> list[Group]:
    """The heads of each model, or of each family where there are more than ``most`` models."""
    models = np.unique(taxonomy.models)
    if len(models) <= most:
        return [(names[model], taxonomy.models == model) for model in models]
    family = np.array([families[model] for model in taxonomy.models])
    return [(name, family == name) for name in dict.fromkeys(families[i] for i in models)]


def _largest(groups: list[Group]) -> list[Group]:
    """As many groups as there are colours, of the largest; all others as one."""
    if len(groups) <= _MOST_COLOURS:
        return groups
    kept = sorted(groups, key=lambda group: -group[1].sum())[: _MOST_COLOURS - 1]
    others = ~np.any([members for _, members in kept], axis=0)
    return [*kept, (f"{len(groups) - len(kept)} others", others)]


def _draw_groups(ax: Axes, taxonomy: Taxonomy, groups: list[Group], title: str) -> None:
    colours = model_colours(len(groups))
    if groups[-1][0].endswith(" others"):
        colours[-1] = _OTHERS
    point_colours = np.empty((len(taxonomy.labels), 3))
    for colour, (_, members) in zip(colours, groups, strict=True):
        point_colours[members] = colour
    # In a random order, lest the last model hide the others.
    order = np.random.default_rng(0).permutation(len(taxonomy.labels))
    x, y = taxonomy.map[order].T
    ax.scatter(
        x, y, s=point_size(len(order)), c=point_colours[order],
        edgecolor="white", linewidth=0.3,
    )  # fmt: skip
    handles = [
        Line2D(
            [], [], ls="", marker="o", ms=6, color=colour, label=_shortened(name, _LEGEND_LETTERS)
        )
        for colour, (name, _) in zip(colours, groups, strict=True)
    ]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=title)


def _shortened(name: str, letters: int) -> str:
    """A name of at most so many letters: long ones often differ at their end, so both are kept."""
    if len(name) <= letters:
        return name
    tail = (letters - 1) // 2
    return f"{name[: letters - 1 - tail]}…{name[-tail:]}"


def _draw_composition(
    ax: Axes, taxonomy: Taxonomy, groups: list[Group], colours: list[RGB]
) -> None:
    """A bar a group, the first on top: shares of its heads in each class, and their number."""
    left = np.zeros(len(groups))
    rows = np.arange(len(groups))
    for number, colour in enumerate(colours):
        share = np.array([(taxonomy.labels[members] == number).mean() for _, members in groups])
        ax.barh(rows, share, left=left, height=0.75, color=colour, edgecolor="white", linewidth=0.5)
        left += share
    for row, (_, members) in enumerate(groups):
        ax.text(1.008, row, f"{members.sum()} heads", va="center", fontsize=8)
    ax.set_yticks(rows, [_shortened(name, _BAR_LETTERS) for name, _ in groups])
    ax.set(xlim=(0, 1), ylim=(len(groups) - 0.5, -0.5))
    ax.set(xlabel="share of the heads in each class (colours as above)")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.tick_params(left=False)
    ax.spines["left"].set_visible(False)
