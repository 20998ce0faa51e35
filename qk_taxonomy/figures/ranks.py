"""The rank figure: where in a model spectra are lower-rank than an untrained head's."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qk_taxonomy.figures.style import layer_head_grid, statistic_label
from qk_taxonomy.hypotheses.rank import LEVEL, RankResult
from qk_taxonomy.statistics.ranks import RANK_STATISTICS

_COLUMNS = 3


def rank_figure(result: RankResult, title: str) -> Figure:
    """Layer × head maps: the p-value of each rank statistic, and the share of λ beyond the edges.

    Crosses mark heads that are not rejected after correction. ``result`` holds a test.
    """
    assert result.test is not None
    layers, heads = result.heads.layer, result.heads.table["head"].to_numpy()
    width = float(np.clip(0.11 * len(result.heads.layers) + 2.0, 3.4, 7.0)) * _COLUMNS
    height = float(np.clip(0.09 * (heads.max() + 1) + 1.4, 2.5, 6.0)) * 2
    fig = Figure(figsize=(width, height), layout="constrained")
    fig.suptitle(title)
    axes = fig.subplots(2, _COLUMNS, sharex=True, sharey=True).ravel()
    smallest = float(result.test.p_values.min())
    norm = LogNorm(min(smallest, LEVEL / 10), 1.0)
    shown = None
    for column, (ax, name) in enumerate(zip(axes, RANK_STATISTICS, strict=False)):
        values = result.test.p_values[:, column]
        shown = layer_head_grid(ax, layers, heads, values, cmap="viridis_r", norm=norm)
        kept = result.test.q_values[:, column] > LEVEL
        _cross(ax, layers[kept], heads[kept])
        rejected = int((~kept).sum())
        ax.set_title(f"{statistic_label(name)}\n{rejected} of {len(kept)} heads rejected")
    outside = (result.test.above + result.test.below) / result.heads.lam.shape[1]
    share = layer_head_grid(axes[-1], layers, heads, outside, cmap="magma_r", vmin=0.0, vmax=1.0)
    axes[-1].set_title("share of λ beyond the untrained edges\n(in units of the head's median λ)")
    for ax in axes[_COLUMNS:]:
        ax.set_xlabel("layer")
    for ax in axes[::_COLUMNS]:
        ax.set_ylabel("head")
    assert shown is not None
    fig.colorbar(
        shown, ax=list(axes[:-1]), label="p-value (× not rejected at q ≤ 0.05)", shrink=0.8
    )
    fig.colorbar(share, ax=axes[-1], label="share of λ", shrink=0.9)
    return fig


def _cross(ax: Axes, layers: NDArray[np.int64], heads: NDArray[np.int64]) -> None:
    size = float(np.clip(500 / max(len(ax.get_images()[0].get_array().ravel()), 1), 2.0, 16.0))
    ax.scatter(layers, heads, s=size, marker="x", color="black", linewidth=0.6)
