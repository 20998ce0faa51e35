"""Sparse attention decomposition: logits by singular vectors, beside a rotation of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qk_taxonomy.figures.parts import Array, legend_under, put_title
from qk_taxonomy.figures.style import KEPT, SCREEN, Page
from qk_taxonomy.statistics.decomposition import SparseDecomposition

_CONTROL = "0.55"

# Labels of more groups than these are upright.
_FEW = 3

# Inches of what is written above a box, across; of more boxes than there is room for, upright.
_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class DecomposedLogits:
    """What one place across shows: decompositions of the logits of one head, or of several alike,
    such as those of the seeds of one sparsity.
    """

    label: str
    decompositions: Sequence[SparseDecomposition]


def decomposition_figure(
    groups: Sequence[DecomposedLogits], title: str, page: Page = SCREEN, *, share: float
) -> Figure:
    """Boxes of sparseness S and of N_recon by group, singular vectors beside random rotations of
    them; and of their differences, logit by logit. Boxes: quartiles; whiskers: 5 % and 95 %.

    share: of a logit that N_recon terms reach.
    """
    width = float(np.clip(0.75 * len(groups) + 1.6, 4.2, 9.0))
    height = 6.6 if len(groups) <= _FEW else 7.8
    size = page.width(2 * width), 1.8 * height if page.narrow else height
    fig = Figure(figsize=size, layout="constrained")
    n = [len(_values(group, "sparseness")[0]) for group in groups]
    counted = f"{min(n):,}" if min(n) == max(n) else f"{min(n):,} to {max(n):,}"
    put_title(fig, title, f"{counted} logits each")
    panel = fig.get_figwidth() / (1 if page.narrow else 2) - 1.0
    upright = len(groups) * _SHARE > panel
    if page.narrow:
        axes = fig.subplots(4, 1, sharex=True).reshape(2, 2)
    else:
        axes = fig.subplots(2, 2, sharex="col")
    names = (
        ("sparseness", "sparseness of a logit's terms\n(mean |v|)² / mean v²"),
        ("n_recon", f"N_recon, terms for {share:.0%} of the logit"),
    )
    for row, (name, label) in zip(axes, names, strict=True):
        _draw_both(row[0], groups, name)
        _draw_differences(row[1], groups, name, upright=upright)
        row[0].set_ylabel(label)
        row[1].set_ylabel("a logit's value less its mean\nover random rotations")
    for ax in axes[-1]:
        _name_groups(ax, groups)
    axes[0, 0].set_title("singular vectors beside random rotations")
    axes[0, 1].set_title("paired differences (below 0: sparser than rotated)")
    legend_under(fig, [
        Line2D([], [], color=colour, lw=5.0, alpha=0.7, label=label)
        for colour, label in ((KEPT, "singular vectors"), (_CONTROL, "random rotations of them"))
    ])  # fmt: skip
    return fig


def decomposition_caption(groups: Sequence[DecomposedLogits], *, share: float) -> str:
    """What the boxes of decomposed logits show."""
    n = sum(len(_values(group, "sparseness")[0]) for group in groups)
    return (
        f"Logits of a head as sums over singular vectors, n = {n:,} logits in {len(groups)} "
        "groups: sparseness of a logit's terms, and N_recon, how many of them reach "
        f"{share:.0%} of it, for singular vectors and for random rotations of them; beside both, "
        "the difference of each logit from its mean over rotations (below 0: sparser than "
        "rotated). Boxes: quartiles over logits, a line at the median; whiskers: 5 % and 95 %. "
        "Sparseness has no unit, N_recon is in terms."
    )


def _values(group: DecomposedLogits, name: str) -> tuple[Array, Array, Array]:
    """Of logits that have both: values (pairs,), their means over rotations, and all rotated."""
    pairs, means, rotated = [], [], []
    for one in group.decompositions:
        observed = np.asarray(getattr(one, name), dtype=np.float64)
        controls = np.asarray(getattr(one, f"rotated_{name}"), dtype=np.float64)
        usable = np.isfinite(observed) & np.isfinite(controls).all(axis=0) & one.terms.any(axis=-1)
        pairs.append(observed[usable])
        means.append(controls[:, usable].mean(axis=0))
        rotated.append(controls[:, usable].ravel())
    if not pairs:
        return np.empty(0), np.empty(0), np.empty(0)
    return np.concatenate(pairs), np.concatenate(means), np.concatenate(rotated)


def _draw_both(ax: Axes, groups: Sequence[DecomposedLogits], name: str) -> None:
    pairs = [_values(group, name) for group in groups]
    for side, shift, colour in ((0, -0.19, KEPT), (2, 0.19, _CONTROL)):
        _boxes(ax, [pair[side] for pair in pairs], shift, colour, width=0.32)
    ax.set_ylim(bottom=0.0)


def _draw_differences(
    ax: Axes, groups: Sequence[DecomposedLogits], name: str, *, upright: bool
) -> None:
    ax.axhline(0.0, color="0.7", lw=0.8, zorder=0)
    differences = [observed - mean for observed, mean, _ in (_values(g, name) for g in groups)]
    _boxes(ax, differences, 0.0, KEPT, width=0.45)
    lower = [f"{(one < 0).mean():.0%} below 0" if one.size else "no logits" for one in differences]
    for place, text in enumerate(lower):
        said = text if upright else text.replace(" below", "\nbelow")
        ax.annotate(said, (place, 1.0), fontsize=8, va="top", rotation=90 if upright else 0,
                    xycoords=("data", "axes fraction"), ha="center")  # fmt: skip
    # Room for what is written above the boxes.
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + (0.6 if upright else 0.2) * (high - low))


def _boxes(ax: Axes, values: Sequence[Array], shift: float, colour: str, *, width: float) -> None:
    shown = [(place, one) for place, one in enumerate(values) if one.size]
    if shown:
        ax.boxplot(
            [one for _, one in shown], positions=[place + shift for place, _ in shown],
            widths=width, whis=(5, 95), showfliers=False, patch_artist=True, manage_ticks=False,
            boxprops={"facecolor": colour, "alpha": 0.7, "linewidth": 0.6},
            medianprops={"color": "black"},
        )  # fmt: skip


def _name_groups(ax: Axes, groups: Sequence[DecomposedLogits]) -> None:
    upright = len(groups) > _FEW
    ax.set_xticks(
        range(len(groups)), [group.label for group in groups], rotation=90 if upright else 0
    )
    ax.set_xlim(-0.6, len(groups) - 0.4)
