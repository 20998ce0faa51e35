"""The contrast figure: shifts of statistics, and the heads whose spectra changed most."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qk_taxonomy.figures.style import layer_head_grid, statistic_label
from qk_taxonomy.hypotheses.contrast import SHIFT, ContrastResult
from qk_taxonomy.statistics.shifts import FLIP_GROUPS

_LEVEL = 0.05
_NAMED = 6
_REJECTED, _KEPT = "#d55e00", "#0072b2"


def _draw_forest(ax: Axes, shifts: pd.DataFrame) -> None:
    """Rank-biserial correlation of every statistic with its interval."""
    ordered = shifts.iloc[::-1].reset_index(drop=True)
    y = np.arange(len(ordered))
    colours = np.where(ordered["q_value"] <= _LEVEL, _REJECTED, _KEPT)
    ax.axvline(0.0, color="0.6", lw=0.8)
    ax.hlines(y, ordered["low"], ordered["high"], color=colours, lw=1.4)
    ax.scatter(ordered["effect"], y, color=colours, s=22, zorder=3)
    ax.set_yticks(y, [statistic_label(name) for name in ordered["statistic"]])
    ax.set_xlim(-1.08, 1.08)
    ax.set_xlabel(
        "rank-biserial correlation, mean over layers, 95 % interval\n"
        f"n = {int(ordered['n'].max())} key-value groups; orange: q ≤ {_LEVEL}"
    )
    ax.set_title("Shift of each statistic, treatment less control")


def _draw_volcano(ax: Axes, heads: pd.DataFrame) -> None:
    """Each head's Wasserstein distance against its p-value within the control."""
    p_values = heads["p_wasserstein_untrained"].fillna(1.0)
    rejected = (heads["q_wasserstein_untrained"] <= _LEVEL).to_numpy()
    strict = (heads["q_wasserstein_within"] <= _LEVEL).to_numpy()
    distance = heads["wasserstein"].to_numpy()
    height = -np.log10(heads["p_wasserstein_within"].fillna(1.0).to_numpy())
    groups = (
        (~rejected & ~strict, _KEPT, "o", "within what untrained heads differ by"),
        (rejected & ~strict, _REJECTED, "o", "beyond pairs of untrained heads"),
        (strict, "black", "D", "beyond pairs of the control's heads too"),
    )
    for chosen, colour, marker, label in groups:
        if chosen.any():
            n = int(chosen.sum())
            ax.scatter(
                distance[chosen], height[chosen], s=14, color=colour, marker=marker,
                label=f"{label} ({n})", linewidth=0,
            )  # fmt: skip
    for row in heads.head(_NAMED).itertuples():
        at = (row.wasserstein, -np.log10(row.p_wasserstein_within))
        ax.annotate(
            f"{row.layer}.{row.head}", at, xytext=(3, 3), textcoords="offset points", fontsize=7
        )
    if p_values.eq(1.0).all() and not rejected.any():
        ax.set_title("Each head's spectrum (no untrained heads to compare with)")
    else:
        ax.set_title("Each head's spectrum (the most changed as layer.head)")
    ax.set_xlabel("Wasserstein distance of λ / mean λ")
    ax.set_ylabel("−log₁₀ p, pairs of the control's heads")
    ax.legend(frameon=False, loc="best", title=f"q ≤ {_LEVEL}")


def contrast_figure(result: ContrastResult, title: str) -> Figure:
    """Forest plot of shifts, volcano plot of heads, and layer × head map of the distances."""
    fig = Figure(figsize=(14.5, 4.8), layout="constrained")
    fig.suptitle(title)
    forest, volcano, grid = fig.subplots(1, 3, width_ratios=[1.0, 1.0, 1.0])
    rows = result.rows
    overall = (rows["hypothesis"] == SHIFT) & (rows["method"] == FLIP_GROUPS) & rows["layer"].isna()
    _draw_forest(forest, rows[overall])
    _draw_volcano(volcano, result.heads)
    table = result.heads
    image = layer_head_grid(
        grid, table["layer"], table["head"], table["wasserstein"], cmap="magma_r", vmin=0.0
    )
    grid.set(xlabel="layer", ylabel="head", title="Where spectra changed")
    fig.colorbar(image, ax=grid, label="Wasserstein distance of λ / mean λ")
    return fig
