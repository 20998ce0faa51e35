"""Layer × head maps of full circuits: symmetry and copying, the tail at zero, and rank."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qk_taxonomy.figures.circuits.parts import circuits_of, column
from qk_taxonomy.figures.parts import put_title, signed
from qk_taxonomy.figures.style import SCREEN, Page, layer_head_grid
from qk_taxonomy.records import Circuit
from qk_taxonomy.wording import counted

_SIGNED: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -1.0, "vmax": 1.0}
_SHARE: dict[str, Any] = {"cmap": "viridis", "vmin": 0.0, "vmax": 1.0}

# Of a column: of the model's heads, and the mean over the control's.
_SUFFIXES = ("", "_control")

# The first map of each circuit: the statistic, and what it is called.
_FIRST: dict[Circuit, tuple[str, str]] = {
    "qk": ("symmetry", "QK symmetry, (‖sym‖² − ‖anti‖²) / ‖F‖²"),
    "ov": ("copying", "OV copying score, Σμ / Σ|μ|"),
}


def map_figure(table: pd.DataFrame, title: str, page: Page = SCREEN) -> Figure:
    """Layer × head maps, a row a circuit: the symmetry of QK or the copying score of OV (both in
    [−1, 1], white at 0), the share of σ² below σ₁² / 1000, and the effective rank over its bound.

    ``table``: the heads of one stack and convention, with values of one circuit at least. Cells
    without a value are grey; the median and the number of heads that have one are in each title,
    and the mean over the control's heads where there is one.
    """
    circuits = circuits_of(table)
    layers, heads = table["layer"], table["head"]
    n_layers = int(layers.max() - layers.min()) + 1
    width = float(np.clip(0.045 * n_layers + 2.8, 4.0, 6.4))
    height = float(np.clip(0.05 * (int(heads.max()) + 1) + 1.5, 2.1, 6.0))
    n_rows = len(circuits) * (3 if page.narrow else 1)
    size = page.width(3 * width), min(height, 9.0 / n_rows if page.room else height) * n_rows + 0.6
    fig = Figure(figsize=size, layout="constrained")
    put_title(fig, title)
    grid = fig.subplots(
        n_rows, 3 * len(circuits) // n_rows, squeeze=False, sharex=True, sharey=True
    )
    axes = grid.reshape(len(circuits), 3)
    near_zero = {circuit: column(table, f"{circuit}_near_zero") for circuit in circuits}
    # One scale for both circuits, to the next tenth above the largest share.
    largest = float(np.nan_to_num(max(shares.max() for shares in near_zero.values())))
    tail = {**_SHARE, "vmax": max(math.ceil(10 * largest), 1) / 10}
    for row, circuit in zip(axes, circuits, strict=True):
        first, called = _FIRST[circuit]
        name = circuit.upper()
        bound = column(table, f"{circuit}_rank_bound")
        rank, its_rank = (
            column(table, f"{circuit}_effective_rank{suffix}") / bound for suffix in _SUFFIXES
        )
        score, its_score = (column(table, f"{circuit}_{first}{suffix}") for suffix in _SUFFIXES)
        its_tail = column(table, f"{circuit}_near_zero_control")
        below = f"{name} share of σ² below σ₁² / 1000"
        _draw(row[0], table, score, its_score, called, _SIGNED)
        _draw(row[1], table, near_zero[circuit], its_tail, below, tail)
        _draw(row[2], table, rank, its_rank, f"{name} effective rank of σ over its bound", _SHARE)
    for ax in grid[:, 0]:
        ax.set_ylabel("head")
    for ax in grid[-1]:
        ax.set_xlabel("layer")
    return fig


def map_caption(table: pd.DataFrame) -> str:
    """What the maps of circuits show."""
    circuits = circuits_of(table)
    parts = [
        f"{counted(len(table))} in {counted(table['layer'].nunique(), 'layer')}, layers across and "
        "heads upwards; grey: no value. Titles: the median over the heads that have a value, "
        "their number, and the mean over the control's heads."
    ]
    if "qk" in circuits:
        parts.append(
            "Symmetry of QK, in [−1, 1]: squared Frobenius norm of the symmetric part less that of "
            "the antisymmetric one, over that of the circuit."
        )
    if "ov" in circuits:
        parts.append("Copying score of OV, in [−1, 1]: sum of eigenvalues over sum of moduli.")
    parts.append(
        "Then the share of squared singular values below a thousandth of the largest, and the "
        "effective rank of σ over the most that it can be; neither has a unit."
    )
    return " ".join(parts)


def _draw(
    ax: Axes,
    table: pd.DataFrame,
    values: pd.Series,
    control: pd.Series,
    title: str,
    colours: dict[str, Any],
) -> None:
    figure = ax.get_figure()
    assert figure is not None
    layers = table["layer"]
    image = layer_head_grid(ax, layers, table["head"], values, **colours)
    # Where only some layers were asked for, the map begins with the first of them.
    ax.set_xlim(int(layers.min()) - 0.5, int(layers.max()) + 0.5)
    figure.colorbar(image, ax=ax)
    found = values[np.isfinite(values)]
    median = f"median {signed(found.median())}, " if len(found) else ""
    beside = f"; control {signed(control.mean())}" if control.notna().any() else ""
    ax.set_title(f"{title}\n{median}{counted(len(found))}{beside}")
