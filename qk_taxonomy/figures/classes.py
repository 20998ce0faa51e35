"""The class figure: map of heads, where in the model each class lives, and a panel a class."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from qk_taxonomy.figures.style import RGB, class_colours, layer_head_grid
from qk_taxonomy.statistics.densities import gamma_density
from qk_taxonomy.taxonomy import HeadClass, Taxonomy

_PANEL_COLUMNS = 2
_LEGEND_SIZE = 40.0


def point_size(n: int) -> float:
    """Area of a head's point on a map of ``n``, in square points."""
    return float(np.clip(2500 / n, 6, 40))


def draw_map(ax: Axes, taxonomy: Taxonomy, colours: list[RGB]) -> None:
    """The UMAP map, coloured by class."""
    size = point_size(len(taxonomy.labels))
    for number, colour in enumerate(colours):
        points = taxonomy.map[taxonomy.labels == number]
        ax.scatter(
            points[:, 0], points[:, 1], s=size, color=colour, label=str(number),
            edgecolor="white", linewidth=0.3,
        )  # fmt: skip
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    title = f"Map of {len(taxonomy.labels)} heads by eigenvalue histogram"
    by = ", Jensen–Shannon distance" if taxonomy.saved.distance == "jensen-shannon" else ""
    ax.set_title(title + by)
    legend = ax.legend(title="class", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([_LEGEND_SIZE])


def _draw_grid(ax: Axes, taxonomy: Taxonomy, colours: list[RGB]) -> None:
    layers, heads = taxonomy.layers, taxonomy.heads
    layer_head_grid(
        ax, layers, heads, taxonomy.labels,
        cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5,
    )  # fmt: skip
    ax.set(xlabel="layer", ylabel="head", title="Where the classes live")


def _draw_class(ax: Axes, group: HeadClass, edges: np.ndarray, colour: RGB, share: float) -> None:
    centres, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    ax.bar(
        centres, group.mean, width=0.9 * width, color=colour, yerr=group.std,
        error_kw={"elinewidth": 0.8, "capsize": 1.5, "ecolor": "0.35"},
    )  # fmt: skip
    fit = group.gamma
    if math.isfinite(fit.alpha):
        x = np.linspace(centres[0], edges[-1], 400)
        ax.plot(x, gamma_density(x, fit.alpha, fit.theta), color="black", ls="--", lw=1.2)
        text = f"gamma α = {fit.alpha:.2f}\nθ = {fit.theta:.2f}\nJSD = {fit.divergence:.3f}"
    else:
        text = "no gamma fit"
    text += f"\n{group.beyond:.0%} of Σλ beyond"
    ax.text(0.97, 0.95, text, transform=ax.transAxes, ha="right", va="top")
    heads = "head" if group.n_heads == 1 else "heads"
    ax.set_title(f"Class {group.number}: {group.n_heads} {heads} ({share:.0%})")
    ax.set_xlim(0.0, float(edges[-1]))
    ax.set_ylim(0.0, 1.12 * float((group.mean + group.std).max()) or 1.0)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))


def class_figure(taxonomy: Taxonomy, title: str) -> Figure:
    """The class figure of one model: UMAP map, layer × head grid, and each class's mean ± std
    histogram with its gamma density, α, θ, Jensen–Shannon divergence (nats) and head count.
    """
    colours = class_colours(len(taxonomy.classes))
    rows = math.ceil(len(taxonomy.classes) / _PANEL_COLUMNS)
    fig = Figure(figsize=(13.0, 1.2 + 2.1 * max(3, rows)), layout="constrained")
    fig.suptitle(title)
    left, right = fig.subfigures(1, 2, width_ratios=[1.0, 1.15], squeeze=False)[0]
    map_ax, grid_ax = left.subplots(2, 1, height_ratios=[1.35, 1.0])
    draw_map(map_ax, taxonomy, colours)
    _draw_grid(grid_ax, taxonomy, colours)
    draw_panels(right, taxonomy, colours)
    return fig


def draw_panels(figure: SubFigure, taxonomy: Taxonomy, colours: list[RGB]) -> None:
    """One panel a class: its mean ± std histogram and gamma density."""
    rows = math.ceil(len(taxonomy.classes) / _PANEL_COLUMNS)
    panels = figure.subplots(rows, _PANEL_COLUMNS, squeeze=False, sharex=True).ravel()
    for ax in panels[len(taxonomy.classes) :]:
        ax.set_visible(False)
    for ax in panels[: len(taxonomy.classes)][-_PANEL_COLUMNS:]:
        ax.tick_params(labelbottom=True)
    for ax, group, colour in zip(panels, taxonomy.classes, colours, strict=False):
        _draw_class(ax, group, taxonomy.edges, colour, group.n_heads / len(taxonomy.labels))
    figure.supxlabel(
        f"λ / mean λ of the head, up to the 0.96 quantile of all λ ({taxonomy.edges[-1]:.2f})",
        fontsize=9,
    )
    figure.supylabel("density (mean ± std over heads)", fontsize=9)
