"""Phase diagrams: what becomes of targets by sparsity and by the share of dimensions a head has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from qk_taxonomy.figures.parts import MISSING, Array, at_the_left, heat_map, panel_grid, put_title
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.wording import counted

# Inches of a cell, whose number is to be read.
_CELL = (0.46, 0.34)
_NARROWEST = 0.33


@dataclass(frozen=True, eq=False)
class PhaseMap:
    """One panel: values (ratios, probabilities) in [0, 1], nan where there is none."""

    name: str
    values: Array


def phase_figure(
    ratios: ArrayLike,
    probabilities: ArrayLike,
    maps: Sequence[PhaseMap],
    title: str,
    page: Page = SCREEN,
    *,
    n_seeds: int,
) -> Figure:
    """Maps of values in [0, 1], written in their cells: across, the sparsity S, densest first;
    upwards, r/m.

    ratios: (R,), r/m, ascending. probabilities: (P,), p = 1 − S, descending.
    """
    across, upwards = np.asarray(probabilities), np.asarray(ratios)
    width = max(_CELL[0] * len(across) + 1.0, 3.6)
    height = _CELL[1] * len(upwards) + 1.5
    n_columns = page.columns(len(maps), width)
    n_rows = -(-len(maps) // n_columns)
    total = page.width(width * len(maps) + 0.8)
    # In cells that are too narrow for a number there is none.
    written = (total - 0.8) / n_columns - 1.0 >= _NARROWEST * len(across)
    fig = Figure(figsize=(total, height * n_rows + 0.6), layout="constrained")
    put_title(fig, title, f"{counted(n_seeds, 'seed')} a cell")
    axes = panel_grid(fig, len(maps), most_columns=n_columns, sharey=True)
    scale = ScalarMappable(Normalize(0.0, 1.0), mpl.colormaps["cividis"].with_extremes(bad=MISSING))
    for ax, one in zip(axes, maps, strict=True):
        heat_map(ax, one.values, cmap=scale.cmap, norm=scale.norm)
        if written:
            _write_values(ax, np.asarray(one.values, dtype=np.float64), scale)
        ax.set_title(one.name)
        ax.set_xticks(range(len(across)), [f"{1 - p:.3g}" for p in across], rotation=45)
        ax.set_yticks(range(len(upwards)), [f"{ratio:.2g}" for ratio in upwards])
        ax.tick_params(length=0)
        ax.set(xlabel="sparsity S = 1 − p", ylim=(-0.5, len(upwards) - 0.5))
    for ax in at_the_left(axes):
        ax.set_ylabel("r/m, dimensions of the head\nover those of the representation")
    fig.colorbar(scale, ax=list(axes), label="value in [0, 1]")
    return fig


def phase_caption(ratios: ArrayLike, probabilities: ArrayLike, *, n_seeds: int) -> str:
    """What the phase diagram shows."""
    return (
        f"What becomes of targets by the sparsity S of features ({np.size(probabilities)} of them, "
        "densest first) and by the head's dimensions r over those of the representation m "
        f"({np.size(ratios)}): values in [0, 1], without unit, over {counted(n_seeds, 'seed')} a "
        "cell. A target without a singular vector of its own counts as not aligned at all; "
        "grey: no value."
    )


def _write_values(ax: Axes, values: Array, scale: ScalarMappable) -> None:
    for (row, column), value in np.ndenumerate(values):
        finite = bool(np.isfinite(value))
        red, green, blue, _ = scale.to_rgba(np.array(value if finite else 0.0))
        # Rec. 709: what is light to the eye.
        dark = finite and 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.45
        ax.text(column, row, f"{value:.2f}".replace("-", "−") if finite else "–", ha="center",
                va="center", fontsize=8, color="white" if dark else "black")  # fmt: skip
