"""Which spectral statistic goes with which behaviour, within layers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qk_taxonomy.figures.parts import heat_map, put_title, symmetric_colours
from qk_taxonomy.figures.query_norm.parts import measure_label, statistic_label
from qk_taxonomy.statistics.findings import LEVEL

# Inches of a cell.
_CELL = (0.34, 0.34)


def association_figure(associations: pd.DataFrame, title: str) -> Figure:
    """A map of Spearman's ρ within layers, statistics across and behaviours downwards; dots where
    it holds after correction.

    associations: a row a behaviour and statistic: ``behaviour``, ``statistic``, ``spearman``,
    ``p`` and ``q``.
    """
    rho, q = (
        associations.pivot_table(
            index="behaviour", columns="statistic", values=value, sort=False, dropna=False
        )
        for value in ("spearman", "q")
    )  # fmt: skip
    n_rows, n_columns = rho.shape
    fig = Figure(
        figsize=(_CELL[0] * n_columns + 4.0, _CELL[1] * n_rows + 3.0), layout="constrained"
    )
    holds = q.to_numpy() <= LEVEL
    put_title(
        fig, title, f"dots: q ≤ {LEVEL}, {int(holds.sum())} of {np.isfinite(q).to_numpy().sum()}"
    )
    ax = fig.subplots()
    cmap, norm = symmetric_colours(rho)
    image = heat_map(ax, rho, cmap=cmap, norm=norm)
    row, column = np.nonzero(holds)
    ax.plot(column, row, ls="", marker="o", ms=4.0, mfc="black", mec="white", mew=0.5)
    ax.set_xticks(range(n_columns), [statistic_label(one) for one in rho.columns], rotation=90)
    ax.set_yticks(range(n_rows), [measure_label(one) for one in rho.index])
    ax.tick_params(length=0)
    fig.colorbar(image, ax=ax, label="Spearman's ρ within layers")
    return fig
