"""Products WᵀW of features' representations, and their biases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import ArrayLike

from qk_taxonomy.figures.parts import (
    MOST_COLUMNS,
    at_the_bottom,
    at_the_left,
    grid_shape,
    heat_map,
    legend_under,
    panel_grid,
    put_title,
    symmetric_colours,
)
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.figures.superposition.parts import mark_targets, target_handles
from qk_taxonomy.studies.superposition.config import Target

# Inches that a panel has at least.
_WIDTH = 2.0


def gram_figure(
    headings: Sequence[str],
    gram: ArrayLike,
    bias: ArrayLike,
    targets: Sequence[Sequence[Target]],
    title: str,
    page: Page = SCREEN,
) -> Figure:
    """Heat maps of WᵀW (panels, n, n), a panel a heading, and right of each the bias (panels, n);
    all on one scale of colours, white at zero. Marks: features of a
    panel's targets.
    """
    products, biases = (np.asarray(one, dtype=np.float64) for one in (gram, bias))
    n = products.shape[-1]
    colours, scale = symmetric_colours(products, biases)
    most = page.columns(MOST_COLUMNS, _WIDTH)
    n_rows, n_columns = grid_shape(len(headings), most)
    side = float(np.clip(0.05 * n + 1.1, 1.9, 3.6))
    width = page.width(max((side + 0.2) * n_columns + 0.9, 5.0))
    if page.room is not None:
        side = min(side, width / n_columns)
    fig = Figure(figsize=(width, (side + 0.2) * n_rows + 1.1), layout="constrained")
    put_title(fig, title)
    axes = panel_grid(fig, len(headings), most_columns=most)
    gap, strip = 0.02 * n + 0.3, 0.08 * n + 0.3
    start = n - 0.5 + gap
    panels = zip(axes, headings, products, biases, targets, strict=True)
    for ax, heading, product, one, marked in panels:
        heat_map(ax, product, cmap=colours, norm=scale)
        extent = (start, start + strip, n - 0.5, -0.5)
        heat_map(ax, one[:, None], cmap=colours, norm=scale, extent=extent)
        ax.set(xlim=(-0.5, start + strip), ylim=(n - 0.5, -0.5))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        ticks = [tick for tick in ax.get_yticks() if 0 <= tick < n - 0.04 * n]
        ax.xaxis.set_major_locator(FixedLocator([*ticks, start + strip / 2]))
        ax.set_xticklabels([*(f"{tick:.0f}" for tick in ticks), "b"])
        ax.set_title(heading)
        mark_targets(ax, marked)
    for ax in at_the_left(axes):
        ax.set_ylabel("feature i")
    for ax in at_the_bottom(axes):
        ax.set_xlabel("feature j; b: bias")
    fig.colorbar(
        ScalarMappable(scale, colours), ax=axes, aspect=30, label=r"$W_i \cdot W_j$, and $b_i$"
    )
    legend_under(fig, target_handles(targets))
    return fig


def gram_caption(gram: ArrayLike) -> str:
    """What the maps of products show."""
    n_panels, n, _ = np.shape(gram)
    return (
        f"Products W_i·W_j of the representations of n = {n} features, a panel each of {n_panels} "
        "instances, and right of each map the biases b; without unit, all on one scale of "
        "colours, white at zero. Marks: features of the panel's targets, filled for i, hollow "
        "for j."
    )
