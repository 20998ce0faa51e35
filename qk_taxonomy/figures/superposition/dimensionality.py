"""Dimensions that features have to themselves, by sparsity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from qk_taxonomy.figures.parts import Array, band, legend_under, put_title
from qk_taxonomy.figures.style import KEPT, REJECTED, SCREEN, Page
from qk_taxonomy.figures.superposition.parts import probability_axis
from qk_taxonomy.studies.superposition.config import Target
from qk_taxonomy.studies.superposition.records import Instances
from qk_taxonomy.wording import counted

# Dimensions a feature has in the geometries of Elhage et al. (2022), "Toy Models of
# Superposition", and which side of its line each is written on, where two are near.
_GEOMETRIES = (
    (1.0, "1: a dimension of its own", "center"),
    (3 / 4, "3/4: tetrahedron", "bottom"),
    (2 / 3, "2/3: triangle", "top"),
    (1 / 2, "1/2: antipodal pair", "center"),
    (2 / 5, "2/5: pentagon", "bottom"),
    (3 / 8, "3/8: square antiprism", "top"),
    (0.0, "0: not learned", "center"),
)


def dimensionality_figure(
    instances: Instances,
    dimensionality: ArrayLike,
    per_feature: ArrayLike,
    targets: Sequence[Sequence[Target]],
    title: str,
    page: Page = SCREEN,
) -> Figure:
    """Left: m / ‖W‖²_F, the dimensions a learned feature has on average, against 1/p; median and
    quartiles over seeds. Right: the dimensionality of every feature of every seed.

    dimensionality: (instances, n), ‖W_i‖² / Σ_j (Ŵ_i·W_j)². per_feature: (instances,).
    """
    values = np.asarray(dimensionality, dtype=np.float64)
    probabilities = np.unique(instances.probability)[::-1]
    n_seeds = int(max((instances.probability == one).sum() for one in probabilities))
    n = values.shape[-1]
    fig = Figure(figsize=(page.width(10.6), 8.4 if page.narrow else 4.9), layout="constrained")
    put_title(fig, title, f"{n} features, {counted(n_seeds, 'seed')} a sparsity")
    if page.narrow:
        left, right = fig.subplots(2, 1, height_ratios=(1.0, 1.4))
    else:
        left, right = fig.subplots(1, 2, width_ratios=(1.0, 1.7))
    means = _by_probability(instances, np.asarray(per_feature, dtype=np.float64)[:, None])
    band(left, 1.0 / probabilities, means, "black", lw=1.4, marker="o", ms=4)
    left.set(ylabel=r"dimensions a learned feature, $m / ‖W‖^2$", ylim=(0.0, None))
    probability_axis(left, probabilities)
    chosen = np.zeros(values.shape, dtype=np.bool_)
    for row, of_instance in zip(chosen, targets, strict=True):
        row[[feature for target in of_instance for feature in (target.i, target.j)]] = True
    groups = [(~chosen, KEPT, "others"), (chosen, REJECTED, "features of targets")]
    for place, (mask, colour, _) in zip((-0.13, 0.13), groups, strict=True):
        points = _by_probability(instances, np.where(mask, values, np.nan))
        _draw_points(right, probabilities, points, place, colour)
    for height, name, side in _GEOMETRIES:
        right.axhline(height, color="0.8", lw=0.7, zorder=0)
        right.annotate(name, (1.01, height), xycoords=("axes fraction", "data"), fontsize=8,
                       va=side, annotation_clip=False)  # fmt: skip
    right.set(
        ylabel=r"dimensionality of a feature, $‖W_i‖^2 / \sum_j (\hat{W}_i \cdot W_j)^2$",
        ylim=(-0.05, 1.08),
    )
    probability_axis(right, probabilities)
    handles = [
        Line2D([], [], ls="", marker="o", ms=4, color=colour, label=label)
        for mask, colour, label in groups
        if mask.any()
    ]
    legend_under(fig, handles)
    return fig


def dimensionality_caption(instances: Instances, dimensionality: ArrayLike) -> str:
    """What the figure of dimensionality shows."""
    probabilities = np.unique(instances.probability)
    n_seeds = int(max((instances.probability == one).sum() for one in probabilities))
    return (
        f"Dimensions of n = {np.shape(dimensionality)[-1]} features by sparsity, "
        f"{counted(n_seeds, 'seed')} each of {len(probabilities)} sparsities. First: the "
        "dimensions that a learned feature has on average, median and quartiles over seeds. "
        "Second: the dimensionality of every feature of every seed, those of targets apart; "
        "lines: those of the geometries of Elhage et al. (2022). Neither has a unit."
    )


def _by_probability(instances: Instances, values: Array) -> Array:
    """Values (instances, k) as (probabilities, seeds × k), densest first; nan fills up."""
    probabilities = np.unique(instances.probability)[::-1]
    rows = [values[instances.probability == one].ravel() for one in probabilities]
    out = np.full((len(rows), max(map(len, rows))), np.nan)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return out


def _draw_points(ax: Axes, probabilities: Array, values: Array, place: float, colour: str) -> None:
    """Points of every value, beside each other within a narrow strip about their sparsity."""
    logs = np.log(1.0 / probabilities)
    step = float(np.diff(np.sort(logs)).min()) if len(logs) > 1 else 0.5
    beside = place + np.linspace(-0.1, 0.1, values.shape[1])
    x = np.exp(logs[:, None] + step * beside)
    few = int(np.isfinite(values).sum()) <= 400
    ax.scatter(x, values, s=12 if few else 6, color=colour, alpha=0.8 if few else 0.4, linewidth=0)
