"""The house style, applied to one figure at a time and never to matplotlib as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import seaborn as sns

RGB = tuple[float, float, float]

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
    """``n`` distinct colours: Okabe and Ito's colour-blind-safe ones as far as they go."""
    safe = sns.color_palette("colorblind")
    # Those that are easily told apart come first; pale ones, hard to see on white, last.
    order = [safe[i] for i in (0, 1, 2, 3, 4, 9, 7, 5, 8, 6)]
    return list(order[:n] if n <= len(order) else sns.husl_palette(n))
