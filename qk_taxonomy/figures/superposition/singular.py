"""Singular vectors of a head by the features they are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from qk_taxonomy.figures.parts import heat_map, legend_under, put_title, symmetric_colours
from qk_taxonomy.figures.style import SCREEN, Page
from qk_taxonomy.figures.superposition.parts import mark_targets, target_handles
from qk_taxonomy.studies.superposition.config import Target

# Below this share of σ₁ vectors mean little, and are as pale as this.
_ARBITRARY, _PALE = 0.01, 0.3


def singular_figure(
    headings: Sequence[str],
    left: ArrayLike,
    right: ArrayLike,
    singular_values: ArrayLike,
    targets: Sequence[Sequence[Target]],
    title: str,
    page: Page = SCREEN,
) -> Figure:
    """Heat maps of WᵀU and WᵀV, a row a heading: features across, singular vectors down, each with
    its singular value at the left; all on one scale of colours, white at zero.

    left, right: (rows, n, r), W_i·u_k and W_j·v_k. singular_values: (rows, r), descending. Marks:
    the i of targets above WᵀU, their j above WᵀV.
    """
    products = [np.asarray(one, dtype=np.float64) for one in (left, right)]
    sigma = np.asarray(singular_values, dtype=np.float64)
    n, r = products[0].shape[-2:]
    colours, scale = symmetric_colours(*products)
    width = float(np.clip(0.1 * n + 1.2, 2.6, 5.0))
    height = float(np.clip(0.11 * r + 0.6, 1.1, 2.6))
    # Three panels stand side by side, since they share the rows of singular vectors.
    size = page.wide.width(2 * width + 2.6), height * len(headings) + 1.1
    fig = Figure(figsize=size, layout="constrained")
    pale = f"pale: $\\sigma_k$ below {_ARBITRARY:.0%} of $\\sigma_1$, whose vectors mean little"
    put_title(fig, title, pale)
    axes = fig.subplots(len(headings), 3, squeeze=False, width_ratios=(1.3, width, width))
    largest = float(np.nan_to_num(sigma, posinf=0.0).max(initial=0.0)) or 1.0
    for number, row in enumerate(axes):
        _draw_values(row[0], sigma[number], largest)
        for ax in row:
            ax.tick_params(labelbottom=number == len(headings) - 1)
        for ax, product, symbol, is_left in zip(
            row[1:], products, ("WᵀU", "WᵀV"), (True, False), strict=True
        ):
            alpha = np.where(sigma[number] < _ARBITRARY * sigma[number, 0], _PALE, 1.0)
            heat_map(ax, product[number].T, cmap=colours, norm=scale,
                     alpha=np.repeat(alpha[:, None], n, axis=1),
                     extent=(-0.5, n - 0.5, r + 0.5, 0.5))  # fmt: skip
            ax.set_yticks([])
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
            ax.set_title(f"{symbol}, {headings[number]}")
            mark_targets(ax, targets[number], left=is_left, right=not is_left)
    axes[-1, 0].set_xlabel(r"$\sigma_k$")
    axes[-1, 1].set_xlabel("feature i (query side)")
    axes[-1, 2].set_xlabel("feature j (key side)")
    fig.colorbar(
        ScalarMappable(scale, colours), ax=list(axes[:, 1:].ravel()), aspect=30,
        label=r"$W_i \cdot u_k$ and $W_j \cdot v_k$", shrink=min(1.0, 5.0 / len(headings)),
    )  # fmt: skip
    legend_under(fig, target_handles(targets))
    return fig


def singular_caption(left: ArrayLike) -> str:
    """What the maps of singular vectors show."""
    n_rows, n, r = np.shape(left)
    return (
        f"Singular vectors of the head by the n = {n} features they are made of, a row each of "
        f"{n_rows} instances: products W_i·u_k and W_j·v_k, features across and the r = {r} "
        "vectors downwards, without unit, all on one scale of colours, white at zero; bars at the "
        f"left: singular values. Pale: of singular values below {_ARBITRARY:.0%} of the largest, "
        "whose vectors mean little. Marks: features of the row's targets, i above the left map, j "
        "above the right one."
    )


def _draw_values(ax: Axes, sigma: np.ndarray, largest: float) -> None:
    """Bars of σ, one beside the row of each singular vector, growing towards it from the left."""
    r = len(sigma)
    ax.barh(np.arange(1, r + 1), np.nan_to_num(sigma, posinf=0.0), height=0.8, color="0.35")
    ax.set(xlim=(0.0, 1.05 * largest), ylim=(r + 0.5, 0.5), ylabel="vector k")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
