"""What figures of query norms share: names of measures and heads, colours, the axis of layers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from qk_taxonomy.figures.parts import Array, signed
from qk_taxonomy.figures.style import KEPT

#: Colours of correlations: as measured, given position, and of shuffled entropies.
RAW, PARTIAL, SHUFFLED = "#e69f00", KEPT, "0.45"

_LABELS = {
    "query_norm": "query norm ‖q‖",
    "entropy": "entropy H, nats",
    "normalised_entropy": "H / log of keys allowed",
    "max_attention": "largest attention",
    "k_eff": "keys that hold 90 %",
    "gain": "gain −dH/d log α, nats",
    "distance": "distance attended, tokens",
    "previous_token": "attention to previous token",
    "first_token": "attention to first token",
}


def measure_label(name: str) -> str:
    """What an axis calls a measure, or a mean of it."""
    return _LABELS[name]


def spectral_column_label(name: str) -> str:
    """What a figure or a table calls a column of a statistic of a circuit's spectra."""
    circuit, _, statistic = name.partition("_")
    return f"{circuit.upper()} {statistic.replace('_', ' ')}"


def rounded(r: float) -> str:
    """A correlation with two decimals, and no sign where these are zeros."""
    return signed(round(r, 2) + 0.0)


def numbers(table: pd.DataFrame, name: str) -> Array:
    """A column, (n,), nan where it has no value."""
    return table[name].to_numpy(dtype=np.float64, na_value=np.nan)


def by_layer(table: pd.DataFrame, values: Array) -> tuple[NDArray[np.int64], Array]:
    """Layers in order, (L,), and the values of their heads, (L, most heads of a layer); nan where
    a layer has fewer.
    """
    place = table.groupby("layer").cumcount()
    wide = pd.DataFrame({"layer": table["layer"], "place": place, "value": values})
    found = wide.pivot_table(index="layer", columns="place", values="value", dropna=False)
    return found.index.to_numpy(dtype=np.int64), found.to_numpy(dtype=np.float64)


def layer_axis(ax: Axes, layers: NDArray[np.int64]) -> None:
    """An axis of whole layers, as wide as there are layers."""
    ax.set_xlim(layers.min() - 0.5, layers.max() + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    ax.set_xlabel("layer")


def nothing(ax: Axes, text: str) -> None:
    """Say in a panel why it is empty."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.4")
