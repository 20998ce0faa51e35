"""The contrast figure: shifts of statistics, and the heads whose spectra changed most."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qk_taxonomy.figures.parts import put_title
from qk_taxonomy.figures.style import KEPT, REJECTED, SCREEN, UNTESTED, Page, layer_head_grid
from qk_taxonomy.hypotheses.contrast import RANK_SHIFT, ContrastResult
from qk_taxonomy.labels import statistic_label
from qk_taxonomy.statistics.changes import SPECTRAL_DISTANCES
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.shifts import FLIP_LAYERS
from qk_taxonomy.wording import counted

_NAMED = 6

# Inches of a panel, and of a head's name in it.
_PANEL = (4.0, 3.4)
_NAME_SIZE = (0.42, 0.15)


def draw_forest(ax: Axes, shifts: pd.DataFrame, title: str) -> None:
    """Rank-biserial correlation of every statistic with its interval; grey where not tested."""
    ordered = shifts.iloc[::-1].reset_index(drop=True)
    y = np.arange(len(ordered))
    colours = np.where(ordered["q_value"] <= LEVEL, REJECTED, KEPT)
    colours = np.where(ordered["q_value"].isna(), UNTESTED, colours)
    ax.axvline(0.0, color="0.6", lw=0.8)
    ax.hlines(y, ordered["low"], ordered["high"], color=colours, lw=1.4)
    ax.scatter(ordered["effect"], y, color=colours, s=22, zorder=3)
    ax.set_yticks(y, [statistic_label(name) for name in ordered["statistic"]])
    ax.set_xlim(-1.08, 1.08)
    ax.set_xlabel(
        "rank-biserial correlation, mean over\nlayers, 95 % interval; "
        f"n = {int(ordered['n'].max())} {_unit(shifts)}\norange: q ≤ {LEVEL}"
        f"{'; grey: not tested' if ordered['q_value'].isna().any() else ''}"
    )
    ax.set_title(title)


def _unit(shifts: pd.DataFrame) -> str:
    return "layers" if (shifts["method"] == FLIP_LAYERS).all() else "key-value groups"


def _draw_volcano(ax: Axes, result: ContrastResult) -> None:
    """Each head's Wasserstein distance over the shift of its rank, with what either null allows."""
    heads, column = result.heads, SPECTRAL_DISTANCES.index("wasserstein")
    beyond = (heads["q_wasserstein_untrained"] <= LEVEL).to_numpy()
    strict = (heads["q_wasserstein_within"] <= LEVEL).to_numpy()
    groups = (
        (~beyond & ~strict, KEPT, "o", "neither"),
        (beyond & ~strict, REJECTED, "o", "pairs of untrained heads"),
        (strict, "black", "D", "pairs of the control's heads"),
    )
    for chosen, colour, marker, label in groups:
        if chosen.any():
            ax.scatter(
                heads[RANK_SHIFT][chosen], heads["wasserstein"][chosen], s=16, color=colour,
                marker=marker, linewidth=0, label=f"{label} ({int(chosen.sum())})",
            )  # fmt: skip
    usual = (
        (result.changes.usual_untrained[column], ":", "untrained heads"),
        (result.changes.usual_within[column], "--", "the control's heads"),
    )
    for height, style, label in usual:
        if np.isfinite(height):
            ax.axhline(height, color="0.4", ls=style, lw=0.9, label=f"0.95 quantile, {label}")
    if (heads["wasserstein"] > 0).any():
        ax.set_yscale("log")
    _name_heads(ax, heads.head(_NAMED))
    ax.set_title(f"Spectra of {counted(len(heads))}\n(the most changed as layer.head)")
    ax.set_xlabel("shift of the effective rank of λ, dimensions,\ntreatment less control")
    ax.set_ylabel("Wasserstein distance of λ / mean λ (no unit)")
    title = f"changed more (q ≤ {LEVEL}) than"
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.18), title=title)


def _name_heads(ax: Axes, heads: pd.DataFrame) -> None:
    """Names beside the points of some heads, but for those that would cover an earlier name."""
    to_axes = ax.transData + ax.transAxes.inverted()
    size = _NAME_SIZE[0] / _PANEL[0], _NAME_SIZE[1] / _PANEL[1]
    named: list[tuple[float, float]] = []
    for row in heads.to_dict("records"):
        x, y = to_axes.transform((row[RANK_SHIFT], row["wasserstein"]))
        if any(abs(x - a) < size[0] and abs(y - b) < size[1] for a, b in named):
            continue
        named.append((x, y))
        ax.annotate(
            f"{row['layer']}.{row['head']}", (row[RANK_SHIFT], row["wasserstein"]),
            xytext=(4, 2), textcoords="offset points", fontsize=8,
        )  # fmt: skip


def contrast_figure(result: ContrastResult, title: str, page: Page = SCREEN) -> Figure:
    """Forest plot of shifts, volcano plot of heads, and layer × head map of the distances."""
    n_columns = page.columns(3, _PANEL[0])
    n_rows = -(-3 // n_columns)
    size = page.width(15.0), 5.4 if n_rows == 1 else 4.1 * n_rows
    fig = Figure(figsize=size, layout="constrained")
    put_title(fig, title)
    grid = fig.add_gridspec(n_rows, n_columns)
    places = [grid[number // n_columns, number % n_columns] for number in range(3)]
    if n_columns == 2:
        places[2] = grid[1, :]
    forest, volcano, where = (fig.add_subplot(place) for place in places)
    draw_forest(forest, result.overall, "Shift of each statistic,\ntreatment less control")
    _draw_volcano(volcano, result)
    table = result.heads
    image = layer_head_grid(
        where, table["layer"], table["head"], table["wasserstein"], cmap="magma_r", vmin=0.0
    )
    where.set(xlabel="layer", ylabel="head")
    where.set_title(f"Where spectra changed: {counted(table['layer'].nunique(), 'layer')}")
    fig.colorbar(image, ax=where, label="Wasserstein distance of λ / mean λ (no unit)")
    return fig


def contrast_caption(result: ContrastResult) -> str:
    """What the contrast figure shows, and what its tests are."""
    shifts = result.overall
    layers = (shifts["method"] == FLIP_LAYERS).all()
    return (
        f"{result.treatment.name} (treatment) against {result.control.name} (control), "
        f"{counted(len(result.heads))} matched by their place. Shifts: the rank-biserial "
        "correlation of each statistic's differences, treatment less control, in [−1, 1], a mean "
        f"over layers, with its 95 % interval; n = {int(shifts['n'].max())} {_unit(shifts)}; "
        f"p-values by sign flips of whole {'layers' if layers else 'groups'}, q: corrected over "
        "all statistics and layers (Benjamini–Hochberg). Spectra: each head's Wasserstein-1 "
        "distance of λ over the head's mean λ, over the shift of its effective rank; lines: the "
        "distance that one pair in twenty exceeds, of untrained heads of this shape and of "
        "different heads of the control; q: corrected over heads. Map: the same distance of every "
        "head, layers across and heads upwards."
    )
