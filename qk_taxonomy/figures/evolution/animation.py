"""Densities that move: a frame a step of training, or a model of a family in order of size."""

from __future__ import annotations

import html
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qk_taxonomy.figures.evolution.parts import UNTRAINED_LINE
from qk_taxonomy.figures.style import KEPT

Array = NDArray[np.float64]

# Frames a second: slow enough to see what moves.
_FPS = 3

# Dots per inch: the files hold a picture a frame.
_DPI = 90

# Heads whose own line is drawn: more of them make a grey wall.
_MOST_LINES = 100

# With room for so many megabytes of pictures, beyond which matplotlib drops the rest of the frames.
_SETTINGS: Any = {"savefig.dpi": _DPI, "animation.embed_limit": 200.0}

# What stands for the signs of an icon font that matplotlib's player would fetch.
_SIGNS = {
    "minus": "−",
    "plus": "+",
    "pause": "❚❚",
    "play": "▶",
    "play fa-flip-horizontal": "◀",
    "step-forward": "▶❚",
    "step-backward": "❚◀",
    "fast-forward": "▶▶❚",
    "fast-backward": "❚◀◀",
}


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture: what it is of, and the histograms (heads, bins) of its heads."""

    label: str
    histograms: Array


@dataclass(frozen=True)
class Moving:
    """The same animation as a GIF, and as an HTML page that needs nothing beside it."""

    gif: bytes
    page: bytes


def moving_densities(
    frames: Sequence[Frame], edges: Array, title: str, untrained: Array | None = None
) -> Moving:
    """An animation of the densities of λ over the head's mean, a frame after the other.

    edges (bins + 1,): those of all histograms; untrained (bins,): a density to compare with. Bars:
    the mean over heads; lines: heads. All frames share their axes; the same frames give the same
    bytes.
    """
    fig = Figure(figsize=(7.0, 4.4), dpi=_DPI)
    FigureCanvasAgg(fig)
    ax = fig.subplots(gridspec_kw={"left": 0.09, "right": 0.98, "bottom": 0.13, "top": 0.88})
    top = 1.15 * max(float(np.quantile(one.histograms.max(-1), 0.95)) for one in frames)
    centres = (edges[:-1] + edges[1:]) / 2

    def draw(index: int) -> list[object]:
        ax.clear()
        one = frames[index]
        chosen = np.linspace(0, len(one.histograms) - 1, _MOST_LINES).round().astype(int)
        ax.plot(
            centres, one.histograms[np.unique(chosen)].T, color="0.5", lw=0.5, alpha=0.25, zorder=1
        )
        ax.bar(centres, one.histograms.mean(0), width=0.9 * np.diff(edges), color=KEPT, alpha=0.75)
        if untrained is not None:
            ax.plot(centres, untrained, **UNTRAINED_LINE, label="untrained heads")
            ax.legend(frameon=False, loc="upper right")
        ax.set(xlim=(0.0, float(edges[-1])), ylim=(0.0, top))
        ax.set(xlabel="λ / mean λ of the head", ylabel="density (bars: mean over heads)")
        ax.set_title(f"{title}\n{one.label}")
        return []

    with tempfile.TemporaryDirectory() as folder, rc_context(_SETTINGS):
        moving = FuncAnimation(fig, draw, frames=len(frames), interval=1000 / _FPS)  # type: ignore[arg-type]
        file = Path(folder) / "moving.gif"
        moving.save(file, writer=PillowWriter(fps=_FPS))
        player = moving.to_jshtml(fps=_FPS, embed_frames=True, default_mode="loop")
        return Moving(file.read_bytes(), _page(player, title).encode())


def _page(player: str, title: str) -> str:
    """A page around matplotlib's player, with signs of its own for an icon font's from the web."""
    player = re.sub(r"<link\b[^>]*>", "", player)
    player = re.sub(r'<i class="fa fa-([\w -]+)"></i>', lambda m: _SIGNS[m[1]], player)
    # The player's name is drawn anew each time; the same frames are to give the same bytes.
    (drawn,) = set(re.findall(r"_anim_img([0-9a-f]{32})", player))
    player = player.replace(drawn, "0")
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title></head>\n"
        f'<body style="font-family: sans-serif; text-align: center">\n{player}\n</body>\n</html>\n'
    )
