"""How many heads have which correlation, query norm and entropy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qk_taxonomy.figures.parts import Array, put_title
from qk_taxonomy.figures.query_norm.parts import (
    PARTIAL,
    RAW,
    SHUFFLED,
    measure_label,
    nothing,
    numbers,
    rounded,
)
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.wording import counted

# Inches that a panel has at least.
_WIDTH = 3.1

_BEHAVIOUR = ("query_norm", "entropy", "normalised_entropy")


def histogram_figure(
    heads: pd.DataFrame,
    behaviour: pd.DataFrame,
    title: str,
    page: Page = SCREEN,
    *,
    correlation: float,
) -> Figure:
    """Above, heads by Pearson r, a mean over windows: as measured, given position, and of entropies
    shuffled once in each window; below, heads by their mean query norm and entropy. Dotted:
    ±``correlation``, what counts as passing.

    heads: as of :func:`~qk_taxonomy.figures.query_norm.maps.correlation_map`, and ``control``, the
    mean r of entropies that are shuffled once. behaviour: a row a head, means over tokens and
    windows.
    """
    n_columns = page.columns(3, _WIDTH)
    n_rows = 6 // n_columns
    fig = Figure(figsize=(page.width(11.4), 2.6 * n_rows + 0.6), layout="constrained")
    put_title(fig, title, counted(len(heads)))
    grid = fig.subplots(n_rows, n_columns, squeeze=False)
    above, below = grid.reshape(2, 3)
    bins = np.linspace(-1.0, 1.0, 41)
    for ax, column, colour, name in (
        (above[0], "pearson", RAW, "as measured"),
        (above[1], "partial_pearson", PARTIAL, "given log position"),
        (above[2], "control", SHUFFLED, "of entropies shuffled once a window"),
    ):
        found = _draw(ax, numbers(heads, column), bins, colour)
        for level in (-correlation, correlation):
            ax.axvline(level, color="black", ls=":", lw=0.9)
        beyond = int((np.abs(found) >= correlation).sum())
        median = f"median {rounded(float(np.median(found)))} (dashed), " if len(found) else ""
        ax.set_title(f"r {name}\n{median}{beyond} of {len(found)} at |r| ≥ {correlation:g}")
        ax.set(xlabel="Pearson r of query norm and entropy", xlim=(-1.0, 1.0),
               xticks=(-1.0, -0.5, 0.0, 0.5, 1.0))  # fmt: skip
    for ax, measure in zip(below, _BEHAVIOUR, strict=True):
        values = numbers(behaviour, measure)
        n_bins = int(np.clip(len(values) // 6, 8, 40))
        edges = np.histogram_bin_edges(values[np.isfinite(values)], bins=n_bins)
        found = _draw(ax, values, edges, "0.35")
        median = f"\nmedian {float(np.median(found)):.3g} (dashed)" if len(found) else ""
        ax.set_title(f"mean {measure_label(measure)}{median}")
        ax.set(xlabel=measure_label(measure))
    for ax in grid[:, 0]:
        ax.set_ylabel("heads")
    return fig


def histogram_caption(heads: pd.DataFrame, *, correlation: float) -> str:
    """What the histograms of heads show."""
    return (
        f"Numbers of heads, of {counted(len(heads))}, by Pearson's r of query norm and attention "
        "entropy, a mean over windows and without unit: as measured; given the logarithm of "
        "position; and of entropies shuffled once in each window, which is the control. Dotted: "
        f"|r| = {correlation:g}, what counts as passing; dashed: medians. Then by what heads do, "
        "means over tokens and windows: query norm ‖q‖ (in the unit of activations), entropy in "
        "nats, and entropy over the logarithm of the number of keys allowed."
    )


def _draw(ax: Axes, values: Array, edges: Array, colour: str) -> Array:
    """Draw a histogram of what is finite, and give that back."""
    found = values[np.isfinite(values)]
    ax.hist(found, bins=edges.tolist(), color=colour, linewidth=0)
    if len(found):
        ax.axvline(float(np.median(found)), color="black", ls="--", lw=1.0)
    else:
        nothing(ax, "no head has a value")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    return found
