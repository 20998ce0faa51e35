"""The figure of two models compared: where their heads moved, in what, and the farthest of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from qk_taxonomy.figures.contrasts import draw_forest
from qk_taxonomy.figures.parts import put_title, signed, wrapped
from qk_taxonomy.figures.style import SCREEN, Page, layer_head_grid, model_colours
from qk_taxonomy.statistics.moves import MOVES
from qk_taxonomy.studies.differences.records import StackDifference
from qk_taxonomy.wording import counted

_TITLES = {"shape": "Shape", "scale": "Scale", "rank": "Rank"}
_LABELS = {
    "shape": "Wasserstein distance of λ / mean λ",
    "scale": "log of Σλ, second over first, nats",
    "rank": "effective rank of λ, second less first",
}

# Heads whose spectra are shown.
_SHOWN = 4

# Inches of a map's title on paper.
_TITLE = 2.4

# Units at which colours end where no head moved as far: a move that is far less stays pale.
_LEAST_LIMIT = 0.1


def difference_figure(difference: StackDifference, title: str, page: Page = SCREEN) -> Figure:
    """Maps of the moves over the first model's heads; by layer, what moved; shifts of all heads
    together; the heads that moved most, in both models.

    Of heads matched by their spectra, the depths of both heads of each pair instead of the moves by
    layer and the shifts.
    """
    paired = difference.depth is None
    if page.room is None:
        fig = Figure(figsize=(16.5, 8.6))
        fig.set_layout_engine("constrained", w_pad=0.08)
        upper, lower = fig.subfigures(2, 1, height_ratios=[1.15, 1.0], squeeze=False)[:, 0]
        left, right = lower.subfigures(1, 2, width_ratios=[1.25, 1.0], squeeze=False)[0]
    else:
        # Maps, what moved, and heads stand one below the other.
        heights = [8.4 if page.narrow else 3.3, 7.4 if page.narrow and paired else 4.2, 5.4]
        fig = Figure(figsize=(page.width(16.5), sum(heights)), layout="constrained")
        parts = fig.subfigures(3, 1, height_ratios=heights, squeeze=False)
        upper, left, right = parts[:, 0]
    unit = "unit: what one in twenty pairs of the first model's heads exceeds"
    put_title(fig, title, f"{counted(len(difference.heads))}; {unit}")
    shape = (len(MOVES), 1) if page.narrow else (1, len(MOVES))
    for name, ax in zip(MOVES, upper.subplots(*shape), strict=True):
        _draw_map(upper, ax, difference, name, page)
    if paired:
        layers, shifts = left.subplots(*((2, 1) if page.narrow else (1, 2)))
        _draw_layers(layers, difference.heads)
        draw_forest(shifts, difference.shifts, "All heads together:\nshift, second less first")
        shifts.set_xticks((-1.0, -0.5, 0.0, 0.5, 1.0))
    else:
        _draw_depths(left, difference)
    _draw_heads(right, difference, page)
    return fig


def difference_caption(difference: StackDifference) -> str:
    """What the figure of two models shows."""
    matched = "by their place" if difference.depth is None else "by their spectra"
    parts = [
        f"{counted(len(difference.heads))} of {difference.first.name} (first) and of "
        f"{difference.second.name} (second), matched {matched}. Maps, over layer and head of the "
        "first model: how far each head moved in shape (Wasserstein-1 distance of λ over the "
        "head's mean λ, without unit), in scale (the logarithm of Σλ, in nats) and in rank "
        "(effective rank of λ, in dimensions). The unit of sizes is what one in twenty pairs of "
        "the first model's own heads exceeds."
    ]
    if difference.depth is None:
        parts.append(
            "Then the median move of a layer's heads, in units; and, of all heads together, the "
            "shift of each statistic, second less first: the rank-biserial correlation, a mean "
            "over layers, with its 95 % interval."
        )
    else:
        parts.append(
            "Then the layers of both heads of each pair, coloured by their Jensen–Shannon "
            "divergence in nats, and the correlation r of these layers."
        )
    parts.append(
        f"Last: the densities of λ over the head's mean λ, of up to {_SHOWN} heads that moved "
        "most, in both models."
    )
    return " ".join(parts)


def _draw_map(fig: SubFigure, ax: Axes, difference: StackDifference, name: str, page: Page) -> None:
    """One move of every head of the first model; colours go as far as the farthest head, and to a
    tenth of a unit at least.
    """
    heads, usual = difference.heads, difference.usual[name]
    values = heads[name].to_numpy(np.float64)
    sizes = np.abs(values[np.isfinite(values)])
    farthest = float(sizes.max(initial=0.0))
    top = max(farthest, _LEAST_LIMIT * usual if usual > 0 else 0.0) or 1.0
    limits: dict[str, Any] = {"cmap": "magma_r", "vmin": 0.0, "vmax": top}
    if name != "shape":
        limits = {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
    image = layer_head_grid(ax, heads["layer"], heads["head"], values.clip(-top, top), **limits)
    ax.set(xlabel="layer", ylabel="head")
    told = "no other heads to make a unit of"
    if usual > 0 and len(sizes):
        told = f"{np.median(sizes) / usual:.2g} units in the median, {farthest / usual:.2g} at most"
        if farthest < top:
            told += f"\n(colours end at {_LEAST_LIMIT:g})"
    text = f"{_TITLES[name]}: {told}"
    ax.set_title(
        text if page.room is None else "\n".join(wrapped(one, _TITLE) for one in text.split("\n"))
    )
    fig.colorbar(image, ax=ax, label=_LABELS[name])


def _draw_layers(ax: Axes, heads: pd.DataFrame) -> None:
    """Median size of each move by layer, in units."""
    by_layer = heads.groupby("layer")[[f"{name}_units" for name in MOVES]].median()
    for name, marker, colour in zip(MOVES, "os^", model_colours(len(MOVES)), strict=True):
        ax.plot(by_layer.index, by_layer[f"{name}_units"], marker=marker, ms=4, lw=1.2,
                color=colour, label=name)  # fmt: skip
    ax.axhline(1.0, color="0.4", ls=":", lw=0.9)
    if (by_layer > 0).to_numpy().any():
        ax.set_yscale("log")
    ax.set(xlabel="layer", ylabel="median move of the layer's heads, units")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_title("What moved, by layer")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.0, -0.16), ncols=len(MOVES))


def _draw_depths(fig: SubFigure, difference: StackDifference) -> None:
    """Layers of both heads of every pair."""
    assert difference.depth is not None
    ax = fig.subplots()
    heads, found = difference.heads, difference.depth
    # Heads of one pair of layers side by side.
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, (2, len(heads)))
    drawn = ax.scatter(
        heads["layer"] + jitter[0], heads["layer_b"] + jitter[1], c=heads["jensen_shannon"],
        cmap="viridis_r", vmin=0.0, s=12, linewidth=0,
    )  # fmt: skip
    fig.colorbar(drawn, ax=ax, label="Jensen–Shannon divergence, nats")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel="layer in the first model", ylabel="layer of its match in the second")
    p = f", p = {found.p_value:.2g}" if np.isfinite(found.p_value) else f" ({found.note})"
    ax.set_title(f"Depths of matched heads: r = {signed(round(found.effect, 2))}{p}")


def _draw_heads(fig: SubFigure, difference: StackDifference, page: Page) -> None:
    """Densities of the heads that moved most, in both models."""
    colours = model_colours(2)
    axes = fig.subplots(2, 2, squeeze=False).ravel()
    rows = difference.heads[difference.heads["moved"] != ""].head(_SHOWN).to_dict("records")
    for ax, row, densities in zip(axes, rows, difference.histograms.swapaxes(0, 1), strict=False):
        names = (
            f"first, {row['layer']}.{row['head']}",
            f"second, {row['layer_b']}.{row['head_b']}",
        )
        for density, colour, label in zip(densities, colours, names, strict=True):
            ax.stairs(density, difference.edges, color=colour, lw=1.3, label=label)
        sizes = ", ".join(f"{move} {row[f'{move}_units']:.2g}" for move in MOVES)
        of = f"{row['layer']}.{row['head']}"
        ax.set_title(f"{of}:\n{sizes}" if page.narrow else f"{of}: {sizes}")
        ax.set_xlim(0.0, difference.edges[-1])
        ax.legend(frameon=False)
    for ax in axes[len(rows) :]:
        ax.set_axis_off()
    text = "The heads that moved most (layer.head, units): densities of λ / mean λ"
    width = page.width(16.5)
    fig.suptitle(wrapped(text, width if page.room else width / 2), fontsize=9)
    fig.supxlabel("λ / mean λ of the head", fontsize=9)
    fig.supylabel("density, per unit of λ / mean λ", fontsize=9)
