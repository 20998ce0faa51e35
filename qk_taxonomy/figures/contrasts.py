"""The contrast figure: shifts of statistics, and the heads whose spectra changed most."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qk_taxonomy.figures.style import KEPT, REJECTED, UNTESTED, layer_head_grid, statistic_label
from qk_taxonomy.hypotheses.contrast import RANK_SHIFT, ContrastResult
from qk_taxonomy.statistics.changes import SPECTRAL_DISTANCES
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.shifts import FLIP_LAYERS

_NAMED = 6

# Width and height of a head's name, as shares of the panel.
_NAME_SIZE = (0.08, 0.04)


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
    unit = "layers" if (shifts["method"] == FLIP_LAYERS).all() else "key-value groups"
    ax.set_xlim(-1.08, 1.08)
    ax.set_xlabel(
        "rank-biserial correlation, mean over layers, 95 % interval\n"
        f"n = {int(ordered['n'].max())} {unit}; orange: q ≤ {LEVEL}"
        f"{'; grey: not tested' if ordered['q_value'].isna().any() else ''}"
    )
    ax.set_title(title)


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
    ax.set_title("Each head's spectrum (the most changed as layer.head)")
    ax.set_xlabel("shift of the effective rank of λ, treatment less control")
    ax.set_ylabel("Wasserstein distance of λ / mean λ")
    title = f"changed more (q ≤ {LEVEL}) than"
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, title=title)


def _name_heads(ax: Axes, heads: pd.DataFrame) -> None:
    """Names beside the points of some heads, but for those that would cover an earlier name."""
    to_axes = ax.transData + ax.transAxes.inverted()
    named: list[tuple[float, float]] = []
    for row in heads.to_dict("records"):
        x, y = to_axes.transform((row[RANK_SHIFT], row["wasserstein"]))
        if any(abs(x - a) < _NAME_SIZE[0] and abs(y - b) < _NAME_SIZE[1] for a, b in named):
            continue
        named.append((x, y))
        ax.annotate(
            f"{row['layer']}.{row['head']}", (row[RANK_SHIFT], row["wasserstein"]),
            xytext=(4, 2), textcoords="offset points", fontsize=7,
        )  # fmt: skip


def contrast_figure(result: ContrastResult, title: str) -> Figure:
    """Forest plot of shifts, volcano plot of heads, and layer × head map of the distances."""
    fig = Figure(figsize=(15.0, 5.4), layout="constrained")
    fig.suptitle(title)
    forest, volcano, grid = fig.subplots(1, 3, width_ratios=[1.0, 1.0, 1.0])
    draw_forest(forest, result.overall, "Shift of each statistic, treatment less control")
    _draw_volcano(volcano, result)
    table = result.heads
    image = layer_head_grid(
        grid, table["layer"], table["head"], table["wasserstein"], cmap="magma_r", vmin=0.0
    )
    grid.set(xlabel="layer", ylabel="head", title="Where spectra changed")
    fig.colorbar(image, ax=grid, label="Wasserstein distance of λ / mean λ")
    return fig
