"""The family figure: classes of every model's heads, and how far families are apart."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from qk_taxonomy.figures.parts import put_title, shortened
from qk_taxonomy.figures.style import KEPT, REJECTED, SCREEN, Page, class_colours
from qk_taxonomy.hypotheses.family import COMPOSITION, PAIRS, PROFILE, FamilyResult
from qk_taxonomy.labels import statistic_label
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.wording import counted

# More pairs of families than these leave no room for their names, beside each other and in one
# column of a paper.
_MOST_PAIRS, _MOST_NARROW = 15, 6

# Letters of a model's name beside its bar.
_LETTERS = 52

# Models of which each has its name at full size.
_MOST_NAMED = 30


def _p(value: float) -> str:
    return f"p = {value:.2g}" if math.isfinite(value) else "too few models to test"


def _draw_compositions(ax: Axes, result: FamilyResult, letters: int) -> None:
    """Stacked shares of classes, one bar a model, families one after the other."""
    order = sorted(range(len(result.models)), key=lambda i: (result.families[i], i))
    shares = result.compositions[order]
    left = np.zeros(len(order))
    y = np.arange(len(order))[::-1]
    for number, colour in enumerate(class_colours(shares.shape[1])):
        ax.barh(y, shares[:, number], left=left, color=colour, label=str(number), height=0.85)
        left += shares[:, number]
    names = [f"{result.families[i]}: {result.models[i].model}" for i in order]
    ax.set_yticks(y, [shortened(name, letters) for name in names])
    ax.tick_params(axis="y", labelsize=8 if len(order) <= _MOST_NAMED else 6)
    ax.margins(y=0.01)
    ax.set_xlim(0.0, 1.0)
    ax.set_xlabel("share of the model's heads")
    ax.legend(title="class", frameon=False, ncols=shares.shape[1], loc="lower center",
              bbox_to_anchor=(0.5, 1.0), columnspacing=0.8, handlelength=1.0)  # fmt: skip
    row = result.rows[result.rows["hypothesis"] == COMPOSITION].iloc[0]
    ax.set_title(
        f"Classes of heads: R² = {row['effect']:.2f},\n"
        f"{_p(row['p_value'])}, n = {counted(int(row['n']), 'model')}",
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
    ax.set_title("Depth profiles\nof each statistic")


def _draw_pairs(ax: Axes, result: FamilyResult, *, labelled: bool) -> AxesImage:
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
    most = _MOST_NARROW if labelled else _MOST_PAIRS
    strength = np.nan_to_num(np.abs(delta)).mean(0)
    chosen = sorted(np.argsort(-strength, kind="stable")[:most])
    image = ax.imshow(delta[:, chosen], cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for row, column in np.argwhere(q_values[:, chosen] <= LEVEL):
        ax.text(column, row, "*", ha="center", va="center")
    names = [pairs[i].replace(" − ", " −\n") for i in chosen]
    ax.set_xticks(range(len(chosen)), names, rotation=90, fontsize=8, linespacing=0.9)
    labels = [statistic_label(name) for name in statistics] if labelled else []
    ax.set_yticks(range(len(statistics)), labels)
    left_out = len(pairs) - len(chosen)
    more = f", {len(chosen)} of {len(pairs)} pairs" if left_out else ""
    ax.set_title(f"Pairs of families{more}\n(* q ≤ {LEVEL})")
    return image


def family_figure(result: FamilyResult, title: str, page: Page = SCREEN) -> Figure:
    """Class composition by model, ε² of each statistic, and Cliff's δ of pairs of families."""
    bars = float(np.clip(1.8 + 0.16 * len(result.models), 4.6, 16.0))
    n_columns = page.columns(3, 4.6)
    heights = {3: [bars], 2: [bars, 4.6], 1: [bars, 3.0, 4.6]}[n_columns]
    fig = Figure(figsize=(page.width(16.0), sum(heights)), layout="constrained")
    put_title(fig, title)
    if n_columns == 3:
        axes = fig.subplots(1, 3, width_ratios=[1.3, 0.8, 1.0])
    else:
        grid = fig.add_gridspec(len(heights), n_columns, height_ratios=heights)
        places = [grid[0, :], grid[1, 0], grid[1, 1] if n_columns == 2 else grid[2, 0]]
        axes = np.array([fig.add_subplot(place) for place in places])
    _draw_compositions(axes[0], result, _LETTERS if n_columns > 1 else _LETTERS // 2)
    _draw_statistics(axes[1], result)
    image = _draw_pairs(axes[2], result, labelled=n_columns == 1)
    fig.colorbar(image, ax=axes[2], label="Cliff's δ (first less second)")
    return fig


def family_caption(result: FamilyResult) -> str:
    """What the family figure shows, and what its tests are."""
    names = list(dict.fromkeys(result.families))
    n_pairs = len(names) * (len(names) - 1) // 2
    stars = "stars: pairs that differ, q corrected over all statistics and pairs"
    return (
        f"{counted(len(result.models), 'model')} of {len(names)} families; the model is the unit. "
        "Bars: the shares of each model's heads in the classes of one taxonomy of all; R²: the "
        "share of the variance of compositions that families explain, its p-value by permutation "
        "of models. ε²: how much families differ in the depth profile of each statistic "
        f"(Kruskal–Wallis, q corrected over statistics, Benjamini–Hochberg; orange: q ≤ {LEVEL}). "
        f"Cliff's δ of the {counted(n_pairs, 'pair')} of families, in [−1, 1], first less second "
        f"({stars})."
    )
