"""The intervention: entropy of heads that are scaled, and the slope that it is to have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from qk_taxonomy.figures.parts import Array, legend_under, put_title
from qk_taxonomy.figures.style import KEPT, SCREEN, Page, class_colours
from qk_taxonomy.studies.query_norm.scaling import ScalingResult
from qk_taxonomy.wording import counted

# Heads beyond these have one colour, and no name.
_MOST_NAMED = 8

# Inches that a panel has at least.
_WIDTH = 4.2

# Half the length of a tangent, in log α.
_TANGENT = 0.16

# Factors nearer to each other than this share of one have no number of their own on the axis.
_APART = 0.12


def scaling_figure(scaling: ScalingResult, title: str, page: Page = SCREEN) -> Figure:
    """Left: mean entropy of each head by the factor α of its queries or keys, with the tangent at
    α = 1 that the identity predicts; right: slopes dH/d log α measured by differences against
    predicted.
    """
    alpha, n = scaling.alphas, len(scaling.heads)
    colours: list[Any] = class_colours(n) if n <= _MOST_NAMED else [KEPT] * n
    n_columns = page.columns(2, _WIDTH)
    n_rows = 2 // n_columns
    fig = Figure(figsize=(page.width(10.4), 4.2 * n_rows + 0.8), layout="constrained")
    put_title(fig, title, f"{counted(n)}, means over {counted(scaling.n_tokens, 'token')}")
    left, right = fig.subplots(n_rows, n_columns).ravel()
    for colour, line, of in zip(colours, scaling.entropy, scaling.predicted, strict=True):
        left.plot(alpha, line, color=colour, lw=1.4, alpha=0.9 if n <= _MOST_NAMED else 0.35)
        _tangent(left, alpha, line, of)
    left.axvline(1.0, color="0.8", lw=0.8, zorder=0)
    left.set_xscale("log")
    shown = _apart(alpha)
    left.xaxis.set_major_locator(FixedLocator(shown))
    left.xaxis.set_minor_locator(NullLocator())
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.set(xlabel="factor α of the head's queries or keys", ylabel="mean entropy H, nats",
             title="entropy by the norm of queries or keys")  # fmt: skip
    _slopes(right, scaling, colours)
    handles = [
        Line2D([], [], color=colour, label=f"head {head}" if head.of == "queries" else f"{head}")
        for colour, head in zip(colours, scaling.heads, strict=True)
    ][: n if n <= _MOST_NAMED else 0]
    tangent = "slope at α = 1 by the identity dH/d log α = −gain"
    legend_under(fig, [*handles, Line2D([], [], color="black", ls="--", lw=1.0, label=tangent)])
    return fig


def scaling_caption(scaling: ScalingResult) -> str:
    """What the figure of the intervention shows."""
    n = len(scaling.heads)
    return (
        f"{counted(n)} whose queries or keys are multiplied by a factor α (without unit): mean "
        f"attention entropy in nats over n = {counted(scaling.n_tokens, 'token')}, and the slope "
        "dH/d log α that the identity dH/d log α = −gain predicts at α = 1 (dashed); then "
        f"{counted(scaling.slope.size, 'slope')} in nats, measured by differences, against those "
        "predicted; grey: where both are equal."
    )


def _tangent(ax: Axes, alpha: Array, entropy: Array, slope: Array) -> None:
    at = int(np.argmin(np.abs(np.log(alpha))))
    reach = np.array([-_TANGENT, _TANGENT])
    ends = alpha[at] * np.exp(reach), entropy[at] + slope[at] * reach
    ax.plot(*ends, color="black", ls="--", lw=1.0)


def _slopes(ax: Axes, scaling: ScalingResult, colours: Sequence[Any]) -> None:
    both = np.stack([scaling.predicted, scaling.slope])
    ends = [both.min(initial=0.0), both.max(initial=0.0)]
    ax.plot(ends, ends, color="0.6", lw=0.9, zorder=0)
    for colour, x, y in zip(colours, *both, strict=True):
        ax.plot(x, y, ls="", marker="o", ms=3.5, color=colour, alpha=0.8)
    ax.set(
        xlabel="slope dH/d log α predicted, nats", ylabel="slope measured by differences, nats",
        title=f"{counted(scaling.slope.size, 'slope')}, largest relative deviation\n"
        f"{np.nanmax(scaling.deviation, initial=0.0):.2g}".replace("-", "−"),
    )  # fmt: skip


def _apart(alpha: Array) -> list[float]:
    """Factors that have a number on the axis: 1 first, then those far enough from the others."""
    shown: list[float] = []
    for one in sorted(alpha.tolist(), key=lambda value: abs(np.log(value))):
        if all(abs(np.log(one / other)) >= _APART for other in shown):
            shown.append(one)
    return sorted(shown)
