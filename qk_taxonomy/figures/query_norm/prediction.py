"""How well spectra predict the behaviour of heads in layers that were held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from qk_taxonomy.figures.parts import legend_under, put_title
from qk_taxonomy.figures.query_norm.parts import measure_label, numbers, rounded
from qk_taxonomy.figures.style import KEPT, REJECTED, SCREEN, Page
from qk_taxonomy.studies.query_norm.bridge import predicted

# Where predictions are far worse than the mean, how much worse is no matter: drawn at the end.
_WORST = -1.0

# Columns, how they are drawn, and what they are called.
_MARKS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("r2_depth", {"marker": "s", "color": "0.45", "ms": 5}, "depth alone"),
    ("r2_both", {"marker": "D", "color": REJECTED, "ms": 4.5}, "spectra and depth"),
    ("r2_spectra", {"marker": "^", "color": KEPT, "ms": 4.5}, "spectra"),
    ("r2_within", {"marker": "o", "color": KEPT, "ms": 7}, "spectra, within layers"),
)


def prediction_figure(prediction: pd.DataFrame, title: str, page: Page = SCREEN) -> Figure:
    """A row a behaviour: R² of its normal scores by ridge regression in layers held out, on
    spectra within layers, which is what is tested; and, of scores as they are, on spectra, on depth
    alone and on both. Grey, the 95 % of within layers for heads that were permuted there.

    Starred where that is :func:`~qk_taxonomy.studies.query_norm.bridge.predicted`.

    prediction: of :class:`~qk_taxonomy.studies.query_norm.bridge.Bridge`. At 0, predictions are as
    good as the mean of the other layers or, within layers, as a layer's own.
    """
    n = len(prediction)
    # Names at the left and numbers at the right leave no room for a panel in one column.
    page = page.wide
    fig = Figure(figsize=(page.width(9.4), 0.36 * n + 2.4), layout="constrained")
    put_title(fig, title, "cross-validated by layer; 1: perfect, 0: no better than the mean")
    ax = fig.subplots()
    ax.axvline(0.0, color="black", ls=":", lw=0.9)
    places = np.arange(n)
    low, high = (np.maximum(numbers(prediction, end), _WORST) for end in ("null_low", "null_high"))
    ax.barh(places, high - low, left=low, height=0.62, color="0.87", zorder=0)
    for column, style, _ in _MARKS:
        _draw(ax, numbers(prediction, column), style)
    rows = zip(prediction["r2_within"], prediction["q"], predicted(prediction), strict=True)
    for place, row in enumerate(rows):
        ax.annotate(_said(*row), (1.01, place), xycoords=("axes fraction", "data"), va="center",
                    fontsize=8, annotation_clip=False)  # fmt: skip
    ax.set_yticks(places, [measure_label(str(one)) for one in prediction["behaviour"]])
    ax.set(
        ylim=(n - 0.4, -0.6),
        xlim=(min(ax.get_xlim()[0], -0.1), 1.05),
        xlabel="R² of normal scores, in layers held out",
    )
    handles = [Line2D([], [], ls="", label=label, **style) for _, style, label in _MARKS]
    legend_under(
        fig, [*handles, Patch(color="0.87", label="within layers, of permuted heads, 95 %")]
    )
    return fig


def prediction_caption(prediction: pd.DataFrame) -> str:
    """What the figure of predictions shows."""
    return (
        f"How well spectra predict each of n = {len(prediction)} behaviours of heads, in layers "
        "that were held out: R² of ridge regression of its normal scores, without unit; 1: "
        "perfect, 0: no better than the mean. Circles: spectra within layers, which is what is "
        "tested; triangles, squares and diamonds: scores as they are, by spectra, by depth alone "
        "and by both. Grey: the central 95 % of within layers for heads that were permuted there. "
        "q: corrected over behaviours (Benjamini–Hochberg), starred where the prediction holds. "
        f"Values below {_WORST:g} are drawn at the left end".replace("-", "−")
        + "."
    )


def _draw(ax: Axes, values: np.ndarray, style: dict[str, Any]) -> None:
    for place, value in enumerate(values):
        if value >= _WORST:
            ax.plot([value], [place], ls="", **style)
        elif np.isfinite(value):
            ax.plot([_WORST - 0.03], [place], ls="", **{**style, "marker": "<"})


def _said(r2: float, q: float, holds: bool) -> str:
    if not np.isfinite(r2):
        return "not predicted"
    return f"R² = {rounded(r2)}, q = {q:.2g}{' *' if holds else ''}"
