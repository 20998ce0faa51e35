"""Whether the texts of a figure can be read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from qk_taxonomy.figures.style import house_style


def with_captions(names: Iterable[str]) -> set[str]:
    """Names of files, and of the caption beside each figure among them."""
    found = set(names)
    return found | {name.removesuffix(".png") + ".md" for name in found if name.endswith(".png")}


def drawn_texts(draw: Callable[[], Figure]) -> tuple[Figure, list[tuple[str, Bbox]]]:
    """A figure, drawn, and every text that was put on it, with its place in pixels."""
    found: list[tuple[str, Bbox]] = []
    original = Text.draw

    @functools.wraps(original)
    def record(self: Text, renderer: object) -> None:
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), Text.get_window_extent(self, renderer)))
        original(self, renderer)

    with pytest.MonkeyPatch.context() as patch, house_style():
        patch.setattr(Text, "draw", record)
        fig = draw()
        FigureCanvasAgg(fig).draw()
    return fig, found


def assert_readable(draw: Callable[[], Figure]) -> Figure:
    """Every text is inside the figure, and none covers another."""
    fig, texts = drawn_texts(draw)
    names = [text for text, _ in texts]
    low, high = (np.array([getattr(box, end) for _, box in texts]) for end in ("min", "max"))
    outside = ((low < -1) | (high > fig.bbox.max + 1)).any(axis=1)
    assert not outside.any(), [names[i] for i in np.flatnonzero(outside)]
    common = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    # Boxes are those of lines, taller than their letters.
    covered = np.triu((common > (1.0, 2.5)).all(axis=2), k=1)
    assert not covered.any(), [(names[i], names[j]) for i, j in np.argwhere(covered)]
    return fig
