"""Correlations and behaviour by depth: medians over the heads of a layer, and their spread."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qk_taxonomy.figures.parts import band, legend_under, put_title
from qk_taxonomy.figures.query_norm.parts import (
    PARTIAL,
    RAW,
    by_layer,
    layer_axis,
    measure_label,
    numbers,
)
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.wording import counted

# Inches that a panel has at least.
_WIDTH = 3.0

# Behaviour that is drawn by layer, a panel each.
_BEHAVIOUR = ("query_norm", "normalised_entropy", "gain", "distance")


def layer_figure(
    heads: pd.DataFrame, behaviour: pd.DataFrame, title: str, page: Page = SCREEN
) -> Figure:
    """By layer: Pearson's and Spearman's r, as measured and given position, and what heads do;
    lines are medians over the heads of a layer, bands reach to the quartiles.

    heads: as of :func:`~qk_taxonomy.figures.query_norm.maps.correlation_map`. behaviour: of the
    same stack, a row a head, means over tokens and windows by name of the measure.
    """
    n_columns = page.columns(3, _WIDTH)
    n_rows = 6 // n_columns
    fig = Figure(figsize=(page.width(12.6), 2.9 * n_rows + 0.8), layout="constrained")
    most = int(heads.groupby("layer").size().max())
    spread = "" if most == 1 else "median and quartiles over "
    put_title(fig, title, f"{spread}{counted(most)} a layer")
    grid = fig.subplots(n_rows, n_columns, squeeze=False)
    axes = grid if n_columns == 3 else grid.reshape(3, 2).T
    for ax, kind in zip(axes[:, 0], ("pearson", "spearman"), strict=True):
        for column, colour in ((kind, RAW), (f"partial_{kind}", PARTIAL)):
            _draw(ax, heads, column, colour)
        ax.axhline(0.0, color="0.8", lw=0.8, zorder=0)
        ax.set(ylim=(-1.05, 1.05), ylabel=f"{kind.capitalize()} r of norm and entropy")
    for ax, measure in zip(axes[:, 1:].ravel(), _BEHAVIOUR, strict=True):
        _draw(ax, behaviour, measure, "black")
        ax.set_ylabel(f"mean {measure_label(measure)}")
    legend_under(
        fig,
        [
            Line2D([], [], color=colour, marker="o", ms=3, label=label)
            for colour, label in ((RAW, "r as measured"), (PARTIAL, "r given log position"))
        ],
    )
    return fig


def layer_caption(heads: pd.DataFrame) -> str:
    """What the figure of layers shows."""
    most = int(heads.groupby("layer").size().max())
    return (
        f"{counted(len(heads))} in {counted(heads['layer'].nunique(), 'layer')}, up to {most} a "
        "layer. Lines: medians over the heads of a layer; bands: quartiles over heads. Pearson's "
        "and Spearman's r of query norm and attention entropy, means over windows, as measured "
        "and given position (of Pearson's its logarithm, of Spearman's its rank); then what heads "
        "do, means over tokens and windows, in the units that the axes name; ‖q‖ is in the unit "
        "of activations."
    )


def _draw(ax: Axes, table: pd.DataFrame, column: str, colour: str) -> None:
    layers, values = by_layer(table, numbers(table, column))
    # Points show layers whose neighbours have no attention; of many they would hide the band.
    marker = "o" if len(layers) <= 60 else ""
    band(ax, layers, values, colour, lw=1.4, marker=marker, ms=3)
    layer_axis(ax, layers)
