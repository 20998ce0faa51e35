"""Eigenvalues of full circuits in the complex plane, for chosen heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray

from qk_taxonomy.figures.circuits.parts import CONTROL, TRAINED
from qk_taxonomy.figures.parts import legend_under, put_title
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.records import CIRCUITS, Circuit, Convention
from qk_taxonomy.studies.circuits.chosen import N_SHOWN, ChosenHeads, Head
from qk_taxonomy.studies.circuits.records import ModelCircuits

# The control's eigenvalues drawn behind each head: more would only be a darker grey.
_MOST_BEHIND = 1500

_LIMIT = 1.08

# Inches that a panel has at least.
_PANEL = 1.9

_ROLES: dict[Circuit, str] = {"qk": "where it looks", "ov": "what it writes"}


def eigenvalue_figure(
    model: ModelCircuits,
    chosen: Sequence[ChosenHeads],
    title: str,
    page: Page = SCREEN,
    *,
    convention: Convention,
    control: ModelCircuits | None = None,
) -> Figure:
    """A panel a chosen head and circuit: its e eigenvalues μ over the largest |μ| of the head,
    which the panel states; behind them in grey those of the control's heads, each over its own.
    """
    circuits = [circuit for circuit in CIRCUITS if model.select(circuit, convention)]
    most = page.columns(N_SHOWN, _PANEL)
    blocks = [
        (group.reason, group.heads[start : start + most])
        for group in chosen
        for start in range(0, len(group.heads), most)
    ]
    n_columns = max(len(heads) for _, heads in blocks)
    height = (2.6 * len(circuits) + 0.35) * len(blocks) + 0.9
    width = page.width(max(2.35 * n_columns + 0.5, 6.0))
    fig = Figure(figsize=(width, height), layout="constrained")
    put_title(fig, title)
    panels = fig.subfigures(len(blocks), 1, squeeze=False)[:, 0]
    for panel, (reason, heads) in zip(panels, blocks, strict=True):
        panel.suptitle(f"{reason[0].upper()}{reason[1:]}", fontsize=10)
        axes = panel.subplots(len(circuits), n_columns, squeeze=False, sharex=True, sharey=True)
        for row, circuit in zip(axes, circuits, strict=True):
            behind = _behind(control, circuit, convention)
            for number, ax in enumerate(row):
                if number < len(heads):
                    _draw(ax, model, heads[number], circuit, convention, behind)
                else:
                    ax.set_visible(False)
            row[0].set_ylabel(f"{circuit.upper()} ({_ROLES[circuit]})\nIm μ / max |μ|")
        for ax in axes[-1]:
            ax.set_xlabel("Re μ / max |μ|")
    handles = [Line2D([], [], ls="", marker="o", ms=4, color=TRAINED, label="the head's μ")]
    if control is not None:
        label = "the control's heads, each over its own max |μ|"
        handles.append(Line2D([], [], ls="", marker="o", ms=3, color=CONTROL, label=label))
    legend_under(fig, handles)
    return fig


def eigenvalue_caption(
    model: ModelCircuits,
    chosen: Sequence[ChosenHeads],
    *,
    convention: Convention,
    control: ModelCircuits | None = None,
) -> str:
    """What the figure of eigenvalues shows."""
    heads = "; ".join(f"{one.reason} ({len(one.heads)})" for one in chosen)
    behind = (
        " Behind them in grey: eigenvalues of the control's heads, each over its own largest "
        f"modulus, {_MOST_BEHIND} of them at most." if control is not None else ""
    )  # fmt: skip
    n = max((len(one.eigenvalues[0]) for one in model.select("qk", convention)), default=0)
    n = n or max((len(one.eigenvalues[0]) for one in model.select("ov", convention)), default=0)
    return (
        f"Eigenvalues μ of full circuits in the complex plane, of {heads}: a panel a head and "
        f"circuit, n = {n} eigenvalues at most, over the largest modulus of the head, which the "
        f"panel states; real part across, imaginary part upwards, both without unit.{behind}"
    )


def _eigenvalues(
    model: ModelCircuits, head: Head, circuit: Circuit, convention: Convention
) -> NDArray[np.complex128] | None:
    """The eigenvalues (e,) of one head, None where the model holds none of it."""
    for layer in model.select(circuit, convention):
        if (layer.stack, layer.layer) == (head.stack, head.layer):
            return layer.eigenvalues[head.head] if head.head < len(layer.eigenvalues) else None
    return None


def _scaled(mu: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Finite eigenvalues over the largest modulus of each head, flat; of zero heads none."""
    largest = np.abs(mu).max(axis=-1, keepdims=True)
    usable = np.isfinite(largest[..., 0]) & (largest[..., 0] > 0)
    return np.ravel(mu[usable] / largest[usable])


def _behind(
    control: ModelCircuits | None, circuit: Circuit, convention: Convention
) -> NDArray[np.complex128]:
    layers = control.select(circuit, convention) if control is not None else ()
    if not layers:
        return np.empty(0, dtype=np.complex128)
    scaled = np.concatenate([_scaled(layer.eigenvalues) for layer in layers])
    chosen = np.linspace(0, len(scaled) - 1, min(len(scaled), _MOST_BEHIND)).astype(np.int64)
    return scaled[chosen]


def _draw(
    ax: Axes,
    model: ModelCircuits,
    head: Head,
    circuit: Circuit,
    convention: Convention,
    behind: NDArray[np.complex128],
) -> None:
    for line in (ax.axhline, ax.axvline):
        line(0.0, color="0.8", lw=0.7, zorder=0)
    ax.scatter(behind.real, behind.imag, s=4, color=CONTROL, alpha=0.5, linewidth=0)
    mu = _eigenvalues(model, head, circuit, convention)
    ax.set(xlim=(-_LIMIT, _LIMIT), ylim=(-_LIMIT, _LIMIT), aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator([-1, 0, 1]))
    if mu is None:
        ax.set_title(f"head {head}\nnot there", fontsize=8)
        return
    scaled = _scaled(mu[None])
    size = float(np.clip(1200 / max(len(scaled), 1), 5, 16))
    ax.scatter(scaled.real, scaled.imag, s=size, color=TRAINED, alpha=0.85, linewidth=0, zorder=3)
    if len(scaled):
        unit = f"max |μ| = {np.abs(mu).max():.3g}"
    else:
        unit = "no μ but zero" if np.isfinite(mu).all() else "no finite μ"
    ax.set_title(f"head {head}, n = {len(mu)}\n{unit}", fontsize=8)
