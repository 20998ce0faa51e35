"""What figures of several studies share: titles, panels, bands, maps, legends."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

#: What has no value.
MISSING = "0.85"

#: Panels side by side.
MOST_COLUMNS = 4

# Inches of a character of a title and of a legend, about.
_CHARACTER, _SMALL_CHARACTER = 0.085, 0.07


def signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def shortened(name: str, letters: int) -> str:
    """A name of at most so many letters: long ones often differ at their end, so both are kept."""
    if len(name) <= letters:
        return name
    tail = (letters - 1) // 2
    return f"{name[: letters - 1 - tail]}…{name[-tail:]}"


def quartiles(values: ArrayLike) -> Array:
    """Quartiles (3, ...) over the last axis of what is finite; nan where nothing is."""
    found = np.asarray(values, dtype=np.float64)
    found = np.where(np.isfinite(found), found, np.nan)
    some = np.isfinite(found).any(axis=-1)
    out = np.full((3, *some.shape), np.nan)
    out[:, some] = np.nanquantile(found[some], (0.25, 0.5, 0.75), axis=-1)
    return out


def band(ax: Axes, x: ArrayLike, values: ArrayLike, colour: Any, **line: Any) -> None:
    """A line (median) and a band (quartiles) of values (n, k) over x (n,); of one value no band."""
    low, median, high = quartiles(values)
    ax.plot(np.asarray(x), median, color=colour, **line)
    if np.shape(values)[-1] > 1:
        ax.fill_between(np.asarray(x), low, high, color=colour, alpha=0.18, linewidth=0)


def panel_grid(
    fig: Figure, n: int, *, most_columns: int = MOST_COLUMNS, **subplots: Any
) -> list[Axes]:
    """``n`` panels in rows of about equal length."""
    n_rows, n_columns = grid_shape(n, most_columns)
    axes = fig.subplots(n_rows, n_columns, squeeze=False, **subplots).ravel()
    for ax in axes[n:]:
        ax.remove()
    return list(axes[:n])


def put_title(fig: Figure, title: str, *lines: str) -> None:
    """A title and further lines, each in as many as the width of the figure makes of it."""
    width = fig.get_figwidth()
    fig.suptitle("\n".join(wrapped(one, width, _CHARACTER) for one in (title, *lines)))


def wrapped(text: str, width: float, character: float = _SMALL_CHARACTER) -> str:
    """Text in as many lines as a width in inches makes of it; of a label's letters, or larger."""
    return "\n".join(wrap(text, max(12, int(width / character)), break_on_hyphens=False))


def grid_shape(n: int, most_columns: int = MOST_COLUMNS) -> tuple[int, int]:
    """Rows and columns of ``n`` panels."""
    n_rows = -(-n // most_columns)
    return n_rows, -(-n // n_rows)


def at_the_left(axes: Sequence[Axes]) -> list[Axes]:
    """The panels that begin a row of a grid."""
    return [ax for ax in axes if _place(ax)[1] == 0]


def at_the_bottom(axes: Sequence[Axes]) -> list[Axes]:
    """The panels that have none below them."""
    lowest: dict[int, Axes] = {_place(ax)[1]: ax for ax in axes}
    return list(lowest.values())


def _place(ax: Axes) -> tuple[int, int]:
    spec = ax.get_subplotspec()
    assert spec is not None
    return spec.rowspan.start, spec.colspan.start


def symmetric_colours(*values: ArrayLike) -> tuple[Colormap, Normalize]:
    """Colours of signed values, white at zero, up to the largest modulus of all that are finite."""
    reach = 0.0
    for one in values:
        finite = np.abs(np.asarray(one, dtype=np.float64))
        reach = max(reach, float(finite[np.isfinite(finite)].max(initial=0.0)))
    reach = reach or 1.0
    return mpl.colormaps["RdBu_r"].with_extremes(bad=MISSING), Normalize(-reach, reach)


def heat_map(ax: Axes, values: ArrayLike, **image: Any) -> Any:
    """An image of values (rows, columns), the first row on top; what is not finite is grey."""
    drawn = ax.imshow(
        np.ma.masked_invalid(np.asarray(values, dtype=np.float64)), aspect="auto",
        interpolation="nearest", **image,
    )  # fmt: skip
    for spine in ax.spines.values():
        spine.set_visible(False)
    return drawn


def legend_under(fig: Figure, handles: Sequence[Any], *, per_row: int = 4) -> None:
    """A legend below all panels, in as few rows as the width of the figure lets it have."""
    if not handles:
        return
    longest = max(len(str(handle.get_label())) for handle in handles)
    fitting = int(fig.get_figwidth() / (0.6 + _SMALL_CHARACTER * longest))
    fig.legend(
        handles=list(handles), loc="outside lower center", frameon=False,
        ncols=max(1, min(per_row, fitting, len(handles))),
    )  # fmt: skip
