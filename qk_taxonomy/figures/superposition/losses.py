"""Loss curves of a run: reconstruction and pair loss by training step, a line a sparsity."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from qk_taxonomy.figures.parts import Array, band, legend_under, put_title
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.figures.superposition.parts import (
    drawn_steps,
    sparsity_colours,
    sparsity_label,
    spread_text,
    step_axis,
)
from qk_taxonomy.studies.superposition.records import SuperpositionRun

# Points of a curve in a decade of steps.
_A_DECADE = 40

# Inches that a panel has at least.
_WIDTH = 4.2


def loss_figure(run: SuperpositionRun, title: str, page: Page = SCREEN) -> Figure:
    """Reconstruction loss L₁ and pair loss L₂ by step on logarithmic axes, a line a sparsity:
    medians over seeds, bands to their quartiles. Losses of steps nearer to each other than a line
    can show are averaged.

    In frozen training, L₂ is drawn by the steps of the heads' training alone.
    """
    frozen = len(run.config.phases) > 1
    heads_from = run.config.phases[0][1] if frozen else 0
    probability = run.instances.probability
    probabilities = np.unique(probability)[::-1]
    n_seeds = int(max((probability == one).sum() for one in probabilities))
    n_columns = page.columns(2, _WIDTH)
    n_rows = 2 // n_columns
    size = page.width(9.6), 3.4 * n_rows + 0.8 + 0.06 * len(probabilities)
    fig = Figure(figsize=size, layout="constrained")
    put_title(fig, title, spread_text(n_seeds))
    left, right = fig.subplots(n_rows, n_columns).ravel()
    _draw(left, run, run.reconstruction_loss, probabilities, since=0)
    _draw(right, run, run.pair_loss, probabilities, since=heads_from)
    left.set(title="reconstruction loss L₁", ylabel="L₁, mean over batch and features")
    right.set(title="pair loss L₂", ylabel="L₂, mean over pairs")
    handles = [
        Line2D([], [], color=colour, lw=1.6, label=sparsity_label(one))
        for colour, one in zip(sparsity_colours(len(probabilities)), probabilities, strict=True)
    ]
    if frozen:
        left.axvline(heads_from, color="black", ls="--", lw=0.9)
        right.set_xlabel(f"step of the heads' training (from step {heads_from:,} on)")
        label = "representations are frozen from here on"
        handles.append(Line2D([], [], color="black", ls="--", lw=0.9, label=label))
    legend_under(fig, handles)
    return fig


def loss_caption(run: SuperpositionRun) -> str:
    """What the loss curves show."""
    probability = run.instances.probability
    probabilities = np.unique(probability)
    n_seeds = int(max((probability == one).sum() for one in probabilities))
    frozen = len(run.config.phases) > 1
    then = " L₂ is drawn by the steps of the heads' training alone." if frozen else ""
    return (
        "Losses by step of training, both axes logarithmic: reconstruction loss L₁, a mean over "
        "batch and features, and pair loss L₂, a mean over pairs; without unit. A line each of "
        f"{len(probabilities)} sparsities: {spread_text(n_seeds)}; losses of steps nearer to each "
        f"other than a line can show are averaged.{then}"
    )


def _draw(
    ax: Axes,
    run: SuperpositionRun,
    losses: Array,
    probabilities: Array,
    *,
    since: int,
) -> None:
    shown = run.steps >= since
    steps, values = _averaged(run.steps[shown] - since, losses[shown])
    # What is not positive has no logarithm.
    values = np.where(values > 0, values, np.nan)
    for colour, one in zip(sparsity_colours(len(probabilities)), probabilities, strict=True):
        chosen = values[:, run.instances.probability == one]
        band(ax, drawn_steps(steps), chosen, colour, lw=1.4, marker="o" if len(steps) == 1 else "")
    if np.isfinite(values).any():
        ax.set_yscale("log")
    else:
        ax.text(0.5, 0.5, "no loss was kept", transform=ax.transAxes, ha="center", color="0.4")
    step_axis(ax, steps)
    ax.set_xlabel("step of training")


def _averaged(steps: NDArray[np.int64], losses: Array) -> tuple[NDArray[np.int64], Array]:
    """The last step, and the mean loss, of all steps that share a point of a curve."""
    place = np.floor(_A_DECADE * np.log10(1.0 + steps))
    first = np.flatnonzero(np.diff(place, prepend=-1.0))
    last = np.append(first[1:], len(steps)) - 1
    return steps[last], np.add.reduceat(losses, first) / (last - first + 1)[:, None]
