"""The rank figure: where in a model spectra are lower-rank than an untrained head's."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from qk_taxonomy.figures.style import layer_head_grid
from qk_taxonomy.hypotheses.rank import RankResult
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.ranks import RANK_STATISTICS, RankTest

# Crosses on more heads than these hide the colours below them.
_MOST_CROSSES = 2000

_SHORT = {
    "effective_rank_sigma": "effective rank of σ",
    "effective_rank_lambda": "effective rank of λ",
    "r90": "λ for 90 % of Σλ",
    "near_zero_ratio": "λ below λ₁ / 1000",
}

# Columns: the rank statistics, and the edges.
_WIDTHS = (len(RANK_STATISTICS), 1)


def rank_figure(result: RankResult, title: str) -> Figure:
    """Layer × head maps of each rank statistic: its p-value, and its value as a share of d_head;
    beside them the shares of λ beyond either edge of untrained heads.

    Crosses mark heads that are not rejected after correction, unless there are too many heads.
    ``result`` holds a test.
    """
    assert result.test is not None
    n_heads = int(result.heads.table["head"].max()) + 1
    width = float(np.clip(0.05 * len(result.heads.layers) + 1.2, 1.8, 4.0)) * sum(_WIDTHS) + 1.5
    height = float(np.clip(0.09 * n_heads + 1.2, 2.2, 6.0)) * 2 + 0.4
    fig = Figure(figsize=(width, height), layout="constrained")
    fig.suptitle(title)
    left, right = fig.subfigures(1, 2, width_ratios=_WIDTHS, squeeze=False)[0]
    _draw_statistics(left, result, result.test)
    _draw_edges(right, result, result.test)
    return fig


def _draw_statistics(panel: SubFigure, result: RankResult, test: RankTest) -> None:
    axes = panel.subplots(2, _WIDTHS[0], sharex=True, sharey=True)
    norm = LogNorm(min(float(test.p_values.min()), LEVEL / 10), 1.0)
    for column, name in enumerate(RANK_STATISTICS):
        upper, lower = axes[:, column]
        kept = test.q_values[:, column] > LEVEL
        p_values = _map(upper, result, test.p_values[:, column], cmap="viridis_r", norm=norm)
        _cross(upper, result, kept)
        rejected = f"{int((~kept).sum())} of {len(kept)} rejected"
        upper.set_title(f"{_SHORT.get(name, name.replace('_', ' '))}\n{rejected}")
        observed = test.observed[:, column]
        share = observed if name == "near_zero_ratio" else observed / result.heads.lam.shape[1]
        shares = _map(lower, result, share, cmap="magma", vmin=0.0, vmax=1.0)
        lower.set_xlabel("layer")
    for ax in axes[:, 0]:
        ax.set_ylabel("head")
    panel.colorbar(p_values, ax=list(axes[0]), label=f"p (× not rejected, q > {LEVEL})")
    panel.colorbar(shares, ax=list(axes[1]), label="share of d_head")


def _draw_edges(panel: SubFigure, result: RankResult, test: RankTest) -> None:
    axes = panel.subplots(2, 1, sharex=True, sharey=True)
    for ax, count, side in zip(axes, (test.above, test.below), ("above", "below"), strict=True):
        share = count / result.heads.lam.shape[1]
        shares = _map(ax, result, share, cmap="magma_r", vmin=0.0, vmax=1.0)
        ax.set_title(f"λ {side} the\nuntrained edge")
    axes[-1].set_xlabel("layer")
    panel.colorbar(shares, ax=list(axes), label="share of the head's λ")


def _map(ax: Axes, result: RankResult, values: NDArray[Any], **image: Any) -> AxesImage:
    table = result.heads.table
    return layer_head_grid(ax, table["layer"], table["head"], values, **image)


def _cross(ax: Axes, result: RankResult, marked: NDArray[np.bool_]) -> None:
    if len(marked) > _MOST_CROSSES:
        return
    table = result.heads.table[marked]
    size = float(np.clip(2000 / len(marked), 1.0, 14.0))
    ax.scatter(table["layer"], table["head"], s=size, marker="x", color="white", linewidth=0.7)
