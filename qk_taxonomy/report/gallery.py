"""The class gallery: each class's mean histogram and gamma density, as shapes that need no script.

Coordinates are those of an SVG picture, whose y runs downwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.labels import CLASS_COLOURS
from qk_taxonomy.statistics.densities import gamma_density
from qk_taxonomy.taxonomy import HeadClass

Array = NDArray[np.float64]
Scale = Callable[[float], float]

WIDTH, HEIGHT = 340.0, 190.0
#: Edges of the axes within it.
LEFT, RIGHT, TOP, FLOOR = 36.0, 332.0, 8.0, 164.0
_GAMMA_POINTS = 160

#: Marker of each class, as plotly calls it, and its path in a box from -6 to 6: with ten colours
#: and nine markers the first ninety classes differ.
SYMBOLS = (
    ("circle", "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z"),
    ("square", "M-4,-4H4V4H-4Z"),
    ("diamond", "M0,-5.5L5.5,0L0,5.5L-5.5,0Z"),
    ("triangle-up", "M0,-5L5,4H-5Z"),
    ("cross", "M-1.8,-5H1.8V-1.8H5V1.8H1.8V5H-1.8V1.8H-5V-1.8H-1.8Z"),
    ("triangle-down", "M0,5L5,-4H-5Z"),
    ("star", "M0,-5.5L1.5,-2L5.4,-1.7L2.3,1L3.4,4.5L0,2.4L-3.4,4.5L-2.3,1L-5.4,-1.7L-1.5,-2Z"),
    ("x", "M-5,-2.6L-2.6,-5L0,-2.4L2.6,-5L5,-2.6L2.4,0L5,2.6L2.6,5L0,2.4L-2.6,5L-5,2.6L-2.4,0Z"),
    ("hexagon", "M0,-5.2L4.5,-2.6V2.6L0,5.2L-4.5,2.6V-2.6Z"),
)  # fmt: skip


@dataclass(frozen=True)
class Tick:
    """A mark of an axis, in the picture's coordinates, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class ClassPanel:
    """One class as the page shows it: its numbers, and the shapes of its picture.

    ``bars``: x, y, width and height; ``whiskers``: x and both ends of mean ± std; ``gamma``: points
    of the fitted density, "" where there is none.
    """

    number: int
    colour: str
    symbol: int
    n_heads: int
    share: float
    beyond: float
    alpha: float
    theta: float
    divergence: float
    bars: tuple[tuple[float, float, float, float], ...]
    whiskers: tuple[tuple[float, float, float], ...]
    gamma: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]

    @property
    def apart(self) -> bool:
        """Whether its marker alone tells it from another class: colours are fewer than classes."""
        return self.number >= len(CLASS_COLOURS)

    @property
    def is_fitted(self) -> bool:
        return math.isfinite(self.alpha)


def class_style(number: int) -> tuple[str, int]:
    """Colour of a class, and the position of its marker in :data:`SYMBOLS`."""
    return CLASS_COLOURS[number % len(CLASS_COLOURS)], number % len(SYMBOLS)


def class_panels(classes: Sequence[HeadClass], edges: Array) -> tuple[ClassPanel, ...]:
    """A panel a class, all over the same λ/mean."""
    total = sum(group.n_heads for group in classes)
    return tuple(_panel(group, edges, total) for group in classes)


def _panel(group: HeadClass, edges: Array, total: int) -> ClassPanel:
    tallest = 1.12 * float((group.mean + group.std).max()) or 1.0

    def across(x: float) -> float:
        return LEFT + (RIGHT - LEFT) * x / float(edges[-1])

    def up(y: float) -> float:
        return FLOOR - (FLOOR - TOP) * min(max(y, 0.0), tallest) / tallest

    bars, whiskers = [], []
    for (low, high), mean, std in zip(
        itertools.pairwise(edges.tolist()), group.mean.tolist(), group.std.tolist(), strict=True
    ):
        x, width = across(low), across(high) - across(low)
        bars.append((x + 0.05 * width, up(mean), 0.9 * width, FLOOR - up(mean)))
        if std > 0:
            whiskers.append((x + width / 2, up(mean - std), up(mean + std)))
    colour, symbol = class_style(group.number)
    fit = group.gamma
    return ClassPanel(
        number=group.number,
        colour=colour,
        symbol=symbol,
        n_heads=group.n_heads,
        share=group.n_heads / total,
        beyond=group.beyond,
        alpha=fit.alpha,
        theta=fit.theta,
        divergence=fit.divergence,
        bars=tuple(bars),
        whiskers=tuple(whiskers),
        gamma=_gamma_points(group, edges, across, up),
        x_ticks=tuple(Tick(across(x), f"{x:g}") for x in _round_numbers(float(edges[-1]), 6)),
        y_ticks=tuple(Tick(up(y), f"{y:g}") for y in _round_numbers(tallest, 4)),
    )


def _gamma_points(group: HeadClass, edges: Array, across: Scale, up: Scale) -> str:
    if not math.isfinite(group.gamma.alpha):
        return ""
    # From the first bin's centre on, since a density of α < 1 has no height at 0.
    x = np.linspace((edges[0] + edges[1]) / 2, edges[-1], _GAMMA_POINTS)
    density = gamma_density(x, group.gamma.alpha, group.gamma.theta)
    return _points(zip(map(across, x.tolist()), map(up, density.tolist()), strict=True))


def _points(pairs: Iterable[tuple[float, float]]) -> str:
    """Pairs of coordinates, as SVG has them in an attribute."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def _round_numbers(largest: float, most: int) -> list[float]:
    """At most ``most`` + 1 round numbers from 0 to ``largest``."""
    rough = largest / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * 0.999)
    return [round(step * i, 12) for i in range(int(largest / step) + 1)]
