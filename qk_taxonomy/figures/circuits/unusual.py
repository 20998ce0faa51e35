"""Unusual heads: how far each is from the control, and from the other heads of its model."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qk_taxonomy.figures.circuits.parts import (
    circuits_of,
    column,
    leave_room,
    legend_below,
    names_beside,
    point_style,
)
from qk_taxonomy.figures.parts import put_title
from qk_taxonomy.figures.style import KEPT, REJECTED, SCREEN, Page
from qk_taxonomy.records import Circuit
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.studies.circuits.chosen import Head
from qk_taxonomy.wording import counted

_NAMED = 12
_HEIGHT = 4.6

# Inches that a panel, with the names beside it, has at least.
_WIDTH = 4.4


def unusual_figure(table: pd.DataFrame, title: str, page: Page = SCREEN) -> Figure:
    """Each head's distance from the control against its distance from its peers, a panel a
    circuit; the most unusual are named. Without a control: peers alone, by rank.

    ``table``: the heads of one stack and convention, with values of one circuit at least.
    """
    circuits = circuits_of(table)
    n_columns = page.columns(len(circuits), _WIDTH)
    n_rows = len(circuits) // n_columns
    size = page.width(6.6 * len(circuits)), (_HEIGHT + 0.9) * n_rows
    fig = Figure(figsize=size, layout="constrained")
    leave_room(fig)
    put_title(fig, title)
    axes = fig.subplots(n_rows, n_columns, squeeze=False).ravel()
    for ax, circuit in zip(axes, circuits, strict=True):
        _draw(ax, table, circuit)
    return fig


def unusual_caption(table: pd.DataFrame) -> str:
    """What the figure of unusual heads shows."""
    names = " and ".join(circuit.upper() for circuit in circuits_of(table))
    controlled = any(
        column(table, f"{circuit}_distance").notna().any() for circuit in circuits_of(table)
    )
    against = (
        "its distance from the control's heads; orange: it differs from them, q ≤ "
        f"{LEVEL}, corrected over heads (Benjamini–Hochberg)" if controlled
        else "its rank by peers; there is no control"
    )  # fmt: skip
    return (
        f"Full {names} circuits of {counted(len(table))}, a point a head: its distance from the "
        f"other heads of its model, a robust z, against {against}. Ringed and named, as "
        f"rank: layer.head: up to {_NAMED} most unusual heads. Distances have no unit."
    )


def _draw(ax: Axes, table: pd.DataFrame, circuit: Circuit) -> None:
    peer, rank = column(table, f"{circuit}_peer_z"), column(table, f"{circuit}_unusual")
    x = column(table, f"{circuit}_distance")
    controlled = bool(x.notna().any())
    if not controlled:
        x = rank
    shown = (x.notna() & peer.notna()).to_numpy()
    n = int(shown.sum())
    rejected = (column(table, f"{circuit}_q") <= LEVEL).to_numpy()
    groups = [(shown & rejected, REJECTED, f"q ≤ {LEVEL}"), (shown & ~rejected, KEPT, "others")]
    for chosen, colour, label in groups if controlled else [(shown, KEPT, "")]:
        if chosen.any():
            ax.scatter(
                x[chosen], peer[chosen], color=colour, **point_style(n),
                label=f"{label} ({int(chosen.sum())})" if label else None,
            )  # fmt: skip
    ax.axhline(0.0, color="0.8", lw=0.7, zorder=0)
    ax.set(
        xlabel="distance from the control's heads" if controlled
        else "rank by peers (1: most unusual); there is no control",
        ylabel="distance from its peers (robust z)",
    )  # fmt: skip
    ax.margins(0.05)
    most = table.assign(x=x, y=peer, rank=rank)[shown].dropna(subset="rank")
    most = most.sort_values("rank", kind="stable").head(_NAMED)
    names = [
        f"{int(row.rank)}: {Head('', int(row.layer), int(row.head))}"
        for row in most[["rank", "layer", "head"]].itertuples(index=False)
    ]
    names_beside(ax, most["x"], most["y"], names, _HEIGHT)
    ax.set_title(f"{circuit.upper()}: {counted(n)}\nringed: the most unusual, as rank: layer.head")
    if controlled and n:
        legend_below(ax, "differs from the control")
    if not n:
        ax.text(0.5, 0.5, "no head was compared", transform=ax.transAxes, ha="center")
