"""The family figure: classes of every model's heads, and how far families are apart."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from qk_taxonomy.figures.style import KEPT, REJECTED, class_colours, statistic_label
from qk_taxonomy.hypotheses.family import COMPOSITION, PAIRS, PROFILE, FamilyResult
from qk_taxonomy.statistics.findings import LEVEL

# More pairs of families than this leave no room for their names.
_MOST_PAIRS = 15


def _p(value: float) -> str:
    return f"p = {value:.2g}" if math.isfinite(value) else "too few models to test"


def _draw_compositions(ax: Axes, result: FamilyResult) -> None:
    """Stacked shares of classes, one bar a model, families one after the other."""
    order = sorted(range(len(result.models)), key=lambda i: (result.families[i], i))
    shares = result.compositions[order]
    left = np.zeros(len(order))
    y = np.arange(len(order))[::-1]
    for number, colour in enumerate(class_colours(shares.shape[1])):
        ax.barh(y, shares[:, number], left=left, color=colour, label=str(number), height=0.85)
        left += shares[:, number]
    ax.set_yticks(y, [f"{result.families[i]}: {result.models[i].model}" for i in order])
    ax.tick_params(axis="y", labelsize=7 if len(order) <= 30 else 5)
    ax.set_xlim(0.0, 1.0)
    ax.set_xlabel("share of the model's heads")
    ax.legend(title="class", frameon=False, ncols=shares.shape[1], loc="lower center",
              bbox_to_anchor=(0.5, 1.0), columnspacing=0.8, handlelength=1.0)  # fmt: skip
    row = result.rows[result.rows["hypothesis"] == COMPOSITION].iloc[0]
    ax.set_title(
        f"Classes of heads: R² = {row['effect']:.2f}, {_p(row['p_value'])}, n = {row['n']} models",
        pad=38,
    )


def _draw_statistics(ax: Axes, result: FamilyResult) -> None:
    """ε² of every statistic's depth profile between families."""
    rows = result.rows[result.rows["hypothesis"] == PROFILE].iloc[::-1]
    y = np.arange(len(rows))
    ax.barh(y, rows["effect"], color=np.where(rows["q_value"] <= LEVEL, REJECTED, KEPT))
    ax.set_yticks(y, [statistic_label(name) for name in rows["statistic"]])
    ax.set_xlim(0.0, 1.0)
    tested = rows["p_value"].notna().any()
    ax.set_xlabel(
        f"ε² between families (orange: q ≤ {LEVEL})" if tested
        else "ε² between families (too few models to test)"
    )  # fmt: skip
    ax.set_title("Depth profiles of each statistic")


def _draw_pairs(ax: Axes, result: FamilyResult) -> AxesImage:
    """Cliff's δ of pairs of families, those furthest apart if there are many."""
    rows = result.rows[result.rows["hypothesis"] == PAIRS]
    rows = rows.assign(pair=rows["family"] + " − " + rows["against"])
    statistics, pairs = list(result.comparisons), list(dict.fromkeys(rows["pair"]))
    # A statistic without any variation has no pairs.
    delta, q_values = (
        rows.pivot(index="statistic", columns="pair", values=value)
        .reindex(index=statistics, columns=pairs)
        .to_numpy(np.float64)
        for value in ("effect", "q_value")
    )
    strength = np.nan_to_num(np.abs(delta)).mean(0)
    chosen = sorted(np.argsort(-strength, kind="stable")[:_MOST_PAIRS])
    image = ax.imshow(delta[:, chosen], cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for row, column in np.argwhere(q_values[:, chosen] <= LEVEL):
        ax.text(column, row, "*", ha="center", va="center")
    names = [pairs[i].replace(" − ", " −\n") for i in chosen]
    ax.set_xticks(range(len(chosen)), names, rotation=90, fontsize=7, linespacing=0.9)
    ax.set_yticks(range(len(statistics)), [])
    left_out = len(pairs) - len(chosen)
    more = f", {len(chosen)} of {len(pairs)} pairs" if left_out else ""
    ax.set_title(f"Pairs of families{more}\n(* q ≤ {LEVEL})")
    return image


def family_figure(result: FamilyResult, title: str) -> Figure:
    """Class composition by model, ε² of each statistic, and Cliff's δ of pairs of families."""
    height = float(np.clip(1.8 + 0.16 * len(result.models), 4.6, 16.0))
    fig = Figure(figsize=(16.0, height), layout="constrained")
    fig.suptitle(title)
    compositions, statistics, pairs = fig.subplots(1, 3, width_ratios=[1.3, 0.8, 1.0])
    _draw_compositions(compositions, result)
    _draw_statistics(statistics, result)
    fig.colorbar(_draw_pairs(pairs, result), ax=pairs, label="Cliff's δ (first less second)")
    return fig
