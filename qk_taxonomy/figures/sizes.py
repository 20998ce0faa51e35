"""Figures of a family over its sizes: statistics by depth, a line a model, and by parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from qk_taxonomy.figures.parts import legend_under, put_title, wrapped
from qk_taxonomy.figures.style import KEPT, REJECTED, RGB, SCREEN, Page
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.slopes import LEAST_SQUARES
from qk_taxonomy.studies.sizes import BY_DEPTH, BY_SIZE, SizeTrends, slope_axis

_COLUMNS = 4
_PANEL = (3.5, 2.6)

# Inches that a panel has at least, of the name of an axis, and of a title.
_NARROWEST, _NAME, _TITLE = 3.1, 2.2, 2.6


def depth_figure(trends: SizeTrends, title: str, page: Page = SCREEN) -> Figure:
    """A panel a statistic: medians over heads by depth, a line a model, coloured by size."""
    fig, panels = _panels(trends, title, page)
    colours = _colours(len(trends.models))
    for name, ax in panels:
        for (_, layers), colour in zip(trends.layers.groupby("model"), colours, strict=True):
            ax.plot(layers["depth"], layers[name], color=colour, lw=1.2)
        ax.set(xlabel="depth (0: first layer, 1: last)", ylabel=_label(name))
        ax.set_title(wrapped(_said(_row(trends.rows, name, BY_DEPTH)), _TITLE))
    handles = [
        Line2D(
            [],
            [],
            color=colour,
            label=size_label(heads.model, n),
        )
        for heads, n, colour in zip(trends.models, trends.parameters, colours, strict=True)
    ]
    legend_under(fig, handles, per_row=3)
    return fig


def depth_caption(trends: SizeTrends) -> str:
    """What the figure of depth shows."""
    return (
        f"Statistics of λ by depth, a panel each of {len(trends.statistics)} and a line each of "
        f"n = {len(trends.models)} models, pale for the smallest and dark for the largest: the "
        "median over the heads of a layer. Titles: the mean over models of the slope from first "
        "layer to last, in the unit of the axis, with its 95 % interval over models; q: corrected "
        "over statistics (Benjamini–Hochberg)."
    )


def size_figure(trends: SizeTrends, title: str, page: Page = SCREEN) -> Figure:
    """A panel a statistic: each model's median over layers by its parameters, and the line of least
    squares, orange where it holds after correction.
    """
    fig, panels = _panels(trends, title, page)
    x = trends.parameters
    for name, ax in panels:
        row = _row(trends.rows, name, BY_SIZE)
        y = trends.values[name].to_numpy(np.float64)
        known = np.isfinite(x) & np.isfinite(y)
        ax.plot(x[known], y[known], ls="", marker="o", ms=5, color="0.25")
        if math.isfinite(row["effect"]):
            colour = REJECTED if row["q_value"] <= LEVEL else KEPT
            middle = float(np.log10(x[known]).mean()), float(y[known].mean())
            ends = np.array([x[known].min(), x[known].max()])
            ax.plot(ends, middle[1] + row["effect"] * (np.log10(ends) - middle[0]), color=colour)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: _size(n)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set(xlabel="parameters", ylabel=_label(name))
        ax.set_title(wrapped(_said(row), _TITLE))
    return fig


def size_caption(trends: SizeTrends) -> str:
    """What the figure of parameters shows."""
    known = int(np.isfinite(trends.parameters).sum())
    untrained = (
        ' "Also untrained": the slope of the same models at step 0, where that holds as well and '
        "has the same sign."
        if trends.untrained_known
        else ""
    )
    return (
        f"Statistics of λ by the number of parameters, a panel each of {len(trends.statistics)} "
        f"and a point each of n = {known} models: the median over layers of the median over heads. "
        "Lines: least squares in the logarithm of the parameters, orange where q ≤ "
        f"{LEVEL}. Titles: the slope per factor of ten, in the unit of the axis, with its 95 % "
        f"interval; q: corrected over statistics (Benjamini–Hochberg).{untrained}"
    )


def size_label(model: str, parameters: float) -> str:
    """What a figure calls a model: its name, with its number of parameters where that is known."""
    return f"{model}, {_size(parameters)}" if math.isfinite(parameters) else model


def _panels(
    trends: SizeTrends, title: str, page: Page
) -> tuple[Figure, Iterator[tuple[str, Axes]]]:
    """A figure with a panel a statistic, empty ones hidden."""
    names = trends.statistics
    columns = page.columns(_COLUMNS, _NARROWEST)
    rows = math.ceil(len(names) / columns)
    size = page.width(_PANEL[0] * _COLUMNS), _PANEL[1] * rows + 0.8
    fig = Figure(figsize=size, layout="constrained")
    put_title(fig, title, f"n = {len(trends.models)} models")
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    return fig, zip(names, axes, strict=False)


def _colours(n: int) -> list[RGB]:
    """From pale for the smallest model to dark for the largest."""
    shades = mpl.colormaps["viridis_r"](np.linspace(0.1, 1.0, n))[:, :3]
    return [(float(r), float(g), float(b)) for r, g, b in shades]


def _row(rows: pd.DataFrame, statistic: str, hypothesis: str) -> pd.Series:
    of = rows[(rows["statistic"] == statistic) & (rows["hypothesis"] == hypothesis)]
    # With parameters there is a second row, of Theil and Sen.
    return of[(hypothesis == BY_DEPTH) | (of["method"] == LEAST_SQUARES)].iloc[0]


def _said(row: pd.Series) -> str:
    """A slope with its interval and q-value, or why there is none."""
    if not math.isfinite(row["effect"]):
        return str(row["note"])
    effect, low, high = (_signed(row[key]) for key in ("effect", "low", "high"))
    known = f" [{low}, {high}], q = {row['q_value']:.2g}" if math.isfinite(row["q_value"]) else ""
    note = f"; {row['note'].replace('-', '−')}" if row["note"] else ""
    return f"slope {effect}{known}{note}"


def _signed(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _label(name: str) -> str:
    return wrapped(slope_axis(name), _NAME)


def _size(n: float) -> str:
    """A number of parameters, 78.1k, 135M or 8.03B."""
    unit, letter = next((pair for pair in ((1e9, "B"), (1e6, "M")) if n >= pair[0]), (1e3, "k"))
    return f"{n / unit:.3g}{letter}"
