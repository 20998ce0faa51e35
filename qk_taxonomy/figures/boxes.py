"""Box plots of one statistic over the layers of one model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qk_taxonomy.figures.parts import legend_under, put_title
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.statistics.trends import DepthTrend
from qk_taxonomy.wording import counted

Array = NDArray[np.float64]

_NARROWEST, _WIDEST = 6.0, 16.0
# Of a title in the house style, centred over axes that are a little narrower than the figure.
_CHARACTERS_PER_INCH = 13

# Boxes of more layers than these are too thin in one column of a paper.
_MOST_NARROW = 48

# Numbers of layers that an axis has room for: in all, and an inch.
_MOST_NUMBERS, _NUMBERS_PER_INCH = 40, 3.2


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
    page: Page = SCREEN,
    *,
    title: str,
    ylabel: str,
) -> Figure:
    """One box a layer: median, quartiles, whiskers to 1.5 IQR, triangle at the mean, no fliers.

    values: one array over heads for each of ``layers``; spline: positions (0 … n − 1) and heights
    of the dashed line through the means.
    """
    n = len(layers)
    page = page if n <= _MOST_NARROW else page.wide
    width = page.width(float(np.clip(0.32 * n + 1.5, _NARROWEST, _WIDEST)))
    fig = Figure(figsize=(width, 4.2), layout="constrained")
    put_title(fig, title)
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
    handles, _ = ax.get_legend_handles_labels()
    legend_under(fig, handles)
    step = math.ceil(n / min(_MOST_NUMBERS, int(_NUMBERS_PER_INCH * width)))
    ax.set_xticks(range(0, n, step), [str(layer) for layer in layers[::step]])
    n_heads = counted(len(values[0]))
    ax.set(xlabel=f"layer (each box: {n_heads}, outliers not drawn)", ylabel=ylabel)
    ax.margins(x=0.02)
    fits = int(_CHARACTERS_PER_INCH * (width - 0.5))
    ax.set_title(_lines(_tests(trend), fits))
    return fig


def box_caption(
    layers: Sequence[int],
    values: Sequence[Array],
    trend: DepthTrend,
    label: str,
    *,
    smoothed: bool,
) -> str:
    """What a box plot shows of a statistic called ``label``, and what its tests are."""
    what = f"{label}, of {counted(len(values[0]))} in each of {counted(len(layers), 'layer')}"
    parts = [
        f"{what[0].upper()}{what[1:]}: a box a layer, from the first quartile over heads to the "
        "third, a line at the median and a triangle at the mean; whiskers reach to the farthest "
        "head within 1.5 interquartile ranges, and heads beyond are not drawn. λ are the squared "
        "singular values of a head's circuit, a product of two matrices of weights: hence their "
        "unit, weights⁴."
    ]
    if layers and layers[0] > 0:
        parts.append(f"Layers before {layers[0]} are left out.")
    if smoothed:
        parts.append("Dashed: a smoothing spline of degree one through the means.")
    tests = []
    if math.isfinite(trend.mann_kendall_p_value):
        tests.append(
            "Mann–Kendall's τ of the layers' medians with depth, its p-value corrected for their "
            "autocorrelation"
        )
    if math.isfinite(trend.theil_sen_slope):
        tests.append("Theil and Sen's slope, with its 95 % interval in brackets")
    if math.isfinite(trend.bds):
        tests.append(
            "the BDS test of the medians against independence, its p-value by permutation of layers"
        )
    if math.isfinite(trend.spearman):
        tests.append("Spearman's ρ of the layers' means with depth")
    if tests:
        parts.append(f"Above: {'; '.join(tests)}. p-values here are of this statistic alone.")
    return " ".join(parts)
