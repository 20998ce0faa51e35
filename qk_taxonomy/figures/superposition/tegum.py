"""How singular vectors lie to tegum factors, the groups of features that interact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from qk_taxonomy.figures.parts import (
    MISSING,
    Array,
    grid_shape,
    heat_map,
    legend_under,
    panel_grid,
    put_title,
)
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.figures.superposition.parts import mark_style, target_colours, target_handles
from qk_taxonomy.studies.superposition.config import Target

# Between marks beside each other, in points.
_MARK = 6.0

# Inches that a panel has at least.
_WIDTH = 3.6

# Characters of a factor's features; further ones are counted.
_LONGEST = 16

_INDICES = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass(frozen=True, eq=False)
class FactorShares:
    """What one panel shows: of an instance, how much of each singular vector lies in each factor.

    factors: their features. dimensions: of the spans of those. left, right: (k, factors), shares
    of ‖u_k‖² = 1 and of ‖v_k‖² = 1 in the span of a factor's features, in [0, 1]; by chance, its
    dimension over d_hidden. singular_values: (k,), descending.
    """

    heading: str
    factors: tuple[tuple[int, ...], ...]
    dimensions: tuple[int, ...]
    left: Array
    right: Array
    singular_values: Array
    targets: Sequence[Target]


def tegum_figure(panels: Sequence[FactorShares], title: str, page: Page = SCREEN) -> Figure:
    """Heat maps of the shares of the singular vectors u₁, v₁, u₂, v₂, … in tegum factors, a panel
    an instance, a row a factor. Marks left of a row: its features i (filled) and j (hollow) of
    targets, so that targets within one factor are seen from those apart.
    """
    n_panels = page.columns(3, _WIDTH)
    n_rows, n_columns = grid_shape(len(panels), n_panels)
    most = max(len(panel.factors) for panel in panels)
    vectors = max(2 * len(panel.singular_values) for panel in panels)
    width = float(np.clip(0.26 * vectors + 2.2, 3.4, 7.5))
    height = float(np.clip(0.17 * most + 1.2, 2.0, 7.0))
    size = page.width(max(width * n_columns + 0.9, 5.0)), height * n_rows + 1.1
    fig = Figure(figsize=size, layout="constrained")
    put_title(fig, title)
    axes = panel_grid(fig, len(panels), most_columns=n_panels)
    colours = mpl.colormaps["viridis"].with_extremes(bad=MISSING)
    scale = ScalarMappable(Normalize(0.0, 1.0), colours)
    for ax, panel in zip(axes, panels, strict=True):
        _draw(ax, panel, scale)
    fig.colorbar(scale, ax=axes, aspect=40, label="share of the vector in the span of a factor")
    fig.supylabel("features of a factor: dimension of their span", fontsize=9)
    legend_under(fig, target_handles([panel.targets for panel in panels], "o"))
    return fig


def tegum_caption(panels: Sequence[FactorShares]) -> str:
    """What the maps of factors show."""
    return (
        f"How much of each singular vector u₁, v₁, u₂, v₂, … lies in each tegum factor, a group of "
        f"features that interact: a panel each of {len(panels)} instances, a row a factor with its "
        "features and the dimension of their span; shares in [0, 1], without unit. Marks left of a "
        "row: its features i (filled) and j (hollow) of targets. Titles: singular values."
    )


def _draw(ax: Axes, panel: FactorShares, scale: ScalarMappable) -> None:
    k, n_factors = panel.left.shape
    shares = np.stack([panel.left, panel.right], axis=1).reshape(2 * k, n_factors).T
    heat_map(ax, shares, cmap=scale.cmap, norm=scale.norm)
    for number in range(1, k):
        ax.axvline(2 * number - 0.5, color="white", lw=1.5)
    names = [
        f"{side}{str(number).translate(_INDICES)}" for number in range(1, k + 1) for side in "uv"
    ]
    ax.set_xticks(range(2 * k), names, rotation=90 if k > 4 else 0)
    ax.set_yticks(range(n_factors), _factor_names(panel), fontsize=8)
    ax.tick_params(length=0)
    most = _mark_targets(ax, panel)
    ax.tick_params(axis="y", pad=4.0 + _MARK * most)
    sigma = ", ".join(f"{value:.2f}" for value in panel.singular_values[:4])
    ax.set_title(f"{panel.heading}\nσ = {sigma}{', …' if k > 4 else ''}")


def _mark_targets(ax: Axes, panel: FactorShares) -> int:
    """Marks between the names of factors and the map; the most of them that one row has."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    marks: dict[int, int] = {}
    for target, colour in zip(panel.targets, target_colours(panel.targets), strict=True):
        for feature, filled in ((target.i, True), (target.j, False)):
            for row, factor in enumerate(panel.factors):
                if feature in factor:
                    place = marks.get(row, 0)
                    marks[row] = place + 1
                    left = ScaledTranslation(
                        -(4.0 + _MARK * place) / 72, 0.0, figure.dpi_scale_trans
                    )
                    ax.plot([0.0], [row], transform=ax.get_yaxis_transform() + left,
                            clip_on=False, **mark_style(colour, filled, "o"))  # fmt: skip
    return max(marks.values(), default=0)


def _factor_names(panel: FactorShares) -> list[str]:
    return list(map(_factor_text, panel.factors, panel.dimensions))


def _factor_text(factor: Sequence[int], dimension: int) -> str:
    text = ", ".join(map(str, factor))
    if len(text) > _LONGEST:
        text = f"{factor[0]}, {factor[1]}, … ({len(factor)})"
    return f"{text}: {dimension}"
