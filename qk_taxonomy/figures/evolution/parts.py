"""What figures of training share: the axis of steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from qk_taxonomy.studies.evolution.records import Evolution

Array = NDArray[np.float64]

#: What has no colour of its own.
GREY = "0.6"

# Letters of labels that a panel has room for across.
_ROOM = 46


def step_label(evolution: Evolution, index: int) -> str:
    """What a figure calls a step: its number, or the revision where that is not known."""
    step = evolution.steps[index]
    return evolution.names[index] if np.isnan(step) else f"{step:.0f}"


def spread(places: Array, widths: Sequence[int]) -> list[int]:
    """Indices of labels of these widths (letters), at places from 0 to 1, that do not overlap.

    The first and the last are kept, and of the others those that fit, from the last on.
    """
    kept = [len(places) - 1]
    for index in range(len(places) - 2, -1, -1):
        gap = (places[kept[-1]] - places[index]) * _ROOM
        if gap >= (widths[kept[-1]] + widths[index]) / 2 + 1:
            kept.append(index)
    if kept[-1] != 0:
        kept[-1] = 0
    return kept[::-1] if len(kept) > 1 else [0, len(places) - 1]


def draw_step_axis(ax: Axes, evolution: Evolution) -> None:
    """Steps across, on an axis of log(step + 1), by their number or name."""
    times = evolution.times
    labels = [step_label(evolution, i) for i in range(len(times))]
    places = (times - times[0]) / (times[-1] - times[0])
    shown = spread(places, [len(label) for label in labels])
    ax.set_xticks(times[shown], [labels[i] for i in shown])
    ax.set_xticks(times, minor=True)
    ax.set(xlim=(times[0], times[-1]), xlabel="training step (log scale)")


def chosen_steps(evolution: Evolution, most: int) -> list[int]:
    """Indices of up to so many steps, even in log(step + 1), the first and the last among them."""
    times = evolution.times
    wanted = np.linspace(times[0], times[-1], most)
    nearest = np.abs(times[None] - wanted[:, None]).argmin(1)
    return sorted({*nearest.tolist(), 0, len(times) - 1})
