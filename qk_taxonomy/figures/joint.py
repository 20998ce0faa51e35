"""The figure of a joint taxonomy: maps by class and by model, a panel a class, and what each model
is made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from qk_taxonomy.figures.classes import (
    MAP,
    draw_map,
    draw_panels,
    how,
    panels_caption,
    panels_height,
    point_size,
)
from qk_taxonomy.figures.parts import put_title, shortened
from qk_taxonomy.figures.style import RGB, SCREEN, Page, class_colours, model_colours
from qk_taxonomy.taxonomy import Taxonomy
from qk_taxonomy.wording import counted

# Groups that the second map tells apart; where there are more, the smallest are "others".
_MOST_COLOURS = 8
# Bars that can be read on a page: more models than these are shown by family.
_MOST_BARS = 40

# Letters of names in the legend and beside bars; in one column there is room for fewer.
_LEGEND_LETTERS, _BAR_LETTERS = 26, 44
_NARROW_LETTERS = 20
_OTHERS: RGB = (0.75, 0.75, 0.75)

#: A group of heads: its name, and which of the pool's heads (n,) are in it.
Group = tuple[str, NDArray[np.bool_]]


def joint_figure(
    taxonomy: Taxonomy,
    names: Sequence[str],
    families: Sequence[str],
    title: str,
    page: Page = SCREEN,
) -> Figure:
    """The figure of a joint taxonomy: two UMAP maps, by class and by model (by family where there
    are many models); each class's mean ± std histogram with its gamma density; and a bar a model
    (or family), the shares of its heads in each class.

    names, families: of the models handed to :func:`joint_taxonomy`, in their order.
    """
    colours = class_colours(len(taxonomy.classes))
    n_models = len(np.unique(taxonomy.models))
    bars = _groups(taxonomy, names, families, _MOST_BARS)
    height = panels_height(len(taxonomy.classes))
    maps_height = 6.4 if page.narrow else 0.0
    top, bottom = height + maps_height, 0.8 + 0.23 * len(bars)
    fig = Figure(figsize=(page.width(13.0), 0.6 + top + bottom), layout="constrained")
    put_title(fig, title)
    upper, lower = fig.subfigures(2, 1, height_ratios=[top, bottom], squeeze=False)[:, 0]
    if page.narrow:
        ratios = [maps_height, height]
        left, right = upper.subfigures(2, 1, height_ratios=ratios, squeeze=False)[:, 0]
    else:
        left, right = upper.subfigures(1, 2, width_ratios=[1.0, 1.15], squeeze=False)[0]
    map_ax, model_ax = left.subplots(2, 1)
    draw_map(map_ax, taxonomy, colours)
    groups = _groups(taxonomy, names, families, _MOST_COLOURS)
    by = "model" if n_models <= _MOST_COLOURS else "family"
    letters = _NARROW_LETTERS if page.narrow else _LEGEND_LETTERS
    _draw_groups(model_ax, taxonomy, _largest(groups), f"The same map by {by}", letters)
    draw_panels(right, taxonomy, colours, page)
    ax = lower.subplots()
    letters = _NARROW_LETTERS if page.narrow else _BAR_LETTERS
    _draw_composition(ax, taxonomy, bars, colours, letters)
    ax.set_title(f"What {'models' if n_models <= _MOST_BARS else 'families'} are made of")
    return fig


def joint_caption(taxonomy: Taxonomy) -> str:
    """What the figure of a joint taxonomy shows, and how it was made."""
    n_models = len(np.unique(taxonomy.models))
    by = "model" if n_models <= _MOST_COLOURS else "family"
    bar = "model" if n_models <= _MOST_BARS else "family"
    return (
        f"One taxonomy of {counted(len(taxonomy.labels))} of {counted(n_models, 'model')}, by the "
        f"histogram of their λ on common bins. Above: {MAP}, coloured by class, and the same map "
        f"coloured by {by}. {panels_caption(taxonomy)} Below: a bar a {bar}, the shares of its "
        f"heads in each class, with their number. {how(taxonomy)} Seed {taxonomy.saved.seed}."
    )


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


def _draw_groups(
    ax: Axes, taxonomy: Taxonomy, groups: list[Group], title: str, letters: int
) -> None:
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
        Line2D([], [], ls="", marker="o", ms=6, color=colour, label=shortened(name, letters))
        for colour, (name, _) in zip(colours, groups, strict=True)
    ]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1 (no unit)", ylabel="UMAP 2 (no unit)", title=title)


def _draw_composition(
    ax: Axes, taxonomy: Taxonomy, groups: list[Group], colours: list[RGB], letters: int
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
    ax.set_yticks(rows, [shortened(name, letters) for name, _ in groups])
    ax.set(xlim=(0, 1), ylim=(len(groups) - 0.5, -0.5))
    ax.set(xlabel="share of the heads in each class (colours as above)")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.tick_params(left=False)
    ax.spines["left"].set_visible(False)
