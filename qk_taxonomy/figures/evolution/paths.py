"""The paths of heads: how far from the start, and through effective rank and largest λ."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qk_taxonomy.figures.evolution.parts import GREY, draw_step_axis
from qk_taxonomy.figures.parts import put_title
from qk_taxonomy.figures.style import SCREEN, Page, class_colours
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.studies.evolution.records import PATH_FEATURES, Evolution
from qk_taxonomy.wording import counted

# Heads that have a colour and a name.
_NAMED = 6

# Inches that a panel has at least.
_WIDTH = 4.0

_FEATURE_LABELS = {
    "travel": "whole distance",
    "half_time": "time of half of it",
    "rank_change": "change of rank",
    "largest_change": "change of λ₁",
    "class_changes": "class changes",
}


def path_figure(evolution: Evolution, title: str, page: Page = SCREEN) -> Figure:
    """Every head's divergence from its first step, its way through effective rank and largest λ,
    and what is unusual in it; the most unusual have colours, solid where q ≤ 0.05.
    """
    columns = page.columns(3, _WIDTH)
    rows = -(-3 // columns)
    fig = Figure(figsize=(page.width(13.0), 0.6 + 4.0 * rows), layout="constrained")
    put_title(fig, title)
    if columns == 3:
        distance, ways, features = fig.subplots(1, 3, width_ratios=[1.0, 1.0, 1.25])
    else:
        grid = fig.add_gridspec(rows, columns)
        places = [grid[0, 0], grid[1 // columns, 1 % columns], grid[-1, :]]
        distance, ways, features = (fig.add_subplot(place) for place in places)
    _draw_distance(distance, evolution)
    _draw_ways(ways, evolution)
    _draw_features(features, evolution)
    return fig


def path_caption(evolution: Evolution) -> str:
    """What the paths show."""
    s, h = evolution.labels.shape
    known = evolution.null.n > 0
    unit = "that of two untrained heads is the unit" if known else "in nats"
    return (
        f"Paths of {counted(h)} over {counted(s, 'step')} of training, grey, and in colours up to "
        f"{_NAMED} whose path is most unusual, solid where q ≤ {LEVEL} (corrected over heads, for "
        "tails of Student's t), else dotted. First: the Jensen–Shannon divergence of a head's "
        f"histogram from that of its first step, {unit}, on an axis of log(step + 1). Second: ways "
        "through effective rank and largest λ, open at the first step and full at the last. Third: "
        "what is unusual of a path, each feature as a robust z among the heads, without unit."
    )


def _named(evolution: Evolution) -> list[int]:
    """The heads that are named, the most unusual first."""
    known = np.flatnonzero(np.isfinite(evolution.unusual.distance))
    order = known[np.argsort(evolution.unusual.rank[known])]
    return order[:_NAMED].tolist()


def _label(evolution: Evolution, head: int) -> str:
    row = evolution.heads.iloc[head]
    q = evolution.unusual.q_values[head]
    place = f"{row['layer']}.{row['head']}"
    return place if np.isnan(q) else f"{place} (q = {q:.2g})"


def _style(evolution: Evolution, head: int) -> str:
    return "-" if evolution.unusual.q_values[head] <= LEVEL else ":"


def _draw_distance(ax: Axes, evolution: Evolution) -> None:
    known = evolution.null.n > 0
    unit = evolution.null.divergence if known else 1.0
    far = evolution.from_start / unit
    ax.plot(evolution.times, far, color=GREY, lw=0.6, alpha=0.6)
    for head, colour in zip(_named(evolution), class_colours(_NAMED), strict=False):
        ax.plot(evolution.times, far[:, head], color=colour, lw=1.8, ls=_style(evolution, head))
    if known:
        ax.axhspan(0.0, evolution.null.usual / unit, color="0.9", zorder=0)
        ax.text(
            0.02, evolution.null.usual / unit, "95 % of pairs of untrained heads",
            transform=ax.get_yaxis_transform(), va="bottom", fontsize=8, color="0.35",
        )  # fmt: skip
    draw_step_axis(ax, evolution)
    said = "of two untrained heads = 1" if known else "in nats"
    ax.set(ylim=(0, None), ylabel=f"divergence ({said})")
    ax.set_title("Jensen–Shannon divergence from the first step")


def _draw_ways(ax: Axes, evolution: Evolution) -> None:
    rank, largest = evolution.effective_rank, evolution.largest
    ax.plot(rank, largest, color=GREY, lw=0.5, alpha=0.5)
    ax.scatter(rank[0], largest[0], s=8, facecolor="white", edgecolor=GREY, zorder=2)
    ax.scatter(rank[-1], largest[-1], s=8, color=GREY, zorder=2)
    for head, colour in zip(_named(evolution), class_colours(_NAMED), strict=False):
        ax.plot(
            rank[:, head], largest[:, head], color=colour, lw=1.6, ls=_style(evolution, head),
            label=_label(evolution, head),
        )  # fmt: skip
        ax.scatter(rank[-1, head], largest[-1, head], s=26, color=[colour], zorder=3)
    ax.set_yscale("log")
    ax.set(xlabel="effective rank of λ (dimensions)", ylabel="largest λ (weights⁴)")
    ax.set_title("Ways of heads (open: first step, full: last)")
    if _named(evolution):
        ax.legend(title="layer.head", frameon=False, fontsize=8, loc="best")


def _draw_features(ax: Axes, evolution: Evolution) -> None:
    """Each feature's z of every head, a column a feature."""
    z = evolution.unusual.z
    jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(z))
    for column in range(len(PATH_FEATURES)):
        ax.scatter(column + jitter, z[:, column], s=7, color=GREY, alpha=0.6, linewidth=0)
    for head, colour in zip(_named(evolution), class_colours(_NAMED), strict=False):
        ax.plot(
            np.arange(len(PATH_FEATURES)), z[head], color=colour, lw=1.2, marker="o", ms=4,
            ls=_style(evolution, head),
        )  # fmt: skip
    ax.axhline(0.0, color="0.3", lw=0.6)
    labels = [_FEATURE_LABELS[name].replace(" ", "\n", 1) for name in PATH_FEATURES]
    ax.set_xticks(range(len(PATH_FEATURES)), labels)
    ax.set(ylabel="robust z among the heads")
    ax.set_title("What is unusual (solid: q ≤ 0.05 for tails of Student's t)")
