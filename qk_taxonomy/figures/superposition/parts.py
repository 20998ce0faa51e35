"""What figures of the superposition study share: sparsities, seeds, targets, axes of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike

from qk_taxonomy.figures.parts import Array
from qk_taxonomy.figures.style import RGB, class_colours
from qk_taxonomy.studies.superposition.config import Target

# Beyond these targets colours are not told apart, and all have one.
_MOST_COLOURED = 8

_BLACK: RGB = (0.0, 0.0, 0.0)

# Between marks one above the other, in points.
_MARK = 5.0


def sparsity_label(probability: float) -> str:
    """A sparsity S with the probability p = 1 − S that a feature is there."""
    return f"S = {1.0 - probability:.3g} (p = {probability:.3g})"


def sparsity_colours(n: int) -> list[Any]:
    """``n`` colours from the densest to the sparsest, in an order that is seen without colour."""
    return list(mpl.colormaps["viridis"](np.linspace(0.0, 0.88, n)))


def spread_text(n: int) -> str:
    """What lines and bands over ``n`` seeds are."""
    return "1 seed" if n == 1 else f"median and quartiles over {n} seeds"


def step_axis(ax: Axes, steps: ArrayLike) -> None:
    """A logarithmic axis of training steps; step 0, before training, is at its left end."""
    found = np.asarray(steps, dtype=np.float64)
    positive = found[found > 0]
    first, last = (positive.min(), positive.max()) if positive.size else (1.0, 10.0)
    start = first / 2 if (found <= 0).any() else first
    ax.set_xscale("log")
    ax.set_xlim(start, last if last > start else 10 * start)
    ax.xaxis.set_major_locator(LogLocator(numticks=6))
    ax.xaxis.set_minor_locator(NullLocator())


def drawn_steps(steps: ArrayLike) -> Array:
    """Where steps are drawn on the axis of :func:`step_axis`: step 0 at half the first one."""
    found = np.asarray(steps, dtype=np.float64)
    positive = found[found > 0]
    first = positive.min() if positive.size else 1.0
    return np.where(found > 0, found, first / 2)


def probability_axis(ax: Axes, probabilities: ArrayLike) -> None:
    """A logarithmic axis of 1/(1 − S) = 1/p, with the numbers of the few that are there."""
    found = 1.0 / np.asarray(probabilities, dtype=np.float64)
    ax.set_xscale("log")
    reach = float(np.log10(found.max() / found.min())) or 0.3
    margin = 10 ** (0.06 * reach)
    ax.set_xlim(found.min() / margin, found.max() * margin)
    # Over more decades than two, numbers between powers of ten would touch.
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if reach < 2 else (1.0,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("1/(1 − S) = 1/p")


def target_colours(targets: Sequence[Target]) -> list[RGB]:
    """A colour a target; black for all where they are too many to be told apart."""
    if len(targets) > _MOST_COLOURED:
        return [_BLACK] * len(targets)
    return class_colours(len(targets))


def mark_targets(
    ax: Axes, targets: Sequence[Target], *, left: bool = True, right: bool = True
) -> None:
    """Marks above a panel whose x is features: filled for a target's i, hollow for its j.

    Those of one feature are one above the other. The panel's title, if it has one, makes way.
    """
    levels: dict[int, int] = {}
    for target, colour in zip(targets, target_colours(targets), strict=True):
        for feature, filled in ((target.i, True), (target.j, False)):
            if not (left if filled else right):
                continue
            level = levels.get(feature, 0)
            if colour == _BLACK and level:
                continue  # one black mark says as much as several
            levels[feature] = level + 1
            _mark(ax, feature, level, colour, filled)
    ax.set_title(ax.get_title(), pad=4.0 + _MARK * max(levels.values(), default=0))


def _mark(ax: Axes, feature: int, level: int, colour: RGB, filled: bool) -> None:
    figure = ax.get_figure(root=True)
    assert figure is not None
    above = ScaledTranslation(0.0, (3.0 + _MARK * level) / 72, figure.dpi_scale_trans)
    ax.plot(
        [feature], [1.0], transform=ax.get_xaxis_transform() + above, clip_on=False,
        **mark_style(colour, filled),
    )  # fmt: skip


def mark_style(colour: RGB, filled: bool, marker: str = "v") -> dict[str, Any]:
    """A mark of a feature of a target, as of ``Axes.plot``."""
    return {
        "marker": marker, "ms": 4.0, "ls": "", "color": colour, "mew": 0.8,
        "mfc": colour if filled else "white",
    }  # fmt: skip


def target_handles(targets: Sequence[Sequence[Target]], marker: str = "v") -> list[Line2D]:
    """What the colours and marks of the panels' targets are, for a legend.

    Where panels have targets of their own, colours say which of a panel's targets it is.
    """
    several = max(targets, key=len, default=())
    if not several:
        return []
    many = len(several) > _MOST_COLOURED
    first = f"i of one of {len(several)} targets" if many else "i of a target"
    handles = [
        Line2D([], [], label=label, **mark_style(_BLACK, filled, marker))
        for label, filled in ((f"{first} (query side)", True), ("j (key side)", False))
    ]
    if many:
        return handles
    alike = all(tuple(one) == tuple(several) for one in targets)
    labels = [
        f"target {target.i} → {target.j}, weight {target.weight:g}" if alike
        else f"target number {number}"
        for number, target in enumerate(several, start=1)
    ]  # fmt: skip
    colours = target_colours(several)
    return [
        *(Line2D([], [], color=colour, lw=4.0, label=label)
          for colour, label in zip(colours, labels, strict=True)),
        *handles,
    ]  # fmt: skip
