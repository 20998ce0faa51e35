"""Which spectral statistic goes with which behaviour, within layers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qk_taxonomy.figures.parts import heat_map, put_title, symmetric_colours
from qk_taxonomy.figures.query_norm.parts import measure_label, spectral_column_label
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.statistics.findings import LEVEL

# Inches of a cell.
_CELL = (0.34, 0.34)


def association_figure(associations: pd.DataFrame, title: str, page: Page = SCREEN) -> Figure:
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
    statistics = [spectral_column_label(str(one)) for one in rho.columns]
    behaviours = [measure_label(str(one)) for one in rho.index]
    if page.narrow:
        # Statistics are many: in one column they are downwards.
        rho, q, statistics, behaviours = rho.T, q.T, behaviours, statistics
    n_rows, n_columns = rho.shape
    cell = _CELL[1] if page.room is None else 0.6 * _CELL[1]
    size = page.width(_CELL[0] * n_columns + 4.0), cell * n_rows + 3.0
    fig = Figure(figsize=size, layout="constrained")
    holds = q.to_numpy() <= LEVEL
    put_title(
        fig, title, f"dots: q ≤ {LEVEL}, {int(holds.sum())} of {np.isfinite(q).to_numpy().sum()}"
    )
    ax = fig.subplots()
    cmap, norm = symmetric_colours(rho)
    image = heat_map(ax, rho, cmap=cmap, norm=norm)
    row, column = np.nonzero(holds)
    ax.plot(column, row, ls="", marker="o", ms=4.0, mfc="black", mec="white", mew=0.5)
    ax.set_xticks(range(n_columns), statistics, rotation=90)
    ax.set_yticks(range(n_rows), behaviours)
    ax.tick_params(length=0)
    where = "bottom" if page.narrow else "right"
    fig.colorbar(image, ax=ax, label="Spearman's ρ within layers", location=where)
    return fig


def association_caption(associations: pd.DataFrame) -> str:
    """What the map of associations shows."""
    tested = np.isfinite(associations["q"].to_numpy(dtype=np.float64, na_value=np.nan))
    return (
        f"Spearman's ρ, in [−1, 1], of n = {len(associations)} pairs of a head's behaviour and a "
        "statistic of its spectrum, between heads of the same layer. Dots: "
        f"q ≤ {LEVEL}, p-values by permutation of heads within layers, corrected over the "
        f"{int(tested.sum())} pairs that are tested (Benjamini–Hochberg). Grey: no value."
    )
