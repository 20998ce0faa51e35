"""Layer × head maps of full circuits: symmetry and copying, the tail at zero, and rank."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qk_taxonomy.figures.circuits.parts import circuits_of, column, counted
from qk_taxonomy.figures.style import layer_head_grid
from qk_taxonomy.records import Circuit

Array = NDArray[np.float64]

_SIGNED: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -1.0, "vmax": 1.0}
_SHARE: dict[str, Any] = {"cmap": "viridis", "vmin": 0.0, "vmax": 1.0}


class _Map(NamedTuple):
    """One map: what it is called, the label of its colours, and the colours."""

    title: str
    label: str
    image: dict[str, Any]


_FIRST: dict[Circuit, tuple[str, _Map]] = {
    "qk": (
        "symmetry",
        _Map("QK: symmetry", "(‖sym‖² − ‖anti‖²) / ‖F‖²", _SIGNED),
    ),
    "ov": ("copying", _Map("OV: copying score", "Σμ / Σ|μ|", _SIGNED)),
}


def map_figure(table: pd.DataFrame, title: str) -> Figure:
    """Layer × head maps, a row a circuit: the symmetry of QK or the copying score of OV (both in
    [−1, 1], white at 0), the share of σ² below σ₁² / 1000, and the effective rank over its bound.

    ``table``: the heads of one stack and convention, with values of one circuit at least. Cells
    without a value are grey; the median and the number of heads that have one are in each title.
    """
    circuits = circuits_of(table)
    layers, heads = table["layer"], table["head"]
    n_layers = int(layers.max() - layers.min()) + 1
    width = float(np.clip(0.045 * n_layers + 2.6, 3.2, 6.2))
    height = float(np.clip(0.05 * (int(heads.max()) + 1) + 1.5, 2.1, 6.0))
    fig = Figure(figsize=(3 * width, height * len(circuits) + 0.4), layout="constrained")
    fig.suptitle(title)
    axes = fig.subplots(len(circuits), 3, squeeze=False, sharex=True, sharey=True)
    for row, circuit in zip(axes, circuits, strict=True):
        first, drawn = _FIRST[circuit]
        name = circuit.upper()
        rank = column(table, f"{circuit}_effective_rank") / column(table, f"{circuit}_rank_bound")
        near_zero = _Map(f"{name}: near-zero share", "share of σ² below σ₁² / 1000", _SHARE)
        ranks = _Map(f"{name}: effective rank", "exp(entropy of σ) / bound of the rank", _SHARE)
        _draw(row[0], table, column(table, f"{circuit}_{first}"), drawn)
        _draw(row[1], table, column(table, f"{circuit}_near_zero"), near_zero)
        _draw(row[2], table, rank, ranks)
        row[0].set_ylabel("head")
    for ax in axes[-1]:
        ax.set_xlabel("layer")
    return fig


def _draw(ax: Axes, table: pd.DataFrame, values: pd.Series, drawn: _Map) -> None:
    figure = ax.get_figure()
    assert figure is not None
    layers = table["layer"]
    image = layer_head_grid(ax, layers, table["head"], values, **drawn.image)
    # Where only some layers were asked for, the map begins with the first of them.
    ax.set_xlim(int(layers.min()) - 0.5, int(layers.max()) + 0.5)
    figure.colorbar(image, ax=ax, label=drawn.label)
    found = values[np.isfinite(values)]
    numbers = f"median {found.median():.2f}, " if len(found) else ""
    ax.set_title(f"{drawn.title}\n{numbers}{counted(len(found))}".replace("-0", "−0"))
