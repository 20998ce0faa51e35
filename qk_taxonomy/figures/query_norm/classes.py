"""What the heads of each class do: behaviour by class of the taxonomy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qk_taxonomy.figures.parts import MOST_COLUMNS, at_the_bottom, grid_shape, panel_grid, put_title
from qk_taxonomy.figures.query_norm.parts import measure_label, nothing, numbers
from qk_taxonomy.figures.style import RGB, SCREEN, Page, class_colours
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.wording import counted

# Half the width over which the points of a class are spread.
_SPREAD = 0.27

# Inches that a panel has at least.
_WIDTH = 2.9


def behaviour_figure(
    heads: pd.DataFrame, tests: pd.DataFrame, title: str, page: Page = SCREEN
) -> Figure:
    """A panel a behaviour: a box a class (median, quartiles, whiskers to 1.5 IQR) over the points
    of its heads.

    heads: a row a head, with its ``class`` or nan, and a column a behaviour. tests: a row a
    behaviour: ``behaviour``, ``eta_squared`` within layers, ``p`` and ``q``.
    """
    behaviours = list(tests["behaviour"])
    heads = heads[heads["class"].notna()]
    labels = sorted(heads["class"].unique())
    colours = class_colours(len(labels))
    width = float(np.clip(0.42 * len(labels) + 1.6, 3.2, 6.0))
    most = page.columns(MOST_COLUMNS, _WIDTH)
    n_rows, n_columns = grid_shape(len(behaviours), most)
    size = page.width(width * n_columns), 2.9 * n_rows + 0.9
    fig = Figure(figsize=size, layout="constrained")
    what = "η²: share of the variance within layers that classes explain; p: permuted in layers"
    put_title(fig, title, f"{counted(len(heads))}; {what}")
    axes = panel_grid(fig, len(behaviours), most_columns=most)
    for ax, test in zip(axes, tests.to_dict("records"), strict=True):
        values = numbers(heads, test["behaviour"])
        of = heads["class"].to_numpy()
        groups = [values[(of == label) & np.isfinite(values)] for label in labels]
        _draw(ax, groups, colours)
        ax.set_xticks(range(len(labels)), [f"{label:g}" for label in labels])
        ax.set_title(f"{measure_label(test['behaviour'])}\n{_said(test)}")
    for ax in at_the_bottom(axes):
        ax.set_xlabel("class")
    return fig


def behaviour_caption(heads: pd.DataFrame, tests: pd.DataFrame) -> str:
    """What the figure of behaviour by class shows."""
    known = heads[heads["class"].notna()]
    return (
        f"Behaviour of {counted(len(known))} by class of the taxonomy, a panel each of "
        f"{len(tests)} behaviours, means over tokens and windows. Boxes: median and quartiles over "
        "the heads of a class, whiskers to 1.5 interquartile ranges; points: heads. η²: the share "
        "of the variance within layers that classes explain; p by permutation of heads within "
        f"layers, q corrected over behaviours (Benjamini–Hochberg), starred where q ≤ {LEVEL}."
    )


def _said(test: dict[str, float]) -> str:
    """What was found of a behaviour, starred where it holds after correction."""
    if not np.isfinite(test["eta_squared"]):
        return "not tested"
    found = f"η² = {test['eta_squared']:.2f}, p = {test['p']:.2g}, q = {test['q']:.2g}"
    return f"{found} *" if test["q"] <= LEVEL else found


def _draw(ax: Axes, groups: Sequence[np.ndarray], colours: Sequence[RGB]) -> None:
    if not any(len(group) for group in groups):
        nothing(ax, "no head has a value")
        return
    ax.boxplot(
        groups, positions=range(len(groups)), widths=0.62, showfliers=False,
        manage_ticks=False, medianprops={"color": "black", "linewidth": 1.4},
        boxprops={"linewidth": 0.8}, whiskerprops={"linewidth": 0.8},
        capprops={"linewidth": 0.8},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    n = sum(len(group) for group in groups)
    size, alpha = float(np.clip(2500 / n, 2.0, 14.0)), float(np.clip(150 / n, 0.25, 0.8))
    for place, (group, colour) in enumerate(zip(groups, colours, strict=True)):
        across = place + rng.uniform(-_SPREAD, _SPREAD, len(group))
        ax.scatter(across, group, s=size, color=colour, alpha=alpha, linewidth=0, zorder=0)
    ax.set_xlim(-0.6, len(groups) - 0.4)
