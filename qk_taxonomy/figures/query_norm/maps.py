"""Layer × head maps of the correlation of query norm and entropy: raw beside partial."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from qk_taxonomy.figures.parts import put_title
from qk_taxonomy.figures.query_norm.parts import numbers, rounded
from qk_taxonomy.figures.style import SCREEN, Page, layer_head_grid
from qk_taxonomy.wording import counted

# Inches that a map has at least, and at most in height on paper.
_WIDTH, _HIGHEST = 3.4, 3.0

# Of a dot in a cell: a share of the cell's lesser side, at most so many points.
_DOT_SHARE, _LARGEST_DOT = 0.35, 5.0


def correlation_map(
    heads: pd.DataFrame, title: str, page: Page = SCREEN, *, consistent: float
) -> Figure:
    """Maps of r over heads, layers across and heads upwards, blue where entropy falls as the norm
    grows; left as measured, right given position (of Pearson's its logarithm, of Spearman's its
    rank); Pearson above Spearman.

    heads: of one stack, a row a head, with columns ``pearson``, ``spearman``, ``partial_pearson``,
    ``partial_spearman`` (means over windows), ``consistent_raw``, ``consistent_partial`` (shares of
    samples) and ``n_samples``. Heads of a share of ``consistent`` or more have a dot. Cells
    without a value are grey.
    """
    n_layers = int(heads["layer"].max() - heads["layer"].min()) + 1
    n_heads = int(heads["head"].max()) + 1
    width = float(np.clip(0.05 * n_layers + 2.4, 3.6, 7.4))
    height = float(np.clip(0.05 * n_heads + 1.3, 1.9, 5.6))
    n_columns = page.columns(2, _WIDTH)
    n_rows = 4 // n_columns
    if page.room is not None:
        width, height = page.width(width) / n_columns - 0.5, min(height, _HIGHEST)
    size = page.width(2 * width + 0.9), n_rows * height + 1.1
    fig = Figure(figsize=size, layout="constrained")
    n_samples = int(heads["n_samples"].max())
    dots = f"dots: consistent in {consistent:.0%} of the windows or more, with one sign"
    put_title(fig, title, f"means over {counted(n_samples, 'window')}; {dots}")
    grid = fig.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    axes = grid.reshape(2, 2)
    cell = 72 * min((width - 0.8) / n_layers, (height - 0.7) / n_heads)
    dot = min(_DOT_SHARE * cell, _LARGEST_DOT)
    held = {"pearson": "log position", "spearman": "rank of position"}
    for row, (kind, given) in zip(axes, held.items(), strict=True):
        for ax, column, of, name in (
            (row[0], kind, "consistent_raw", "as measured"),
            (row[1], f"partial_{kind}", "consistent_partial", f"given {given}"),
        ):
            marked = numbers(heads, of) >= consistent
            image = _draw(ax, heads, numbers(heads, column), marked, dot)
            found = numbers(heads, column)
            found = found[np.isfinite(found)]
            median = f"median {rounded(float(np.median(found)))}, " if len(found) else ""
            ax.set_title(
                f"{kind.capitalize()} r {name}\n"
                f"{median}{counted(len(found))}, {int(marked.sum())} consistent"
            )
    for ax in grid[:, 0]:
        ax.set_ylabel("head")
    for ax in grid[-1]:
        ax.set_xlabel("layer")
    where = "bottom" if page.narrow else "right"
    fig.colorbar(image, ax=grid, label="r of query norm and entropy", location=where)
    return fig


def correlation_caption(heads: pd.DataFrame, *, consistent: float) -> str:
    """What the maps of correlations show."""
    n_samples = int(heads["n_samples"].max())
    return (
        f"Correlation r of query norm and attention entropy in {counted(len(heads))} of "
        f"{counted(heads['layer'].nunique(), 'layer')}, layers across and heads upwards, means "
        f"over n = {counted(n_samples, 'window')}; without unit, blue where entropy falls as the "
        "norm grows, grey where there is none. Pearson's above, given the logarithm of position "
        "beside it; Spearman's below, given the rank of position. Dots: the criterion of "
        f"consistency, of one sign and significant in {consistent:.0%} of the windows or more."
    )


def _draw(
    ax: Axes, heads: pd.DataFrame, values: np.ndarray, marked: np.ndarray, dot: float
) -> AxesImage:
    layers = heads["layer"]
    image = layer_head_grid(
        ax, layers, heads["head"], values, cmap="RdBu_r", vmin=-1.0, vmax=1.0
    )  # fmt: skip
    ax.plot(
        layers[marked], heads["head"][marked], ls="", marker="o", ms=dot, mfc="black",
        mec="white", mew=min(0.12 * dot, 0.6),
    )  # fmt: skip
    # Where only later layers attend, the map begins with the first of them.
    ax.set_xlim(int(layers.min()) - 0.5, int(layers.max()) + 0.5)
    return image
