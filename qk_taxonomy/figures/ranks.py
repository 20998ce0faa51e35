"""The rank figure: where in a model spectra are lower-rank than an untrained head's."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from qk_taxonomy.figures.parts import put_title, wrapped
from qk_taxonomy.figures.style import SCREEN, Page, layer_head_grid
from qk_taxonomy.hypotheses.rank import RankResult
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.ranks import RANK_STATISTICS, RankTest
from qk_taxonomy.wording import counted

# Crosses on more heads than these hide the colours below them.
_MOST_CROSSES = 2000

_SHORT = {
    "effective_rank_sigma": "effective rank of σ",
    "effective_rank_lambda": "effective rank of λ",
    "r90": "λ for 90 % of Σλ",
    "near_zero_ratio": "λ below λ₁ / 1000",
}

# Inches that a panel's title has at least: in a row of six on paper, and elsewhere.
_NARROW_TITLE, _TITLE = 1.1, 1.6

# Inches of a row of maps on paper: six of them are no higher than a page.
_LOWEST, _HIGHEST = 1.4, 1.65

# Columns: the rank statistics, and the edges.
_WIDTHS = (len(RANK_STATISTICS), 1)


def rank_figure(result: RankResult, title: str, page: Page = SCREEN) -> Figure:
    """Layer × head maps of each rank statistic: its p-value, and its value as a share of d_head;
    beside them the shares of λ beyond either edge of untrained heads.

    Crosses mark heads that are not rejected after correction, unless there are too many heads.
    ``result`` holds a test.
    """
    test = result.test
    assert test is not None
    n_heads = int(result.heads.table["head"].max()) + 1
    width = float(np.clip(0.05 * len(result.heads.layers) + 1.2, 1.8, 4.0)) * sum(_WIDTHS) + 1.5
    row = float(np.clip(0.09 * n_heads + 1.2, 2.2, 6.0 if page.room is None else 3.4))
    height = 2 * row + 1.1
    if page.narrow:
        row = float(np.clip(0.03 * n_heads + 1.0, _LOWEST, _HIGHEST))
        height = row * (len(RANK_STATISTICS) + 1) + 2.4
    fig = Figure(figsize=(page.width(width), height), layout="constrained")
    put_title(fig, title, f"{counted(len(result.heads.table))}, d_head = {_d_head(result)}")
    if page.narrow:
        n = len(RANK_STATISTICS)
        parts = fig.subfigures(2, 1, height_ratios=(n + 0.6, 1.6), squeeze=False)[:, 0]
        statistics = parts[0].subplots(n, 2, sharex=True, sharey=True).T
        edges = parts[1].subplots(1, 2, sharex=True, sharey=True)
        bars: dict[str, Any] = {"orientation": "horizontal"}
    else:
        parts = fig.subfigures(1, 2, width_ratios=_WIDTHS, squeeze=False)[0]
        statistics = parts[0].subplots(2, _WIDTHS[0], sharex=True, sharey=True)
        edges = parts[1].subplots(2, 1, sharex=True, sharey=True)
        # On a page that is no wider than it must be, colour bars take no width.
        bars = {} if page.room is None else {"orientation": "horizontal"}
    room = _NARROW_TITLE if page.name == "two-column" else _TITLE
    _draw_statistics(parts[0], statistics, result, test, bars, room)
    _draw_edges(parts[1], edges, result, test, bars)
    for ax in (*statistics.ravel(), *edges.ravel()):
        spec = ax.get_subplotspec()
        if spec.is_last_row():
            ax.set_xlabel("layer")
        if spec.is_first_col():
            ax.set_ylabel("head")
    return fig


def rank_caption(result: RankResult) -> str:
    """What the rank figure shows, and what its tests are."""
    test = result.test
    assert test is not None
    n = len(result.heads.table)
    crosses = (
        f"crosses: heads that are not rejected, q > {LEVEL}" if n <= _MOST_CROSSES
        else "the numbers of heads that are rejected are in the titles"
    )  # fmt: skip
    return (
        f"Is a head's spectrum of lower rank than an untrained head's of the same shape? "
        f"{counted(n)} in {counted(len(result.heads.layers), 'layer')}, layers across and heads "
        f"upwards. For each statistic of rank: its one-sided p-value against simulated untrained "
        f"heads, on a logarithmic scale ({crosses}; q: p-values corrected over heads, "
        f"Benjamini–Hochberg), and its value as a share of d_head = {_d_head(result)}, the most "
        "that it can be. Last: the shares of a head's λ above and below all λ of untrained heads."
    )


def _d_head(result: RankResult) -> int:
    return int(result.heads.lam.shape[1])


def _draw_statistics(
    panel: SubFigure,
    axes: NDArray[np.object_],
    result: RankResult,
    test: RankTest,
    bars: dict[str, Any],
    room: float,
) -> None:
    """axes: (2, statistics), of p-values and of shares; room: inches of a title."""
    norm = LogNorm(min(float(test.p_values.min()), LEVEL / 10), 1.0)
    for column, name in enumerate(RANK_STATISTICS):
        upper, lower = axes[:, column]
        kept = test.q_values[:, column] > LEVEL
        p_values = _map(upper, result, test.p_values[:, column], cmap="viridis_r", norm=norm)
        _cross(upper, result, kept)
        called = _SHORT.get(name, name.replace("_", " "))
        rejected = f"{int((~kept).sum())} of {len(kept)} rejected"
        upper.set_title("\n".join(wrapped(one, room) for one in (called, rejected)))
        observed = test.observed[:, column]
        share = observed if name == "near_zero_ratio" else observed / _d_head(result)
        shares = _map(lower, result, share, cmap="magma", vmin=0.0, vmax=1.0)
    panel.colorbar(p_values, ax=list(axes[0]), label=f"p (× not rejected, q > {LEVEL})", **bars)
    panel.colorbar(shares, ax=list(axes[1]), label="share of d_head", **bars)


def _draw_edges(
    panel: SubFigure,
    axes: NDArray[np.object_],
    result: RankResult,
    test: RankTest,
    bars: dict[str, Any],
) -> None:
    for ax, count, side in zip(axes, (test.above, test.below), ("above", "below"), strict=True):
        shares = _map(ax, result, count / _d_head(result), cmap="magma_r", vmin=0.0, vmax=1.0)
        ax.set_title(f"λ {side} the\nuntrained edge")
    panel.colorbar(shares, ax=list(axes), label="share of\nthe head's λ", **bars)


def _map(ax: Axes, result: RankResult, values: NDArray[Any], **image: Any) -> AxesImage:
    table = result.heads.table
    return layer_head_grid(ax, table["layer"], table["head"], values, **image)


def _cross(ax: Axes, result: RankResult, marked: NDArray[np.bool_]) -> None:
    if len(marked) > _MOST_CROSSES:
        return
    table = result.heads.table[marked]
    size = float(np.clip(2000 / len(marked), 1.0, 14.0))
    ax.scatter(table["layer"], table["head"], s=size, marker="x", color="white", linewidth=0.7)
