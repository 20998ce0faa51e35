"""The intervention: entropy of heads whose queries are scaled, and the slope that it is to have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike

from qk_taxonomy.figures.circuits.parts import counted
from qk_taxonomy.figures.query_norm.parts import Array
from qk_taxonomy.figures.style import class_colours
from qk_taxonomy.figures.superposition.parts import legend_under, put_title

# Heads beyond these have one colour, and no name.
_MOST_NAMED = 8

# Half the length of a tangent, in log α.
_TANGENT = 0.16

# Factors nearer to each other than this share of one have no number of their own on the axis.
_APART = 0.12


def scaling_figure(
    names: Sequence[str],
    factors: ArrayLike,
    entropy: ArrayLike,
    predicted: ArrayLike,
    measured: ArrayLike,
    title: str,
) -> Figure:
    """Left: mean entropy of each head by the factor α of its queries, with the tangent at α = 1
    that the identity predicts; right: slopes dH/d log α measured by differences against predicted.

    names: of the n heads. factors: (A,), ascending. entropy, predicted, measured: (n, A), of H in
    nats and of its slope; nan where a slope was not taken.
    """
    alpha = np.asarray(factors, dtype=np.float64)
    h, slope, found = (np.asarray(v, np.float64) for v in (entropy, predicted, measured))
    n = len(names)
    colours = class_colours(n) if n <= _MOST_NAMED else [(0.0, 0.45, 0.7)] * n
    fig = Figure(figsize=(10.4, 5.0), layout="constrained")
    put_title(fig, title, f"{counted(n)}, means over tokens")
    left, right = fig.subplots(1, 2)
    for colour, line, of in zip(colours, h, slope, strict=True):
        left.plot(alpha, line, color=colour, lw=1.4, alpha=0.9 if n <= _MOST_NAMED else 0.35)
        _tangent(left, alpha, line, of)
    left.axvline(1.0, color="0.8", lw=0.8, zorder=0)
    left.set_xscale("log")
    shown = _apart(alpha)
    left.xaxis.set_major_locator(FixedLocator(shown))
    left.xaxis.set_minor_locator(NullLocator())
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.set(xlabel="factor α of the head's queries", ylabel="mean entropy H, nats",
             title="entropy by the norm of queries")  # fmt: skip
    _slopes(right, slope, found, colours)
    handles = [
        Line2D([], [], color=colour, label=f"head {name}")
        for colour, name in zip(colours, names, strict=True)
    ][: n if n <= _MOST_NAMED else 0]
    tangent = "slope at α = 1 by the identity dH/d log α = −gain"
    legend_under(fig, [*handles, Line2D([], [], color="black", ls="--", lw=1.0, label=tangent)])
    return fig


def _tangent(ax: Axes, alpha: Array, line: Array, slope: Array) -> None:
    at = int(np.argmin(np.abs(np.log(alpha))))
    reach = np.array([-_TANGENT, _TANGENT])
    if np.isfinite(slope[at]):
        ax.plot(
            alpha[at] * np.exp(reach), line[at] + slope[at] * reach, color="black", ls="--", lw=1.0
        )  # fmt: skip


def _slopes(ax: Axes, predicted: Array, measured: Array, colours: Sequence[object]) -> None:
    both = np.isfinite(predicted) & np.isfinite(measured)
    ends = np.array([0.0, 0.0])
    if both.any():
        values = np.concatenate([predicted[both], measured[both], [0.0]])
        ends = np.array([values.min(), values.max()])
    ax.plot(ends, ends, color="0.6", lw=0.9, zorder=0)
    for colour, x, y, there in zip(colours, predicted, measured, both, strict=True):
        ax.plot(x[there], y[there], ls="", marker="o", ms=3.5, color=colour, alpha=0.8)
    largest = np.abs(measured - predicted)[both].max(initial=0.0)
    ax.set(
        xlabel="slope dH/d log α predicted, nats", ylabel="slope measured by differences, nats",
        title=f"{int(both.sum())} slopes, largest difference {largest:.2g} nats",
    )  # fmt: skip


def _apart(alpha: Array) -> list[float]:
    """Factors that have a number on the axis: 1 first, then those far enough from the others."""
    shown: list[float] = []
    for one in sorted(alpha.tolist(), key=lambda value: abs(np.log(value))):
        if all(abs(np.log(one / other)) >= _APART for other in shown):
            shown.append(one)
    return sorted(shown)
