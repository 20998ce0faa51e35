"""Small multiples of spectral densities: layers downwards, steps across."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qk_taxonomy.figures.evolution.parts import chosen_steps, step_label
from qk_taxonomy.figures.parts import put_title, wrapped
from qk_taxonomy.figures.style import KEPT, SCREEN, UNTRAINED_LINE, Page
from qk_taxonomy.studies.evolution.records import Evolution
from qk_taxonomy.wording import counted

Array = NDArray[np.float64]

# Panels that a page has room for, across and downwards.
_MOST_STEPS, _MOST_LAYERS = 8, 8

# Inches that a panel has at least.
_WIDTH = 1.5


def density_figure(evolution: Evolution, title: str, page: Page = SCREEN) -> Figure:
    """The mean histogram of a layer's heads, with the band of their middle 80 %, at up to 8 steps
    and in up to 8 layers, evenly chosen; dashed: untrained heads. Steps have scales of their own.
    """
    steps = chosen_steps(evolution, page.columns(_MOST_STEPS, _WIDTH))
    layer = evolution.heads["layer"].to_numpy()
    layers = np.unique(layer)
    if len(layers) > _MOST_LAYERS:
        layers = layers[np.linspace(0, len(layers) - 1, _MOST_LAYERS).round().astype(int)]
    size = page.width(0.6 + 1.6 * len(steps)), 1.1 + 1.1 * len(layers)
    fig = Figure(figsize=size, layout="constrained")
    put_title(fig, title)
    panels = fig.subplots(len(layers), len(steps), squeeze=False, sharex=True, sharey="col")
    for row, number in zip(panels, layers, strict=True):
        for ax, step in zip(row, steps, strict=True):
            _draw_cell(ax, evolution, evolution.histograms[step, layer == number])
        row[0].set_ylabel(f"layer {number}")
    for ax, step in zip(panels[0], steps, strict=True):
        ax.set_title(f"step {step_label(evolution, step)}")
        ax.set(xlim=(0.0, float(evolution.edges[-1])), ylim=(0.0, None))
    label = (
        "λ / mean λ of the head (line: mean over the layer's heads, band: middle 80 % of them; "
        "dashed: untrained heads)"
    )
    fig.supxlabel(wrapped(label, fig.get_figwidth()), fontsize=9)
    fig.supylabel("density, per unit of λ / mean λ", fontsize=9)
    return fig


def density_caption(evolution: Evolution) -> str:
    """What the densities show."""
    s, h = evolution.labels.shape
    return (
        f"Densities of λ over the head's mean λ, in {len(evolution.edges) - 1} bins: layers "
        f"downwards, steps across, up to {_MOST_LAYERS} layers and {_MOST_STEPS} of "
        f"{counted(s, 'step')}, evenly chosen, of {counted(h)}. Lines: means over the heads of a "
        "layer; bands: the middle 80 % of them; dashed: untrained heads. Steps have scales of "
        "their own."
    )


def _draw_cell(ax: Axes, evolution: Evolution, histograms: Array) -> None:
    """One layer's heads (heads, bins) at one step."""
    edges = evolution.edges
    low, high = np.quantile(histograms, (0.1, 0.9), axis=0)
    ax.stairs(high, edges, baseline=low, fill=True, color=KEPT, alpha=0.3)
    ax.stairs(histograms.mean(0), edges, color=KEPT, lw=1.2)
    centres = (edges[:-1] + edges[1:]) / 2
    ax.plot(centres, evolution.null.histogram, **UNTRAINED_LINE)
    ax.locator_params(nbins=3)
