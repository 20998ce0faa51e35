"""The house style, applied to one figure at a time and never to matplotlib as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from qk_taxonomy.labels import CLASS_COLOURS, MODEL_COLOURS
from qk_taxonomy.labels import statistic_label as statistic_label

RGB = tuple[float, float, float]

#: Colours of what is rejected at its level, and of what is not.
REJECTED, KEPT = "#d55e00", "#0072b2"

# What has no value.
_EMPTY: RGB = (0.93, 0.93, 0.93)

#: Dots per inch of PNG files.
DPI = 150

_STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "figure.titlesize": 11.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": DPI,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save inside this context."""
    with sns.axes_style("ticks"), mpl.rc_context(rc=_STYLE):
        yield


def class_colours(n: int) -> list[RGB]:
    """``n`` distinct colours: colour-blind-safe ones as far as they go."""
    if n > len(CLASS_COLOURS):
        return list(sns.husl_palette(n))
    return [to_rgb(colour) for colour in CLASS_COLOURS[:n]]


def model_colours(n: int) -> list[RGB]:
    """Colours of up to eight models, none of them a class's."""
    return [to_rgb(colour) for colour in MODEL_COLOURS[:n]]


def layer_head_grid(
    ax: Axes, layers: ArrayLike, heads: ArrayLike, values: ArrayLike, **image: Any
) -> AxesImage:
    """A map of one value a head, layers across and heads upwards; cells without a head are grey.

    layers, heads, values: (n,). ``image``: colour map and limits, as of ``Axes.imshow``.
    """
    x, y = np.asarray(layers, dtype=np.int64), np.asarray(heads, dtype=np.int64)
    grid = np.full((int(y.max()) + 1, int(x.max()) + 1), np.nan)
    grid[y, x] = np.asarray(values)
    ax.set_facecolor(_EMPTY)
    drawn = ax.imshow(
        np.ma.masked_invalid(grid), aspect="auto", interpolation="nearest", origin="lower", **image
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    for spine in ax.spines.values():
        spine.set_visible(False)
    return drawn
