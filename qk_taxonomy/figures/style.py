"""The house style, applied to one figure at a time and never to matplotlib as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from qk_taxonomy.records import FigureSize

RGB = tuple[float, float, float]

#: Colours of what is rejected at its level, of what is not, and of what no test was made of.
REJECTED, KEPT, UNTESTED = "#d55e00", "#0072b2", "0.6"

#: How the law of untrained heads is drawn.
UNTRAINED_LINE: Any = {"color": "black", "ls": "--", "lw": 1.0}

# What has no value.
_EMPTY: RGB = (0.93, 0.93, 0.93)

#: Dots per inch of PNG files for a screen, and of paper.
DPI, PAPER_DPI = 150, 300

# Figures for paper are drawn as for a screen, on a page that is wider by this, and made smaller by
# it in their file: letters of 8 to 10 points, and all lines and marks with them, become 6 to 7.5.
_REDUCTION = 0.75

_STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "figure.titlesize": 10.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Letters stay text in PDF, in a font that is embedded; in SVG they are shapes, since a page
    # cannot count on the reader's fonts. What is drawn twice is the same bytes.
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "qk-taxonomy",
}


@dataclass(frozen=True)
class Page:
    """What a figure is drawn for: a screen, or one or two columns of a paper.

    room: inches that a figure fills, in letters of the size they have on a screen; None: as many as
    it likes. reduction: how much smaller it is in its file than it is drawn.
    """

    name: FigureSize
    room: float | None = None
    reduction: float = 1.0

    @property
    def narrow(self) -> bool:
        """Whether panels stand one below the other rather than side by side."""
        return self.name == "one-column"

    @property
    def wide(self) -> Page:
        """Two columns for one, for what cannot be read in one."""
        return TWO_COLUMN if self.narrow else self

    @property
    def dpi(self) -> float:
        """Dots per inch of the file."""
        return DPI if self.room is None else PAPER_DPI

    def width(self, wanted: float) -> float:
        """Inches of a figure that would like so many."""
        return wanted if self.room is None else self.room

    def columns(self, most: int, width: float) -> int:
        """How many panels of a width in inches stand side by side, of ``most``."""
        return most if self.room is None else max(1, min(most, int(self.room / width)))


SCREEN = Page("screen")
ONE_COLUMN = Page("one-column", 3.5 / _REDUCTION, _REDUCTION)
TWO_COLUMN = Page("two-column", 7.2 / _REDUCTION, _REDUCTION)

PAGES: dict[FigureSize, Page] = {page.name: page for page in (SCREEN, ONE_COLUMN, TWO_COLUMN)}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save inside this context."""
    with sns.axes_style("ticks"), mpl.rc_context(rc=_STYLE):
        yield


def class_colours(n: int) -> list[RGB]:
    """``n`` distinct colours, of which up to ten are told apart by the colour-blind."""
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
        axis.set_major_locator(MaxNLocator(integer=True, nbins="auto", min_n_ticks=1))
    for spine in ax.spines.values():
        spine.set_visible(False)
    return drawn
