"""Layer × step maps: where in the model, and when in training, spectra change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from qk_taxonomy.figures.evolution.parts import spread, step_label
from qk_taxonomy.figures.parts import put_title
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.studies.evolution.records import Evolution
from qk_taxonomy.wording import counted

Array = NDArray[np.float64]

_COLUMNS = 3

# Inches that a panel has at least.
_WIDTH = 4.0


@dataclass(frozen=True, eq=False)
class _Map:
    """One panel: values of heads (S, H), whose mean over a layer is shown.

    Colours go from ``low`` to ``high``, or as far to either side of ``around``.
    """

    title: str
    values: Array
    cmap: str = "viridis"
    low: float | None = None
    high: float | None = None
    around: float | None = None


def map_figure(evolution: Evolution, title: str, page: Page = SCREEN) -> Figure:
    """Means over each layer's heads at each step: effective rank, largest λ, share of λ beyond the
    untrained edge, share of heads unlike untrained ones, distance from the first step and since the
    step before. Steps are evenly spaced; nothing is drawn of what has no null.
    """
    maps = _maps(evolution)
    layers = np.unique(evolution.heads["layer"])
    columns = page.columns(_COLUMNS, _WIDTH)
    rows = -(-len(maps) // columns)
    height = float(np.clip(0.11 * len(layers) + 1.3, 2.0, 5.0)) * rows + 0.5
    fig = Figure(figsize=(page.width(13.0), height), layout="constrained")
    put_title(fig, title)
    panels = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for ax in panels[len(maps) :]:
        ax.set_visible(False)
    for ax, one in zip(panels, maps, strict=False):
        _draw_map(ax, evolution, one)
    for ax in panels[: len(maps)][-columns:]:
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("training step")
    for ax in panels[::columns]:
        ax.set_ylabel("layer")
    return fig


def map_caption(evolution: Evolution) -> str:
    """What the maps show."""
    s, h = evolution.labels.shape
    n_layers = evolution.heads["layer"].nunique()
    return (
        f"Means over the heads of each layer at each of {counted(s, 'step')}, steps across and "
        f"evenly spaced, layers upwards: {counted(h)} in {counted(n_layers, 'layer')}. Panels: "
        f"{'; '.join(one.title for one in _maps(evolution))}. Divergences are Jensen and "
        "Shannon's, of histograms of λ over the head's mean; shares and ratios have no unit. "
        "Grey: no value."
    )


def _maps(evolution: Evolution) -> list[_Map]:
    d_head = evolution.model.lam.shape[1]
    first = np.full((1, evolution.labels.shape[1]), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.log2(evolution.largest / evolution.largest[0])
    growth[~np.isfinite(growth)] = np.nan
    travelled = np.concatenate([first, evolution.travelled])
    known = evolution.null.n > 0
    unit = evolution.null.divergence if known else 1.0
    said = "× two untrained heads'" if known else "nats"
    maps = [
        _Map("effective rank of λ / d_head", evolution.effective_rank / d_head, "magma", 0.0, 1.0),
        _Map("largest λ over its first (log₂)", growth, "RdBu_r", around=0.0),
        _Map(f"divergence from the first step ({said})", evolution.from_start / unit, low=0.0),
        _Map(f"divergence from the step before ({said})", travelled / unit, low=0.0),
    ]
    if known:
        outside = (evolution.p_untrained <= LEVEL).astype(np.float64)
        maps += [
            _Map(
                f"heads unlike untrained ones at p ≤ {LEVEL} ({LEVEL:.0%} by chance)",
                outside, "cividis", 0, 1,
            ),
            _Map(
                "share of λ beyond the untrained edge", evolution.n_outliers / d_head,
                "magma_r", 0.0,
            ),
        ]  # fmt: skip
    return maps


def _draw_map(ax: Axes, evolution: Evolution, one: _Map) -> None:
    layer = evolution.heads["layer"].to_numpy()
    layers = np.unique(layer)
    grid = np.stack([one.values[:, layer == number].mean(1) for number in layers])
    norm = Normalize(one.low, one.high) if one.around is None else CenteredNorm(one.around)
    drawn = ax.imshow(
        np.ma.masked_invalid(grid), aspect="auto", interpolation="nearest", origin="lower",
        cmap=one.cmap, norm=norm,
    )  # fmt: skip
    ax.set_facecolor("0.93")
    ax.set_title(one.title)
    n = len(evolution.names)
    labels = [step_label(evolution, i) for i in range(n)]
    # Colour bars take a quarter of the panel.
    shown = spread(0.75 * np.linspace(0, 1, n), [len(label) for label in labels])
    ax.set_xticks(shown, [labels[i] for i in shown])
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    ax.yaxis.set_major_formatter(
        lambda y, _: str(layers[int(y)]) if y == int(y) and 0 <= y < len(layers) else ""
    )
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.figure.colorbar(drawn, ax=ax)
