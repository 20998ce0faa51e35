"""Densities of singular values and of eigenvalues of full circuits, trained beside control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from qk_taxonomy.figures.circuits.parts import CONTROL, TRAINED
from qk_taxonomy.figures.parts import legend_under, put_title
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.records import CIRCUITS, Circuit, Convention
from qk_taxonomy.statistics.densities import histogram_densities
from qk_taxonomy.statistics.moments import near_zero_ratio
from qk_taxonomy.studies.circuits.records import LayerCircuits, ModelCircuits
from qk_taxonomy.wording import counted

Array = NDArray[np.float64]

# Left end of the logarithmic panels: float32 weights leave nothing below it but rounding.
_SMALLEST = -6.0
# The zoomed panels' end; a square below 1e-3 of the largest is a value below the dashed line.
_ZOOMED, _NEAR_ZERO = 0.1, 10**-1.5

# Shares of a panel's height: above the legend and below it, and of a line of it.
_MARGIN, _LINE = 0.09, 0.055


class _Quantity(NamedTuple):
    """Values of heads over the largest of each head."""

    symbol: str
    name: str


_SIGMA = _Quantity("σ", "singular values")
_MU = _Quantity("|μ|", "eigenvalues")


@dataclass(frozen=True)
class _Values:
    """One quantity of the heads of a model or a control: an array (heads, e) a layer, each head
    over its largest; ``left_out`` heads are zero or not finite.
    """

    layers: tuple[Array, ...]
    left_out: int

    @property
    def n_heads(self) -> int:
        return sum(len(values) for values in self.layers)

    @property
    def most(self) -> int:
        """Values a head, where it has most."""
        return max(values.shape[-1] for values in self.layers)

    def densities(self, edges: Array, logarithmic: bool) -> Array:
        """Densities (heads, bins) of all of a head's values, not only of those in the bins."""
        found = []
        for values in self.layers:
            with np.errstate(divide="ignore"):
                x = np.log10(values) if logarithmic else values
            inside = ((x >= edges[0]) & (x <= edges[-1])).mean(-1, keepdims=True)
            found.append(histogram_densities(x, edges) * inside)
        return np.concatenate(found)

    def near_zero(self) -> Array:
        """Each head's share of squares below 1e-3 of the largest square."""
        return np.concatenate([near_zero_ratio(values**2) for values in self.layers])


def density_figure(
    model: ModelCircuits,
    title: str,
    page: Page = SCREEN,
    *,
    convention: Convention,
    control: ModelCircuits | None = None,
) -> Figure:
    """Densities of σ / σ₁ and of |μ| / |μ|₁, a row a circuit: over their logarithm, and zoomed in
    on zero over the values themselves; trained heads beside the control's.

    Lines: all heads pooled (the mean of their densities); dashed: the median over heads; bands:
    quartiles over heads. Legends say the near-zero share: of all heads pooled, the median and
    the quartiles over heads.
    """
    circuits = [circuit for circuit in CIRCUITS if model.select(circuit, convention)]
    n_columns = page.columns(4, 3.8)
    n_rows = len(circuits) * 4 // n_columns
    fig = Figure(
        figsize=(page.width(15.5), (3.5 if page.room is None else 2.8) * n_rows + 0.9),
        layout="constrained",
    )
    put_title(fig, title)
    axes = fig.subplots(n_rows, n_columns, squeeze=False).reshape(len(circuits), 4)
    for row, circuit in zip(axes, circuits, strict=True):
        for pair, quantity in ((row[:2], _SIGMA), (row[2:], _MU)):
            groups = [("trained", TRAINED, _values(model, circuit, convention, quantity))]
            if control is not None and control.select(circuit, convention):
                others = _values(control, circuit, convention, quantity)
                groups.append(("control", CONTROL, others))
            _draw(pair[0], groups, circuit, quantity, zoomed=False)
            _draw(pair[1], groups, circuit, quantity, zoomed=True)
    handles = [
        Line2D([], [], color="black", lw=1.5, label="all heads pooled"),
        Line2D([], [], color="black", ls="--", lw=0.9, label="median over heads"),
        Patch(color="0.8", label="quartiles over heads (also in brackets)"),
        Line2D(
            [],
            [],
            color="black",
            ls=":",
            lw=0.9,
            label="near zero: squares below 1/1000",
        ),
    ]
    legend_under(fig, handles)
    return fig


