"""Norms of features, coloured by how much they share their direction with others."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from qk_taxonomy.figures.parts import (
    MISSING,
    MOST_COLUMNS,
    at_the_bottom,
    at_the_left,
    grid_shape,
    legend_under,
    panel_grid,
    put_title,
)
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.figures.superposition.parts import mark_targets, target_handles
from qk_taxonomy.studies.superposition.config import Target

_SHARED = r"$\sum_{j \neq i} (\hat{W}_i \cdot W_j)^2$"

# Inches that a panel has at least.
_WIDTH = 2.4


def norm_figure(
    headings: Sequence[str],
    norms: ArrayLike,
    polysemanticity: ArrayLike,
    targets: Sequence[Sequence[Target]],
    title: str,
    page: Page = SCREEN,
) -> Figure:
    """Bars of ‖W_i‖ (panels, n), a panel a heading, coloured by the polysemanticity
    Σ_{j≠i} (Ŵ_i·W_j)² (panels, n): 0, a direction of its own; 1 and above, one that is shared.

    Features without a value are grey. Marks: features of a panel's targets.
    """
    heights, shared = (np.asarray(one, dtype=np.float64) for one in (norms, polysemanticity))
    n = heights.shape[-1]
    most = page.columns(MOST_COLUMNS, _WIDTH)
    n_rows, n_columns = grid_shape(len(headings), most)
    width = float(np.clip(0.07 * n + 1.2, 2.4, 4.0))
    size = page.width(max(width * n_columns + 0.9, 5.0)), 2.0 * n_rows + 1.0
    fig = Figure(figsize=size, layout="constrained")
    put_title(fig, title)
    axes = panel_grid(fig, len(headings), most_columns=most, sharey=True)
    colours = mpl.colormaps["viridis"].with_extremes(bad=MISSING)
    scale = ScalarMappable(Normalize(0.0, 1.0), colours)
    panels = zip(axes, headings, heights, shared, targets, strict=True)
    for ax, heading, height, share, marked in panels:
        ax.bar(np.arange(n), np.nan_to_num(height, posinf=0.0, neginf=0.0), width=0.85,
               color=scale.to_rgba(np.ma.masked_invalid(share)))  # fmt: skip
        ax.set_title(heading)
        ax.set_xlim(-0.7, n - 0.3)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        mark_targets(ax, marked)
    for ax in at_the_left(axes):
        ax.set_ylabel(r"norm $‖W_i‖$")
    for ax in at_the_bottom(axes):
        ax.set_xlabel("feature i")
    fig.colorbar(scale, ax=axes, label="polysemanticity\n" + _SHARED, extend="max",
                 aspect=10 + 8 * n_rows)  # fmt: skip
    legend_under(fig, target_handles(targets))
    return fig


def norm_caption(norms: ArrayLike) -> str:
    """What the bars of norms show."""
    n_panels, n = np.shape(norms)
    return (
        f"Norms ‖W_i‖ of the representations of n = {n} features, a panel each of {n_panels} "
        "instances, without unit; the colour is the polysemanticity, the sum over other features "
        "of the squared product with the feature's direction: 0, a direction of its own; 1 and "
        "above, one that is shared. Grey: no value. Marks: features of the panel's targets, "
        "filled for i, hollow for j."
    )
