"""The class figure: map of heads, where in the model each class lives, and a panel a class."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from qk_taxonomy.figures.parts import put_title, wrapped
from qk_taxonomy.figures.style import RGB, SCREEN, Page, class_colours, layer_head_grid
from qk_taxonomy.statistics.densities import gamma_density
from qk_taxonomy.taxonomy import HeadClass, Taxonomy
from qk_taxonomy.wording import counted

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
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1 (no unit)", ylabel="UMAP 2 (no unit)")
    title = f"Map of {len(taxonomy.labels)} heads by eigenvalue histogram"
    by = ",\nJensen–Shannon distance" if taxonomy.saved.distance == "jensen-shannon" else ""
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
    n_layers, n_heads = len(np.unique(layers)), len(layers)
    where = f"{counted(n_layers, 'layer')}, {counted(n_heads)}"
    ax.set(xlabel="layer", ylabel="head", title=f"Where the classes live: {where}")


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
    ax.set_title(f"Class {group.number}: {counted(group.n_heads)} ({share:.0%})")
    ax.set_xlim(0.0, float(edges[-1]))
    ax.set_ylim(0.0, 1.12 * float((group.mean + group.std).max()) or 1.0)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))


def class_figure(taxonomy: Taxonomy, title: str, page: Page = SCREEN) -> Figure:
    """The class figure of one model: UMAP map, layer × head grid, and each class's mean ± std
    histogram with its gamma density, α, θ, Jensen–Shannon divergence (nats) and head count.
    """
    colours = class_colours(len(taxonomy.classes))
    height = panels_height(len(taxonomy.classes))
    if page.narrow:
        fig = Figure(figsize=(page.width(13.0), 6.0 + height), layout="constrained")
        parts = fig.subfigures(2, 1, height_ratios=[5.4, height], squeeze=False)[:, 0]
    else:
        fig = Figure(figsize=(page.width(13.0), 1.2 + height), layout="constrained")
        parts = fig.subfigures(1, 2, width_ratios=[1.0, 1.15], squeeze=False)[0]
    put_title(fig, title)
    maps, panels = parts
    map_ax, grid_ax = maps.subplots(2, 1, height_ratios=[1.35, 1.0])
    draw_map(map_ax, taxonomy, colours)
    _draw_grid(grid_ax, taxonomy, colours)
    draw_panels(panels, taxonomy, colours, page)
    return fig


def class_caption(taxonomy: Taxonomy) -> str:
    """What the class figure shows, and how it was made."""
    saved = taxonomy.saved
    return (
        f"Classes of {counted(len(taxonomy.labels))} in "
        f"{counted(len(np.unique(taxonomy.layers)), 'layer')} by the histogram of their λ, the "
        f"squared singular values of a head's circuit. Above: {MAP} in the colour of its class, "
        f"and each head's class by layer and place in the layer. {panels_caption(taxonomy)} "
        f"{how(taxonomy)} Seed {saved.seed}."
    )


#: What a map of heads is, for captions.
MAP = "a UMAP map (its axes have no unit, and distances on it no scale) with a point a head"


def how(taxonomy: Taxonomy) -> str:
    """How heads come to their classes, for captions."""
    saved = taxonomy.saved
    method = (
        "k-medoids of square-root Jensen–Shannon divergences"
        if saved.distance == "jensen-shannon"
        else "k-means of histograms"
    )
    return f"Classes: {method}, {len(taxonomy.classes)} of them, numbered in a canonical order."


def panels_caption(taxonomy: Taxonomy) -> str:
    """What the panels of classes are, for captions."""
    n_bins = len(taxonomy.edges) - 1
    return (
        f"Panels: a class each, with its number of heads; bars: the mean density of λ over its "
        f"heads, λ in units of the head's mean λ, in {n_bins} bins from 0 to "
        f"{taxonomy.edges[-1]:.2f}, the 0.96 quantile of all λ; error bars: one standard "
        "deviation over heads; dashed: a gamma density with shape α and scale θ fitted by least "
        "squares to the bars; JSD: the Jensen–Shannon divergence of bars and density, in nats; "
        "beyond: the share of Σλ in λ right of the last bin."
    )


def panels_height(n_classes: int) -> float:
    """Inches of the panels of so many classes."""
    return 2.1 * max(3, math.ceil(n_classes / _PANEL_COLUMNS))


def draw_panels(
    figure: SubFigure, taxonomy: Taxonomy, colours: list[RGB], page: Page = SCREEN
) -> None:
    """One panel a class: its mean ± std histogram and gamma density."""
    rows = math.ceil(len(taxonomy.classes) / _PANEL_COLUMNS)
    panels = figure.subplots(rows, _PANEL_COLUMNS, squeeze=False, sharex=True).ravel()
    for ax in panels[len(taxonomy.classes) :]:
        ax.set_visible(False)
    for ax in panels[: len(taxonomy.classes)][-_PANEL_COLUMNS:]:
        ax.tick_params(labelbottom=True)
    for ax, group, colour in zip(panels, taxonomy.classes, colours, strict=False):
        _draw_class(ax, group, taxonomy.edges, colour, group.n_heads / len(taxonomy.labels))
    across = f"λ / mean λ of the head, up to the 0.96 quantile of all λ ({taxonomy.edges[-1]:.2f})"
    width = page.width(13.0)
    figure.supxlabel(wrapped(across, width if page.narrow else width / 2), fontsize=9)
    figure.supylabel("density, per unit of λ / mean λ (mean ± std over heads)", fontsize=9)