def density_caption(
    model: ModelCircuits, *, convention: Convention, control: ModelCircuits | None = None
) -> str:
    """What the figure of densities shows."""
    beside = f" Grey: the {_counts(control, convention)} of the control." if control else ""
    return (
        f"Densities of singular values σ and of moduli of eigenvalues |μ| of "
        f"{_counts(model, convention)}, a row a circuit, each value over the largest of its head; "
        "over their decimal logarithm (per decade), and again over the values themselves near "
        "zero (per unit). Lines: all heads pooled, the mean of their densities; dashed: the "
        "median over heads; bands: quartiles over heads. Dotted: below it squares are less than a "
        "thousandth of the largest; legends say what share of values is there, of all heads "
        f"pooled, and the median and quartiles over heads.{beside}"
    )


def _counts(model: ModelCircuits, convention: Convention) -> str:
    heads = {
        circuit: sum(len(one.singular_values) for one in model.select(circuit, convention))
        for circuit in CIRCUITS
    }
    found = [f"{circuit.upper()} circuits of {counted(n)}" for circuit, n in heads.items() if n]
    return " and ".join(found) or "circuits of no head"


def _values(
    model: ModelCircuits, circuit: Circuit, convention: Convention, quantity: _Quantity
) -> _Values:
    layers, left_out = [], 0
    for layer in model.select(circuit, convention):
        values = _of_layer(layer, quantity)
        largest = values.max(-1, keepdims=True)
        usable = np.isfinite(largest[:, 0]) & (largest[:, 0] > 0)
        layers.append(values[usable] / largest[usable])
        left_out += int((~usable).sum())
    return _Values(tuple(layers), left_out)


def _of_layer(layer: LayerCircuits, quantity: _Quantity) -> Array:
    return layer.singular_values if quantity is _SIGMA else np.abs(layer.eigenvalues)


def _edges(groups: Sequence[tuple[str, str, _Values]], zoomed: bool) -> Array:
    most = max(values.most for *_, values in groups)
    if zoomed:
        # Few of a head's values are here: narrower bins would hold one or none of them.
        return np.linspace(0.0, _ZOOMED, int(np.clip(most // 4, 10, 40)) + 1)
    n_bins = int(np.clip(most // 2, 12, 48))
    smallest = [layer.min() for *_, values in groups for layer in values.layers if layer.size]
    with np.errstate(divide="ignore"):
        low = float(np.log10(min(smallest, default=1e-2)))
    return np.linspace(float(np.clip(low, _SMALLEST, -1.0)), 0.0, n_bins + 1)


def _draw(
    ax: Axes,
    groups: Sequence[tuple[str, str, _Values]],
    circuit: Circuit,
    quantity: _Quantity,
    *,
    zoomed: bool,
) -> None:
    edges = _edges(groups, zoomed)
    tops = [0.0]
    for name, colour, values in groups:
        if values.n_heads == 0:
            ax.plot([], [], color=colour, label=f"{name}: no head with values")
            continue
        densities = values.densities(edges, logarithmic=not zoomed)
        low, median, high = np.quantile(densities, (0.25, 0.5, 0.75), axis=0)
        pooled = densities.mean(0)
        if values.n_heads > 1:
            ax.stairs(high, edges, baseline=low, fill=True, color=colour, alpha=0.22, linewidth=0)
            ax.stairs(median, edges, color=colour, ls="--", lw=0.9, baseline=None)
        ax.stairs(pooled, edges, color=colour, lw=1.5, label=_label(name, values), baseline=None)
        tops += [float(high.max()), float(pooled.max())]
    top = max(tops)
    if top == 0:
        ax.text(0.5, 0.4, "no values here", transform=ax.transAxes, ha="center", color="0.4")
    legend = ax.legend(loc="upper right" if zoomed else "upper left", frameon=False, fontsize=8)
    n_lines = sum(text.get_text().count("\n") + 1 for text in legend.get_texts())
    # Curves and line end below the legend, which may not hide them.
    end = 1.0 - _MARGIN - _LINE * n_lines
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0.0, top / end or 1.0))
    threshold = _NEAR_ZERO if zoomed else np.log10(_NEAR_ZERO)
    ax.axvline(threshold, ymax=end, color="black", ls=":", lw=0.9)
    over = f"{quantity.symbol} / max {quantity.symbol} of the head"
    ax.set_xlabel(over if zoomed else f"log₁₀ {over}")
    ax.set_ylabel("density" if zoomed else "density per decade")
    what = f"{circuit.upper()}: {quantity.name}"
    ax.set_title(f"{what}, near zero" if zoomed else what)


def _label(name: str, values: _Values) -> str:
    shares = values.near_zero()
    label = f"{name}: {counted(values.n_heads)} × {values.most}, near zero {shares.mean():.1%}"
    if values.n_heads > 1:
        low, median, high = np.quantile(shares, (0.25, 0.5, 0.75))
        label += f",\nmedian {median:.0%} [{low:.0%}, {high:.0%}]"
    return label + (f"; {values.left_out} zero or not finite" if values.left_out else "")
