"""Word series: whether the sign of an eigenvalue goes with scaling or with reversal."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from qk_taxonomy.figures.circuits.parts import (
    column,
    leave_room,
    legend_below,
    names_beside,
    point_style,
)
from qk_taxonomy.figures.parts import put_title, signed
from qk_taxonomy.figures.style import KEPT, REJECTED, SCREEN, Page
from qk_taxonomy.records import CIRCUITS, Circuit
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.studies.circuits.chosen import Head
from qk_taxonomy.wording import counted

_NAMED = 8
_HEIGHT = 3.8

# Inches that a panel, with the names beside it, has at least.
_WIDTH = 4.4


def scaling_figure(
    table: pd.DataFrame, title: str, summary: str = "", page: Page = SCREEN
) -> Figure:
    """Word series, a row a circuit: each head's effect of the positive against that of the negative
    part of its eigenvalues; all heads in order of their scaling, with intervals; and how many heads
    order the series how well. Dashed: the median over heads.

    table: columns layer, head, circuit, scaling, scaling_low, scaling_high, positive_effect,
    negative_effect, ordering, p, q. summary: what was found for the whole model, put below the
    title.
    """
    circuits = [circuit for circuit in CIRCUITS if (table["circuit"] == circuit).any()]
    # On paper a column a circuit, and in one column one panel below the other.
    n_columns = 3 if page.room is None else page.columns(len(circuits), _WIDTH)
    n_rows = 3 * len(circuits) // n_columns
    size = page.width(15.0), (_HEIGHT + 0.9) * n_rows + 0.8
    fig = Figure(figsize=size, layout="constrained")
    leave_room(fig)
    put_title(fig, title, *([summary] if summary else []))
    grid = fig.subplots(n_rows, n_columns, squeeze=False)
    axes = grid.T if 1 < n_columns < 3 else grid.reshape(len(circuits), 3)
    for row, circuit in zip(axes, circuits, strict=True):
        heads = table[table["circuit"] == circuit].reset_index(drop=True)
        marked = (column(heads, "q") <= LEVEL).to_numpy()
        _draw_parts(row[0], heads, circuit, marked)
        _draw_order(row[1], heads, circuit, marked)
        _draw_ordering(row[2], heads, circuit, marked)
    return fig


def scaling_caption(table: pd.DataFrame) -> str:
    """What the figure of word series shows."""
    n = table.groupby("circuit")["scaling"].count()
    heads = ", ".join(f"{counted(int(k))} of {str(circuit).upper()}" for circuit, k in n.items())
    return (
        f"Graded series of words, scored by full circuits ({heads}); all effects without unit. "
        "First: the effect of the part of a head's circuit whose eigenvalues have a positive real "
        "part, against that of the part where it is negative; the median of all heads is a cross. "
        "Second: heads in order of their scaling, with 95 % intervals. Third: how many heads order "
        f"the series how well. Orange: q ≤ {LEVEL}, corrected over heads (Benjamini–Hochberg); "
        f"dashed: medians over heads; named: up to {_NAMED} heads of smallest q, as layer.head."
    )


def _draw_parts(ax: Axes, heads: pd.DataFrame, circuit: Circuit, marked: NDArray[np.bool_]) -> None:
    """Effects of the positive part and of the negative part of a head's eigenvalues."""
    x, y = column(heads, "positive_effect"), column(heads, "negative_effect")
    shown = (x.notna() & y.notna()).to_numpy()
    for line in (ax.axhline, ax.axvline):
        line(0.0, color="0.8", lw=0.8, zorder=0)
    style = point_style(int(shown.sum()))
    for chosen, colour, label in (
        (shown & ~marked, KEPT, f"q > {LEVEL}"),
        (shown & marked, REJECTED, f"q ≤ {LEVEL}"),
    ):
        if chosen.any():
            label = f"{label} ({int(chosen.sum())})"
            ax.scatter(x[chosen], y[chosen], color=colour, label=label, **style)
    if shown.any():
        middle = x[shown].median(), y[shown].median()
        ax.scatter(*middle, marker="+", s=90, color="black", lw=1.4, label="median of all heads")
        legend_below(ax)
    ax.margins(0.08)
    most = heads.assign(x=x, y=y, q=column(heads, "q"))[shown & marked].sort_values("q")
    most = most.head(_NAMED)
    names = [
        str(Head("", int(row.layer), int(row.head)))
        for row in most[["layer", "head"]].itertuples(index=False)
    ]
    names_beside(ax, most["x"], most["y"], names, _HEIGHT)
    ax.set(
        xlabel="effect of the part of Re μ > 0", ylabel="effect of the part of Re μ < 0",
        title=f"{circuit.upper()}: either sign of eigenvalue, {counted(int(shown.sum()))}",
    )  # fmt: skip


def _draw_order(ax: Axes, heads: pd.DataFrame, circuit: Circuit, marked: NDArray[np.bool_]) -> None:
    """All heads in order of their scaling, with intervals."""
    ordered = heads.assign(
        scaling=column(heads, "scaling"), low=column(heads, "scaling_low"),
        high=column(heads, "scaling_high"), marked=marked,
    ).dropna(subset="scaling").sort_values("scaling", kind="stable")  # fmt: skip
    place = np.arange(1, len(ordered) + 1)
    colours = np.where(ordered["marked"], REJECTED, KEPT)
    ax.axhline(0.0, color="0.8", lw=0.8, zorder=0)
    width = float(np.clip(150 / max(len(ordered), 1), 0.3, 1.6))
    ax.vlines(place, ordered["low"], ordered["high"], color="0.75", lw=width, zorder=1)
    ax.scatter(place, ordered["scaling"], c=colours, **point_style(len(ordered)), zorder=3)
    if len(ordered):
        ax.axhline(ordered["scaling"].median(), color="black", ls="--", lw=1.0)
        ax.set_xlim(0.0, len(ordered) + 1.0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(
        xlabel=f"heads in order of their scaling (orange: q ≤ {LEVEL})",
        ylabel="scaling, with its interval",
        title=_title(f"{circuit.upper()}: scaling", ordered["scaling"]),
    )


def _draw_ordering(
    ax: Axes, heads: pd.DataFrame, circuit: Circuit, marked: NDArray[np.bool_]
) -> None:
    """How many heads order the series how well."""
    ordering = column(heads, "ordering")
    found = ordering.notna().to_numpy()
    n = int(found.sum())
    if n:
        span = max(1.0, float(ordering.abs().max()))
        bins = np.linspace(-span, span, int(np.clip(n // 4, 10, 40)) + 1).tolist()
        ax.hist(
            [ordering[found & ~marked], ordering[found & marked]], bins=bins, stacked=True,
            color=[KEPT, REJECTED], linewidth=0,
        )  # fmt: skip
        ax.axvline(ordering.median(), color="black", ls="--", lw=1.0)
        ax.set_xlim(-span, span)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.axvline(0.0, color="0.8", lw=0.8, zorder=0)
    ax.set(
        xlabel=f"ordering of the series by the head's scores (orange: q ≤ {LEVEL})", ylabel="heads",
        title=_title(f"{circuit.upper()}: ordering", ordering),
    )  # fmt: skip


def _title(what: str, values: pd.Series) -> str:
    found = values.dropna()
    median = f", median {signed(found.median())} (dashed)" if len(found) else ""
    return f"{what}, {counted(len(found))}{median}"
