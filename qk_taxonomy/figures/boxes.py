"""Box plots of one statistic over the layers of one model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qk_taxonomy.statistics.trends import DepthTrend

Array = NDArray[np.float64]

_NARROWEST, _WIDEST = 6.0, 16.0
# Of a title in the house style, centred over axes that are a little narrower than the figure.
_CHARACTERS_PER_INCH = 13


def _p_value(p: float) -> str:
    return "p < 1e-300" if p < 1e-300 else f"p = {p:.2g}"


def _signed(value: float, digits: str) -> str:
    return format(value, digits).replace("-", "−")


def _tests(trend: DepthTrend) -> list[str]:
    """What a figure says of each test that was made, and why others were not."""
    parts = []
    if math.isfinite(trend.mann_kendall_tau):
        parts.append(f"Mann–Kendall τ = {_signed(trend.mann_kendall_tau, '.2f')}")
    if math.isfinite(trend.mann_kendall_p_value):
        parts[-1] += f", {_p_value(trend.mann_kendall_p_value)}"
    if math.isfinite(trend.theil_sen_slope):
        parts.append(f"Theil–Sen {_signed(trend.theil_sen_slope, '.2g')} per layer")
    if math.isfinite(trend.slope_low):
        ends = (_signed(end, ".2g") for end in (trend.slope_low, trend.slope_high))
        parts[-1] += f" [{', '.join(ends)}]"
    if math.isfinite(trend.bds):
        p_value = _p_value(trend.bds_permutation_p_value)
        parts.append(f"BDS {_signed(trend.bds, '.2f')}, permutation {p_value}")
    if math.isfinite(trend.spearman):
        parts.append(f"Spearman ρ = {_signed(trend.spearman, '.2f')}")
    return [*parts, *trend.note.split("; ")] if trend.note else parts


def _lines(parts: list[str], longest: int) -> str:
    """``parts`` joined by semicolons, on lines of at most ``longest`` characters where they fit."""
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}; {part}" if lines[-1] else part
        if len(joined) > longest and lines[-1]:
            lines.append(part)
        else:
            lines[-1] = joined
    return "\n".join(lines)


def box_figure(
    layers: Sequence[int],
    values: Sequence[Array],
    spline: tuple[Array, Array] | None,
    trend: DepthTrend,
    *,
    title: str,
    ylabel: str,
) -> Figure:
    """One box a layer: median, quartiles, whiskers to 1.5 IQR, triangle at the mean, no fliers.

    values: one array over heads for each of ``layers``; spline: positions (0 … n − 1) and heights
    of the dashed line through the means.
    """
    n = len(layers)
    width = float(np.clip(0.32 * n + 1.5, _NARROWEST, _WIDEST))
    fig = Figure(figsize=(width, 4.2), layout="constrained")
    ax = fig.subplots()
    boxes = ax.boxplot(
        [v[np.isfinite(v)] for v in values],
        positions=range(n),
        widths=0.6,
        showmeans=True,
        showfliers=False,
        medianprops={"color": "#d55e00", "linewidth": 1.4},
        meanprops={"marker": "^", "markerfacecolor": "#009e73", "markeredgecolor": "#009e73"},
        boxprops={"linewidth": 0.8},
        whiskerprops={"linewidth": 0.8},
    )
    boxes["medians"][0].set_label("median")
    boxes["means"][0].set_label("mean")
    if spline is not None:
        ax.plot(*spline, ls="--", lw=1.2, color="#0072b2", label="means, smoothed")
    ax.legend(frameon=False, loc="best")
    step = math.ceil(n / 40)
    ax.set_xticks(range(0, n, step), [str(layer) for layer in layers[::step]])
    ax.set(xlabel=f"layer (each box: {len(values[0])} heads, outliers not drawn)", ylabel=ylabel)
    ax.margins(x=0.02)
    ax.set_title("\n".join([title, _lines(_tests(trend), int(_CHARACTERS_PER_INCH * width))]))
    return fig
