"""Densities that move: a frame a step of training, or a model of a family in order of size."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from qk_taxonomy.figures.style import KEPT, UNTRAINED_LINE

Array = NDArray[np.float64]

# How long a frame stays: long enough to see what moves.
_MILLISECONDS = 333

# Dots per inch, and colours: the file holds a picture a frame.
_DPI, _COLOURS = 72, 16

# Heads whose own line is drawn: more of them make a grey wall.
_MOST_LINES = 100

# What the end of a frame's axis is in the page's bytes; what is higher ends at 255, above it.
_END = 250


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture: what it is of, the histograms (heads, bins) of its heads, and the mean one of
    untrained heads of their shape (bins,), or None.
    """

    label: str
    histograms: Array
    untrained: Array | None = None

    @property
    def mean(self) -> Array:
        return np.asarray(self.histograms.mean(0))

    @property
    def lines(self) -> Array:
        """The heads that have a line, evenly chosen."""
        last = len(self.histograms) - 1
        chosen = np.linspace(0, last, _MOST_LINES).round().astype(int)
        return self.histograms[np.unique(chosen)]

    @property
    def top(self) -> float:
        """Where the axis of densities ends: a little above 19 of 20 heads' highest bins."""
        return 1.15 * float(np.quantile(self.histograms.max(-1), 0.95)) or 1.0


@dataclass(frozen=True)
class Moving:
    """The same animation as a GIF, and as an HTML page that needs nothing beside it."""

    gif: bytes
    page: bytes


def moving_densities(frames: Sequence[Frame], edges: Array, title: str) -> Moving:
    """An animation of the densities of λ over the head's mean, a frame after the other.

    edges (bins + 1,): those of all histograms. Bars: the mean over heads; lines: heads; dashed:
    untrained ones. Each frame has a scale of its own for densities, since what is wide at first has
    a peak in the end. The same frames give the same bytes.
    """
    return Moving(_gif(frames, edges, title), _page(frames, edges, title).encode())


def _gif(frames: Sequence[Frame], edges: Array, title: str) -> bytes:
    fig = Figure(figsize=(7.0, 4.4), dpi=_DPI)
    canvas = FigureCanvasAgg(fig)
    ax = fig.subplots(gridspec_kw={"left": 0.09, "right": 0.98, "bottom": 0.13, "top": 0.88})
    pictures = []
    for frame in frames:
        ax.clear()
        _draw(ax, frame, edges)
        ax.set_title(f"{title}\n{frame.label}")
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    few = [picture.quantize(_COLOURS, dither=Image.Dither.NONE) for picture in pictures]
    file = io.BytesIO()
    few[0].save(
        file, "GIF", save_all=True, append_images=few[1:], duration=_MILLISECONDS, loop=0
    )  # fmt: skip
    return file.getvalue()


def _draw(ax: Axes, frame: Frame, edges: Array) -> None:
    centres = (edges[:-1] + edges[1:]) / 2
    ax.plot(centres, frame.lines.T, color="0.5", lw=0.5, alpha=0.25, zorder=1)
    ax.bar(centres, frame.mean, width=0.9 * np.diff(edges), color=KEPT, alpha=0.75)
    if frame.untrained is not None:
        ax.plot(centres, frame.untrained, **UNTRAINED_LINE, label="untrained heads")
        ax.legend(frameon=False, loc="upper right")
    ax.set(xlim=(0.0, float(edges[-1])), ylim=(0.0, frame.top))
    ax.set(xlabel="λ / mean λ of the head", ylabel="density (scale changes)")


def _page(frames: Sequence[Frame], edges: Array, title: str) -> str:
    """The page: its script draws the frames from bytes, a hundredth of what pictures take."""
    data = {
        "bins": len(edges) - 1,
        "right": float(edges[-1]),
        "milliseconds": _MILLISECONDS,
        "frames": [
            {
                "label": one.label,
                "top": float(f"{one.top:.4g}"),
                "heads": _bytes(one.lines, one.top),
                "mean": _bytes(one.mean, one.top),
                "untrained": None if one.untrained is None else _bytes(one.untrained, one.top),
            }
            for one in frames
        ],
    }
    template = Template((files("qk_taxonomy.figures") / "moving.html").read_text("utf-8"))
    # A label must not end the element that holds it.
    packed = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return template.substitute(title=html.escape(title), data=packed)


def _bytes(densities: Array, top: float) -> str:
    """Densities as bytes in base64, row by row."""
    heights = np.clip(np.round(densities / top * _END), 0, 255).astype(np.uint8)
    return base64.b64encode(heights.tobytes()).decode("ascii")
